"""The restoration part of the demo."""

from pathlib import Path

import pytest
from PIL import Image as Pillow

from voxelwave.apps.demo.restoration import demo_restoration


@pytest.mark.slow
def test_the_demo_removes_noise_from_a_real_slice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo_restoration(tmp_path)
    words = capsys.readouterr().out.split("PSNR ")[1].split()
    assert float(words[3]) > float(words[0]) + 2  # "20.80 dB before, 27.00 dB after"
    with Pillow.open(tmp_path / "restoration.png") as picture:
        assert picture.size[0] > picture.size[1] > 300
