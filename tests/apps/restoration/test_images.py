"""The images command."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from voxelwave.apps.cli import main


@pytest.mark.slow
def test_open_images_come_with_their_licences(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    assert main(["restoration", "images", "-o", str(tmp_path / "open")]) == 0
    listed = [line.split("\t")[0] for line in (tmp_path / "open/LICENCES.tsv").read_text().splitlines()[1:]]
    assert sorted(listed) == sorted(str(p.relative_to(tmp_path / "open")) for p in (tmp_path / "open").rglob("*.png"))
    assert np.asarray(Pillow.open(tmp_path / "open/train/astronaut.png")).ndim == 2
