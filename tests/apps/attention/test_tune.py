"""`voxelwave attention tune` reports what it tried and keeps the network if nothing helps."""

import json

import pytest

from voxelwave.apps.attention.tune import in_words
from voxelwave.apps.cli import main
from voxelwave.attention_analysis.importance import Interval
from voxelwave.attention_analysis.tuning import KEPT, Attempt, Tuned
from voxelwave.scanpath.own_files import write_scanpaths
from voxelwave.scanpath.planted import planted_dataset

BEST = Attempt("a change", Interval(0.1, -0.1, 0.3))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Tuned(KEPT, [BEST], None), "kept as it is"),
        (Tuned("a change", [BEST], Interval(0.2, 0.1, 0.3)), "It also helps there"),
        (Tuned("a change", [BEST], Interval(0.2, -0.1, 0.3)), "does not help there"),
    ],
)
def test_the_words_follow_from_the_result(found, expected):
    assert expected in in_words(found, 5, 6)


def test_scenes_with_paths_are_tuned(tmp_path, capsys):
    write_scanpaths(planted_dataset(6, seed=3), tmp_path / "data.json")
    command = ["attention", "tune", "--input", str(tmp_path / "data.json"), "--weights", "planted-observer"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert len(record["calibration_layouts"]) == len(record["held_out_layouts"]) == 3
    assert not set(record["calibration_layouts"]) & set(record["held_out_layouts"])
    assert len(record["attempts"]) == 24 + 6 * 3
    assert (record["held_out"] is None) == (record["chosen"] == KEPT)
    assert "changes tried on 3 layouts" in capsys.readouterr().out


def test_too_few_layouts_are_reported(tmp_path, capsys):
    write_scanpaths(planted_dataset(2, seed=3), tmp_path / "data.json")
    command = ["attention", "tune", "--input", str(tmp_path / "data.json"), "--weights", "planted-observer"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 1
    assert "at least 4 layouts" in capsys.readouterr().err
