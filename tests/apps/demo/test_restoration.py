"""The restoration part of the demo."""

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from voxelwave.apps.demo.restoration import NOISY, RESTORED, SLICE, demo_restoration
from voxelwave.restoration.metrics import psnr
from voxelwave.volumes import read_volume


@pytest.mark.slow
def test_the_figures_are_those_of_the_written_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(str(files("voxelwave.apps.demo") / "data"), tmp_path / "data")
    shown = demo_restoration(tmp_path)
    clean, noisy, restored = (
        read_volume(tmp_path / name).array[..., 0].astype(float) for name in (f"data/{SLICE}", NOISY, RESTORED)
    )
    white = float(np.percentile(clean, 99.5))
    before, after = (psnr(x, clean, data_range=white) for x in (noisy, restored))
    assert after > before + 2
    said = capsys.readouterr().out
    assert f"in the whole slice {before:.2f} and {after:.2f} dB" in said
    assert f"{after:.2f} dB in the whole slice" in shown.sentence
    with Pillow.open(tmp_path / "restoration.png") as picture:
        assert picture.size[0] > picture.size[1] > 300
