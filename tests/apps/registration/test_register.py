"""`registration register`, from the command line to files and exit codes."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image as Pillow
from pydicom.uid import generate_uid
from scipy.ndimage import gaussian_filter

from voxelwave.apps import cli
from voxelwave.apps.registration.scans import collected_notes
from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.registration.nestedmorph_files import save_nestedmorph
from voxelwave.registration.tissues import TissueNet, TrainedTissueNet, save_tissue_net
from voxelwave.runs.exit import DONE, ERROR, REFUSED, SOME_FAILED, USAGE
from voxelwave.volumes import Volume, VolumeWarning, read_transform, read_volume, write_volume
from voxelwave.volumes.dicom_registered import write_registered_series


def test_register_writes_all_results(result, scans):
    warped, fixed = read_volume(result / "warped.nii.gz"), read_volume(scans / "fixed.nii.gz")
    np.testing.assert_allclose(warped.affine, fixed.affine, atol=1e-5)
    assert np.corrcoef(warped.array.ravel(), fixed.array.ravel())[0, 1] > 0.98
    record = json.loads((result / "record.json").read_text())
    assert record["choice"]["line"].startswith("kept: ")
    assert record["choice"]["similarity"] in ("mi", "ncc")  # "auto" filled in
    assert len(record["inputs"]["moving"]["sha256"]) == 64
    assert record["metrics"]["dice_after"] > max(0.95, record["metrics"]["dice_before"])
    assert {"voxelwave", "torch", "antspyx"} <= set(record["versions"])
    assert (result / "picture.png").stat().st_size > 10_000
    np.testing.assert_allclose(read_transform(result / "affine.mat").matrix[:3, 3], [-4, 0, 0], atol=0.5)


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert cli.main(words) == USAGE
    assert "earlier run" in capsys.readouterr().err


def test_dicom_out_needs_dicom_in(scans, series, tmp_path, capsys):
    words = ["registration", "register", str(scans / "moving.nii.gz"), str(series / "fixed"), "-o", str(tmp_path)]
    assert cli.main([*words, "--dicom"]) == ERROR
    assert "--dicom needs a DICOM series" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


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


@pytest.mark.slow
def test_register_loads_neither_training_nor_ants():
    """A batch imports packages in every process, so ANTs is loaded for SyN only."""
    code = (
        "import sys\n"
        "import voxelwave.apps.registration.register\n"
        "heavy = {'lightning', 'monai', 'ants', 'sklearn', 'pandas'} & {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["MISSING", "MISSING"],
        ["--input", "MISSING", "--bids", "T1w,FLAIR"],
        ["--pairs", "MISSING"],
    ],
)
def test_a_missing_input_is_reported_before_torch_loads(words, tmp_path):
    words = ["registration", "register", *words, "-o", str(tmp_path / "out")]
    words = [str(tmp_path / "gone") if word == "MISSING" else word for word in words]
    code = (
        "import sys; from voxelwave.apps.cli import main\n"
        f"code = main({words!r})\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == ERROR, done.stderr
    assert "gone" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["ncc", "mi"])
def test_the_bytes_depend_neither_on_the_run_nor_on_the_threads(scans, tmp_path, similarity):
    files = ["warped.nii.gz", "forward.nii.gz", "inverse.nii.gz", "affine.mat", "picture.png"]
    words = ["registration", "register", str(scans / "moving.nii.gz"), str(scans / "fixed.nii.gz")]
    contents = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 1, 2):
            torch.set_num_threads(count)
            out = tmp_path / str(len(contents))
            assert cli.main([*words, "--similarity", similarity, "-o", str(out)]) == DONE
            contents.append([(out / name).read_bytes() for name in files])
    finally:
        torch.set_num_threads(threads)
    assert contents[0] == contents[1] == contents[2]


def test_masks_are_used_and_recorded(scans, tmp_path):
    mask = read_volume(scans / "fixed_labels.nii.gz")
    write_volume(tmp_path / "mask.nii.gz", mask.with_array((mask.array > 0).astype(np.uint8)))
    words = ["registration", "register", str(scans / "moving.nii.gz"), str(scans / "fixed.nii.gz")]
    out = tmp_path / "out"
    assert (
        cli.main([*words, "-o", str(out), "--transform", "rigid", "--fixed-mask", str(tmp_path / "mask.nii.gz")])
        == DONE
    )
    assert len(json.loads((out / "record.json").read_text())["inputs"]["fixed_mask"]["sha256"]) == 64
    np.testing.assert_allclose(read_transform(out / "affine.mat").matrix[:3, 3], [-4, 0, 0], atol=0.5)


def test_masks_in_the_table_of_a_folder_are_used_and_recorded(scans, tmp_path):
    labels = read_volume(scans / "fixed_labels.nii.gz")
    write_volume(tmp_path / "mask.nii.gz", labels.with_array((labels.array > 0).astype(np.uint8)))
    write_volume(tmp_path / "empty.nii.gz", labels.with_array(np.zeros(labels.shape, np.uint8)))
    files = f"{scans / 'moving.nii.gz'},{scans / 'fixed.nii.gz'}"
    table = tmp_path / "pairs.csv"
    table.write_text(f"moving,fixed,fixed_mask\n{files},mask.nii.gz\n{files},empty.nii.gz\n")
    words = ["registration", "register", "--pairs", str(table), "-o", str(tmp_path / "out"), "--transform", "rigid"]
    assert cli.main(words) == SOME_FAILED
    lines = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    done, failed = sorted(lines, key=lambda line: line["status"])
    assert done["status"] == "done"
    record = json.loads((tmp_path / "out" / done["case"] / "case.json").read_text())
    assert [line["role"] for line in record["inputs"]] == ["moving", "fixed", "fixed_mask"]
    assert "fixed_mask must have non-zero voxels" in failed["error"]


def test_pictures_are_aligned(tmp_path):
    rng = np.random.default_rng(0)
    tissue = np.zeros((70, 80))
    tissue[10:60, 12:66] = 120 + 60 * gaussian_filter(rng.standard_normal((50, 54)), 2) / 0.14
    for name, image in (("fixed", tissue), ("moving", np.roll(tissue, (3, -4), (0, 1)))):
        Pillow.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    words = ["registration", "register", str(tmp_path / "moving.png"), str(tmp_path / "fixed.png")]
    assert cli.main([*words, "-o", str(tmp_path / "out"), "--transform", "rigid"]) == DONE
    shift = read_transform(tmp_path / "out/affine.mat").matrix
    np.testing.assert_allclose(shift[:2, :2], np.eye(2), atol=0.01)
    np.testing.assert_allclose((shift @ [39, -34, 0, 1])[:3] - [39, -34, 0], [-4, -3, 0], atol=0.2)  # y goes up
    assert (tmp_path / "out/picture.png").stat().st_size > 10_000


@pytest.mark.slow
def test_weights_that_choose_regions_draw_where_they_searched(scans, tmp_path, capsys):
    torch.manual_seed(0)
    save_nestedmorph(tmp_path / "routed.safetensors", NestedMorph(mixer="bilevel(regions=2, top=2)"))
    words = ["registration", "register", str(scans / "moving.nii.gz"), str(scans / "fixed.nii.gz"), "--effort", "fast"]
    words += ["-o", str(tmp_path / "out")]
    assert cli.main([*words, "--weights", str(tmp_path / "routed.safetensors")]) == DONE
    assert "picture.png, searched.png" in capsys.readouterr().out
    assert (tmp_path / "out" / "searched.png").stat().st_size > 10_000
    assert cli.main([*words, "--overwrite"]) == DONE  # without the weights, the old picture is removed
    assert not (tmp_path / "out" / "searched.png").exists()


def test_scans_of_different_objects_are_refused_unless_a_warning_is_enough(tmp_path, capsys):
    for seed, name in enumerate(("a", "b")):
        axes = np.meshgrid(*[np.linspace(-1.3, 1.3, 36)] * 3, indexing="ij")
        texture = gaussian_filter(np.random.default_rng(seed).normal(size=(36,) * 3), 1.5)
        values = (sum(a**2 for a in axes) < 1) * (1 + 4 * texture)
        write_volume(tmp_path / f"{name}.nii.gz", Volume(values.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0])))
    words = ["registration", "register", str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz"), "--transform", "rigid"]
    out = tmp_path / "out"
    assert cli.main([*words, "-o", str(out)]) == REFUSED
    assert "refused: the scans may show different objects" in capsys.readouterr().err
    assert not (out / "warped.nii.gz").exists()
    assert cli.main([*words, "-o", str(out), "--guard", "warn"]) == DONE
    notes = json.loads((out / "record.json").read_text())["notes"]
    assert any("different objects" in note for note in notes)


@pytest.mark.filterwarnings("ignore::voxelwave.volumes.VolumeWarning")
def test_a_note_is_recorded_once():
    with collected_notes() as notes:
        for text in ("a note", "a note", "another"):
            warnings.warn(text, VolumeWarning, stacklevel=1)
    assert notes == ["a note", "another"]


def test_ct_is_refused_by_a_network_that_finds_tissues(scans, tmp_path, capsys):
    weights, ct = tmp_path / "tissues.safetensors", tmp_path / "ct.nii.gz"
    save_tissue_net(weights, TrainedTissueNet(TissueNet(width=8), 2.0), {})
    fixed = read_volume(scans / "fixed.nii.gz")
    write_volume(ct, fixed.with_array(np.where(fixed.array > 0, fixed.array / 2, -1000).astype(np.int16)))
    words = ["registration", "register", str(ct), str(scans / "moving.nii.gz"), "--weights", str(weights)]
    assert cli.main([*words, "-o", str(tmp_path / "out")]) == REFUSED
    error = capsys.readouterr().err
    assert "the network of --weights is for MR, and ct.nii.gz looks like CT" in error
    assert "--guard warn" in error
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_of_weights_is_one_line(scans, tmp_path, capsys):
    pair = [str(scans / name) for name in ("moving.nii.gz", "fixed.nii.gz")]
    words = ["registration", "register", *pair, "-o", str(tmp_path / "out"), "--weights", "brain-any-wish"]
    assert cli.main(words) == ERROR
    assert "weights must be a file or a name (" in capsys.readouterr().err
