"""`voxelwave eeg planted` without its fits: statements follow from figures, and the exit code from the statements."""

import csv
import json

import pytest

from voxelwave.apps.eeg import planted
from voxelwave.apps.eeg.nested_options import Planted
from voxelwave.eeg.study import read_rows
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.runs.exit import DONE, ERROR

GOOD = {"planted": [0.6, 0.9], "shuffled": [0.3, 0.7], "band": "alpha", "channels": ["O2", "Pz", "O1"]}


def _write_run(folder, interval, band, channels):
    """The figures that `planted` reads; the tests of the report check the results themselves."""
    metric = {"mean": sum(interval) / 2, "interval_nb": interval}
    model = {"metrics": {"balanced_accuracy": metric, "auc": metric, "brier": metric}}
    (folder / "explain").mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(
        json.dumps({"models": [model], "seconds": 1.5, "hardware": "small", "created": "2026-01-02"})
    )
    bands = [{"band": name, "importance": 0.5 if name == band else 0.1} for name in ("delta", "alpha", "other")]
    rows = [{"channel": name, "importance": 0.3 if name in channels else 0.05} for name in ("Fz", "O1", "O2", "Pz")]
    (folder / "explain" / "explanation.json").write_text(json.dumps({"bands": bands, "channels": rows}))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command with the given findings instead of fits; return the exit code, planted.json and the options."""
    asked = []

    def command(found):
        def nested_cv(options):
            asked.append(options)
            _write_run(options.output, found[options.output.name], found["band"], found["channels"])

        monkeypatch.setattr(planted, "nested_cv", nested_cv)
        monkeypatch.setattr(planted, "read_results", lambda folder: json.loads((folder / "results.json").read_text()))
        code = planted.planted(Planted(output=tmp_path / "out", subjects=8, seconds=2.0, seed=3))
        return code, json.loads((tmp_path / "out" / "planted.json").read_text()), asked

    return command


def test_a_difference_that_is_found_gives_success(run, capsys):
    code, found, asked = run(GOOD)
    assert code == DONE
    assert list(found["statements"].values()) == [True] * 4
    metric = {"mean": 0.75, "interval_nb": [0.6, 0.9]}
    assert found["planted"] == {"balanced_accuracy": metric, "auc": metric}
    assert found["seconds"] == {"planted": 1.5, "shuffled": 1.5}
    assert [(o.output.name, o.study.name, o.no_explanation) for o in asked] == [
        ("planted", "subjects.tsv", False),
        ("shuffled", "shuffled.tsv", True),
    ]
    assert capsys.readouterr().out.count("yes: ") == 4


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"planted": [0.5, 0.9]}),
        (1, {"band": "delta"}),
        (2, {"channels": ["O1", "O2", "Fz"]}),
        (3, {"shuffled": [0.51, 0.7]}),
        (3, {"shuffled": [0.3, 0.49]}),
    ],
)
def test_each_statement_can_be_false_and_makes_the_command_fail(number, change, run, capsys):
    code, found, _ = run(GOOD | change)
    assert code == ERROR
    assert [k for k, true in enumerate(found["statements"].values()) if not true] == [number]
    assert capsys.readouterr().out.count("NO: ") == 1


def test_an_interval_without_width_is_not_called_one(run, capsys):
    code, _, _ = run(GOOD | {"shuffled": [0.5, 0.5]})
    assert code == DONE
    shown = capsys.readouterr().out
    assert "the interval is not estimable, since all folds give 0.500" in shown
    assert "0.500 to 0.500" not in shown


def test_shuffled_labels_keep_recordings_and_class_sizes(tmp_path):
    write_synthetic_study(tmp_path, subjects=12, seconds=1, seed=1)
    before = read_rows(tmp_path / "subjects.tsv")
    path = planted._shuffled(tmp_path, 0)
    with path.open(newline="") as stream:
        after = list(csv.DictReader(stream, delimiter="\t"))
    assert [(row["subject"], row["file"]) for row in after] == [(row["subject"], row["file"]) for row in before]
    labels = [[row["label"] for row in rows] for rows in (before, after)]
    assert sorted(labels[0]) == sorted(labels[1])
    assert labels[0] != labels[1]
    assert path.read_bytes() == planted._shuffled(tmp_path, 0).read_bytes()
