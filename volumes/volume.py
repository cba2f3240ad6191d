"""A `Volume`: an array and its position in the world."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS+ (ours) <-> LPS (DICOM, ITK), its own inverse


@dataclass(frozen=True, eq=False)
class Volume:
    """An image with its place in the world.

    Args:
        array: (D, H, W), or (D, H, W, T) for a series; any real dtype. D, H, W are the voxel axes that `affine` maps.
        affine: (4, 4) float64, voxel index -> world mm, RAS+ (x to the right, y to the front, z to the top).
        source: the file or folder that it was read from.

    Raises:
        ValueError: for an array that is not 3-D or 4-D, or an affine that is not a finite, invertible (4, 4) matrix.
    """

    array: np.ndarray
    affine: np.ndarray
    source: Path | None = None

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        if self.array.ndim not in (3, 4):
            raise ValueError(f"array must have shape (D, H, W) or (D, H, W, T), got {self.array.shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise ValueError(f"affine must be a finite (4, 4) matrix with last row 0 0 0 1, got {affine.tolist()}")
        # relative to the voxel's edges, so that a microscope's voxels pass too
        if abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(np.linalg.norm(affine[:3, :3], axis=0)):
            raise ValueError(f"affine must be invertible, got {affine.tolist()}")
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The size of the three spatial axes, in voxels."""
        d, h, w = self.array.shape[:3]
        return d, h, w

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """The distance between neighbouring voxels along each array axis, in mm."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return d, h, w

    @property
    def origin(self) -> tuple[float, float, float]:
        """The centre of voxel (0, 0, 0) in RAS+ mm."""
        x, y, z = self.affine[:3, 3].tolist()
        return x, y, z

    @cached_property
    def orientation(self) -> str:
        """The nearest anatomical direction of each array axis, for example "RAS" or "PSR"."""
        return "".join(nib.aff2axcodes(self.affine))

    def with_array(self, array: np.ndarray) -> "Volume":
        """The same place in the world with other values, e.g. a mask or a filtered image."""
        return replace(self, array=array)


def perpendicular_axes(affine: np.ndarray) -> bool:
    """Whether the voxel axes meet at right angles, within 0.1 degrees.

    Example:
        >>> perpendicular_axes(np.diag([-1.0, 2.0, 3.0, 1.0]))
        True
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < np.sin(np.deg2rad(0.1)))
