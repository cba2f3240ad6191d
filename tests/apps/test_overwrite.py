"""The result of an earlier run is replaced only with --overwrite, and is there until the new one is complete."""

import inspect
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

from voxelwave.apps import cli
from voxelwave.apps.options import OutputOptions, ResumeOptions
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import save_weights
from voxelwave.runs.exit import DONE, ERROR, USAGE

from .test_cli import VERBS, _run_each

WRITES_NOTHING = {("doctor",), ("info",), ("completion",), ("weights",), ("bench", "kernels")}
CONTINUES = {("eeg", "planted"), ("eeg", "nested-cv")} | {
    (field, "cross-validate") for field in ("registration", "restoration", "scanpath")
}
OF_ITS_OWN = {("batch", "page"), ("batch", "benchmark")}  # writes again what it shows; takes no used folder


def _class(verb: list[str]) -> Any:
    return cli._load((cli.COMMANDS[verb[0]][verb[1]] if len(verb) > 1 else cli.TOP_LEVEL[verb[0]]).options)


REPLACING = [verb for verb in VERBS if issubclass(_class(verb), OutputOptions)]


def test_every_command_that_writes_a_result_asks_before_it_replaces_one():
    assert {tuple(v) for v in VERBS} - {tuple(v) for v in REPLACING} == WRITES_NOTHING | CONTINUES | OF_ITS_OWN


def _result(verb: list[str], folder: Path) -> dict[str, Any]:
    """A result of an earlier run of a command, and the options that name it."""
    options = _class(verb)
    parameters = inspect.signature(options).parameters
    given: dict[str, Any] = {n: folder / "missing" for n, p in parameters.items() if p.default is p.empty}
    if verb[-1] in ("restore", "diagnose", "predict"):
        given["input"] = folder
    if "part" in parameters:
        given["part"] = "cost"
    if options.output_is == "file":
        (folder / "result.tsv").write_text("earlier")
        return {**given, "output": folder / "result.tsv"}
    output = folder / "out"
    name = (*options.writes, "benchmark-cost.json")[0].replace("*", "1")
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text("earlier")
    return {**given, "output": output}


@pytest.mark.parametrize("verb", REPLACING, ids=" ".join)
def test_an_earlier_result_is_refused_and_other_files_are_not(verb, tmp_path):
    given = _result(verb, tmp_path)
    if verb[-1] == "apply":
        given |= {"output": tmp_path / "result.nii.gz", "image": [tmp_path / "a.nii.gz"]}
        given["output"].write_text("earlier")
    options = _class(verb)
    with pytest.raises(ValueError, match="--overwrite"):
        options(**given).check_earlier()
    options(**given, overwrite=True).check_earlier()
    if options.output_is == "file":
        options(**given | {"output": tmp_path / "other.tsv"}).check_earlier()
        return
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine") if name == "other" else None
        options(**given | {"output": tmp_path / name}).check_earlier()


@pytest.mark.parametrize("verb", [v for v in REPLACING if issubclass(_class(v), ResumeOptions)], ids=" ".join)
def test_a_training_that_resumes_replaces_its_weights(verb, tmp_path):
    _class(verb)(**_result(verb, tmp_path), resume=True).check_earlier()


