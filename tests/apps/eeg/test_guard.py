"""Training is refused if people or recordings would be on both sides of a split."""

import json

import mne
import pytest

from voxelwave.apps import cli
from voxelwave.eeg.audit import SHARED
from voxelwave.eeg.study import read_study
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.eeg.training import validation_split
from voxelwave.runs.exit import ERROR, REFUSED

NESTED = ["--models", "[bandpower,majority]", "--outer", "2", "--inner", "2", "--no-explanation", "--trials", "1"]
TRAIN = ["--epochs", "1", "--settings", "{F1: 2, D: 2, kernel_length: 16}", "--threads", "1"]


@pytest.fixture
def study(tmp_path):
    """Twelve people, and a function that adds rows to their table."""
    folder = tmp_path / "study"
    write_synthetic_study(folder, subjects=12, seconds=8, difference_uv=0, seed=2)

    def add(*rows):
        table = folder / "subjects.tsv"
        columns = table.read_text().splitlines()[0].split("\t")
        lines = ["\t".join(str(row.get(c, "n/a")) for c in columns) for row in rows]
        table.write_text(table.read_text() + "\n".join(lines) + "\n")
        return folder

    return add


def _louder_copy(folder, subject):
    """A copy of a recording with another gain and sign, so that it has another hash."""
    raw = mne.io.read_raw_fif(subject.file, preload=True, verbose="ERROR")
    raw.apply_function(lambda x: -0.5 * x, verbose="ERROR")
    raw.save(folder / "copy_raw.fif", verbose="ERROR")


def test_nested_cv_trains_nothing_if_its_audit_fails(study, tmp_path, capsys):
    folder = study()
    first = read_study(folder).subjects[0]
    _louder_copy(folder, first)
    study({"subject": "copy", "file": "copy_raw.fif", "label": first.label})
    command = ["eeg", "nested-cv", str(folder), *NESTED]
    assert cli.main([*command, "-o", str(tmp_path / "run")]) == REFUSED
    assert "duplicate recordings" in capsys.readouterr().out
    assert not (tmp_path / "run" / "results.json").exists()
    assert not list((tmp_path / "run").glob("cells/*"))
    assert cli.main([*command, "-o", str(tmp_path / "run"), "--allow-leakage"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert any("--allow-leakage" in line for line in results["limits"])
    assert "--allow-leakage" in (tmp_path / "run" / "report.html").read_text()


def test_one_recording_under_two_labels_is_refused(study, tmp_path, capsys):
    folder = study()
    first = read_study(folder).subjects[0]
    other = next(c for c in read_study(folder).classes if c != first.label)
    study({"subject": "twin", "file": first.file.name, "label": other})
    for command in (["nested-cv", *NESTED], ["train", *TRAIN]):
        verb, *words = command
        assert cli.main(["eeg", verb, str(folder), "-o", str(tmp_path / verb), *words, "--no-audit"]) == ERROR
        assert f"{first.subject} and twin are the same recording, with the labels" in capsys.readouterr().err


def test_train_keeps_copies_on_one_side_and_refuses_what_it_cannot_keep(study, tmp_path, capsys):
    folder = study()
    people = read_study(folder).subjects
    study(*({"subject": f"{s.subject}-again", "file": s.file.name, "label": s.label} for s in people))
    command = ["eeg", "train", str(folder), *TRAIN]
    assert cli.main([*command, "-o", str(tmp_path / "run")]) == 0
    validated = json.loads((tmp_path / "run" / "model.json").read_text())["notes"]["validation"]
    assert {name.removesuffix("-again") for name in validated} == {n for n in validated if not n.endswith("-again")}
    assert 0 < len(validated) < 24
    assert cli.main([*command, "-o", str(tmp_path / "run"), "--resume", "--batch", "32"]) == ERROR
    assert "with other data or options (batch was 64, now 32)" in capsys.readouterr().err
    study({"subject": "new", "file": people[1].file.name, "label": people[1].label})
    assert cli.main([*command, "-o", str(tmp_path / "run"), "--resume"]) == ERROR
    assert "other recordings" in capsys.readouterr().err


def test_train_refuses_a_changed_copy_on_the_other_side(study, tmp_path, capsys):
    folder = study({"subject": "copy", "file": "copy_raw.fif", "label": "case"})
    given = read_study(folder)
    training, validation = validation_split(given.labels, 0.2, seed=0)
    other_side = training if 12 in validation else validation
    source = next(given.subjects[k] for k in other_side if given.subjects[k].label == "case")
    _louder_copy(folder, source)
    assert cli.main(["eeg", "train", str(folder), "-o", str(tmp_path / "run"), *TRAIN]) == REFUSED
    assert f"audit: {SHARED}" in capsys.readouterr().out
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert cli.main(["eeg", "train", str(folder), "-o", str(tmp_path / "run"), *TRAIN, "--allow-leakage"]) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["notes"]["audit"]
