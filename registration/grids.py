"""The grid that a network sees: scans resampled to it and scaled to the unit range."""

import warnings
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..volumes import AffineTransform, Volume, VolumeWarning
from ..volumes.resample import resample


def training_grid(fixed: Volume, *, spacing_mm: float, size: Sequence[int] | None = None) -> Volume:
    """The grid that a network sees: axes along those of `fixed`, ordered and directed nearest to RAS, even spacing.

    Args:
        fixed: its content is what the grid is centred on.
        spacing_mm: of all three axes.
        size: voxels per axis; what lies outside is cut off, what is missing reads 0. By default all of `fixed` fits.

    Returns:
        An empty volume. A size that cuts off more than 2 % of the content of `fixed` is warned about.
    """
    canonical = nib.orientations.io_orientation(fixed.affine)
    to_axes = nib.orientations.inv_ornt_aff(canonical, fixed.shape)
    nearest_ras = fixed.affine @ to_axes  # voxel -> world for the reordered axes
    directions = nearest_ras[:3, :3] / np.linalg.norm(nearest_ras[:3, :3], axis=0)
    lengths_mm = np.linalg.norm(nearest_ras[:3, :3], axis=0)
    full = np.array(fixed.shape)[np.argsort(canonical[:, 0])]
    whole = size is None
    shape = np.ceil((full - 1) * lengths_mm / spacing_mm).astype(int) + 1 if size is None else np.asarray(size)
    if shape.shape != (3,) or shape.min() < 1 or spacing_mm <= 0:
        raise ValueError(f"size must be three numbers of voxels and spacing_mm positive, got {size} and {spacing_mm}")
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    content = _content(fixed)
    voxels = np.argwhere(content)
    middle = (np.array(fixed.shape) - 1) / 2 if whole else (voxels.min(axis=0) + voxels.max(axis=0)) / 2
    centre = fixed.affine[:3, :3] @ middle + fixed.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    if not whole:
        to_grid = np.linalg.inv(affine) @ fixed.affine
        inside = voxels @ to_grid[:3, :3].T + to_grid[:3, 3]
        lost = 1 - float(((inside > -0.5) & (inside < shape - 0.5)).all(axis=1).mean())
        if lost > 0.02:
            warnings.warn(
                f"size {shape.tolist()} at {spacing_mm} mm cuts off {100 * lost:.0f} % of {fixed.source or 'fixed'}",
                VolumeWarning,
                stacklevel=2,
            )
    return Volume(np.broadcast_to(np.float32(0), tuple(shape.tolist())), affine)


def unit_range(volume: Volume) -> Volume:
    """Intensities in [0, 1], clipped beyond.

    0 is the 0.5th percentile of all voxels, 1 the 99.5th percentile of the voxels above it, so that the share of empty
    background hardly matters and a blank background stays 0.
    """
    array = volume.array.astype(np.float32)
    low = np.percentile(array, 0.5)
    above = array[array > low]
    high = np.percentile(above, 99.5) if above.size else low
    if high <= low:
        raise ValueError(f"{volume.source or 'volume'} must not be constant, got {low} almost everywhere")
    return volume.with_array(np.clip((array - low) / (high - low), 0.0, 1.0))


def to_grid(volume: Volume, grid: Volume, transform: AffineTransform | None = None) -> torch.Tensor:
    """The image on another grid as a network sees it, (1, D, H, W) float32: smoothed for it, interpolated once.

    Args:
        volume: (D, H, W).
        grid: its shape and affine are taken, its values are not.
        transform: from the world of `grid` into that of `volume`; None where both are one world.
    """
    return with_channel(resample(_antialiased(volume, min(grid.spacing)), grid, transform), np.float32)


def _content(volume: Volume) -> np.ndarray:
    """Where the image shows something: above a tenth of its robust range."""
    low, high = np.percentile(volume.array, [1, 99])
    content = volume.array > low + 0.1 * (high - low)
    return content if content.any() else np.ones(volume.shape, bool)


def _antialiased(volume: Volume, spacing_mm: float) -> Volume:
    """Smoothed as far as the coarser grid asks for, so that fine detail does not come back as noise."""
    ratio = spacing_mm / np.array(volume.spacing)
    sigma = 0.42 * np.sqrt(np.maximum(ratio**2 - 1, 0))  # a full width at half maximum of one coarse voxel
    return volume.with_array(gaussian_filter(volume.array, sigma)) if sigma.any() else volume


def with_channel(volume: Volume, dtype: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(volume.array, dtype=dtype))[None]
