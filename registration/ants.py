"""ANTs through antspyx: conversion of volumes, and SyN."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..kernels.threads import kernel_threads
from ..runs.extras import load_optional
from ..volumes import AffineTransform, DisplacementField, Volume, write_transform
from ..volumes.volume import LPS
from .checks import check_3d, check_images
from .mutual_information import HISTOGRAM_BINS

# ants is imported in the functions, since it takes seconds to load and only SyN needs it.


def to_ants(volume: Volume) -> Any:
    """Convert a volume (D, H, W) to a float32 ANTs image with the same voxels; the geometry is converted to LPS mm."""
    ants = load_optional("ants", "ANTs")

    check_3d("volume", volume)
    lps = LPS @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(volume.array, dtype=np.float32),
        origin=lps[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=lps[:3, :3] / spacing,
    )


def from_ants(image: Any) -> Volume:
    """Convert an ANTs image with one component to a volume; the geometry is converted to RAS+ mm.

    This is the inverse of `to_ants`, for scripts that continue with an image computed by ANTs.
    """
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    lps[:3, 3] = image.origin
    return Volume(image.numpy(), LPS @ lps)


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
    """Symmetric normalisation by ANTs with its default settings (Avants 2008), the baseline for our methods.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        metric: metric of the deformable stage: "mattes" (mutual information, the ANTs default) or "CC" (local
            correlation).
        initial: (4, 4), the starting point, such as a result of `align_affine`. Without it, ANTs first aligns the
            centres of mass.
        fixed_mask: on the grid of `fixed`; voxels that are 0 are not compared.
        moving_mask: on the grid of `moving`; voxels that are 0 are not compared.
        seed: seed for the sampling of the metric.

    Returns:
        forward: on the grid of `fixed`, from fixed space into moving space (it warps the moving image), including the
            affine part.
        inverse: on the grid of `moving`, from moving space into fixed space.

    Raises:
        ValueError: an image is not 3-D, constant or not finite, or a mask is on another grid.
    """
    ants = load_optional("ants", "ANTs")

    for name, volume, mask in (("moving", moving, moving_mask), ("fixed", fixed, fixed_mask)):
        check_images(name, volume, mask)
    fixed_image, moving_image = to_ants(fixed), to_ants(moving)
    with tempfile.TemporaryDirectory(prefix="voxelwave-syn-") as folder, _ants_environment(seed=seed):
        prefix = os.path.join(folder, "syn")
        start = None if initial is None else _write_affine(initial, Path(folder) / "initial.mat")
        result = ants.registration(
            fixed_image,
            moving_image,
            type_of_transform="SyN",
            syn_metric=metric,
            syn_sampling=4 if metric == "CC" else HISTOGRAM_BINS,  # radius in voxels, or number of bins
            initial_transform=start,
            mask=None if fixed_mask is None else to_ants(fixed_mask),
            moving_mask=None if moving_mask is None else to_ants(moving_mask),
            outprefix=prefix,
        )
        forward = _composite(fixed, moving_image, result["fwdtransforms"], prefix + "-forward")
        inverse = _composite(moving, fixed_image, result["invtransforms"], prefix + "-inverse")
    return forward, inverse


def _composite(reference: Volume, image: Any, transforms: list[str], prefix: str) -> DisplacementField:
    """Compose a chain of ANTs transform files into one dense field on the grid of `reference`."""
    ants = load_optional("ants", "ANTs")

    path = ants.apply_transforms(to_ants(reference), image, transforms, compose=prefix)
    lps_mm = ants.image_read(path).numpy()  # (D, H, W, 3)
    vectors_mm = lps_mm.astype(np.float32) * np.array([-1, -1, 1], np.float32)
    return DisplacementField(vectors_mm, reference.affine)


def _write_affine(world: np.ndarray, path: Path) -> str:
    write_transform(path, AffineTransform(world))
    return str(path)


@contextlib.contextmanager
def _ants_environment(*, seed: int | None = None) -> Iterator[None]:
    """Set the environment variables of ANTs for one call: the number of threads of PyTorch, and a seed."""
    # ITK reads the number of threads once, at its first parallel call; a value that the user set is kept
    wanted = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(kernel_threads())}
    wanted = {name: value for name, value in wanted.items() if name not in os.environ}
    if seed is not None:
        wanted["ANTS_RANDOM_SEED"] = str(seed)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
