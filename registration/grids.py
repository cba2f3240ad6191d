"""The input grid of a network, and the resampling and scaling of scans for it."""

import warnings
from collections.abc import Sequence

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from ..kernels import fields
from ..volumes import AffineTransform, Volume, VolumeWarning
from ..volumes.resample import resample

_ENOUGH = 1_000_000  # voxels for a percentile


def training_grid(fixed: Volume, *, spacing_mm: float, size: Sequence[int] | None = None) -> Volume:
    """The isotropic input grid of a network, with the axes of `fixed`, permuted and flipped to be closest to RAS.

    Args:
        fixed: the grid is centred on the content of this image.
        spacing_mm: voxel spacing along all three axes.
        size: voxels per axis; the image is cropped or padded with 0 to this size. By default, the grid covers `fixed`.

    Returns:
        An empty volume on the grid. A size that cuts off more than 2 % of the content of `fixed` gives a warning.

    Raises:
        ValueError: size or spacing_mm is not positive.
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
        to_voxels = np.linalg.inv(affine) @ fixed.affine
        inside = voxels @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        lost = 1 - float(((inside > -0.5) & (inside < shape - 0.5)).all(axis=1).mean())
        if lost > 0.02:
            warnings.warn(
                f"size {shape.tolist()} at {spacing_mm} mm cuts off {100 * lost:.0f} % of {fixed.source or 'fixed'}",
                VolumeWarning,
                stacklevel=2,
            )
    return Volume(np.broadcast_to(np.float32(0), tuple(shape.tolist())), affine)


def unit_range(volume: Volume) -> Volume:
    """Scale intensities to [0, 1] and clip values outside this range.

    0 is the 0.5th percentile of all voxels, and 1 the 99.5th percentile of the voxels above it, so that the amount of
    empty background hardly matters and a background of 0 stays 0. Of a large volume, every so many voxels are looked
    at.

    Raises:
        ValueError: the volume is constant.
    """
    array = volume.array.astype(np.float32)
    low, high = _percentiles(array.ravel()[:: max(1, array.size // _ENOUGH)])
    if high <= low:
        low, high = _percentiles(array)
    if high <= low:
        raise ValueError(f"{volume.source or 'volume'} must not be constant, got {low} almost everywhere")
    array -= low
    array /= high - low
    return volume.with_array(np.clip(array, 0.0, 1.0, out=array))


def _percentiles(values: np.ndarray) -> tuple[np.float32, np.float32]:
    """The 0.5th percentile, and the 99.5th of the values above it."""
    low = np.float32(np.percentile(values, 0.5))
    above = values[values > low]
    return low, np.float32(np.percentile(above, 99.5)) if above.size else low


def to_grid(volume: Volume, grid: Volume, transform: AffineTransform | None = None) -> torch.Tensor:
    """Resample an image to another grid for a network: smoothed against aliasing, interpolated once.

    Args:
        volume: (D, H, W).
        grid: a volume whose shape and affine define the grid.
        transform: transform from the world of `grid` to that of `volume`; None if both share one world.

    Returns:
        (1, D, H, W) float32.
    """
    smooth = _antialiased(volume, min(grid.spacing))
    image = with_channel(smooth, np.float32)
    if not fields.serves(image) or smooth.background not in (None, 0):
        return with_channel(resample(smooth, grid, transform), np.float32)
    matrix = np.linalg.inv(volume.affine) @ (np.eye(4) if transform is None else transform.matrix) @ grid.affine
    return fields.resample(image[0], matrix, grid.shape)[None]


def _content(volume: Volume) -> np.ndarray:
    """Mask of the voxels above a tenth of the robust intensity range."""
    low, high = np.percentile(volume.array, [1, 99])
    content = volume.array > low + 0.1 * (high - low)
    return content if content.any() else np.ones(volume.shape, bool)


def _antialiased(volume: Volume, spacing_mm: float) -> Volume:
    """The image smoothed to the resolution of the coarser grid, so that fine detail does not alias."""
    ratio = spacing_mm / np.array(volume.spacing)
    sigma = 0.42 * np.sqrt(np.maximum(ratio**2 - 1, 0))  # a full width at half maximum of one coarse voxel
    return volume.with_array(gaussian_filter(volume.array, sigma)) if sigma.any() else volume


def with_channel(volume: Volume, dtype: npt.DTypeLike) -> torch.Tensor:
    """Return the array of a volume as a tensor (1, D, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(volume.array, dtype=dtype))[None]
