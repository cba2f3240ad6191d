"""A `Volume`: an array and its position in the world."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

from .slices_html import slices_html

_LEAST_MM = 1e-9  # smallest voxel edge; a smaller edge is a sign of a damaged header
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS+ (ours) <-> LPS (DICOM, ITK), its own inverse


@dataclass(frozen=True)
class HeaderFacts:
    """Fields of a NIfTI or MGH header other than values and affine, which are written again with the image.

    Args:
        step: the interval between the volumes of a series (the TR), in `unit`; None if unknown.
        unit: NIfTI's name of the unit: "sec", "msec", "usec", "hz", "ppm", "rads" or "unknown".
        space: NIfTI's code of the world (1 scanner, 2 aligned, 3 Talairach, 4 MNI); None if unknown.
        mgh: name -> number of MGH's TR, flip angle, TE and TI (ms, radians).
        slices: name -> number of NIfTI's order and times of slices: dim_info, slice_code and so on.
    """

    step: float | None = None
    unit: str = "unknown"
    space: int | None = None
    mgh: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """An image with its position in space.

    Args:
        array: (D, H, W), or (D, H, W, T) for a series; any real dtype. D, H, W are the voxel axes that `affine` maps.
        affine: (4, 4) float64, voxel index -> world mm, RAS+ (x to the right, y to the front, z to the top).
        source: the file or folder from which it was read.
        background: the value outside the image, such as air in a CT; None if unknown.
        header: further fields of the file's header; None if there is no such file.

    Raises:
        ValueError: the array is not 3-D or 4-D, or the affine is not a finite, invertible (4, 4) matrix.
    """

    array: np.ndarray
    affine: np.ndarray
    source: Path | None = None
    background: float | None = None
    header: HeaderFacts | None = None

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        if self.array.ndim not in (3, 4):
            raise ValueError(f"array must have shape (D, H, W) or (D, H, W, T), got {self.array.shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise ValueError(f"affine must be a finite (4, 4) matrix with last row 0 0 0 1, got {affine.tolist()}")
        # relative to the voxel's edges, so that a microscope's voxels pass too
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        if edges.min() < _LEAST_MM or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(edges):
            raise ValueError(f"affine must be invertible, got {affine.tolist()}")
        object.__setattr__(self, "affine", affine)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.array.shape))
        spacing = " x ".join(f"{mm:.4g}" for mm in self.spacing)
        name = f", {self.source.name}" if self.source is not None else ""
        return f"Volume({size} {self.array.dtype}, {spacing} mm, {self.orientation}{name})"

    def _repr_html_(self) -> str:
        """Three slices, for notebooks."""
        return slices_html(self.array, self.spacing, repr(self))

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
        return "".join(code or "?" for code in nib.aff2axcodes(self.affine))

    def with_array(self, array: np.ndarray) -> "Volume":
        """A volume with other values on the same grid, such as a mask; its background is unknown."""
        return replace(self, array=array, background=None)


def perpendicular_axes(affine: np.ndarray) -> bool:
    """Whether the voxel axes meet at right angles, within 0.1 degrees.

    Example:
        >>> perpendicular_axes(np.diag([-1.0, 2.0, 3.0, 1.0]))
        True
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < np.sin(np.deg2rad(0.1)))
