"""Checks of the scans that are to be aligned."""

import numpy as np

from ..volumes import Volume


def check_3d(name: str, volume: Volume) -> None:
    """Refuse an image that is not 3-D, such as a series of volumes."""
    if volume.array.ndim != 3:
        raise ValueError(
            f"{name} must be 3-D, got shape {volume.array.shape}; "
            "for a diffusion series use the mean b0, the mean DWI or the FA map"
        )


def check_images(name: str, volume: Volume, mask: Volume | None) -> None:
    """Refuse an image that is not 3-D, constant or not finite, and a mask that is empty or on another grid."""
    check_3d(name, volume)
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
