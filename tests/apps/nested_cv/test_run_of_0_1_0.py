"""A folder that version 0.1.0 left half finished is continued by the same command."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from voxelwave.apps import cli
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.runs.functions import load_function, with_present_names

# plan.json and 9 of 18 cells, written by 0.1.0 for `_study` and `_CONFIG`; {study} and {cache} stand for its paths
OLD = Path(__file__).parent / "run_of_0_1_0"
_CONFIG = {
    "models": ["bandpower", "length", "majority"],
    "outer": 2,
    "inner": 2,
    "trials": 1,
    "seed": 3,
    "windows": {"seconds": 2.0, "sfreq": 128.0, "scaling": "fold"},
}


def _names(content: object) -> set[str]:
    """Every value of "function" and "factory", at any depth."""
    if isinstance(content, list):
        return {name for item in content for name in _names(item)}
    if not isinstance(content, dict):
        return set()
    own = {value for key, value in content.items() if key in ("function", "factory")}
    return own | {name for value in content.values() for name in _names(value)}


def _contents(folder: Path) -> list[object]:
    return [json.loads(path.read_text()) for path in (folder / "plan.json", *folder.glob("cells/*/cell.json"))]


@pytest.fixture
def command(tmp_path) -> list[str]:
    """Run the command of the old run and discard its output."""
    study = tmp_path / "study"
    write_synthetic_study(study, subjects=8, seconds=6, difference_uv=15, seed=5)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(_CONFIG | {"cache": str(tmp_path / "cache")}))
    return ["eeg", "nested-cv", str(study), "--config", str(config), "--no-audit", "--no-explanation"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Copy the old run, with the paths of this machine."""
    folder = tmp_path / "run"
    shutil.copytree(OLD, folder)
    for path in (folder / "plan.json", *folder.glob("cells/*/cell.json")):
        text = path.read_text().replace("{study}", str(tmp_path / "study"))
        path.write_text(text.replace("{cache}", str(tmp_path / "cache")))
    return folder


def test_every_name_in_the_old_files_has_a_present_one():
    old = set().union(*map(_names, _contents(OLD)))
    present = set().union(*(_names(with_present_names(content)) for content in _contents(OLD)))
    assert all(name.startswith("voxelwave.") for name in old)
    assert present == {"fit", "eeg-models"}
    assert all(callable(load_function(name)) for name in present)


def test_an_old_run_is_continued_and_ends_like_a_fresh_one(command, folder, tmp_path):
    finished = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("cells/*/*")}
    names = {path.parent.name for path in finished}
    assert cli.main([*command, "-o", str(folder)]) == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished} == finished
    assert cli.main([*command, "-o", str(tmp_path / "fresh")]) == 0
    cells = {path.name for path in (tmp_path / "fresh" / "cells").iterdir()}
    assert {path.name for path in (folder / "cells").iterdir()} == cells
    assert len(names) == len(cells) // 2
    assert names < cells
    _assert_same_predictions(folder / "predictions.csv", tmp_path / "fresh" / "predictions.csv")


def test_an_old_run_with_other_options_is_refused(command, folder, capsys):
    assert cli.main([*command, "-o", str(folder), "--seed", "4"]) == 1
    assert "with another plan (seed was 3, now 4" in capsys.readouterr().err


def _assert_same_predictions(path: Path, expected: Path) -> None:
    """Compare rows; the old cells come from another machine, whose BLAS may differ in the last digits."""
    tables = []
    for file in (path, expected):
        with file.open(newline="") as stream:
            tables.append(list(csv.DictReader(stream)))
    figures = ("probability", "threshold")
    texts, numbers = [], []
    for table in tables:
        texts.append([{name: value for name, value in row.items() if name not in figures} for row in table])
        numbers.append(np.array([[float(row[name]) for name in figures] for row in table]))
    assert texts[0] == texts[1]
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=0, atol=1e-9)
