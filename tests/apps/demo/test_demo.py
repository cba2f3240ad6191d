"""The whole demo and its data."""

import json
from pathlib import Path

import pytest

from voxelwave.apps import cli
from voxelwave.runs.exit import DONE


@pytest.mark.slow
def test_the_demo_aligns_its_two_scans_and_denoises_a_slice(tmp_path: Path) -> None:
    assert cli.main(["demo", "--output", str(tmp_path)]) == DONE
    metrics = json.loads((tmp_path / "record.json").read_text())["metrics"]
    assert metrics["nmi_after"] > metrics["nmi_before"] + 0.1
    assert metrics["non_positive_jacobian_percent"] == 0
    assert (tmp_path / "picture.png").is_file()
    assert (tmp_path / "restoration.png").is_file()


def test_the_demo_data_is_small_and_names_its_sources() -> None:
    data = Path(cli.__file__).parent / "demo" / "data"
    assert sum(file.stat().st_size for file in data.iterdir()) < 3_000_000
    assert "CC BY" in (data / "README.md").read_text()
