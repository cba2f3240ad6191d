"""`restoration images` with scans."""

from pathlib import Path

import numpy as np
import pytest

from voxelwave.apps.cli import main
from voxelwave.runs.exit import USAGE
from voxelwave.volumes import Volume, write_volume


def test_slices_of_scans_are_written_for_training_and_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = 400.0 * (np.hypot(*np.ogrid[-40:40, -40:40])[..., None] < 34) * np.ones(6)
    for person in ("anna", "ben"):
        write_volume(tmp_path / "scans" / f"{person}.nii.gz", Volume(head.astype(np.int16), np.diag([1.0, 1, 4, 1])))
    words = ["restoration", "images", "-o", str(tmp_path / "out"), "--scans", str(tmp_path / "scans")]
    assert main([*words, "--validation", "[ben]"]) == 0
    assert "1 stacks in train, 1 in validation" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").rglob("*.nii.gz")} == {"anna.nii.gz", "ben.nii.gz"}
    assert main([*words[:4], "--labels", str(tmp_path)]) == USAGE
    assert "need --scans" in capsys.readouterr().err
