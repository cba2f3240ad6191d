"""`voxelwave bench keep` and `bench accuracy`: the page of accuracy comes from records, which come from runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelwave.apps import cli
from voxelwave.apps.bench.accuracy import TEMPLATE, accuracy_page, kept_record
from voxelwave.runs.exit import DONE, ERROR

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "docs" / "results"


def test_the_committed_page_is_what_the_command_builds():
    assert (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8") == accuracy_page(RESULTS)


def test_every_record_stands_on_the_page():
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    names = [path.stem for path in RESULTS.glob("*.json")]
    template = (RESULTS / TEMPLATE).read_text(encoding="utf-8")
    assert len(names) > 10
    assert all(f"\n| {name} | " in page and f"results.{name}" in template for name in names)


def test_the_accuracy_in_readme_is_that_of_the_record():
    figures = json.loads((RESULTS / "eeg_adhd.json").read_text())["figures"]
    mean, low, high = figures["models"]["adhdeepnet"]["balanced_accuracy"]
    narrow = figures["stress"]["band-1-40"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"a balanced accuracy of {mean:.3f} ({low:.2f} to {high:.2f})" in readme
    fall = f"from {figures['models']['adhdeepnet']['auc'][0]:.2f} to {narrow['auc']:.2f}"
    assert (
        f"{fall} (difference {narrow['difference_interval'][0]:.2f} to {narrow['difference_interval'][1]:.2f})"
        in readme
    )


def _scored(folder: Path) -> Path:
    """The record of a tiny evaluation of restoration."""
    (folder / "in").mkdir()
    for number in range(2):
        square = np.full((24, 24), 60, np.uint8)
        square[6:18, 4 + number : 16] = 200
        Image.fromarray(square).save(folder / "in" / f"{number}.png")
    words = ["--sigma", "25", "--methods", "[tv]", "-o", str(folder / "table.tsv"), "--seed", "3"]
    assert cli.main(["restoration", "evaluate", str(folder / "in"), *words]) == DONE
    return folder / "table.json"


def test_an_evaluation_is_kept_and_shown_on_a_page(tmp_path, monkeypatch):
    words = ["voxelwave", "restoration", "evaluate", str(tmp_path / "in"), "-o", str(tmp_path / "table.tsv")]
    monkeypatch.setattr("sys.argv", words)
    record = _scored(tmp_path)
    folder = tmp_path / "results"
    folder.mkdir()
    keep = ["bench", "keep", str(record), "-o", str(folder / "squares.json"), "--data", "two squares"]
    assert cli.main(keep) == DONE
    kept = json.loads((folder / "squares.json").read_text())
    means = json.loads(record.read_text())["mean"]
    assert kept["figures"] == {"mean": means}
    assert (kept["seed"], kept["data"], kept["source"]) == (3, "two squares", "the record of the run")
    assert kept["command"] == "voxelwave restoration evaluate in -o table.tsv"
    assert kept["date"].startswith("20")
    assert kept["versions"]["numpy"] == np.__version__
    (folder / TEMPLATE).write_text("{{ results.squares.mean.tv[0] | d(2) }} dB, {{ records.squares.data }}\n")
    assert cli.main(["bench", "accuracy", str(folder), "-o", str(tmp_path / "page.md")]) == DONE
    assert (tmp_path / "page.md").read_text() == f"{means['tv'][0]:.2f} dB, two squares\n"


def test_the_record_of_a_nested_run_is_kept_without_people():
    metric = {"mean": 0.8, "sd_folds": 0.1, "interval_nb": [0.7, 0.9]}
    record = {
        "command": "voxelwave eeg nested-cv /home/someone/study -o /home/someone/out",
        "created": "2026-02-03T04:05:06+00:00",
        "hardware": "small",
        "versions": {"torch": "2"},
        "options": {"seed": 7},
        "seconds": 12.0,
        "models": [
            {"name": "net", "protocol": "nested", "metrics": {"auc": metric}, "per_fold": [{"test": ["Ann"]}]},
            {"name": "net", "protocol": "published", "metrics": {"auc": metric}, "per_fold": []},
        ],
        "stress": {
            "rows": [
                {"name": "phases", "title": "random phases", "figures": {"auc": 0.7, "per_fold": [0.7]}},
                {"name": "mains", "title": "no mains", "figures": None},
            ]
        },
        "learning": {"points": [{"subjects": 8, "auc": 0.6, "share": 0.5}], "more": []},
        "subjects": [{"subject": "Ann"}],
    }
    kept = kept_record(record, data="eight people")
    assert kept["figures"] == {
        "models": {"net": {"auc": [0.8, 0.7, 0.9]}},
        "other_protocols": {"net, published": {"auc": [0.8, 0.7, 0.9]}},
        "stress": {"phases": {"title": "random phases", "auc": 0.7}},
        "learning": [{"subjects": 8, "auc": 0.6}],
        "more": [],
        "seconds": 12.0,
    }
    assert (kept["seed"], kept["date"]) == (7, "2026-02-03")
    assert "Ann" not in json.dumps(kept)
    assert "someone" not in json.dumps(kept)


def test_records_without_a_command_and_figures_that_are_missing_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "old.json").write_text(json.dumps({"mean": {"tv": [20.0, 0.5]}, "versions": {}}))
    assert (
        cli.main(["bench", "keep", str(tmp_path / "old.json"), "-o", str(tmp_path / "k.json"), "--data", "x"]) == ERROR
    )
    error = capsys.readouterr().err
    assert "command, created, hardware is missing" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "k.json").exists()
    (tmp_path / "old.json").unlink()
    (tmp_path / TEMPLATE).write_text("{{ results.gone.mean }}")
    assert cli.main(["bench", "accuracy", str(tmp_path)]) == ERROR
    error = capsys.readouterr().err
    assert "names a figure that no record" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "accuracy.md").exists()


@pytest.mark.parametrize("text", ["{{ results", "{{ 1 | no_such_filter }}", "{{ [] | pick(method='x') }}"])
def test_a_damaged_template_is_an_error_in_one_line(text, tmp_path, capsys):
    (tmp_path / TEMPLATE).write_text(text)
    assert cli.main(["bench", "accuracy", str(tmp_path)]) == ERROR
    assert capsys.readouterr().err.count("\n") == 1
