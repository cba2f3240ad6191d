"""The registration benchmark of the README: our method and ANTs' SyN on the same images in one run.

Both methods start from the same images, and their times include their own affine part.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..volumes import DisplacementField, Volume, resample
from .choices import Method
from .metrics import dice
from .register import register
from .settings import RegistrationSettings
from .warp import invert_displacement, jacobian_determinant, warp

Progress = Callable[[str], None]

# the 30 structures usually scored on FreeSurfer labels (VoxelMorph, Dalca et al. 2018)
_LEFT_AND_MIDDLE = (2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 28, 31)
_RIGHT = (41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60, 63)
FREESURFER_LABELS = _LEFT_AND_MIDDLE + _RIGHT


class LabelledScan(NamedTuple):
    """An image and its label map, (D, H, W) each, in one world space."""

    image: Volume
    labels: Volume


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


@dataclass(frozen=True)
class LabelResult:
    """Overlap of label maps after a registration.

    Args:
        method: the method of `register`, or "diffeomorphic".
        dice: mean over the labels.
        dice_by_label: the Dice of each label.
        non_positive_jacobian_percent: folded voxels, in percent, with central differences over the whole volume.
        jacobian_min: the smallest Jacobian determinant.
        seconds: wall time of the registration.
    """

    method: str
    dice: float
    dice_by_label: dict[int, float]
    non_positive_jacobian_percent: float
    jacobian_min: float
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


def label_benchmark(
    moving: LabelledScan,
    fixed: LabelledScan,
    *,
    labels: Sequence[int] = FREESURFER_LABELS,
    methods: Sequence[Literal["field", "diffeomorphic", "syn"]] = ("field", "diffeomorphic", "syn"),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LabelResult]:
    """Register two people and compare the overlap of their label maps.

    The moving labels are resampled on the fixed grid once, by nearest neighbour. FreeSurfer's cortical parcels
    (1000 to 1999 left, 2000 to 2999 right) are mapped to the cortex, 3 and 42, as in the coarser label maps.

    Args:
        moving: a skull-stripped scan with labels.
        fixed: a skull-stripped scan with labels.
        labels: the labels to score; those absent from either map are ignored.
        methods: "field" and "syn" of `register`, and "diffeomorphic" for "field" with its option diffeomorphic.
        seed: seed of the affine part and of SyN.
        progress: called with a line about each run.

    Returns:
        One result per method.
    """
    fixed_labels, moving_labels = _with_cortex(fixed.labels), _with_cortex(moving.labels)
    results = []
    for method in methods:
        settings = RegistrationSettings(
            method="syn" if method == "syn" else "field", diffeomorphic=method == "diffeomorphic", seed=seed
        )
        started = time.perf_counter()
        found = register(moving.image, fixed.image, settings).forward
        seconds = time.perf_counter() - started
        warped_labels = resample(moving_labels, fixed_labels, found, order="nearest").array
        scores = dice(warped_labels, fixed_labels.array, label_list=labels)
        by_label = {label: score for label, score in scores.items() if np.isfinite(score)}
        result = LabelResult(
            method=method,
            dice=float(np.mean(list(by_label.values()))),
            dice_by_label=by_label,
            non_positive_jacobian_percent=_folds(found),
            jacobian_min=float(jacobian_determinant(_voxels(found)).min()),
            seconds=seconds,
        )
        results.append(result)
        if progress is not None:
            progress(f"{method}: Dice {result.dice:.4g}, {seconds:.4g} s")
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


def _with_cortex(labels: Volume) -> Volume:
    array = labels.array.astype(np.int32)
    array[(array >= 1000) & (array < 2000)] = 3
    array[(array >= 2000) & (array < 3000)] = 42
    return Volume(array, labels.affine, labels.source)
