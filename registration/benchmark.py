"""The registration benchmark of the README: our method and ANTs' SyN on the same images in one run.

Both methods start from the same images, and their times include their own affine part.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..volumes import DisplacementField, Volume
from .choices import Method
from .register import register
from .settings import RegistrationSettings
from .warp import invert_displacement, jacobian_determinant, warp

Progress = Callable[[str], None]


@dataclass(frozen=True)
class FieldResult:
    """Error of a registration whose true displacement is known; means are over the brain.

    Args:
        method: the method of `register`.
        seed: seed of the true displacement.
        initial_mm: mean length of the true displacement.
        error_mm: mean distance between the true and the found displacement.
        ratio: error_mm / initial_mm.
        p95_mm: 95th percentile of that distance.
        non_positive_jacobian_percent: folded voxels, in percent, with central differences over the whole volume.
        seconds: wall time of the registration.
    """

    method: str
    seed: int
    initial_mm: float
    error_mm: float
    ratio: float
    p95_mm: float
    non_positive_jacobian_percent: float
    seconds: float


def known_field_benchmark(
    t1: Volume,
    t2: Volume,
    *,
    seeds: Iterable[int] = (0, 1, 2),
    peak_mm: float = 8.0,
    sigma_mm: float = 12.0,
    methods: Sequence[Method] = ("field", "syn"),
    progress: Progress | None = None,
) -> list[FieldResult]:
    """Warp the T1 image by a random smooth field, register it to the T2 image, and compare with the true field.

    The moving image is moving(y) = T1(y + w(y)). The displacement w is white noise, smoothed by a Gaussian of
    `sigma_mm` and scaled so that its longest vector inside the brain has the length `peak_mm`. The true displacement u
    on the fixed grid is defined by id + u = (id + w)^-1 and computed by fixed-point iteration to 0.001 voxel. The brain
    is the region where T1 is not 0.

    Args:
        t1: skull-stripped, (D, H, W), on the grid of `t2` and aligned with it.
        t2: skull-stripped, (D, H, W); the fixed image.
        seeds: seeds of the fields, one field each.
        peak_mm: length of the longest vector inside the brain.
        sigma_mm: smoothness of the field.
        methods: methods of `register` to run.
        progress: called with a line about each run.

    Returns:
        One result per seed and method.

    Raises:
        ValueError: the images are on different grids.
    """
    if t1.shape != t2.shape or not np.allclose(t1.affine, t2.affine, atol=1e-3):
        raise ValueError(f"t1 and t2 must lie on one grid, got {t1.shape} and {t2.shape} or different affines")
    brain = t1.array != 0
    image = torch.from_numpy(np.ascontiguousarray(t1.array, dtype=np.float32))[None, None]
    results = []
    for seed in seeds:
        w = _smooth_field(t1, brain, peak_mm, sigma_mm, seed)
        moving = Volume(warp(image, w)[0, 0].numpy(), t1.affine)
        truth, _ = invert_displacement(w, iterations=60, tolerance=1e-3)
        for method in methods:
            started = time.perf_counter()
            found = register(moving, t2, RegistrationSettings(method=method, seed=seed)).forward
            seconds = time.perf_counter() - started
            initial, error = _lengths_mm(truth, t2, brain), _lengths_mm(_voxels(found) - truth, t2, brain)
            result = FieldResult(
                method=method,
                seed=seed,
                initial_mm=float(initial.mean()),
                error_mm=float(error.mean()),
                ratio=float(error.mean()) / float(initial.mean()),
                p95_mm=float(error.kthvalue(int(0.95 * error.numel())).values),
                non_positive_jacobian_percent=_folds(found),
                seconds=seconds,
            )
            results.append(result)
            if progress is not None:
                progress(f"{method}, seed {seed}: {result.error_mm:.4g} of {result.initial_mm:.4g} mm, {seconds:.4g} s")
    return results


def _smooth_field(image: Volume, brain: np.ndarray, peak_mm: float, sigma_mm: float, seed: int) -> Tensor:
    """A random displacement on the grid of an image, (1, 3, D, H, W) in voxels."""
    generator = np.random.default_rng(seed)
    sigmas = [sigma_mm / length for length in image.spacing]
    noise = [generator.standard_normal(image.shape, dtype=np.float32) for _ in range(3)]
    field = np.stack([gaussian_filter(component, sigmas) for component in noise])
    field *= peak_mm / np.linalg.norm(field, axis=0)[brain].max()
    return torch.from_numpy(field / np.asarray(image.spacing, dtype=np.float32).reshape(3, 1, 1, 1))[None]


def _lengths_mm(displacement: Tensor, grid: Volume, where: np.ndarray) -> Tensor:
    """The lengths in mm of a displacement (1, 3, D, H, W) in voxels, at the chosen voxels."""
    spacing = torch.tensor(grid.spacing).float().view(1, 3, 1, 1, 1)
    lengths: Tensor = (displacement * spacing).norm(dim=1)[0]
    return lengths[torch.from_numpy(where)]


def _voxels(field: DisplacementField) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(field.to_voxels(), dtype=np.float32))[None]


def _folds(field: DisplacementField) -> float:
    """Folded voxels in percent, by central differences, including the border."""
    return 100 * float((jacobian_determinant(_voxels(field)) <= 0).float().mean())
