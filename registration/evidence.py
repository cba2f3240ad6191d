"""Decide whether one alignment is better than another, by mutual information on held-out voxels of the head.

The head of the fixed image is divided into cubes. Some cubes are held out: no fit uses their voxels. The joint
histogram of the other cubes gives the pointwise mutual information of each held-out voxel,
log p(f, m) / (p(f) p(m)). A voxel that is mapped outside the head in the moving image counts as 0, so that lost overlap
lowers the mean. (If the background of the moving image counted, an alignment would gain from voxels of the head that it
maps there: between T1w and T2w brains of two people, the geometry of the scanner, with brains 20 mm apart, then looked
better than the right affine map.) Two alignments are compared cube by cube: the mean difference must be significant by
its standard error, and must exceed the price of the deformation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ..volumes import Volume
from ..volumes.head import head_region
from ..volumes.sampling import apply_affine
from .linear import coarsened, without_outliers

Map = Callable[[np.ndarray], np.ndarray]  # fixed world points (N, 3) -> moving world points (N, 3); NaN where unknown

BLOCK_MM = 12.0
_BINS = 20
_BLUR_BINS = 1.0  # sigma of the joint histogram
_T = 2.33  # least ratio of the mean difference to its standard error: 1 % of equal alignments pass by chance
_POINTS = 60_000
_PRICE_OF_STRAIN = 0.03  # nats per voxel for a root mean square strain of 1


@dataclass(frozen=True)
class Verdict:
    """The comparison of a new alignment with an old one.

    Args:
        gain: mean increase in the information of a held-out voxel of the head, in nats.
        standard_error: standard error of the gain, from its spread over the held-out cubes.
        price: the gain that the deformation has to exceed.
    """

    gain: float
    standard_error: float
    price: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the new alignment is kept."""
        return self.gain - self.price > _T * self.standard_error

    @property
    def harmful(self) -> bool:
        """Whether the new alignment is significantly worse than the old one."""
        return self.gain < -_T * self.standard_error

    def __str__(self) -> str:
        price = f", price {self.price:.4f}" if self.price else ""
        return f"gain {self.gain:+.4f} ± {self.standard_error:.4f}{price}"


