"""`voxelwave eeg audit`: exit codes, output and written files."""

import json

import pytest

from voxelwave.apps import cli
from voxelwave.eeg.synthetic import write_synthetic_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_synthetic_study(folder, subjects=8, seconds=6, difference_uv=0, seed=2)
    return folder


def _split(tmp_path, *, leak):
    names = [f"s{number:03d}" for number in range(1, 9)]
    folds = [{"train": names[4:], "test": names[:4]}, {"train": names[:4], "test": names[4:]}]
    if leak:
        folds[0]["train"] = names[3:]
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"scaling": "window", "selected_on": "validation", "folds": folds}))
    return str(path)


def _audit(study, *words):
    return cli.main(["eeg", "audit", str(study), "--seconds", "2", "--permutations", "9", *words])


def test_a_clean_split_passes_and_its_checks_are_written(study, tmp_path, capsys):
    assert _audit(study, "--splits", _split(tmp_path, leak=False), "-o", str(tmp_path / "out")) == 0
    checks = json.loads((tmp_path / "out" / "audit.json").read_text())
    outcomes = {check["check"]: check["outcome"] for check in checks}
    assert outcomes["no subject on both sides"] == "ok"
    assert "fail" not in outcomes.values()
    assert f"{list(outcomes.values()).count('ok')} ok" in capsys.readouterr().out


def test_a_leak_is_refused_with_exit_code_4_and_named(study, tmp_path, capsys):
    assert _audit(study, "--splits", _split(tmp_path, leak=True), "-o", str(tmp_path / "out")) == 4
    checks = json.loads((tmp_path / "out" / "audit.json").read_text())
    found = next(check for check in checks if check["check"] == "no subject on both sides")
    assert found["outcome"] == "fail"
    assert "s004 in train and test" in found["detail"]
    assert "1 fail" in capsys.readouterr().out


def test_a_subject_with_two_labels_is_refused_with_exit_code_4(study, tmp_path, capsys):
    table = (study / "subjects.tsv").read_text().splitlines()
    name, file, label = table[1].split("\t")
    other = {"control": "case", "case": "control"}[label]
    rows = [f"{n}\t{study / f}\t{c}" for n, f, c in (line.split("\t") for line in table[1:])]
    (tmp_path / "subjects.tsv").write_text("\n".join([table[0], *rows, f"{name}\t{study / file}\t{other}"]) + "\n")
    assert _audit(tmp_path) == 4
    assert "1 fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["--permutations", "0"], 2, "--permutations must be at least 1"),
        (["--splits", "nowhere.json"], 1, "no split file at nowhere.json"),
    ],
)
def test_unusable_input_ends_with_one_line(study, words, code, complaint, capsys):
    assert cli.main(["eeg", "audit", str(study), *words]) == code
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
