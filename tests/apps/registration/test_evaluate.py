"""`registration evaluate`, from the command line to tables and exit codes."""

import csv
import json

import numpy as np
import pytest

from voxelwave.apps import cli
from voxelwave.runs.exit import ERROR, SOME_FAILED, USAGE
from voxelwave.volumes import read_volume, write_volume


@pytest.mark.slow
def test_evaluate_continues_after_a_broken_pair_and_exits_with_3(scans, tmp_path):
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
    assert list(good)[:4] == ["subject", "moving", "fixed", "method"]
    assert broken["nmi_after"] == ""
    assert json.loads((tmp_path / "evaluation.json").read_text())["options"] == {
        "transform": "auto",
        "pe_axis": None,
        "similarity": "auto",
        "effort": "standard",
        "diffeomorphic": False,
        "device": "auto",
        "seed": 0,
    }


def test_masks_of_the_list_reach_the_registration(scans, tmp_path):
    fixed = read_volume(scans / "fixed.nii.gz")
    write_volume(tmp_path / "empty.nii.gz", fixed.with_array(np.zeros(fixed.shape, np.uint8)))
    write_volume(tmp_path / "half.nii.gz", fixed.with_array(np.full(fixed.shape, 0.5, np.float32)))
    scan = {role: scans / f"{role}.nii.gz" for role in ("moving", "fixed")}
    rows = [scan | {"fixed_mask": "empty.nii.gz"}, scan | {"moving_mask": "half.nii.gz"}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows, default=str))
    assert cli.main(["registration", "evaluate", str(tmp_path / "pairs.json"), "-o", str(tmp_path)]) == SOME_FAILED
    with (tmp_path / "evaluation.csv").open() as stream:
        empty, half = (row["error"] for row in csv.DictReader(stream))
    assert "fixed_mask must have non-zero voxels, got none" in empty
    assert "must hold whole numbers, 0 for the voxels to leave out, got fractions" in half


@pytest.mark.parametrize(
    ("words", "complaint", "code"),
    [
        (["--method", "nestedmorph"], "--weights", USAGE),
        (["--weights", "gone.safetensors", "--method", "field"], "needs --method nestedmorph", USAGE),
        (["--weights", "gone.safetensors"], "no file of weights at gone.safetensors", ERROR),
        (["--split", "test"], "must name a pair of split 'test'", ERROR),
        (["--cache", "FILE"], "must be a folder for the results, got a file", ERROR),
        (["--cache", "FILE/below"], "cannot be written: ", ERROR),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(scans, tmp_path, capsys, words, complaint, code):
    (scans / "one.csv").write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n")
    out = tmp_path / "out"
    words = [word.replace("FILE", str(scans / "one.csv")) for word in words]
    assert cli.main(["registration", "evaluate", str(scans / "one.csv"), "-o", str(out), *words]) == code
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error
    assert not out.exists()


def test_a_missing_list_is_named(tmp_path, capsys):
    assert cli.main(["registration", "evaluate", str(tmp_path / "gone.csv"), "-o", str(tmp_path / "out")]) == ERROR
    assert "no list of pairs at" in capsys.readouterr().err
