"""Registration between people: our methods and other programs on the same images, by the overlap of label maps.

All methods start from the same images, and the time of each method includes its affine registration.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..volumes import Transform, Volume, compose_to_field, resample
from . import convexadam, greedy
from .choices import LABEL_METHODS, LabelMethod
from .grids import training_grid
from .jacobian import field_measures
from .metrics import dice
from .register import register
from .settings import RegistrationSettings
from .tissues import TrainedTissueNet

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
class LabelResult:
    """Overlap of label maps after a registration.

    Args:
        method: one of `choices.LABEL_METHODS`.
        dice: mean Dice over the labels.
        cortex: mean Dice over the labels 3 and 42, which are the left and the right cortex.
        dice_by_label: the Dice of each label.
        sdlogj: standard deviation of the logarithm of the Jacobian determinant, by Learn2Reg's definition, of the whole
            map with its affine part.
        non_positive_jacobian_percent: folded voxels, in percent, without a border of 2 voxels.
        cpu_seconds: processor time of all threads, from the images to the map.
        seconds: wall time of the same work.
    """

    method: str
    dice: float
    cortex: float
    dice_by_label: dict[int, float]
    sdlogj: float
    non_positive_jacobian_percent: float
    cpu_seconds: float
    seconds: float


def coarser(scan: LabelledScan, spacing_mm: float) -> LabelledScan:
    """Smooth and resample the image to an isotropic spacing; the labels are unchanged."""
    image, grid = scan.image, training_grid(scan.image, spacing_mm=spacing_mm)
    sigmas = [0.5 * np.sqrt(max((spacing_mm / mm) ** 2 - 1, 0.0)) for mm in image.spacing]
    smoothed = image.with_array(gaussian_filter(image.array.astype(np.float32), sigmas))
    return LabelledScan(resample(smoothed, grid), scan.labels)


def label_benchmark(
    moving: LabelledScan,
    fixed: LabelledScan,
    *,
    labels: Sequence[int] = FREESURFER_LABELS,
    methods: Sequence[LabelMethod] = LABEL_METHODS,
    network: TrainedTissueNet | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LabelResult]:
    """Register two people and compare the overlap of their label maps.

    The moving labels are resampled on the grid of the fixed labels once, by nearest neighbour. FreeSurfer's cortical
    parcels (1000 to 1999 left, 2000 to 2999 right) count as the cortex, 3 and 42, as in the coarser label maps.

    Args:
        moving: skull-stripped.
        fixed: skull-stripped.
        labels: the labels to score; those absent from either map are ignored.
        methods: "affine" for the affine map alone, "fast", "standard" and "accurate" for the efforts of `register`,
            "diffeomorphic" for a field that is composed only of small steps, "tissues" for `register` with a network
            that finds tissues, "syn" for ANTs, and "greedy" and "convexadam" for these programs if they are installed.
        network: for "tissues".
        seed: seed of the affine registration and of SyN.
        progress: called with a line about each run.

    Returns:
        One result per method.
    """
    fixed_labels, moving_labels = _with_cortex(fixed.labels), _with_cortex(moving.labels)
    results = []
    for method in methods:
        package = missing_package(method)
        if package is not None:
            if progress is not None:
                progress(f"{method} is left out: install it with pip install {package}")
            continue
        started, worked = time.perf_counter(), time.process_time()
        found = _map(method, moving.image, fixed.image, network, seed)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        warped_labels = resample(moving_labels, fixed_labels, found, order="nearest").array
        scores = dice(warped_labels, fixed_labels.array, label_list=labels)
        by_label = {label: score for label, score in scores.items() if np.isfinite(score)}
        cortex = [by_label[label] for label in (3, 42) if label in by_label]
        measures = field_measures(torch.from_numpy(compose_to_field([found], fixed.image).to_voxels())[None])
        result = LabelResult(
            method=method,
            dice=float(np.mean(list(by_label.values()))),
            cortex=float(np.mean(cortex)) if cortex else float("nan"),
            dice_by_label=by_label,
            sdlogj=measures["sdlogj"],
            non_positive_jacobian_percent=measures["non_positive_jacobian_percent"],
            cpu_seconds=cpu_seconds,
            seconds=seconds,
        )
        results.append(result)
        if progress is not None:
            progress(f"{method}: Dice {result.dice:.4f}, {cpu_seconds:.1f} CPU s, {seconds:.1f} s")
    return results


def missing_package(method: LabelMethod) -> str | None:
    """The package that a method needs and that is not installed; None if it can run."""
    if method == "greedy" and not greedy.available():
        return "picsl_greedy"
    if method == "convexadam" and not convexadam.available():
        return "convexadam"
    return None


def _map(method: LabelMethod, moving: Volume, fixed: Volume, network: TrainedTissueNet | None, seed: int) -> Transform:
    match method:
        case "affine":
            return register(moving, fixed, RegistrationSettings(transform="affine", seed=seed)).forward
        case "tissues":
            return register(moving, fixed, RegistrationSettings(seed=seed), network=network).forward
        case "greedy":
            return greedy.greedy(moving, fixed)
        case "convexadam":
            return convexadam.convexadam(moving, fixed, seed=seed)
        case "syn":
            return register(moving, fixed, RegistrationSettings(method="syn", seed=seed)).forward
        case "diffeomorphic":
            return register(moving, fixed, RegistrationSettings(diffeomorphic=True, seed=seed)).forward
        case _:
            return register(moving, fixed, RegistrationSettings(effort=method, seed=seed)).forward


def _with_cortex(labels: Volume) -> Volume:
    array = labels.array.astype(np.int32)
    array[(array >= 1000) & (array < 2000)] = 3
    array[(array >= 2000) & (array < 3000)] = 42
    return Volume(array, labels.affine, labels.source)
