"""`voxelwave eeg nested-cv`, `audit`, `report` and `planted` on synthetic subjects, from the command line."""

import base64
import csv
import importlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from voxelwave.apps import cli
from voxelwave.apps.eeg.cohort import cohort_of
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.runs.exit import ERROR, USAGE

MODELS = ["adhdeepnet", "bandpower", "amplitude", "length", "majority"]
TINY = {
    "space": {"drop_prob": [0.3, 0.5]},
    "settings": {"F1": 2, "D": 2, "kernel_length": 8, "lr": 5e-3, "augmentation": "1x0.1"},
    "epochs": 2,
    "batch": 16,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_synthetic_study(folder, subjects=12, seconds=8, difference_uv=15, seed=1)
    return folder


@pytest.fixture(scope="module")
def words(study, tmp_path_factory) -> list[str]:
    """Run the command and discard its output."""
    folder = tmp_path_factory.mktemp("config")
    config = folder / "tiny.yaml"
    content = {"models": MODELS, "model_options": {"adhdeepnet": TINY}, "outer": 2, "inner": 2, "trials": 1}
    content |= {"windows": {"seconds": 2.0, "sfreq": 64.0, "scaling": "fold"}, "protocol": "both", "seed": 3}
    content["cache"] = str(folder / "windows")
    config.write_text(yaml.safe_dump(content))
    return ["eeg", "nested-cv", str(study), "--config", str(config)]


@pytest.fixture(scope="module")
def run(words, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert cli.main([*words, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """A copy of the run, which a test may change."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def _results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def _untimed(folder: Path) -> dict:
    return {name: value for name, value in _results(folder).items() if name not in ("created", "seconds", "command")}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


# --- the run


@pytest.mark.slow
def test_no_subject_of_a_test_part_reached_a_nested_fit(run):
    plan = json.loads((run / "plan.json").read_text())
    tested = {split["fold"]: set(split["test"]) for split in plan["splits"]}
    cells = [json.loads(path.read_text()) for path in (run / "cells").glob("*/cell.json")]
    nested = [cell for cell in cells if "-nested-" in cell["id"]]
    published = [cell for cell in cells if "-published-" in cell["id"]]
    assert nested
    for cell in nested:
        assert not tested[cell["fold"]] & {*cell["train"], *(cell["validation"] or ())}
    assert all(set(cell["validation"]) == tested[cell["fold"]] for cell in published)  # so that the line above can fail
    assert published


def test_the_published_protocol_keeps_the_epoch_that_is_best_on_the_test_fold(run):
    for path in (run / "cells").glob("adhdeepnet-*"):
        cell, result = (json.loads((path / name).read_text()) for name in ("cell.json", "result.json"))
        published = "-published-" in cell["id"]
        assert (cell["estimator"]["arguments"]["options"].get("monitor") == "validation_accuracy") == published
        if published:
            accuracy = [float(row["validation_accuracy"]) for row in _rows(path / "curve.csv")]
            assert result["epochs"] == 1 + int(np.argmax(accuracy))


def test_scalers_are_those_of_the_training_windows(run, study):
    """With scaling by fold, the card beside the weights holds mean and sd of the outer training subjects only."""
    from voxelwave.eeg.networks import load_network
    from voxelwave.eeg.study import read_study
    from voxelwave.eeg.windows import Scaler, WindowOptions, load_windows

    windows = load_windows(read_study(study), WindowOptions(seconds=2.0, sfreq=64.0, scaling="fold"))
    plan = json.loads((run / "plan.json").read_text())
    for split in plan["splits"]:
        _, card = load_network(run / "cells" / f"adhdeepnet-r0-f{split['fold']}-nested-final")
        train, everyone = (Scaler.fit(windows.x[windows.rows(part)]) for part in (split["train"], range(12)))
        np.testing.assert_allclose(card.fitted_scaler.sd, train.sd)
        assert not np.allclose(card.fitted_scaler.sd, everyone.sd)
        assert set(card.subjects) == {windows.subjects[i] for i in split["train"]}


def test_each_window_is_predicted_once_by_each_model(run):
    rows = [row for row in _rows(run / "predictions.csv") if row["protocol"] == "nested"]
    keys = [(row["model"], row["subject"], row["window"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {model for model, _, _ in keys} == set(MODELS)
    assert len(keys) == len(MODELS) * _results(run)["flow"]["windows"]


def test_results_hold_headline_baselines_comparisons_and_optimism(run):
    results = _results(run)
    assert results["headline"]["method"].startswith("Nadeau-Bengio")
    nested = [m["name"] for m in results["models"] if m["protocol"] == "nested"]
    assert nested == MODELS
    others = {(row["b"], row["metric"]) for row in results["comparisons"]}
    assert others == {(m, metric) for m in MODELS[1:] for metric in ("balanced_accuracy", "auc")}
    assert all(row["p_holm"] >= row["p"] for row in results["comparisons"])
    assert {row["protocol"] for row in results["optimism"]} == {"nested", "published", "test-epoch", "random-windows"}
    majority = next(m for m in results["models"] if m["name"] == "majority")
    assert majority["metrics"]["auc"]["mean"] == 0.5
    table = _rows(run / "results.csv")
    assert {row["protocol"] for row in table} == {"nested", "published"}


def test_the_same_command_again_runs_only_missing_cells_and_gives_the_same_results(words, copy, run):
    before = {path: path.stat().st_mtime_ns for path in (copy / "cells").glob("*/result.json")}
    (copy / "results.json").unlink()
    shutil.rmtree(copy / "cells" / "adhdeepnet-r0-f1-nested-final")  # except for this one
    assert cli.main([*words, "-o", str(copy)]) == 0
    assert _untimed(copy) == _untimed(run)
    after = {path: path.stat().st_mtime_ns for path in (copy / "cells").glob("*/result.json")}
    changed = [path.parent.name for path in before if after[path] != before[path]]
    assert changed == ["adhdeepnet-r0-f1-nested-final"]


def test_another_command_in_the_same_folder_is_refused(words, copy, capsys):
    assert cli.main([*words, "-o", str(copy), "--trials", "7"]) == 1
    assert "with another plan (trials was 1, now 7)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--models", "[deepnet]"], "models must be among adhdeepnet, "),
        (["--models", "[bandpower,bandpower]"], "models must be named once each"),
        (["--outer", "9"], "9 outer folds need at least 9 people of each class, got 6"),
        (["--positive", "patient"], "positive must be case or control, got patient"),
        (["--windows", "{seconds: 60}"], "both classes must have subjects with windows, got none"),
        (["--windows", "{scaling: all}"], 'scaling must be "window", "recording", "fold" or "none"'),
        (["--windows", "{length: 3}"], "windows must be among seconds, overlap"),
        (["--windows", "{seconds: four}"], "seconds must be a number, got 'four'"),
        (["--model_options", "{adhdeepnet: {space: {F2: [16]}}}"], "settings of adhdeepnet must be among"),
        (["--model_options", "{adhdeepnet: {epoch: 3}}"], "options of adhdeepnet must be among"),
        (["--person_column", "family"], "column 'family' of the study must name a person"),
        (["--cluster", "kubernetes"], 'cluster must be "dask://host:port"'),
        (["--windows", "{band: [1]}"], "band must have two edges in Hz"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--published_models", "[shallow]"], "published must be among the models"),
    ],
)
def test_impossible_options_are_refused_in_one_line(more, complaint, words, tmp_path, capsys):
    assert cli.main([*words, "-o", str(tmp_path / "run"), *more]) == (USAGE if complaint.startswith("--") else ERROR)
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith(("voxelwave: error: ", "voxelwave: usage: "))
    assert error.count("\n") == 1


def test_one_recording_under_two_names_stays_on_one_side(study, tmp_path):
    from voxelwave.eeg.study import read_study
    from voxelwave.eeg.windows import WindowOptions, load_windows

    shutil.copytree(study, tmp_path / "study")
    shutil.copy(tmp_path / "study" / "s001_raw.fif", tmp_path / "study" / "s003_raw.fif")
    given = read_study(tmp_path / "study")
    cohort = cohort_of(given, load_windows(given, WindowOptions(seconds=2.0)))
    assert cohort.persons[0] == cohort.persons[2] == "s001"
    assert len(set(cohort.persons)) == 11


# --- the report


class _Page(HTMLParser):
    """The sections, pictures and addresses of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.sections, self.addresses, self.drawings = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.sections += [given["id"]] if tag == "section" and "id" in given else []
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        self.drawings += tag == "svg"


def test_the_report_is_one_file_with_every_section(run):
    text = (run / "report.html").read_text()
    page = _Page(text)
    asked = ["done", "subjects", "models", "main", "comparisons", "optimism", "explanation", "audit", "folds"]
    assert {*asked, "others", "metrics", "tripod", "each", "again"} <= set(page.sections)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?https?:", text)
    images = [a for a in page.addresses if a.startswith("data:image/png;base64,")]
    assert len(images) == 5  # scalp map, bands, filters, patterns, t-SNE
    assert all(base64.b64decode(a.partition(",")[2]).startswith(b"\x89PNG") for a in images)
    assert page.drawings > 10
    for words in ("2 networks, each explained on subjects outside its training part (12 in all", "validation loss"):
        assert words in text
    for name in (f"s{i:03d}" for i in range(1, 13)):
        assert f'<th scope="row">{name}</th>' in text


def test_figures_on_the_page_are_those_of_the_results(run):
    text, headline = (run / "report.html").read_text(), _results(run)["headline"]
    low, high = headline["interval"]
    assert f"{headline['mean']:.3f} <small>({low:.3f} to {high:.3f})</small>" in text


@pytest.mark.slow
def test_a_repeated_report_adds_the_missing_explanation(copy):
    shutil.rmtree(copy / "explain")
    (copy / "report.html").unlink()
    assert cli.main(["report", str(copy)]) == 0
    assert (copy / "explain" / "explanation.json").is_file()
    assert 'id="explanation"' in (copy / "report.html").read_text()
    assert cli.main(["report", str(copy), "-o", str(copy / "other.html")]) == 0
    assert (copy / "other.html").read_text() == (copy / "report.html").read_text()


def test_explaining_a_run_again_uses_its_explanation_until_a_setting_or_a_network_changes(
    run, copy, tmp_path, capsys, monkeypatch
):
    computed = []
    monkeypatch.setattr("voxelwave.apps.eeg.explain.cases_of_run", lambda *args: computed.append(args) or _stop())
    assert cli.main(["eeg", "explain", str(copy), "-o", str(tmp_path / "out")]) == 0
    assert "is used again" in capsys.readouterr().out
    files = sorted(path.name for path in (copy / "explain").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert all((tmp_path / "out" / name).read_bytes() == (run / "explain" / name).read_bytes() for name in files)
    assert cli.main(["eeg", "explain", str(copy)]) == 0
    assert not computed
    assert cli.main(["eeg", "explain", str(copy), "--steps", "3"]) == 2  # other settings
    assert "with other settings: give --overwrite" in capsys.readouterr().err
    assert not computed
    assert cli.main(["eeg", "explain", str(copy), "--steps", "3", "--overwrite"]) == 1
    assert len(computed) == 1
    weights = next((copy / "cells").glob("adhdeepnet-*nested-final/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert cli.main(["eeg", "explain", str(copy)]) == 1  # another network
    assert cli.main(["report", str(copy)]) == 0
    assert len(computed) == 3


def _stop():
    raise ValueError("not computed here")


def test_a_report_without_recordings_lacks_the_explanation_and_says_so(copy, capsys):
    plan = json.loads((copy / "plan.json").read_text())
    for spec in plan["models"].values():
        spec["arguments"]["study"] = str(copy / "gone")
    (copy / "plan.json").write_text(json.dumps(plan))
    shutil.rmtree(copy / "explain")
    assert cli.main(["report", str(copy)]) == 0
    assert "note: the report has no explanation of the network: no study at" in capsys.readouterr().out
    assert 'id="explanation"' not in (copy / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "expected the folder of a finished run"), ("{", "must be JSON"), ("{}", "title is missing")],
)
def test_a_folder_without_a_finished_run_is_refused(content, complaint, tmp_path, capsys):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert cli.main(["report", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_browser_shows_the_report_without_errors_or_requests_and_prints_it(run, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    browser = importlib.import_module("browser")
    if browser.PROGRAM is None:
        pytest.skip("needs Chromium")
    with browser.Browser() as page:
        page.open(run / "report.html")
        assert page.run("document.querySelectorAll('section[id]').length") >= 14
        assert page.run("[...document.images].every(i => i.naturalWidth > 100)")
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")  # no element is too wide
        page.click("#each th.n button")  # sort by windows
        assert page.run("document.querySelector('#each th[aria-sort]') !== null")
        printed = base64.b64decode(page.call("Page.printToPDF", preferCSSPageSize=True)["data"])
        assert page.problems() == []
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 4


# --- the audit


def test_the_audit_of_a_run_passes_and_sees_a_leak_in_its_cells(copy, study, tmp_path):
    words = ["eeg", "audit", str(study), "--splits", str(copy), "--permutations", "9", "-o", str(tmp_path / "audit")]
    assert cli.main(words) == 0
    checks = {c["check"]: c["outcome"] for c in json.loads((tmp_path / "audit" / "audit.json").read_text())}
    assert checks["no test subject reached a nested fit"] == checks["predictions complete"] == "ok"
    assert checks["selection inside the fold"] == "warning"  # the published protocol ran too
    path = copy / "cells" / "bandpower-r0-f0-nested-final" / "cell.json"
    cell = json.loads(path.read_text())
    cell["train"].append(cell["predict"][0])
    path.write_text(json.dumps(cell))
    assert cli.main([*words, "--overwrite"]) == 4
    checks = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [c["check"] for c in checks if c["outcome"] == "fail"] == ["no test subject reached a nested fit"]


def test_the_audit_of_a_table_of_random_windows_is_refused(study, tmp_path):
    lines = ["subject,start,fold", *(f"s{i:03d},{k * 128},{(i + k) % 2}" for i in range(1, 13) for k in range(4))]
    (tmp_path / "folds.csv").write_text("\n".join(lines) + "\n")
    words = ["--splits", str(tmp_path / "folds.csv"), "--permutations", "9", "--seconds", "2", "--sfreq", "64"]
    assert cli.main(["eeg", "audit", str(study), *words]) == 4


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere"], "no study at nowhere"),
        (["{study}", "--splits", "nowhere.csv"], "no split file at nowhere.csv"),
        (["{study}", "--positive", "x"], "positive must be case or control"),
        (["{study}", "--channels", "[Xz]"], "must have the channels Xz"),
        (["{study}", "--permutations", "0"], "--permutations must be at least 1"),
        (["{study}", "--overlap", "2"], "overlap must be at least 0 and below 1"),
    ],
)
def test_the_audit_refuses_wrong_options_in_one_line(words, complaint, study, capsys):
    assert cli.main(["eeg", "audit", *(word.format(study=study) for word in words)]) == (
        USAGE if complaint.startswith("--") else ERROR
    )
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


# --- the planted difference


@pytest.mark.slow
def test_planted_runs_from_recordings_to_statements(tmp_path, capsys, monkeypatch):
    """A run that is too small to find the difference; its statements and exit code must follow from its figures."""
    from voxelwave.apps.eeg import planted as eeg_planted

    monkeypatch.setattr(eeg_planted, "NETWORK", {**TINY, "space": "none"})
    words = ["--subjects", "8", "--seconds", "6", "--outer", "2", "--trials", "1", "--difference-uv", "15"]
    code = cli.main(["eeg", "planted", "-o", str(tmp_path), *words])
    found = json.loads((tmp_path / "planted.json").read_text())
    assert code == (0 if all(found["statements"].values()) else 1)
    planted, shuffled = (_results(tmp_path / name) for name in ("planted", "shuffled"))
    low = planted["models"][0]["metrics"]["balanced_accuracy"]["interval_nb"][0]
    chance = shuffled["models"][0]["metrics"]["balanced_accuracy"]["interval_nb"]
    first, *_, last = found["statements"].values()
    assert (first, last) == (low > 0.5, chance[0] <= 0.5 <= chance[1])
    labels = [[row["label"] for row in _rows_tsv(tmp_path / "study" / f"{n}.tsv")] for n in ("subjects", "shuffled")]
    assert sorted(labels[0]) == sorted(labels[1])
    assert labels[0] != labels[1]


def _rows_tsv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))
