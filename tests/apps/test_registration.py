"""The registration commands, from the words a user types to the files and exit codes."""

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from scipy.ndimage import gaussian_filter

from voxelwave.apps import cli
from voxelwave.runs.exit import DONE, ERROR, SOME_FAILED, USAGE
from voxelwave.volumes import Volume, read_transform, read_volume, write_volume
from voxelwave.volumes.dicom_registered import write_registered_series


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A blob with two halves as labels, and the same 4 mm to the left in a 4-D series with b-values."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(3)
    shape = (36, 40, 28)
    axes = np.meshgrid(*[np.linspace(-1.5, 1.5, n) for n in shape], indexing="ij")
    head = sum(a**2 for a in axes) < 1
    image = (head * (1000 + 4000 * gaussian_filter(rng.normal(size=shape), 2))).astype(np.int16)
    labels = (head * np.where(axes[0] > 0, 2, 1)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    shifted = affine.copy()
    shifted[0, 3] = -4.0
    write_volume(folder / "fixed.nii.gz", Volume(image, affine))
    write_volume(folder / "fixed_labels.nii.gz", Volume(labels, affine))
    write_volume(folder / "moving.nii.gz", Volume(image, shifted))
    write_volume(folder / "moving_labels.nii.gz", Volume(labels, shifted))
    write_volume(folder / "series.nii.gz", Volume(np.stack([image, image // 2, image // 3], -1), shifted))
    (folder / "series.bval").write_text("0 1000 1000\n")
    (folder / "series.bvec").write_text("0 1 0\n0 0 1\n0 0 0\n")
    return folder


@pytest.fixture(scope="module")
def result(scans, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("result")
    words = ["registration", "register", str(scans / "moving.nii.gz"), str(scans / "fixed.nii.gz"), "-o", str(out)]
    labels = [
        "--moving-labels",
        str(scans / "moving_labels.nii.gz"),
        "--fixed-labels",
        str(scans / "fixed_labels.nii.gz"),
    ]
    assert cli.main([*words, *labels]) == DONE
    return out


def test_register_writes_what_it_says(result, scans):
    warped, fixed = read_volume(result / "warped.nii.gz"), read_volume(scans / "fixed.nii.gz")
    np.testing.assert_allclose(warped.affine, fixed.affine, atol=1e-5)
    assert np.corrcoef(warped.array.ravel(), fixed.array.ravel())[0, 1] > 0.98
    record = json.loads((result / "record.json").read_text())
    assert len(record["inputs"]["moving"]["sha256"]) == 64
    assert record["metrics"]["dice_after"] > max(0.95, record["metrics"]["dice_before"])
    assert {"voxelwave", "torch", "antspyx"} <= set(record["versions"])
    assert (result / "picture.png").stat().st_size > 10_000
    np.testing.assert_allclose(read_transform(result / "affine.mat").matrix[:3, 3], [-4, 0, 0], atol=0.5)


def test_apply_repeats_and_undoes_what_register_did(result, scans, tmp_path):
    def apply(image: Path, like: Path, out: str, *options: str) -> Volume:
        words = ["registration", "apply", str(result), str(image), "--like", str(like), "-o", str(tmp_path / out)]
        assert cli.main([*words, *options]) == DONE
        return read_volume(tmp_path / out)

    again = apply(scans / "moving.nii.gz", scans / "fixed.nii.gz", "again.nii.gz")
    np.testing.assert_allclose(again.array, read_volume(result / "warped.nii.gz").array, atol=1e-3)
    back = apply(scans / "fixed.nii.gz", scans / "moving.nii.gz", "back.nii.gz", "--inverse")
    assert np.corrcoef(back.array.ravel(), read_volume(scans / "moving.nii.gz").array.ravel())[0, 1] > 0.98
    labels = apply(scans / "moving_labels.nii.gz", scans / "fixed.nii.gz", "labels.nii.gz", "--labels")
    assert labels.array.dtype == np.int16
    assert set(np.unique(labels.array)) == {0, 1, 2}


def test_a_diffusion_series_moves_volume_by_volume_with_its_gradients(scans, tmp_path):
    words = ["registration", "register", str(scans / "series.nii.gz"), str(scans / "fixed.nii.gz")]
    assert cli.main([*words, "-o", str(tmp_path)]) == DONE
    warped = read_volume(tmp_path / "warped.nii.gz").array
    assert warped.shape == (36, 40, 28, 3)
    middle = warped[10:26, 12:28, 8:20]
    np.testing.assert_allclose(middle[..., 1] * 2, middle[..., 0], atol=3)
    vectors = np.loadtxt(tmp_path / "warped.bvec").T
    np.testing.assert_allclose(vectors, [[0, 0, 0], [1, 0, 0], [0, 1, 0]], atol=0.05)
    assert (tmp_path / "warped.bval").read_text() == (scans / "series.bval").read_text()


@pytest.fixture(scope="module")
def series(scans, write_ct, tmp_path_factory) -> Path:
    """The blob and the moved blob as two DICOM series of one patient."""
    folder = tmp_path_factory.mktemp("series")
    for name in ("moving", "fixed"):
        write_ct(folder / f"{name}_header")
        write_registered_series(
            folder / name,
            read_volume(scans / f"{name}.nii.gz"),
            folder / f"{name}_header",
            "a blob",
            frame_of_reference=generate_uid(),
        )
    return folder


def test_dicom_in_gives_dicom_out(series, tmp_path, capsys):
    words = ["registration", "register", str(series / "moving"), str(series / "fixed"), "-o", str(tmp_path)]
    assert cli.main(words) == DONE
    warped = read_volume(tmp_path / "warped.nii.gz")
    back = read_volume(tmp_path / "warped_dicom")
    np.testing.assert_allclose(back.affine, warped.affine, atol=1e-5)
    assert np.abs(back.array - warped.array).max() <= 0.5 + 1e-3
    image = pydicom.dcmread(next((tmp_path / "warped_dicom").iterdir()))
    fixed, moving = (pydicom.dcmread(next((series / name).iterdir())) for name in ("fixed", "moving"))
    transform = pydicom.dcmread(tmp_path / "registration.dcm")
    assert image.FrameOfReferenceUID == transform.FrameOfReferenceUID == fixed.FrameOfReferenceUID
    assert image.StudyInstanceUID == transform.StudyInstanceUID == moving.StudyInstanceUID
    capsys.readouterr()
    assert cli.main(words) == ERROR
    assert "earlier run" in capsys.readouterr().err


def test_dicom_out_needs_dicom_in(scans, series, tmp_path, capsys):
    words = ["registration", "register", str(scans / "moving.nii.gz"), str(series / "fixed"), "-o", str(tmp_path)]
    assert cli.main([*words, "--dicom"]) == ERROR
    assert "--dicom needs a DICOM series" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_evaluate_goes_on_after_a_broken_pair_and_exits_3(scans, tmp_path):
    (scans / "broken.nii.gz").write_bytes((scans / "moving.nii.gz").read_bytes()[:500])
    rows = "moving,fixed,moving_labels,fixed_labels\nbroken.nii.gz,fixed.nii.gz,,\n"
    rows += "moving.nii.gz,fixed.nii.gz,moving_labels.nii.gz,fixed_labels.nii.gz\n"
    (scans / "pairs.csv").write_text(rows)
    words = ["registration", "evaluate", str(scans / "pairs.csv"), "-o", str(tmp_path)]
    assert cli.main(words) == SOME_FAILED
    with (tmp_path / "evaluation.csv").open() as stream:
        broken, good = csv.DictReader(stream)
    assert "broken.nii.gz" in broken["error"]
    assert float(good["dice_after"]) > 0.95
    assert json.loads((tmp_path / "evaluation.json").read_text())["summary"]["field"]["dice_after"]["n"] == 1


@pytest.mark.parametrize(
    ("words", "complaint", "code"),
    [
        (["--method", "nestedmorph"], "weights", USAGE),
        (["--weights", "missing.safetensors"], "missing.safetensors", ERROR),
        (["--moving-labels", "missing.nii.gz"], "missing.nii.gz", ERROR),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(scans, tmp_path, capsys, words, complaint, code):
    start = ["registration", "register", str(scans / "moving.nii.gz"), str(scans / "fixed.nii.gz")]
    assert cli.main([*start, "-o", str(tmp_path / "out"), *words]) == code
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()