class Evidence:
    """Compare alignments of two images on held-out voxels of the fixed image's head.

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        head: on the grid of `fixed`; only its nonzero voxels count.
        spacing_mm: the resolution at which the images are compared.
        every: one of this many cubes is held out. A rigid fit needs few voxels, so half of the cubes can be held out.

    Raises:
        ValueError: the head is empty.
    """

    def __init__(self, moving: Volume, fixed: Volume, head: Volume, *, spacing_mm: float = 2.0, every: int = 4) -> None:
        target = coarsened(without_outliers(fixed), spacing_mm)
        ratio = np.array(target.spacing) / np.array(head.spacing)
        index = np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), axis=-1).reshape(-1, 3)
        nearest = np.minimum(np.round(index * ratio).astype(int), np.array(head.shape) - 1)
        index = index[head.array[tuple(nearest.T)] != 0]
        if not len(index):
            raise ValueError("head must hold at least one voxel, got none")
        index = index[:: max(1, len(index) // _POINTS)]
        self.points = apply_affine(target.affine, index.astype(np.float64))
        block, held = blocks(self.points, fixed, every=every)
        self._fixed = _ranks(target.array, target.array[tuple(index.T)])
        self._held, self._block = held, np.unique(block[held], axis=0, return_inverse=True)[1].ravel()
        self._moving = coarsened(without_outliers(moving), spacing_mm)
        within = head_mask(self._moving).array
        self._moving_head = within if within.any() else np.ones_like(within)

    @property
    def cubes(self) -> int:
        """The number of held-out cubes."""
        return int(self._block.max(initial=-1)) + 1

    def information(self, world: Map) -> np.ndarray:
        """The pointwise information of each held-out voxel under a map, (N,) in nats; 0 outside the moving head."""
        voxels = apply_affine(np.linalg.inv(self._moving.affine), world(self.points))
        inside = ((voxels >= -0.5) & (voxels <= np.array(self._moving.shape) - 0.5)).all(axis=1)
        nearest = np.rint(np.nan_to_num(voxels)).clip(0, np.array(self._moving.shape) - 1).astype(int)
        inside = inside & (self._moving_head[tuple(nearest.T)] != 0)
        found: np.ndarray = np.zeros(len(voxels))
        seen = inside & ~self._held
        if seen.sum() < 64:
            return np.zeros(int(self._held.sum()))
        grey = map_coordinates(self._moving.array, voxels[inside].T, order=1, mode="nearest")
        moving = np.zeros(len(voxels), dtype=int)
        moving[inside] = _ranks(self._moving.array, grey)
        joint = np.zeros((_BINS, _BINS))
        np.add.at(joint, (self._fixed[seen], moving[seen]), 1.0)
        joint = gaussian_filter(joint, _BLUR_BINS, mode="constant") + 0.05
        joint /= joint.sum()
        log_ratio = np.log(joint / (joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)))
        found[inside] = log_ratio[self._fixed[inside], moving[inside]]
        held: np.ndarray = found[self._held]
        return held

    def compare(self, new: Map, old: Map, *, strain: float = 0.0) -> Verdict:
        """Compare two maps.

        Args:
            new: the candidate.
            old: the alignment kept so far.
            strain: root mean square strain of the deformation that `new` adds; see `strain_of`.
        """
        difference = self.information(new) - self.information(old)
        if not len(difference):
            return Verdict(0.0, math.inf)
        sums, sizes = np.bincount(self._block, difference), np.bincount(self._block)
        gain = float(sums.sum() / sizes.sum())
        rest = float(((sums - gain * sizes) ** 2).sum()) / max(1 - 1 / len(sizes), 1e-9)
        error = math.sqrt(rest) / float(sizes.sum()) if len(sizes) > 1 else math.inf
        return Verdict(gain, error, _PRICE_OF_STRAIN * strain)


def blocks(points: np.ndarray, fixed: Volume, *, every: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The cube in which each point lies, (N, 3) whole numbers, and whether it is held out, (N,).

    Args:
        points: (N, 3), fixed world, in mm.
        fixed: the cubes begin at its first voxel and follow its axes.
        every: one of this many cubes is held out, 2 or 4.
    """
    axes = fixed.affine @ np.diag([*(1 / np.array(fixed.spacing)), 1.0])
    shortest = min(n * mm for n, mm in zip(fixed.shape, fixed.spacing, strict=True) if n > 1)
    edge = min(BLOCK_MM, shortest / 4)  # a small image needs several cubes, too
    cube = np.floor(apply_affine(np.linalg.inv(axes), points) / edge + 1e-6).astype(int)
    return cube, (cube @ np.array([1, 2, 3] if every == 4 else [1, 1, 1])) % every == 0


def seen_mask(grid: Volume, fixed: Volume, *, every: int = 4) -> np.ndarray:
    """Whether a fit may compare each voxel of a grid with the cubes of `fixed`, (D, H, W) bool."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    held = blocks(apply_affine(grid.affine, index.astype(np.float64)), fixed, every=every)[1]
    seen: np.ndarray = ~held.reshape(grid.shape)
    return seen


def strain_of(displacement_mm: np.ndarray, spacing: tuple[float, float, float], where: np.ndarray) -> float:
    """The root mean square of the gradient of a displacement.

    Args:
        displacement_mm: (C, D, H, W), in mm.
        spacing: of its grid, in mm.
        where: (D, H, W) bool, the voxels that count.
    """
    if not where.any():
        return 0.0
    squares = [
        (np.gradient(component, mm, axis=axis)[where] ** 2).mean()
        for component in displacement_mm
        for axis, mm in enumerate(spacing)
        if component.shape[axis] > 1
    ]
    return math.sqrt(float(sum(squares)))


def head_mask(image: Volume) -> Volume:
    """The head in an image, see `head_region`.

    Args:
        image: (D, H, W), dark outside the head. In a diffusion-weighted image the skull is dark too, so the mask then
            covers only the brain.

    Returns:
        uint8 on the grid of `image`; 1 inside.
    """
    found = head_region(without_outliers(image).array, image.spacing)
    return image.with_array(found.astype(np.uint8))


def restricted(head: Volume, mask: Volume | None) -> Volume:
    """The part of a head mask at which a mask on the same grid is not 0; all of the head mask without a mask."""
    return head if mask is None else head.with_array(head.array * (mask.array != 0))


def widened(mask: Volume, by_mm: float) -> Volume:
    """The mask and the voxels within about `by_mm` of it."""
    smooth = gaussian_filter(mask.array.astype(np.float32), [0.75 * by_mm / mm for mm in mask.spacing])
    return mask.with_array((smooth > 0.1).astype(np.uint8))


def _ranks(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Grey values in bins over the range of the image."""
    low, high = float(image.min()), float(image.max())
    return ((values - low) * (_BINS / max(high - low, 1e-30))).astype(int).clip(0, _BINS - 1)
