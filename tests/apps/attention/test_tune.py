"""`voxelwave attention tune` reports what it tried and keeps the network if nothing helps."""

import json

import pytest
import torch

from voxelwave.apps.attention.tunable import Tunable, recording_tunable
from voxelwave.apps.attention.tune import in_words
from voxelwave.apps.cli import main
from voxelwave.attention_analysis.importance import Interval
from voxelwave.attention_analysis.tuning import KEPT, Attempt, Tuned
from voxelwave.eeg.networks import load_network
from voxelwave.scanpath.own_files import write_scanpaths
from voxelwave.scanpath.planted import planted_dataset

ON = Tunable(
    torch.nn.Identity(), "layout", "nats", (["a"] * 5, ["b"] * 6), torch.zeros, torch.zeros, {}, {}, (), []
)  # fmt: skip
BEST = Attempt("a change", Interval(0.1, -0.1, 0.3))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Tuned(KEPT, [BEST], None, 1.0), "kept as it is"),
        (Tuned("a change", [BEST], Interval(0.2, 0.1, 0.3), 1.0), "It also helps there"),
        (Tuned("a change", [BEST], Interval(0.2, -0.1, 0.3), 1.0), "does not help there"),
    ],
)
def test_the_words_follow_from_the_result(found, expected):
    assert expected in in_words(found, ON)


def test_scenes_with_paths_are_tuned(tmp_path, capsys):
    write_scanpaths(planted_dataset(6, seed=3), tmp_path / "data.json")
    command = ["attention", "tune", "--input", str(tmp_path / "data.json"), "--weights", "planted-observer"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert len(record["calibration_layouts"]) == len(record["held_out_layouts"]) == 3
    assert not set(record["calibration_layouts"]) & set(record["held_out_layouts"])
    assert len(record["attempts"]) == 24 + 6 * 3 + 2 * (6 * 3 + 2)
    assert "emphasised in layer" in (tmp_path / "out" / "tune.html").read_text()
    assert (record["held_out"] is None) == (record["chosen"] == KEPT)
    assert "changes tried on 3 layouts" in capsys.readouterr().out


def test_too_few_layouts_are_reported(tmp_path, capsys):
    write_scanpaths(planted_dataset(2, seed=3), tmp_path / "data.json")
    command = ["attention", "tune", "--input", str(tmp_path / "data.json"), "--weights", "planted-observer"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 1
    assert "at least 4 layouts" in capsys.readouterr().err


def test_a_study_is_tuned_by_person(study, capsys):
    command = ["attention", "tune", str(study), "--weights", str(study / "weights")]
    assert main([*command, "-o", str(study / "out")]) == 0
    record = json.loads((study / "out" / "tune.json").read_text())
    halves = record["calibration_subjects"], record["held_out_subjects"]
    assert [len(half) for half in halves] == [6, 4]  # 3 and 2 of each class
    assert not set(halves[0]) & set(halves[1])
    assert not {"p0", "p1"} & {*halves[0], *halves[1]}
    names = {attempt["name"] for attempt in record["attempts"]}
    assert "the loudest seconds weakened in layer 0" in names
    assert "changes tried on 6 subjects" in capsys.readouterr().out


def test_the_loudest_seconds_are_the_group(study):
    network, card = load_network(study / "weights")
    on = recording_tunable(network, card, study, most=60, seed=0)
    on.calibration()
    loud, others = on.groups
    assert int(loud.mask.sum()) == 2  # a tenth of 15 s
    assert torch.equal(loud.mask, ~others.mask)


def test_a_study_with_too_few_new_people_is_reported(study, capsys):
    rows = (study / "subjects.tsv").read_text().splitlines()
    (study / "subjects.tsv").write_text("\n".join(rows[:5]) + "\n")
    command = ["attention", "tune", str(study), "--weights", str(study / "weights")]
    assert main([*command, "-o", str(study / "out")]) == 1
    assert "at least 2 people of each class that the weights were not trained on, got 1" in capsys.readouterr().err
