"""The scanpath part of the demo."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelwave.apps.demo.drawing import draw_shelf
from voxelwave.apps.demo.scanpath import demo_scanpath


@pytest.mark.slow
def test_the_demo_looks_at_the_shelf_that_its_script_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = files("voxelwave.apps") / "demo" / "data"
    shutil.copytree(str(shipped), tmp_path / "data")
    demo_scanpath(tmp_path)
    assert "14 things on a drawn shelf" in capsys.readouterr().out
    content = json.loads((tmp_path / "scanpath" / "prediction.json").read_text())
    share = dict(zip(content["objects"], content["fixation_probability"], strict=True))
    assert np.mean([v for k, v in share.items() if k.startswith("red")]) > 2 * np.mean(
        [v for k, v in share.items() if k.startswith(("black", "white"))]
    )
    with Image.open(tmp_path / "scanpath" / "scanpath.png") as picture:
        assert picture.width > 800
    draw_shelf(tmp_path)
    assert json.loads((tmp_path / "shelf.json").read_text()) == json.loads((shipped / "shelf.json").read_text())
    with Image.open(tmp_path / "shelf.png") as ours, Image.open(str(shipped / "shelf.png")) as theirs:
        difference = np.abs(np.asarray(ours.convert("RGB"), int) - np.asarray(theirs.convert("RGB"), int))
    assert difference.mean() < 2  # versions of Pillow smooth edges differently
