"""The images command."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from voxelwave.apps.cli import main
from voxelwave.runs.exit import USAGE
from voxelwave.volumes import Volume, write_volume


@pytest.mark.slow
def test_open_images_come_with_their_licences(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    assert main(["restoration", "images", "-o", str(tmp_path / "open")]) == 0
    listed = [line.split("\t")[0] for line in (tmp_path / "open/LICENCES.tsv").read_text().splitlines()[1:]]
    assert sorted(listed) == sorted(str(p.relative_to(tmp_path / "open")) for p in (tmp_path / "open").rglob("*.png"))
    assert np.asarray(Pillow.open(tmp_path / "open/train/astronaut.png")).ndim == 2


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
