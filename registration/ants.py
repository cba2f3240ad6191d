"""ANTs through antspyx: conversion of volumes and transforms, and SyN."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch

from ..volumes import AffineTransform, DisplacementField, Volume, read_transform, write_transform
from .mutual_information import HISTOGRAM_BINS

Metric = Literal["mattes", "gc", "meansquares"]

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
ANTS_METRIC = {"mattes": "MI", "gc": "GC", "meansquares": "MeanSquares"}


def _ants() -> ModuleType:
    # Imported late: antspyx takes seconds to load. ITK reads the thread count once, at its first use.
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(torch.get_num_threads()))
    import ants

    return ants


def to_ants(volume: Volume) -> Any:
    """The volume as a float32 ANTs image: the same voxels, its place in LPS mm. Oblique and sheared grids are exact."""
    ants = _ants()
    _require_3d("volume", volume)
    lps = _RAS_LPS @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(volume.array, dtype=np.float32),
        origin=lps[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=lps[:3, :3] / spacing,
    )


def from_ants(image: Any) -> Volume:
    """An ANTs image (one component) as a volume: the same voxels, its place in RAS+ mm."""
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    lps[:3, 3] = image.origin
    return Volume(image.numpy(), _RAS_LPS @ lps)


def syn(
    moving: Volume,
    fixed: Volume,
    *,
    metric: Literal["mattes", "CC"] = "mattes",
    initial: np.ndarray | None = None,
    fixed_mask: Volume | None = None,
    moving_mask: Volume | None = None,
    seed: int = 0,
) -> tuple[DisplacementField, DisplacementField]:
    """Symmetric normalisation by ANTs with its default settings (Avants 2008): the baseline beside our methods.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        metric: of the deformable stage: "mattes" (mutual information, the ANTs default) or "CC" (local correlation).
        initial: (4, 4) start as from `align_affine`. Without one ANTs aligns the centres of mass first.
        fixed_mask: on the grid of `fixed`; voxels that are 0 are not compared.
        moving_mask: on the grid of `moving`; voxels that are 0 are not compared.
        seed: of the metric's sampling.

    Returns:
        Forward: on the grid of `fixed`, fixed space -> moving space (it warps the moving image), the affine part
        included. Inverse: on the grid of `moving`, moving space -> fixed space.
    """
    for name, volume, mask in (("moving", moving, moving_mask), ("fixed", fixed, fixed_mask)):
        check_images(name, volume, mask)
    ants = _ants()
    fixed_image, moving_image = to_ants(fixed), to_ants(moving)
    with tempfile.TemporaryDirectory(prefix="voxelwave-syn-") as folder, _ants_seed(seed):
        prefix = os.path.join(folder, "syn")
        start = None if initial is None else _write_affine(initial, Path(folder) / "initial.mat")
        result = ants.registration(
            fixed_image,
            moving_image,
            type_of_transform="SyN",
            syn_metric=metric,
            syn_sampling=4 if metric == "CC" else HISTOGRAM_BINS,  # a radius in voxels, or a number of bins
            initial_transform=start,
            mask=None if fixed_mask is None else to_ants(fixed_mask),
            moving_mask=None if moving_mask is None else to_ants(moving_mask),
            outprefix=prefix,
        )
        forward = _composite(fixed, moving_image, result["fwdtransforms"], prefix + "-forward")
        inverse = _composite(moving, fixed_image, result["invtransforms"], prefix + "-inverse")
    return forward, inverse


def _composite(reference: Volume, image: Any, transforms: list[str], prefix: str) -> DisplacementField:
    """A chain of ANTs transform files as one dense field on the grid of `reference`."""
    ants = _ants()
    path = ants.apply_transforms(to_ants(reference), image, transforms, compose=prefix)
    lps_mm = ants.image_read(path).numpy()  # (D, H, W, 3)
    vectors_mm = lps_mm.astype(np.float32) * np.array([-1, -1, 1], np.float32)
    return DisplacementField(vectors_mm, reference.affine)


def run_ants(
    images: tuple[Any, Any],
    masks: tuple[Any, ...],
    stage: str,
    start: np.ndarray,
    metric: Metric,
    schedule: dict[str, str],
    sampling: float,
    seed: int,
) -> np.ndarray:
    ants = _ants()
    from ants.internal import get_pointer_string

    fixed, moving = map(get_pointer_string, images)
    masks_given = ",".join("NA" if mask is None else get_pointer_string(mask) for mask in masks)
    bins = HISTOGRAM_BINS if metric == "mattes" else 1
    with tempfile.TemporaryDirectory(prefix="voxelwave-affine-") as folder:
        arguments = [
            *("--dimensionality", "3", "--float", "1", "--random-seed", str(seed), "--collapse-output-transforms", "1"),
            *("--initial-moving-transform", _write_affine(start, Path(folder) / "start.mat")),
            *("--metric", f"{ANTS_METRIC[metric]}[{fixed},{moving},1,{bins},Regular,{sampling:.3f}]"),
            *("--transform", f"{stage}[0.1]"),
            *itertools.chain.from_iterable(schedule.items()),
            *("--masks", f"[{masks_given}]", "--output", os.path.join(folder, "out")),
        ]
        try:
            ants.registration(arguments, None)
        except RuntimeError as error:
            raise RuntimeError(f"ANTs could not align the images ({stage.lower()} stage): {error}") from error
        return _read_affine(Path(folder) / "out0GenericAffine.mat")


def _write_affine(world: np.ndarray, path: Path) -> str:
    write_transform(path, AffineTransform(world))
    return str(path)


def _read_affine(path: Path) -> np.ndarray:
    transform = read_transform(path)
    assert isinstance(transform, AffineTransform)
    return transform.matrix


@contextmanager
def _ants_seed(seed: int) -> Iterator[None]:
    before = os.environ.get("ANTS_RANDOM_SEED")
    os.environ["ANTS_RANDOM_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ANTS_RANDOM_SEED"]
        else:
            os.environ["ANTS_RANDOM_SEED"] = before


def _require_3d(name: str, volume: Volume) -> None:
    if volume.array.ndim != 3:
        raise ValueError(
            f"{name} must be 3-D, got shape {volume.array.shape}; "
            "of a diffusion series take the mean b0, the mean DWI or the FA map"
        )


def check_images(name: str, volume: Volume, mask: Volume | None) -> None:
    _require_3d(name, volume)
    if not np.isfinite(volume.array).all():
        raise ValueError(f"{name} must be finite, got NaN or inf in {volume.source or 'its array'}")
    if volume.array.min() == volume.array.max():
        raise ValueError(f"{name} must not be constant, got {volume.array.flat[0]} everywhere")
    if mask is None:
        return
    if mask.shape != volume.shape or not np.allclose(mask.affine, volume.affine, atol=1e-3):
        raise ValueError(
            f"{name}_mask must lie on the grid of {name} (shape {volume.shape}, and the same affine), got {mask.shape}"
        )
    if not mask.array.any():
        raise ValueError(f"{name}_mask must have non-zero voxels, got none")
