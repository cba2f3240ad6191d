"""Tiny weights and pictures for the restoration commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import save_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights for relative ranges and for CT numbers, and pictures to restore."""
    torch.manual_seed(0)
    network = MaIR(in_channels=1, scale=1, upsampler=None, width=8, depths=(1,), states=1, stripe_width=4)
    with torch.no_grad():
        network.conv_last.weight.mul_(0.01)
    save_weights(tmp_path / "w.safetensors", network, task="denoise", intensity_range=(0, 1), intensity_unit="relative")
    save_weights(
        tmp_path / "ct.safetensors", network, task="denoise", intensity_range=(-1000, 2000), intensity_unit="HU"
    )
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Pillow.fromarray(rng.integers(0, 256, (24, 30), dtype=np.uint8)).save(tmp_path / "in" / name)
    return tmp_path
