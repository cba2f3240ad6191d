"""`registration benchmark`: each part, on small phantoms instead of the scans."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.apps import cli
from voxelwave.apps.registration.benchmark import means_of_labels
from voxelwave.registration.benchmark_model import ModelCost
from voxelwave.registration.benchmark_training import OVERFIT
from voxelwave.registration.nestedmorph_files import load_nestedmorph
from voxelwave.runs.exit import DONE, ERROR, USAGE
from voxelwave.volumes import Volume, read_volume, write_volume

AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])
SHAPE = (30, 32, 28)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A textured ball with two shells as labels, in the folders and formats of the real scans."""
    folder = tmp_path_factory.mktemp("data")
    axes = np.meshgrid(*[np.linspace(-1.4, 1.4, n) for n in SHAPE], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    texture = gaussian_filter(np.random.default_rng(1).normal(size=SHAPE), 1.5)
    image = np.clip((radius < 1) * (300 + 100 * texture / texture.std() + 150 * (radius < 0.6)), 0, None)
    image = image.astype(np.float32)
    labels = np.select([radius < 0.5, radius < 1], [10, 1001], 0).astype(np.int32)

    patient = folder / "mri_ms_multimodal/mni/patient07"
    write_volume(patient / "patient07_T1.nii.gz", Volume(image, AFFINE))
    write_volume(patient / "patient07_T2.nii.gz", Volume(np.where(image > 0, 900 - image, 0), AFFINE))

    people = folder / "mri_t1_labels"
    (people / "voxelmorph_test_scan").mkdir(parents=True)
    (people / "mrtrix_sub-01").mkdir()
    np.savez(people / "voxelmorph_test_scan/test_scan.npz", vol=image, seg=np.where(labels == 1001, 3, labels))
    # the fixed affine of that file with a spacing of 1 mm: the same ball at the same position
    place = np.array([[-1.0, 0, 0, 80], [0, 0, 1, -112], [0, -1, 0, 96], [0, 0, 0, 1]])
    nib.save(nib.MGHImage(image, place), people / "mrtrix_sub-01/norm.mgz")
    nib.save(nib.MGHImage(labels, place), people / "mrtrix_sub-01/aparc+aseg.mgz")

    write_volume(folder / "mri_t1_dwi/sub-xa30/anat/sub-xa30_T1w.nii.gz", Volume(image, AFFINE))
    dwi = folder / "mri_t1_dwi/sub-xa30/dwi/sub-xa30_dwi.nii.gz"
    write_volume(dwi, Volume(np.stack([900 * (image > 0) - image, image / 2], axis=-1), AFFINE))
    dwi.with_name("sub-xa30_dwi.bval").write_text("0 1000\n")
    return folder


@pytest.fixture
def no_affine(monkeypatch):
    """Skip the affine fits, which have their own tests and take most of the time; the phantoms are aligned."""
    for name in ("register", "data"):
        module = importlib.import_module(f"voxelwave.registration.{name}")
        monkeypatch.setattr(module, "align_affine", lambda *args, **kwargs: np.eye(4))
    register = importlib.import_module("voxelwave.registration.register")
    monkeypatch.setattr(register, "warn_if_mirrored", lambda *args, **kwargs: None)


def rows_of(part: str, data: Path, output: Path, *more: str) -> list[dict]:
    words = ["registration", "benchmark", str(data), "-o", str(output), "--part", part, "--seeds", "1", *more]
    assert cli.main(words) == DONE
    record = json.loads((output / f"benchmark-{part}.json").read_text())
    assert record["threads"] == 2
    assert all(len(found["sha256"]) == 64 for found in record["inputs"].values())
    return record["rows"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_affine")
def test_field_compares_ours_with_syn(data, tmp_path):
    rows = rows_of("field", data, tmp_path)
    assert [row["method"] for row in rows] == ["field", "syn"]
    assert rows[0]["initial_mm"] == rows[1]["initial_mm"] > 1
    for row in rows:
        assert row["ratio"] == pytest.approx(row["error_mm"] / row["initial_mm"])
        assert row["seconds"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_affine")
def test_labels_are_compared_in_both_directions(data, tmp_path, capsys):
    rows = rows_of("labels", data, tmp_path, "--spacings", "[1.0]", "--methods", "[standard,diffeomorphic]")
    assert len(rows) == 4
    assert len({row["pair"] for row in rows}) == 2
    for row in rows:
        assert set(row["dice_by_label"]) == {"3", "10"}  # 1001 counts as cortex
        assert row["dice"] > 0.95, row  # both people are the same ball
    assert "dice_by_label" not in capsys.readouterr().out  # too long for the table


@pytest.mark.slow
@pytest.mark.usefixtures("no_affine")
def test_contrasts_are_compared_in_both_directions(data, tmp_path, monkeypatch):
    t1 = data / "mri_t1_labels/mrtrix_sub-01/norm.mgz"
    scan = read_volume(t1)
    other = scan.with_array(np.where(scan.array > 0, 900 - scan.array, 0).astype(np.float32))
    write_volume(tmp_path / "other.nii.gz", other)
    files = {"T1w": t1, "T2w": tmp_path / "other.nii.gz"}
    monkeypatch.setattr("voxelwave.apps.registration.benchmark._patients", lambda data: {"patient07": files})
    words = ["--spacings", "[1.0]", "--methods", "[affine,tissues]"]
    rows = rows_of("contrasts", data, tmp_path, *words)
    both = ["patient07 T2w -> voxelmorph", "voxelmorph -> patient07 T2w"]
    assert [(row["pair"], row["method"]) for row in rows] == [
        (pair, method) for pair in both for method in ("affine", "tissues")
    ]
    assert not any(row["held_out"] for row in rows)
    monkeypatch.setattr("voxelwave.apps.registration.benchmark.label_benchmark", None)  # nothing is missing
    assert rows_of("contrasts", data, tmp_path, *words, "--resume") == rows


@pytest.mark.slow
@pytest.mark.usefixtures("no_affine")
def test_resume_measures_only_what_is_missing(data, tmp_path, monkeypatch, capsys):
    words = ["--spacings", "[1.0]", "--methods"]
    rows = rows_of("labels", data, tmp_path, *words, "[standard]")
    record = tmp_path / "benchmark-labels.json"
    kept = json.loads(record.read_text())
    kept["rows"] = [rows[1] | {"dice": 0.25, "cortex": None}]  # the first direction is missing
    record.write_text(json.dumps(kept))
    again = rows_of("labels", data, tmp_path, *words, "[standard,diffeomorphic]", "--resume")
    found = {(row["pair"], row["method"]): row["dice"] for row in again}
    assert len(found) == len(again) == 4
    assert found.pop((rows[1]["pair"], "standard")) == 0.25
    assert min(found.values()) > 0.95
    means = {row["method"]: row for row in json.loads(record.read_text())["means"]}
    assert means["standard"]["cortex"] > 0.95  # of the direction that has one

    command = ["registration", "benchmark", str(data), "-o", str(tmp_path), "--part", "labels", "--resume"]
    assert cli.main([*command, "--seeds", "2"]) == USAGE
    assert "was measured with --threads 2 --seeds 1, got --threads 2 --seeds 2" in capsys.readouterr().err
    monkeypatch.setattr("voxelwave.apps.registration.benchmark.sha256", lambda path: "0" * 64)
    assert cli.main([*command, "--seeds", "1"]) == USAGE
    assert "was measured on another scan in place of" in capsys.readouterr().err


@pytest.mark.slow
def test_diffusion_measures_the_chosen_methods_in_both_directions(data, tmp_path, monkeypatch):
    monkeypatch.setattr("voxelwave.registration.rigid._LEVELS", ((8.0, 1000),))
    rows = rows_of("diffusion", data, tmp_path, "--methods", "[identity,rigid]")
    assert [row["method"] for row in rows] == ["identity", "rigid"] * 2
    assert len({row["pair"] for row in rows}) == 2
    for row in rows:
        assert row["consistency_mm"] > 0
        assert row["seconds"] > 0
    monkeypatch.setattr("voxelwave.apps.registration.benchmark.diffusion_benchmark", None)  # nothing is missing
    again = rows_of("diffusion", data, tmp_path, "--methods", "[identity,rigid]", "--resume")
    assert [(row["method"], row["consistency_mm"]) for row in again] == [
        (row["method"], row["consistency_mm"]) for row in rows
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("no_affine")
@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*validation_step.*")
def test_training_registers_with_the_weights_that_it_fitted(data, tmp_path, monkeypatch):
    monkeypatch.setattr("voxelwave.registration.nestedmorph.WIDTHS", (16, 32, 64, 128))
    tiny = replace(OVERFIT, spacing_mm=5.0, size=(32, 32, 32), epochs=2)
    monkeypatch.setattr("voxelwave.apps.registration.benchmark.OVERFIT", tiny)
    rows = rows_of("training", data, tmp_path)
    assert [row["flow_head"] for row in rows] == ["published", "quarter"]
    for row in rows:
        assert row["steps"] == 2
        assert row["labels"] == 1  # labels 10 and 1001 against 3 and 10
        assert row["registered_dice_after"] > 0.9
        assert load_nestedmorph(row["weights"]).flow_head == row["flow_head"]


def test_cost_needs_no_scans(tmp_path, monkeypatch):
    cost = ModelCost((32, 32, 32), "forward", seconds=0.2, fastest=0.1, slowest=0.3, repeats=1, peak_mib=5.0)
    monkeypatch.setattr("voxelwave.apps.registration.benchmark.model_cost_table", lambda: [cost])
    (row,) = rows_of("cost", tmp_path / "no-scans", tmp_path)
    assert (row["size"], row["mode"], row["seconds"]) == ("32x32x32", "forward", 0.2)


@pytest.mark.slow
def test_peer_needs_no_scans_and_leaves_out_large_images_if_quick(tmp_path, monkeypatch):
    module = "voxelwave.apps.registration.benchmark"
    monkeypatch.setattr(f"{module}.SMALL", (((32, 32, 32), "forward", 1),))
    (row,) = rows_of("peer", tmp_path / "no-scans", tmp_path, "--quick")
    assert (row["size"], row["peer"]) == ("32x32x32", "plain")
    monkeypatch.setattr(f"{module}.LARGE", (((32, 64, 32), "forward", 1),))
    assert [row["size"] for row in rows_of("peer", tmp_path, tmp_path, "--overwrite")] == ["32x32x32", "32x64x32"]


@pytest.mark.parametrize(
    ("words", "complaint", "code"),
    [
        (["--seeds", "0"], "--seeds must be at least 1", USAGE),
        (["--threads", "0"], "--threads must be at least 1", USAGE),
        ([], "no folder of scans at", ERROR),
        (["--part", "cost", "--resume"], "--resume needs --part labels, contrasts or diffusion, got cost", USAGE),
        (["--part", "labels", "--resume", "--overwrite"], "give only one", USAGE),
        (["--part", "peer", "--published", "gone.py"], "no file with the published model at gone.py", ERROR),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, words, complaint, code):
    gone = str(tmp_path / "gone")
    assert cli.main(["registration", "benchmark", gone, "-o", str(tmp_path / "out"), *words]) == code
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error


def test_methods_of_another_part_are_refused(data, tmp_path, capsys):
    words = ["registration", "benchmark", str(data), "-o", str(tmp_path), "--part", "diffusion", "--methods", "[fast]"]
    assert cli.main(words) == USAGE
    assert "--methods of the part diffusion must be identity, rigid" in capsys.readouterr().err


def test_a_method_that_is_not_installed_has_dashes(monkeypatch):
    monkeypatch.setattr("voxelwave.registration.convexadam.available", lambda: False)
    row = {"spacing_mm": 2.0, "method": "fast", "dice": 0.7, "held_out": True}
    row |= {"cortex": 0.6, "sdlogj": 0.1, "cpu_seconds": 5.0}
    fast, absent = means_of_labels([row], ["fast", "convexadam"])
    assert (fast["method"], fast["dice"], fast["dice_held_out"]) == ("fast", 0.7, 0.7)
    assert absent == dict.fromkeys(fast, "-") | {"spacing_mm": 2.0, "method": "convexadam"}
    assert len(means_of_labels([row], ["fast"])) == 1
