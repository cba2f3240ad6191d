"""Masks of the voxels that a registration compares, such as all voxels outside a lesion."""

from dataclasses import dataclass

import numpy as np

from ..volumes import Transform, Volume, resample


@dataclass(frozen=True, eq=False)
class Masks:
    """The voxels of both images that are compared.

    Args:
        moving: mask on the grid of the moving image, 0 at voxels that are not compared; None for all voxels.
        fixed: the same for the fixed image.
    """

    moving: Volume | None = None
    fixed: Volume | None = None

    def swapped(self) -> "Masks":
        """The masks with both images exchanged."""
        return Masks(self.fixed, self.moving)

    def on_grid(self, grid: Volume, transform: Transform | None = None) -> Volume | None:
        """Combine both masks on a grid of the fixed world; None if there are no masks.

        Args:
            grid: the grid, of which shape and affine are used.
            transform: fixed world -> moving world; None if both share one world.

        Returns:
            (D, H, W) float32, 1 at the voxels to compare. Points outside a mask's grid are not compared.
        """
        both = None
        for mask, way in ((self.fixed, None), (self.moving, transform)):
            if mask is None:
                continue
            seen = resample(mask.with_array((mask.array != 0).astype(np.uint8)), grid, way, order="nearest").array
            both = seen if both is None else both * seen
        return None if both is None else Volume(both.astype(np.float32), grid.affine)
