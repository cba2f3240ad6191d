"""The whole demo, its page and its data."""

import json
import re
import shlex
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from voxelwave.apps import cli
from voxelwave.apps.arguments import parse_arguments
from voxelwave.apps.cli import _load
from voxelwave.apps.commands import COMMANDS
from voxelwave.apps.demo.demo import PARTS
from voxelwave.runs.exit import DONE
from voxelwave.volumes import read_volume

from ..browser import PROGRAM, Browser
from ..html import PROGRAM as VALIDATOR
from ..html import html_faults

DATA = Path(cli.__file__).parent / "demo" / "data"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    assert cli.main(["demo", "--output", str(folder)]) == DONE
    return folder


@pytest.mark.slow
def test_the_demo_moves_labels_onto_a_patient_and_corrects_a_diffusion_scan(shown: Path) -> None:
    metrics = json.loads((shown / "atlas" / "record.json").read_text())["metrics"]
    assert metrics["nmi_after"] > metrics["nmi_before"] + 0.1
    assert metrics["non_positive_jacobian_percent"] == 0
    patient, moved, before = (
        read_volume(shown / name).array
        for name in ("data/sub-01_T1w.nii.gz", "atlas/warped_labels.nii.gz", "data/atlas_labels.nii.gz")
    )
    ventricles = np.isin(moved, (4, 43))
    assert np.median(patient[ventricles]) < 0.5 * np.median(patient[np.isin(moved, (2, 41))])  # fluid is dark in T1
    assert set(np.unique(moved)) <= set(np.unique(before))
    kept = json.loads((shown / "diffusion" / "record.json").read_text())["choice"]
    assert "distortion" in json.dumps(kept)


@pytest.mark.slow
def test_the_recordings_with_the_rhythm_are_found(shown: Path) -> None:
    rows = json.loads((shown / "eeg" / "diagnosis" / "diagnosis.json").read_text())["subjects"]
    assert [row["decision"] for row in rows] == ["no rhythm", "rhythm", "no rhythm", "rhythm"]


@pytest.mark.slow
def test_the_page_has_a_picture_a_sentence_and_a_command_for_each_part(shown: Path) -> None:
    html = (shown / "index.html").read_text()
    places = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert [place for place in places if not (shown / place).is_file()] == []
    assert html.count("<img ") == html.count("<pre>") == len(PARTS)
    for text in re.findall(r"<pre>(.*?)</pre>", html):
        _, field, verb, *words = shlex.split(unescape(re.sub(r"<[^>]+>", "", text)))
        options = _load(COMMANDS[field][verb].options)
        given = options(**parse_arguments(options, words, prog=f"voxelwave {field} {verb}"))
        given.check()
        given.check_earlier()  # it can be run as it stands, beside the results of the demo
    assert "http" not in "".join(places)
    assert not VALIDATOR or html_faults(shown / "index.html", shown / "eeg" / "diagnosis" / "index.html") == []


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_needs_no_scrolling_to_the_side(shown: Path, width: int) -> None:
    with Browser() as page:
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        page.open(shown / "index.html")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run("[...document.images].every(image => image.naturalWidth > 100)")
        assert page.problems() == []


def test_the_demo_data_is_small_and_names_its_sources() -> None:
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 2_000_000
    words = (DATA / "README.md").read_text()
    assert [file.name for file in DATA.iterdir() if file.name != "README.md" and file.name not in words] == []
    assert [licence for licence in ("CC BY", "BSD-2-Clause", "Apache-2.0") if licence not in words] == []


@pytest.mark.parametrize("name", ["sub-01_T1w", "sub-01_b0", "atlas", "flair_slice"])
def test_scans_of_the_demo_hold_only_the_brain(name: str) -> None:
    array = read_volume(DATA / f"{name}.nii.gz").array
    assert 0.2 < (array == 0).mean() < 0.8
    assert (array[[0, -1]] == 0).all()  # no skin at the sides
