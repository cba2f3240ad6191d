"""Rows of restoration: a slice, and networks with the compiled scan beside the step-by-step one."""

import statistics
from pathlib import Path

import numpy as np
import torch

from ....restoration.baselines import bm3d
from ....restoration.benchmark import compare_scans
from ....restoration.inference import restore
from ....restoration.mair import MaIR
from ....restoration.weights import load_weights
from ....runs.catalogue import find_weights
from .row import Row, cpu_seconds


def rows(*, quick: bool) -> list[Row]:
    """The rows, with one thread."""
    side = 256 if quick else 512
    image = np.random.default_rng(0).random((1, side, side), np.float32)
    network, _ = load_weights(find_weights(Path("denoise-grey"), "restoration"))
    other = _bm3d(image)
    slices = Row(
        what=f"denoising {side} x {side} with denoise-grey",
        unit="CPU s",
        ours=cpu_seconds(lambda: restore(network, image), 2),
        peer="" if other is None else "BM3D",
        theirs=other,
        most=2.0 * (side / 512) ** 2,
    )
    torch.manual_seed(0)
    model = MaIR.from_variant("mair-s-x2").eval()
    compiled, plain, _ = compare_scans(model, torch.rand(1, 3, 64, 64), repeats=5, plain_repeats=1)
    network_row = Row(
        what="MaIR-S x2 of 64 x 64",
        unit="s",
        ours=statistics.median(compiled),
        peer="step-by-step scan in PyTorch",
        theirs=statistics.median(plain),
        most=0.45,
    )
    return [slices, network_row]


def _bm3d(image: np.ndarray) -> float | None:
    """CPU time of BM3D; None if it is not installed."""
    try:
        return cpu_seconds(lambda: bm3d(image, 0.1), 1, warm=0)
    except ImportError:
        return None
