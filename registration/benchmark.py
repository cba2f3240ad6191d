"""The figures of the README: our registration beside ANTs' SyN, on the same images in one run.

Each function returns rows, plain dictionaries that a table or a JSON file can hold. Both methods start from the same
images and include their own affine part in the time.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..volumes import DisplacementField, Volume, read_volume, resample
from .metrics import dice
from .register import register
from .warp import invert, jacobian_determinant, warp

Row = dict[str, Any]

# the 30 structures usually scored on FreeSurfer labels (VoxelMorph, Dalca et al. 2018)
_LEFT_AND_MIDDLE = (2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 28, 31)
_RIGHT = (41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60, 63)
FREESURFER_LABELS = _LEFT_AND_MIDDLE + _RIGHT


def known_field_benchmark(
    t1: Volume | str,
    t2: Volume | str,
    *,
    seeds: Iterable[int] = (0, 1, 2),
    peak_mm: float = 8.0,
    sigma_mm: float = 12.0,
    methods: Sequence[str] = ("field", "syn"),
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Warp the T1 image by a random smooth field, register it to the T2 image, and compare with the true field.

    White noise smoothed by a Gaussian of `sigma_mm`, its longest vector inside the brain `peak_mm` long, is the
    displacement w that makes the moving image: moving(y) = T1(y + w(y)). What a registration should find on the fixed
    grid is u with id + u the inverse of id + w, by fixed-point iteration to 0.001 voxel. The brain is where T1 is not
    0.

    Args:
        t1: skull-stripped, on the grid of `t2` and aligned with it; a volume or its file.
        t2: skull-stripped; the fixed image.
        seeds: one field each.
        peak_mm: longest vector inside the brain.
        sigma_mm: smoothness.
        methods: of `register`.
        progress: called with a line about each run.

    Returns:
        One row per seed and method: "method", "seed", "initial_mm", "error_mm", "ratio" (of the means over the brain),
        "p95_mm", "non_positive_jacobian_percent", "seconds".

    Raises:
        ValueError: for images on different grids.
    """
    t1, t2 = (read_volume(image) if isinstance(image, str) else image for image in (t1, t2))
    if t1.shape != t2.shape or not np.allclose(t1.affine, t2.affine, atol=1e-3):
        raise ValueError(f"t1 and t2 must lie on one grid, got {t1.shape} and {t2.shape} or different affines")
    spacing = torch.tensor(t2.spacing).float().view(1, 3, 1, 1, 1)
    brain = t1.array != 0
    rows = []
    for seed in seeds:
        w = _smooth_field(t1.shape, t1.spacing, brain, peak_mm, sigma_mm, seed)
        image = torch.from_numpy(np.ascontiguousarray(t1.array, dtype=np.float32))[None, None]
        moving = Volume(warp(image, w)[0, 0].numpy(), t1.affine)
        truth, _ = invert(w, iterations=60, tolerance=1e-3)
        inside = torch.from_numpy(brain)
        initial = float((truth * spacing).norm(dim=1)[0][inside].mean())
        for method in methods:
            begin = time.perf_counter()
            found = register(moving, t2, method=method, seed=seed)  # type: ignore[arg-type]
            seconds = time.perf_counter() - begin
            error = ((_voxels(found.forward) - truth) * spacing).norm(dim=1)[0][inside]
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "initial_mm": initial,
                    "error_mm": float(error.mean()),
                    "ratio": float(error.mean()) / initial,
                    "p95_mm": float(error.kthvalue(int(0.95 * error.numel())).values),
                    "non_positive_jacobian_percent": _folds(found.forward),
                    "seconds": seconds,
                }
            )
            _tell(progress, rows[-1])
    return rows


def label_benchmark(
    fixed_image: Volume,
    fixed_labels: Volume,
    moving_image: Volume,
    moving_labels: Volume,
    *,
    labels: Sequence[int] = FREESURFER_LABELS,
    methods: Sequence[str] = ("field", "diffeomorphic", "syn"),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Register two people and compare the overlap of their label maps.

    The moving labels are carried onto the fixed grid once, nearest neighbour. FreeSurfer's cortical parcels
    (1000 to 1999 left, 2000 to 2999 right) count as the cortex, 3 and 42, as in the coarser label maps.

    Args:
        fixed_image: skull-stripped.
        fixed_labels: on the grid of `fixed_image`.
        moving_image: skull-stripped.
        moving_labels: on the grid of `moving_image`.
        labels: the numbers to score; those absent from either map are left out.
        methods: "field" and "syn" of `register`, and "diffeomorphic" for the field that composes small steps only.
        seed: of the affine part and of SyN.
        progress: called with a line about each run.

    Returns:
        One row per method: "method", "dice" (mean over labels), "dice_by_label", "non_positive_jacobian_percent"
        (central differences over the whole volume), "jacobian_min", "seconds".
    """
    fixed_labels, moving_labels = _with_cortex(fixed_labels), _with_cortex(moving_labels)
    rows = []
    for method in methods:
        begin = time.perf_counter()
        if method == "diffeomorphic":
            found = register(moving_image, fixed_image, method="field", diffeomorphic=True, seed=seed)
        else:
            found = register(moving_image, fixed_image, method=method, seed=seed)  # type: ignore[arg-type]
        seconds = time.perf_counter() - begin
        carried = resample(moving_labels, fixed_labels, found.forward, order="nearest").array
        by_label = dice(carried, fixed_labels.array, label_list=labels)
        by_label = {label: value for label, value in by_label.items() if np.isfinite(value)}
        rows.append(
            {
                "method": method,
                "dice": float(np.mean(list(by_label.values()))),
                "dice_by_label": by_label,
                "non_positive_jacobian_percent": _folds(found.forward),
                "jacobian_min": float(jacobian_determinant(_voxels(found.forward)).min()),
                "seconds": seconds,
            }
        )
        _tell(progress, rows[-1])
    return rows


def _smooth_field(
    shape: Sequence[int], spacing: Sequence[float], brain: np.ndarray, peak_mm: float, sigma_mm: float, seed: int
) -> Tensor:
    """A random displacement, (1, 3, D, H, W) in voxels."""
    generator = np.random.default_rng(seed)
    sigmas = [sigma_mm / length for length in spacing]
    noise = [generator.standard_normal(tuple(shape), dtype=np.float32) for _ in range(3)]
    field = np.stack([gaussian_filter(component, sigmas) for component in noise])
    field *= peak_mm / np.linalg.norm(field, axis=0)[brain].max()
    return torch.from_numpy(field / np.asarray(spacing, dtype=np.float32).reshape(3, 1, 1, 1))[None]


def _voxels(field: DisplacementField) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(field.to_voxels(), dtype=np.float32))[None]


def _folds(field: DisplacementField) -> float:
    """The share of voxels, in percent, whose determinant is 0 or less: central differences, the border included."""
    return 100 * float((jacobian_determinant(_voxels(field)) <= 0).float().mean())


def _with_cortex(labels: Volume) -> Volume:
    array = labels.array.astype(np.int32)
    array[(array >= 1000) & (array < 2000)] = 3
    array[(array >= 2000) & (array < 3000)] = 42
    return Volume(array, labels.affine, labels.source)


def _tell(progress: Callable[[str], None] | None, row: Row) -> None:
    if progress is not None:
        progress(
            ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k[:5] != "dice_"
            )
        )
