"""A locked test: nobody is in both studies, every look is in the seal, and the model is that of the run."""

import csv
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from voxelwave.apps import cli
from voxelwave.apps.nested_cv.seal import open_look, read_seal
from voxelwave.eeg.saved_models import predict_saved
from voxelwave.eeg.study import read_study
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.eeg.windows import WindowOptions, load_windows
from voxelwave.runs.exit import ERROR, REFUSED

NETWORK = "{space: {}, settings: {F1: 2, D: 2, lr: 0.01}, epochs: 1, batch: 16}"
MODELS = ("bandpower", "eegnet", "riemann", "minirocket", "amplitude", "majority")
OPTIONS = WindowOptions(seconds=2.0, sfreq=64.0, scaling="fold")


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> tuple[Path, Path]:
    """Two studies of other people with the same planted rhythm; their subjects have other names."""
    folder = tmp_path_factory.mktemp("studies")
    for name, seed in (("first", 1), ("second", 2)):
        write_synthetic_study(folder / name, subjects=16, seconds=6, difference_uv=20, seed=seed)
    table = folder / "second" / "subjects.tsv"
    table.write_text(table.read_text().replace("\ns0", "\nt0"))
    return folder / "first", folder / "second"


@pytest.fixture(scope="module")
def finished(studies, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    words = ["eeg", "nested-cv", str(studies[0]), "-o", str(folder), "--models", f"[{', '.join(MODELS)}]"]
    words += ["--model_options", f"{{eegnet: {NETWORK}}}"]
    words += [
        "--windows",
        "{seconds: 2.0, sfreq: 64.0, scaling: fold}",
        "--outer",
        "2",
        "--inner",
        "2",
        "--trials",
        "1",
    ]
    assert cli.main([*words, "--no-audit", "--no-explanation"]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run without a seal."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def _test(study: Path, run: Path, output: Path, *more: str) -> int:
    return cli.main(["eeg", "test", str(study), "--run", str(run), "-o", str(output), *more])


def test_the_first_look_is_sealed_and_the_second_is_called_the_second(studies, run, tmp_path, capsys):
    assert _test(studies[1], run, tmp_path / "one") == 0
    assert "look 1 at a locked test" in capsys.readouterr().out
    first = json.loads((tmp_path / "one" / "test.json").read_text())
    assert first["look"]["look"] == 1
    assert first["subjects"] == 16
    assert first["metrics"]["auc"]["value"] > 0.8
    assert "This is the first look" in first["sentences"][1]
    look = read_seal(run)["looks"][0]
    assert look["auc"] == first["metrics"]["auc"]["value"]
    assert look["finished"] is not None
    assert _test(studies[1], run, tmp_path / "two") == 0
    second = json.loads((tmp_path / "two" / "test.json").read_text())
    assert "This is look number 2" in second["sentences"][1]
    assert "1 of the earlier ones used the same recordings" in second["sentences"][1]
    assert second["metrics"]["auc"]["value"] == first["metrics"]["auc"]["value"]
    page = (tmp_path / "two" / "test.html").read_text()
    assert 'class="notice">This is look number 2' in page
    assert "16 subjects whom the run never saw" in page
    with (tmp_path / "two" / "subjects.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 16


def test_people_and_recordings_of_the_run_are_refused_and_no_look_is_taken(studies, run, tmp_path, capsys):
    assert _test(studies[0], run, tmp_path / "same") == REFUSED
    assert "the two studies share EEG (s001 of the run and s001" in capsys.readouterr().out
    mixed = tmp_path / "mixed"
    shutil.copytree(studies[1], mixed)
    shutil.copy(studies[0] / "s003_raw.fif", mixed / "s001_raw.fif")  # under another name and of another length
    assert _test(mixed, run, tmp_path / "out", "--other-people") == REFUSED
    assert "s003 of the run and t001" in capsys.readouterr().out
    named = tmp_path / "named"
    shutil.copytree(studies[1], named)
    table = named / "subjects.tsv"
    table.write_text(table.read_text().replace("\nt001", "\ns001"))
    assert _test(named, run, tmp_path / "out") == REFUSED
    assert "people of the same name are in both studies (s001)" in capsys.readouterr().out
    assert read_seal(run)["looks"] == []
    assert not (tmp_path / "out").exists()
    assert _test(named, run, tmp_path / "out", "--other-people") == 0


def test_an_interrupted_look_is_the_same_look(studies, run, tmp_path):
    given = {"model": "bandpower", "model_sha256": "m", "study": studies[1], "study_sha256": "s"}
    a = open_look(run, **given, output=tmp_path, subjects=16)
    assert open_look(run, **given, output=tmp_path, subjects=16) == a
    other = open_look(run, **(given | {"study_sha256": "t"}), output=tmp_path, subjects=16)
    assert [a["look"], other["look"]] == [1, 2]


def test_a_changed_seal_is_noticed(studies, run, tmp_path, capsys):
    for name in ("one", "two"):
        assert _test(studies[1], run, tmp_path / name) == 0
    seal = json.loads((run / "seal.json").read_text())
    (run / "seal.json").write_text(json.dumps({"looks": seal["looks"][1:]}))  # the first look was removed
    capsys.readouterr()
    assert _test(studies[1], run, tmp_path / "three") == ERROR
    assert "was changed: look 1 does not follow" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in MODELS if name != "majority"])
def test_the_saved_model_predicts_as_in_the_run(name, studies, finished):
    windows = load_windows(read_study(studies[0]), OPTIONS)
    cell = finished / "cells" / f"{name}-r0-f0-nested-final"
    rows = np.loadtxt(cell / "predictions.csv", delimiter=",", skiprows=1)
    own = windows.rows(json.loads((cell / "cell.json").read_text())["predict"])
    np.testing.assert_allclose(predict_saved(name, cell, windows)[own], rows[:, 2], atol=1e-5)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--model", "majority"], "model majority saves nothing to test"),
        (["--model", "shallow"], "--model must be a model of the nested protocol of the run (bandpower, eegnet"),
    ],
)
def test_wrong_options_are_refused_in_one_line(more, complaint, studies, finished, tmp_path, capsys):
    code = _test(studies[1], finished, tmp_path / "out", *more)
    error = capsys.readouterr().err
    assert code == ERROR
    assert complaint in error
    assert error.count("\n") == 1


def test_a_run_whose_study_is_gone_is_refused(studies, run, tmp_path, capsys):
    plan = json.loads((run / "plan.json").read_text())
    for spec in plan["models"].values():
        spec["arguments"]["study"] = str(tmp_path / "gone")
    (run / "plan.json").write_text(json.dumps(plan))
    assert _test(studies[1], run, tmp_path / "out") == ERROR
    assert "the study of the run is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_axe_finds_no_barrier_on_the_page_of_a_test(studies, run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    browser = importlib.import_module("browser")
    if browser.PROGRAM is None or browser.AXE is None:
        pytest.skip("needs Chromium and axe-core")
    assert _test(studies[1], run, tmp_path / "one") == 0
    with browser.Browser() as page:
        page.open(tmp_path / "one" / "test.html")
        assert page.barriers() == []
        page.open(tmp_path / "one" / "test.html")
        assert page.barriers("dark") == []
        assert page.problems() == []
