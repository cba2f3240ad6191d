"""A deformation between two contrasts of one head: free, or only along the phase-encoding axis of a diffusion image.

The images are compared on an isotropic grid around the head of the fixed image, and only inside the head: between the
contrasts, skull and scalp move differently from the brain, and the background of an echo-planar image is noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..kernels.threads import ordered_sums
from ..volumes import AffineTransform, DisplacementField, Volume
from ..volumes.sampling import apply_affine, voxel_blocks
from .evidence import seen_mask, strain_of, widened
from .forces import force_of
from .free_form import fit_level
from .grids import to_grid, unit_range
from .levels import level_of, normalized
from .refine import unfold
from .warp import resize_displacement

Progress = Callable[[str], None]

SPACING_MM = 2.5
_MARGIN_MM = 12.0  # of the grid around the head, where a deformation fades
_COMPARED_MM = 2.0  # around the head; further out, fluid that is dark in one contrast only drew the outline outwards
_SCHEDULE = ((4.0, 16.0, 40), (2.5, 10.0, 20))  # voxel size, distance of control points, iterations


@dataclass(frozen=True, eq=False)
class HeadPair:
    """Both images on an isotropic grid around the head of the fixed image; a linear map brings the moving image there.

    Args:
        moving, fixed: (1, 1, D, H, W) in [0, 1].
        head: (1, 1, D, H, W), 1 at the voxels to compare.
        seen: (1, 1, D, H, W), 1 at the voxels that are not held out for judging a fit.
        grid: the isotropic grid, without values.
        linear: fixed world -> moving world.
    """

    moving: Tensor
    fixed: Tensor
    head: Tensor
    seen: Tensor
    grid: Volume
    linear: AffineTransform

    @classmethod
    def of(cls, moving: Volume, fixed: Volume, head: Volume, linear: AffineTransform) -> "HeadPair":
        """Resample both images.

        Args:
            moving: (D, H, W).
            fixed: (D, H, W).
            head: on the grid of `fixed`, 1 in the head.
            linear: fixed world -> moving world.
        """
        grid = _grid_around(head)
        thick = [0.42 * math.sqrt(max(0.0, (max(fixed.spacing) / mm) ** 2 - 1)) for mm in moving.spacing]
        # the moving image as blurred as the thickest slices of the fixed one, at most to the working spacing
        most = [0.42 * math.sqrt(max(0.0, (SPACING_MM / mm) ** 2 - 1)) for mm in moving.spacing]
        sigma = [min(a, b) for a, b in zip(thick, most, strict=True)]
        source = moving.with_array(gaussian_filter(moving.array.astype(np.float32), sigma))
        first = normalized(to_grid(unit_range(source), grid, linear)[None])
        second = normalized(to_grid(unit_range(fixed), grid)[None])
        wide = widened(head, _COMPARED_MM)
        near = (to_grid(wide.with_array(wide.array.astype(np.float32)), grid)[None] > 0.5).float()
        seen = torch.from_numpy(seen_mask(grid, fixed)).float()[None, None]
        return cls(first, second, near, near * seen, grid, linear)

    @ordered_sums()
    def fit(
        self,
        similarity: str,
        *,
        direction: np.ndarray | None = None,
        start: Tensor | None = None,
        judged: bool = True,
        finish: bool = False,
        progress: Progress | None = None,
    ) -> Tensor:
        """The displacement that aligns the images, (1, 3, D, H, W) in voxels of the grid.

        Args:
            similarity: see `forces.force_of`.
            direction: (3,), fixed world, the only direction in which points move; None for all.
            start: the displacement to add to, (1, 3, D, H, W) in voxels.
            judged: leave out the cubes on which `evidence.Evidence` judges the fit.
            finish: run only the finest level, with half of its iterations.
            progress: called with a line about each level.
        """
        mask = self.seen if judged else self.head
        axis = None if direction is None else torch.from_numpy(self._along_axes(direction)).float()
        start = torch.zeros(1, 3, *self.grid.shape) if start is None else start
        field, control = start, None
        schedule = [(mm, control_mm, count // 2) for mm, control_mm, count in _SCHEDULE[-1:]] if finish else _SCHEDULE
        for mm, control_mm, count in schedule:
            level = level_of(self.fixed, self.moving, mask, self.grid.spacing, mm)
            shape = level.fixed.shape[2:]
            force = force_of(similarity, level)
            begin = resize_displacement(start, shape)
            field, control, loss = fit_level(
                level, begin, control, force, count, control_mm, SPACING_MM, direction=axis
            )
            if progress is not None:
                progress(f"{similarity} at {mm:.3g} mm: {count} iterations, loss {loss:.4f}")
        return unfold(resize_displacement(field, self.grid.shape) * self._fading())

    def field(self, displacement: Tensor) -> DisplacementField:
        """The map from the fixed to the moving world for a displacement (1, 3, D, H, W) in voxels."""
        return DisplacementField.from_voxels(displacement[0].numpy(), self.grid.affine, pre=self.linear)

    def on_grid(self, displacement: Tensor, like: Volume) -> DisplacementField:
        """The map for a displacement on another grid of the fixed world; outside the grid of the pair it is linear."""
        vectors = np.empty((*like.shape, 3), np.float32)
        inner = DisplacementField.from_voxels(displacement[0].numpy(), self.grid.affine)
        for slab, voxels in voxel_blocks(like.shape):
            points = apply_affine(like.affine, voxels)
            moved = inner.map(points)
            moved = self.linear.map(np.where(np.isnan(moved), points, moved))
            vectors[slab] = (moved - points).reshape(vectors[slab].shape)
        return DisplacementField(vectors, like.affine)

    def displacement_of(self, way_mm: Volume, direction: np.ndarray) -> Tensor:
        """Convert a displacement along one direction, in mm on the fixed grid, to (1, 3, D, H, W) in voxels."""
        way = to_grid(way_mm, self.grid)[None] * self._fading() / SPACING_MM
        return way * torch.from_numpy(self._along_axes(direction)).float().view(1, 3, 1, 1, 1)

    def strain(self, displacement: Tensor) -> float:
        """The root mean square strain of a displacement inside the head."""
        mm = displacement[0].numpy() * np.array(self.grid.spacing, np.float32).reshape(3, 1, 1, 1)
        return strain_of(mm, self.grid.spacing, self.head[0, 0].numpy() > 0)

    def _fading(self) -> Tensor:
        """1 in the head's box, falling to 0 at the border of the grid, (1, 1, D, H, W)."""
        weight = torch.ones(1, 1, *self.grid.shape)
        for axis, n in enumerate(self.grid.shape):
            index = torch.arange(n)
            edge = torch.minimum(index, n - 1 - index) * SPACING_MM / _MARGIN_MM
            weight = weight * edge.clamp(0, 1).view([-1 if a == axis + 2 else 1 for a in range(5)])
        return weight

    def _along_axes(self, direction: np.ndarray) -> np.ndarray:
        """A direction of the world, expressed along the axes of the grid."""
        along = (self.grid.affine[:3, :3] / np.array(self.grid.spacing)).T @ direction
        unit: np.ndarray = along / np.linalg.norm(along)
        return unit


def _grid_around(head: Volume) -> Volume:
    """An empty isotropic grid along the axes of an image, around its nonzero voxels."""
    where = np.argwhere(head.array != 0)
    spacing = np.array(head.spacing)
    low = where.min(axis=0) * spacing - _MARGIN_MM
    high = where.max(axis=0) * spacing + _MARGIN_MM
    shape = np.ceil((high - low) / SPACING_MM).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = head.affine[:3, :3] / spacing * SPACING_MM
    affine[:3, 3] = apply_affine(head.affine, (low / spacing)[None])[0]
    return Volume(np.broadcast_to(np.float32(0), tuple(shape.tolist())), affine)
