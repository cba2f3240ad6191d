"""A folder of results that version 0.1.0 left unfinished is continued without repeating finished cases."""

import json
import shutil
from pathlib import Path

import pytest

from voxelwave.apps import cli
from voxelwave.apps.batch.manifest import MANIFEST, read_manifest

# pictures, weights, and the results of 0.1.0 for two of the three pictures, written by
# `voxelwave restoration restore -i inputs -o results --weights weights.safetensors --keep-identifiers`
OLD = Path(__file__).parent / "batch_of_0_1_0"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    shutil.copytree(OLD, tmp_path / "batch")
    monkeypatch.chdir(tmp_path / "batch")
    return tmp_path / "batch"


def run(*more: str) -> int:
    words = ["restoration", "restore", "-i", "inputs", "-o", "results", "--weights", "weights.safetensors"]
    return cli.main([*words, "--keep-identifiers", "--tile", "200", *more])  # the default of 0.1.0


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for case in ("a", "b") for path in (folder / "results" / case).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_finished_cases_are_left_as_they_are(folder, capsys):
    before, lines = files(folder), (folder / "results" / MANIFEST).read_text().splitlines()
    assert run() == 0
    assert "1 of 3 done, 2 done before and unchanged" in capsys.readouterr().out
    assert files(folder) == before
    assert (folder / "results" / MANIFEST).read_text().splitlines()[:2] == lines


@pytest.mark.slow
def test_the_case_that_was_missing_is_recorded_as_the_others_are(folder):
    run()
    old, new = (json.loads((folder / "results" / case / "case.json").read_text()) for case in ("a", "c"))
    assert list(new) == list(old)
    assert new["options"] == old["options"]
    assert {"a", "b", "c"} == read_manifest(folder / "results").keys()


@pytest.mark.slow
def test_other_options_do_every_case_again(folder, capsys):
    assert run("--overlap", "0.2") == 0
    assert "3 of 3 done" in capsys.readouterr().out
