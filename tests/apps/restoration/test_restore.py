"""The restore command: files, exit codes and refusals."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import nrrd
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from voxelwave.apps.cli import main
from voxelwave.apps.restoration.work import batch_work
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import save_weights
from voxelwave.runs.exit import ERROR, REFUSED, SOME_FAILED, USAGE
from voxelwave.volumes import Volume, read_volume, write_volume


def _restore(folder: Path, source: str, target: str, *words: str, weights: str = "w") -> int:
    command = ["restoration", "restore", "-i", str(folder / source), "-o", str(folder / target)]
    return main([*command, "--weights", str(folder / f"{weights}.safetensors"), "--device", "cpu", *words])


def test_picture_is_restored_with_a_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _restore(folder, "in/a.png", "out.png", "--tile", "16", "--overlap", "0.25", "--self-ensemble") == 0
    assert np.asarray(Pillow.open(folder / "out.png")).shape == (24, 30)
    record = json.loads((folder / "out.restoration.json").read_text())
    assert record["options"]["tile"] == 16
    assert set(record["inputs"]) == {"input", "weights"}
    assert "bias" in record["change"]
    assert "bias (mean of result - input)" in capsys.readouterr().out


def test_a_known_noise_level_is_used_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _restore(folder, "in/a.png", "blind.png") == 0
    assert _restore(folder, "in/a.png", "told.png", "--sigma", "12.5") == 0
    lines = capsys.readouterr().out
    assert "noise level, given                12.5 (4.9 % of the range)" in lines
    assert "removed by the formula" in lines
    record = json.loads((folder / "told.restoration.json").read_text())
    assert (record["options"]["sigma"], record["noise"]["sigma"]) == (12.5, 12.5)
    blind, told = (np.asarray(Pillow.open(folder / name)).astype(float) for name in ("blind.png", "told.png"))
    assert not np.array_equal(told, blind)
    for wrong in ("0", "-3", "nan"):
        assert _restore(folder, "in/a.png", "out.png", "--sigma", wrong) == USAGE
    assert _restore(folder, "in/a.png", "out.png", "--sigma", "999") == REFUSED
    assert "below the largest value" in capsys.readouterr().err


def test_a_larger_result_gets_a_page_too(folder: Path) -> None:
    network = MaIR(in_channels=1, scale=2, width=8, depths=(1,), states=1, stripe_width=4)
    save_weights(folder / "twice.safetensors", network, task="sr", intensity_range=(0, 1), intensity_unit="relative")
    assert _restore(folder, "in/a.png", "out.png", weights="twice") == 0
    page = (folder / "out.restoration.html").read_text()
    picture = base64.b64decode(re.findall(r'src="data:image/png;base64,([^"]+)"', page)[0])
    before, after, _ = np.split(np.asarray(Pillow.open(io.BytesIO(picture))), 3, axis=1)
    assert before.shape == after.shape == (48, 60)
    np.testing.assert_array_equal(before[::2, ::2], before[1::2, 1::2])


@pytest.mark.slow
def test_folder_is_restored_file_by_file(folder: Path) -> None:
    assert _restore(folder, "in", "out") == 0
    assert {p.name for p in (folder / "out").glob("*/*.png")} == {"a.png", "b.png"}
    Pillow.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "in/colour.png")
    assert _restore(folder, "in", "again") == SOME_FAILED  # the colour image was refused
    assert {p.name for p in (folder / "again").glob("*/*.png")} == {"a.png", "b.png"}


@pytest.mark.filterwarnings("ignore")
def test_nrrd_in_a_folder_becomes_nifti(folder: Path) -> None:
    place = {"space": "left-posterior-superior", "space directions": np.diag([1.0, 2, 3]), "space origin": [4, 5, 6]}
    (folder / "nrrd").mkdir()
    nrrd.write(str(folder / "nrrd" / "a.nrrd"), np.arange(480, dtype=np.int16).reshape(10, 12, 4), place)
    assert _restore(folder, "nrrd", "out") == 0
    (result,) = (folder / "out").glob("*/*.nii.gz")
    restored = read_volume(result)
    assert (result.name, restored.array.shape, restored.array.dtype) == ("a.nii.gz", (10, 12, 4), np.int16)
    np.testing.assert_allclose(restored.affine, read_volume(folder / "nrrd" / "a.nrrd").affine)


@pytest.mark.filterwarnings("ignore")
def test_volume_keeps_place_and_type(folder: Path) -> None:
    values = np.random.default_rng(0).integers(-900, 1800, (12, 14, 3)).astype(np.int16)
    write_volume(folder / "v.nii.gz", Volume(values, np.diag([-0.5, 0.5, 3.0, 1.0])))
    assert _restore(folder, "v.nii.gz", "out.nii.gz", "--range", "hu:-1000,2000", weights="ct") == 0
    restored = read_volume(folder / "out.nii.gz")
    assert restored.array.dtype == np.int16
    np.testing.assert_allclose(restored.affine, np.diag([-0.5, 0.5, 3.0, 1.0]))


def test_a_modality_that_the_card_rules_out_needs_an_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).uniform(0, 900, (12, 14, 1)).astype(np.int16)
    write_volume(folder / "pet.nii.gz", Volume(values, np.eye(4)))
    (folder / "pet.json").write_text('{"Modality": "PT"}')
    words = ["restoration", "restore", "-i", str(folder / "pet.nii.gz"), "-o", str(folder / "out.nii.gz")]
    assert main([*words, "--weights", "denoise-grey"]) == REFUSED
    assert "denoise-grey is not for PT" in capsys.readouterr().err
    assert not (folder / "out.nii.gz").exists()
    assert main([*words, "--weights", "denoise-grey", "--ignore-card"]) == 0


def test_weights_that_do_not_apply_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _restore(folder, "in/a.png", "out.png", weights="ct") == REFUSED
    assert "CT numbers" in capsys.readouterr().err
    assert _restore(folder, "in/a.png", "out.png", "--task", "deblur") == REFUSED
    assert "denoise" in capsys.readouterr().err
    assert _restore(folder, "in/a.png", "out.png", "--max-bias", "0.0") == REFUSED
    assert not (folder / "out.png").exists()


def test_the_input_is_never_overwritten(folder: Path) -> None:
    before = (folder / "in/a.png").read_bytes()
    for words in ([], ["--overwrite"]):
        assert _restore(folder, "in/a.png", "in/a.png", *words) == USAGE
    assert (folder / "in/a.png").read_bytes() == before


def test_the_result_does_not_appear_without_its_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out.restoration.json").mkdir()
    assert _restore(folder, "in/a.png", "out.png", "--overwrite") == ERROR
    assert "out.restoration.json" in capsys.readouterr().err
    assert not (folder / "out.png").exists()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("words", "reason", "code"),
    [
        (["--threads", "0"], "--threads must be at least 1, got 0", USAGE),
        (["--max-bias", "-1"], "--max-bias must be at least 0, got -1", USAGE),
        (["--tile", "0"], "--tile must be at least 1, got 0", USAGE),
        (["--overlap", "0.6"], "--overlap must be from 0 to 0.5, got 0.6", USAGE),
        (["--dry-run"], "need a folder, got", USAGE),
        (["--modality", "MR"], "need a folder, got", USAGE),
        (["--device", "cuda"], "--device cuda needs a CUDA GPU", ERROR),
    ],
)
def test_wrong_options_are_named(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    reason: str,
    code: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _restore(folder, "in/a.png", "out.png", *words) == code
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("target", ["out", "out.nii.gz", "out.jpg"])
def test_outputs_that_cannot_hold_the_result_are_refused_before_the_network_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr("voxelwave.apps.restoration.work.restore_stack", lambda *_, **__: pytest.fail("it ran"))
    assert _restore(folder, "in/a.png", target) == ERROR
    assert target in capsys.readouterr().err
    assert not (folder / target).exists()


@pytest.mark.parametrize(("missing", "said"), [("input", "no file or folder at"), ("weights", "no file of weights at")])
def test_a_missing_input_is_named_before_torch_loads(folder: Path, missing: str, said: str) -> None:
    paths = {"input": folder / "in/a.png", "weights": folder / "w.safetensors", missing: folder / "missing.safetensors"}
    words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    script = (
        "import sys; from voxelwave.apps.cli import main;"
        f"code = main(['restoration', 'restore', '-o', 'out.png', *{words!r}]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=False)
    assert (done.returncode, said in done.stderr) == (ERROR, True), done.stderr


@pytest.mark.slow
def test_restoring_loads_neither_the_training_nor_the_evaluation_stack(folder: Path) -> None:
    words = ["restoration", "restore", "-i", str(folder / "in/a.png"), "-o", str(folder / "out.png")]
    words += ["--weights", str(folder / "w.safetensors"), "--device", "cpu"]
    heavy = ("lightning", "monai", "sklearn", "skimage", "ants", "mne", "matplotlib")
    script = (
        "import sys; from voxelwave.apps.cli import main;"
        f"assert main({words!r}) == 0; print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_half_the_tile_is_the_next_smaller_work(folder: Path) -> None:
    work = batch_work(weights=str(folder / "w.safetensors"), task=None, device="cpu", tile=100)
    half = work.smaller()
    assert half is not None
    assert half.size_in_words == "--tile 50"
    assert half.smaller() is None  # 25 is below the smallest tile


@pytest.mark.slow
def test_the_manifest_lists_the_settings_in_their_order(folder: Path) -> None:
    assert _restore(folder, "in", "out", "--tile", "64") == 0
    entry = json.loads((folder / "out/manifest.jsonl").read_text().splitlines()[0])
    assert list(entry["options"].items()) == [
        ("range", "auto"),
        ("tile", 64),
        ("overlap", 0.1),
        ("self_ensemble", False),
        ("slice_axis", 2),
        ("variant", None),
        ("stripe_width", None),
        ("max_bias", None),
    ]