def test_an_earlier_result_is_reported_before_a_heavy_package_loads(tmp_path):
    for name in ("out", "in"):
        (tmp_path / name).mkdir()
    for name in ("out/warped.nii.gz", "out/audit.json", "x.nii.gz", "y.nii.gz", "x.png", "y.png", "in/subjects.tsv"):
        (tmp_path / name).write_text("earlier")
    x, y, out = (str(tmp_path / name) for name in ("x.nii.gz", "y.nii.gz", "out"))
    results = _run_each(
        [
            ["registration", "register", x, x, "-o", out],
            ["registration", "apply", x, x, "--like", x, "-o", y],
            ["registration", "transform", x, "-o", y],
            ["registration", "transform", x, "--jacobian", y],
            ["restoration", "restore", str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png")],
            ["eeg", "audit", str(tmp_path / "in"), "-o", out],
            ["report", str(tmp_path), "-o", y],
        ]
    )
    assert [(words, code, loaded) for words, code, loaded in results if code != USAGE or loaded] == []


def test_an_input_is_not_replaced_even_with_overwrite(tmp_path, capsys):
    scan = tmp_path / "x.nii.gz"
    scan.write_text("mine")
    words = ["registration", "apply", str(scan), str(scan), "--like", str(scan), "-o", str(scan), "--overwrite"]
    assert cli.main(words) == USAGE
    assert "another path than the inputs" in capsys.readouterr().err
    assert scan.read_text() == "mine"


def test_a_run_that_would_mix_with_other_files_is_refused_early(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for field, words in {"eeg": ["nested-cv"], "scanpath": ["cross-validate"]}.items():
        assert cli.main([field, *words, str(tmp_path), "-o", str(tmp_path)]) == USAGE
        assert "is not empty and holds no plan.json" in capsys.readouterr().err


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = MaIR(in_channels=1, scale=1, upsampler=None, width=8, depths=(1,), states=1, stripe_width=4)
    for name, span, unit in (("w", (0, 1), "relative"), ("ct", (-1000, 2000), "HU")):
        save_weights(
            tmp_path / f"{name}.safetensors", network, task="denoise", intensity_range=span, intensity_unit=unit
        )
    return tmp_path / "w.safetensors"


def _picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def test_a_picture_is_replaced_only_with_overwrite_and_stays_if_the_run_fails(weights, tmp_path, capsys):
    _picture(tmp_path / "a.png")
    words = [
        "restoration",
        "restore",
        str(tmp_path / "a.png"),
        "-o",
        str(tmp_path / "b.png"),
        "--weights",
        str(weights),
    ]
    assert cli.main(words) == DONE
    first = (tmp_path / "b.png").read_bytes()
    _picture(tmp_path / "a.png", seed=1)
    assert cli.main(words) == USAGE
    assert "b.png exists already: give --overwrite to replace it" in capsys.readouterr().err
    _picture(tmp_path / "a.png", seed=1)
    pixels = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(pixels[:60])
    assert cli.main([*words, "--overwrite"]) == ERROR
    assert (tmp_path / "b.png").read_bytes() == first
    (tmp_path / "a.png").write_bytes(pixels)
    assert cli.main([*words, "--overwrite"]) == DONE
    assert (tmp_path / "b.png").read_bytes() != first


def test_two_formats_of_one_name_do_not_lose_a_record(weights, tmp_path, capsys):
    _picture(tmp_path / "a.png")
    words = ["restoration", "restore", str(tmp_path / "a.png"), "--weights", str(weights), "-o"]
    assert cli.main([*words, str(tmp_path / "b.png")]) == DONE
    assert cli.main([*words, str(tmp_path / "b.tif")]) == USAGE
    assert "b.restoration.json exists already" in capsys.readouterr().err


def test_a_series_is_replaced_as_a_whole(weights, write_ct, tmp_path):
    for name, slices in (("long", 6), ("short", 4)):
        write_ct(tmp_path / name, slices=slices)
    words = ["-o", str(tmp_path / "out"), "--weights", str(tmp_path / "ct.safetensors")]
    assert cli.main(["restoration", "restore", str(tmp_path / "long"), *words]) == DONE
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert cli.main(["restoration", "restore", str(tmp_path / "short"), *words]) == USAGE
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 6
    assert cli.main(["restoration", "restore", str(tmp_path / "short"), *words, "--overwrite"]) == DONE
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 4
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_continues_and_begins_anew_with_overwrite(weights, tmp_path):
    for name in "ab":
        _picture(tmp_path / "in" / f"{name}.png")
    words = ["restoration", "restore", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert cli.main(words) == DONE

    def times() -> dict[str, int]:
        return {p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/case.json")}

    first = times()
    assert cli.main(words) == DONE
    assert times() == first
    assert cli.main([*words, "--overwrite"]) == DONE
    assert all(times()[name] != time for name, time in first.items())
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["done", "done"]


def test_no_images_of_an_earlier_training_set_stay(tmp_path, capsys):
    distance = np.hypot(*np.mgrid[-60:60, -60:60])[..., None] * np.ones(3)
    nib.save(nib.Nifti1Image(np.where(distance < 45, 100.0, 0.0), np.diag([1, 1, 4, 1])), tmp_path / "scan.nii.gz")
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    for name in ("notes.txt", "train/earlier.png"):
        (out / name).write_text("x")
    words = ["restoration", "images", "-o", str(out), "--scans", str(tmp_path)]
    assert cli.main(words) == USAGE
    assert "holds the result of an earlier run (train/earlier.png)" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == DONE
    assert not (out / "train" / "earlier.png").exists()
    assert (out / "notes.txt").exists()


def test_the_registered_files_are_those_that_are_looked_for(tmp_path):
    """Every file that a registration writes is named in `writes`, so that none is replaced unasked."""
    rng = np.random.default_rng(0)
    blurred = np.kron(rng.uniform(size=(6, 6)), np.ones((8, 8)))
    for name in ("moving", "fixed"):
        Pillow.fromarray((255 * blurred).astype(np.uint8)).save(tmp_path / f"{name}.png")
    words = ["registration", "register", str(tmp_path / "moving.png"), str(tmp_path / "fixed.png"), "--jacobian"]
    words += ["--transform", "rigid", "--guard", "warn", "-o", str(tmp_path / "out")]
    assert cli.main(words) == DONE
    named = {path for name in _class(["registration", "register"]).writes for path in (tmp_path / "out").glob(name)}
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} - named == set()
