"""The owner of the results finds the file of each case; the page says what was done, in words that fit its cases."""

import json
import stat
from pathlib import Path

import pytest

from voxelwave.apps import cli
from voxelwave.apps.batch.case import Case
from voxelwave.apps.batch.case_files import case_files_path, write_case_files
from voxelwave.apps.batch.page import write_index
from voxelwave.apps.batch.run_facts import read_run_facts, write_run_facts
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.runs.exit import DONE

from ..browser import PROGRAM, Browser


def case(name: str, *files: Path) -> Case:
    return Case(name, files, "nifti", "")


def test_the_table_lists_files_beside_the_results_for_their_owner_only(tmp_path):
    (tmp_path / "results").mkdir()
    path = write_case_files(
        tmp_path / "results", [case("a", tmp_path / "Doe\tJohn.nii"), case("b", tmp_path / "x.nii")]
    )
    assert path == case_files_path(tmp_path / "results") == tmp_path / "results.files.tsv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    write_case_files(tmp_path / "results", [case("b", tmp_path / "y.nii")])  # lines of earlier runs stay
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list((tmp_path / "results").iterdir()) == []
    words = path.read_text()
    assert str(tmp_path / "y.nii") in words
    assert "John.nii" in words
    assert "x.nii" not in words


def test_facts_of_a_run_hold_no_paths(tmp_path):
    options = {"tile": 200, "seed": None, "range": "auto"}
    write_run_facts(tmp_path, "restore", options, tmp_path / "Doe_John.safetensors", "ab")
    facts = read_run_facts(tmp_path)
    assert facts["command"] == "voxelwave restoration restore"
    assert facts["options"] == {"tile": 200, "range": "auto"}
    assert "Doe" not in json.dumps(facts)
    assert read_run_facts(tmp_path / "none") == {}


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eeg")
    write_synthetic_study(folder / "in", subjects=4, seconds=6)
    words = [
        "eeg",
        "diagnose",
        str(folder / "in"),
        "-o",
        str(folder / "out"),
        "--weights",
        "rhythm-demo",
        "--threads",
        "1",
    ]
    assert cli.main(words) == DONE
    return folder / "out"


@pytest.mark.slow
def test_the_page_of_recordings_speaks_of_recordings(diagnosed):
    html = (diagnosed / "index.html").read_text()
    head = html.partition("<thead>")[2].partition("</thead>")[0]
    titles = [part.partition(">")[2].partition("<")[0] for part in head.split("<th ")[1:]]
    assert len(set(titles)) == len(titles)
    assert {"decision", "probability of rhythm", "length (s)", "work (s)"} <= set(titles)
    visible = html.partition("<body")[2].partition("<script")[0].lower()
    assert "slice" not in visible
    assert "voxel" not in visible.replace("voxelwave", "")
    assert "voxelwave eeg diagnose" in visible
    assert "rhythm-demo" in visible
    assert "out.files.tsv" in visible
    assert "<dt>probability of rhythm</dt>" in html


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_no_part_of_the_page_scrolls_to_the_side(diagnosed, width):
    with Browser() as page:
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        page.open(diagnosed / "index.html")
        script = "[...document.querySelectorAll('body, .scroll')].every(e => e.scrollWidth <= e.clientWidth)"
        assert page.run(script)
        assert page.problems() == []


def test_a_page_of_results_without_facts_is_written(tmp_path):
    line = {"case": "a", "status": "done", "kind": "nifti", "metrics": {"bias": 1.0}, "warnings": [], "error": None}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    assert "<dt>bias</dt>" in write_index(tmp_path).read_text()
