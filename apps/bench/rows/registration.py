"""Rows of registration: NestedMorph beside its published form, and a scan aligned to a deformed copy of itself."""

import warnings
from pathlib import Path

import numpy as np

from ....registration import greedy
from ....registration.benchmark_peer import LARGE, SMALL, peer_cost_table
from ....registration.known_warps import smooth_warp, warped_by
from ....registration.register import register
from ....registration.settings import RegistrationSettings
from ....volumes import Volume, VolumeWarning, read_volume
from .row import Row, cpu_seconds

_SCAN = Path(__file__).parents[2] / "demo" / "data" / "sub-01_T1w.nii.gz"
_GOALS = {"forward": 0.4, "forward + backward": 0.6}


def rows(*, quick: bool) -> list[Row]:
    """The rows, with one thread."""
    found = [
        Row(
            what=f"NestedMorph, {cost.mode}, {' x '.join(str(n) for n in cost.size)}",
            unit="CPU s",
            ours=cost.cpu_seconds,
            peer=f"{cost.peer} form in PyTorch",
            theirs=cost.peer_cpu_seconds,
            most_of_peer=_GOALS[cost.mode],
        )
        for cost in peer_cost_table(SMALL if quick else [*SMALL, *LARGE])
    ]
    return [*found, _alignment()]


def _alignment() -> Row:
    fixed = read_volume(_SCAN)
    points = np.argwhere(fixed.array > np.percentile(fixed.array, 60)) @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    moving = warped_by(fixed, smooth_warp(points, seed=0, peak_mm=8.0))

    def ours() -> None:
        register(moving, fixed, RegistrationSettings(seed=0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VolumeWarning)
        own, theirs = cpu_seconds(ours, 1), _greedy(moving, fixed)
    return Row(
        what=f"registration of two scans of {' x '.join(str(n) for n in fixed.shape)} voxels",
        unit="CPU s",
        ours=own,
        peer="" if theirs is None else "Greedy",
        theirs=theirs,
        most_of_peer=None if theirs is None else 1.0,
    )


def _greedy(moving: Volume, fixed: Volume) -> float | None:
    """CPU time of Greedy; None if it is not installed."""
    return cpu_seconds(lambda: greedy.greedy(moving, fixed), 1, warm=0) if greedy.available() else None
