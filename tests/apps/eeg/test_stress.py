"""Stress tests on planted studies: the report says what the score rests on."""

import json
from pathlib import Path

import pytest

from voxelwave.apps import cli
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.runs.exit import USAGE

WORDS = [
    *("--models", "[bandpower, majority]", "--model_options", "{bandpower: {space: {C: [0.1]}}}"),
    *("--outer", "4", "--inner", "2", "--trials", "1", "--windows", "{seconds: 2.0, sfreq: 128.0, scaling: fold}"),
    *("--no-audit", "--no-explanation", "--stress", "--seed", "2"),
]


def _study(folder: Path, frequency: float) -> Path:
    write_synthetic_study(folder, subjects=36, seconds=6, difference_uv=20, frequency=frequency, seed=4)
    return folder


def _run(study: Path, folder: Path, *more: str) -> dict:
    assert cli.main(["eeg", "nested-cv", str(study), "-o", str(folder), *WORDS, *more]) == 0
    return json.loads((folder / "results.json").read_text())


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alpha(tmp_path_factory) -> tuple[Path, Path]:
    """A study with a planted rhythm of 10 Hz on O1, O2 and Pz, and a finished run with stress tests."""
    study = _study(tmp_path_factory.mktemp("alpha"), 10.0)
    folder = tmp_path_factory.mktemp("alpha-run") / "run"
    _run(study, folder)
    return study, folder


def _rows(results: dict) -> dict[str, dict]:
    return {row["name"]: row for row in results["stress"]["rows"]}


def test_a_rhythm_of_10_hz_survives_all_but_the_shuffled_labels(alpha):
    results = json.loads((alpha[1] / "results.json").read_text())
    stress, rows = results["stress"], _rows(results)
    assert stress["auc"] > 0.9
    for name in ("band-1-40", "without-45-55", "without-55-65", "unit-channels", "phases", "without-frontal"):
        assert rows[name]["sentence"].startswith("Almost nothing of the advantage over chance is gone without "), name
    assert rows["band-1-40"]["sentence"].startswith(
        "Almost nothing of the advantage over chance is gone without what lies below 1 Hz and above 40 Hz."
    )
    assert "no sign that" in rows["labels"]["sentence"] or "below chance" in rows["labels"]["sentence"]
    assert stress["conclusion"] == ["No alteration took much of the advantage over chance away."]


def test_a_difference_in_mains_hum_is_named(tmp_path):
    results = _run(_study(tmp_path / "study", 50.0), tmp_path / "run")
    stress, rows = results["stress"], _rows(results)
    assert stress["auc"] > 0.9
    for name, lost in (("band-1-40", "above 40 Hz"), ("without-45-55", "from 45 to 55 Hz")):
        assert rows[name]["figures"]["auc"] < 0.75
        share, text = rows[name]["sentence"].split(" of the advantage over chance is gone without ")
        assert share in ("All", "Nearly all", "About three quarters", "About two thirds")
        assert lost in text
    assert rows["without-45-55"]["figures"]["difference_interval"][1] < 0
    assert rows["without-55-65"]["sentence"].startswith("Almost nothing of the advantage")
    assert any("may rest on equipment or the room and not on the brain" in text for text in stress["conclusion"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="stress"' in page
    assert "There lies the mains frequency of 50 Hz" in page


def test_the_same_folds_settings_and_epochs_are_used_and_nothing_is_searched(alpha):
    cells = {p.name: json.loads((p / "cell.json").read_text()) for p in (alpha[1] / "cells").iterdir()}
    refits = {name: cell for name, cell in cells.items() if "-refit-" in name}
    assert len(refits) == 4 * 13
    for name, cell in refits.items():
        final = cells[name.split("-refit-")[0] + "-nested-final"]
        same = ("train", "predict", "settings", "seed", "epochs")
        assert {key: cell[key] for key in same} == {key: final[key] for key in same}
        assert cell["estimator"] != final["estimator"]


def test_a_finished_run_is_continued_with_stress_tests_and_keeps_its_figures(alpha, tmp_path):
    study, folder = alpha
    words = [word for word in WORDS if word != "--stress"]
    plain = tmp_path / "run"
    assert cli.main(["eeg", "nested-cv", str(study), "-o", str(plain), *words]) == 0
    before = (plain / "predictions.csv").read_bytes()
    assert "stress" not in json.loads((plain / "results.json").read_text())
    times = {path: path.stat().st_mtime_ns for path in (plain / "cells").glob("*/result.json")}
    results = _run(study, plain)
    assert (plain / "predictions.csv").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert results["stress"] == json.loads((folder / "results.json").read_text())["stress"]


def test_a_learning_curve_has_nested_parts_of_the_training_subjects(alpha, tmp_path):
    study, _ = alpha
    folder = tmp_path / "run"
    words = [word for word in WORDS if word != "--stress"]
    assert cli.main(["eeg", "nested-cv", str(study), "-o", str(folder), *words, "--learning-curve"]) == 0
    cells = {p.name: json.loads((p / "cell.json").read_text()) for p in (folder / "cells").iterdir()}
    for fold in range(4):
        start = f"bandpower-r0-f{fold}"
        names = [f"{start}-refit-subjects-{share}" for share in (25, 50, 75)]
        train = [set(cells[name]["train"]) for name in (*names, f"{start}-nested-final")]
        assert train[0] < train[1] < train[2] < train[3]
        assert [len(part) for part in train[:3]] == [
            pytest.approx(share * len(train[3]), abs=2) for share in (0.25, 0.5, 0.75)
        ]
    learning = json.loads((folder / "results.json").read_text())["learning"]
    assert [point["share"] for point in learning["points"]] == [0.25, 0.5, 0.75, 1.0]
    assert learning["points"][-1]["auc"] > 0.9
    assert "training subjects" in (folder / "report.html").read_text()


def test_stress_tests_need_the_nested_protocol(alpha, tmp_path, capsys):
    words = ["eeg", "nested-cv", str(alpha[0]), "-o", str(tmp_path), "--stress", "--protocol", "published"]
    assert cli.main(words) == USAGE
    assert "--stress needs the nested protocol" in capsys.readouterr().err
