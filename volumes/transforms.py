"""Maps from the space of one image into that of another, in RAS+ mm; `itk` reads and writes them.

Every transform is a pull-back: it maps a world point of the fixed image to the corresponding point of the moving image.
`resample` in this folder samples the moving image at those points.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..kernels import transforms
from .sampling import apply_affine, inside, sample_linear, voxel_blocks
from .volume import Volume
from .warning import VolumeWarning

_MOST = 1e12  # of a matrix in mm: larger numbers are damage, and overflow
_FIXED_POINT_ROUNDS = 10  # fixed-point iterations of an inversion before Newton's steps
_UNMAP_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """A linear map between two worlds.

    Args:
        matrix: (4, 4), fixed world -> moving world, RAS+ mm.

    Raises:
        ValueError: the matrix is not a finite, invertible (4, 4) matrix with last row 0 0 0 1, or it holds numbers that
            are too large for a map of millimetres.

    Example:
        >>> shift = np.eye(4)
        >>> shift[0, 3] = 5
        >>> AffineTransform(shift).map(np.array([[1.0, 2.0, 3.0]])).tolist()
        [[6.0, 2.0, 3.0]]
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
            raise ValueError(f"matrix must be a finite (4, 4) with last row 0 0 0 1, got {matrix.tolist()}")
        if np.abs(matrix).max() >= _MOST:
            raise ValueError(f"matrix must hold numbers below {_MOST:g}, got {matrix.tolist()}")
        if abs(np.linalg.det(matrix[:3, :3])) <= 1e-9:
            raise ValueError(f"matrix must be invertible, got {matrix.tolist()}")
        object.__setattr__(self, "matrix", matrix)

    def map(self, points: np.ndarray) -> np.ndarray:
        """The moving world points (N, 3) of fixed world points (N, 3), RAS+ mm."""
        return apply_affine(self.matrix, points)

    def unmap(self, points: np.ndarray) -> np.ndarray:
        """The fixed world points (N, 3) that the map takes to moving world points (N, 3), RAS+ mm."""
        return self.inverse().map(points)

    def inverse(self) -> "AffineTransform":
        """The map from moving world to fixed world."""
        matrix = np.linalg.inv(self.matrix)
        matrix[3] = [0, 0, 0, 1]
        return AffineTransform(matrix)


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A dense map between two worlds: x -> x + v(x), with v given on a grid of the fixed world.

    Args:
        vectors_mm: (D, H, W, 3), RAS mm; kept as float32.
        affine: (4, 4), voxel -> fixed world mm, of the grid on which the vectors are defined.
        residual_mm: for a field computed by `inverse`, its largest error.

    Raises:
        ValueError: the shape is wrong, values are not finite, or the affine is not invertible.
    """

    vectors_mm: np.ndarray
    affine: np.ndarray
    residual_mm: float | None = None

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors_mm, dtype=np.float32)
        if vectors.ndim != 4 or vectors.shape[3] != 3 or 0 in vectors.shape:
            raise ValueError(f"vectors_mm must have shape (D, H, W, 3), got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors_mm must be finite, got NaN or infinite values")
        object.__setattr__(self, "vectors_mm", vectors)
        object.__setattr__(self, "affine", Volume(vectors, self.affine).affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The grid's size in voxels."""
        d, h, w = self.vectors_mm.shape[:3]
        return d, h, w

    @classmethod
    def from_voxels(
        cls,
        displacement: np.ndarray,
        affine: np.ndarray,
        *,
        moving_affine: np.ndarray | None = None,
        pre: AffineTransform | None = None,
    ) -> "DisplacementField":
        """The field of a voxel displacement, for which warped[x] = moving[x + displacement[x]].

        Args:
            displacement: (3, D, H, W) in voxels, ordered (d, h, w).
            affine: (4, 4) of the fixed grid.
            moving_affine: (4, 4) of the moving grid indexed by x + displacement[x], if it is not the fixed grid.
            pre: fixed world -> moving world, if the moving image was first resampled through it; the field then maps
                directly into the original moving image.

        Example:
            >>> half = DisplacementField.from_voxels(np.full((3, 2, 2, 2), 0.5), np.diag([-2.0, 2.0, 4.0, 1.0]))
            >>> half.vectors_mm[0, 0, 0].tolist()
            [-1.0, 1.0, 2.0]
        """
        displacement = np.asarray(displacement)
        if displacement.ndim != 4 or displacement.shape[0] != 3:
            raise ValueError(f"displacement must have shape (3, D, H, W), got {displacement.shape}")
        affine = np.asarray(affine, dtype=np.float64)
        target = affine if moving_affine is None else np.asarray(moving_affine, dtype=np.float64)
        to_moving = target if pre is None else pre.matrix @ target
        vectors = _linear_in_position(to_moving[:3, :3], displacement, to_moving - affine)
        return cls(np.ascontiguousarray(np.moveaxis(vectors, 0, 3)), affine)

    def to_voxels(self, *, moving_affine: np.ndarray | None = None) -> np.ndarray:
        """The (3, D, H, W) float32 voxel displacement: moving[x + displacement[x]] belongs at fixed voxel x.

        Args:
            moving_affine: (4, 4) of the moving grid, if it is not the field's own grid.
        """
        inverse = np.linalg.inv(self.affine if moving_affine is None else moving_affine)
        position = inverse @ self.affine - np.eye(4)
        return _linear_in_position(inverse[:3, :3], np.moveaxis(self.vectors_mm, 3, 0), position)

    def map(self, points: np.ndarray) -> np.ndarray:
        """The moving points (N, 3) that belong to fixed world points (N, 3), RAS+ mm; NaN outside the field's grid."""
        voxels = apply_affine(np.linalg.inv(self.affine), points)
        inner = inside(self.shape, voxels)
        moved = np.full(points.shape, np.nan)
        moved[inner] = points[inner] + sample_linear(self._channels, voxels[inner])
        return moved

    def unmap(self, points: np.ndarray, *, tolerance_mm: float = 0.01) -> np.ndarray:
        """The fixed world points (N, 3) that the map takes to moving world points (N, 3), RAS+ mm.

        A point that no point of the field's grid is taken to, within ten times the tolerance, is NaN.
        """
        mapping = _SplitField(self)
        search = _Search(mapping, points, tolerance_mm)
        for number in range(_UNMAP_ROUNDS):
            search.step(newton=number > _FIXED_POINT_ROUNDS)
            if search.done:
                break
        found = inside(self.shape, apply_affine(mapping.to_voxel, search.best)) & (search.error <= 10 * tolerance_mm)
        return np.where(found[:, None], search.best, np.nan)

    def inverse(self, like: Volume, *, iterations: int = 60, tolerance_mm: float = 0.01) -> "DisplacementField":
        """The inverse map, moving world -> fixed world, on the grid of `like` (an image in the moving world).

        The overall linear part is inverted exactly and the remainder by iteration, so shifts and rotations may be
        large; outside its grid, the field is extrapolated by the linear part plus the remainder at the border.

        Args:
            like: an image whose grid (shape and affine) is that of the inverse.
            iterations: the largest number of iterations.
            tolerance_mm: stop when every point is closer than this.

        Returns:
            The inverse; `residual_mm` is the largest |T(x) - y| over the points x inside the field's grid. A warning is
            raised if it exceeds ten times the tolerance. If the field folds, one of several solutions is returned.
        """
        if transforms.available():
            vectors, worst, unsolved = transforms.invert(
                self.vectors_mm,
                self.affine,
                self.linear_part().matrix,
                like.affine,
                like.shape,
                iterations=iterations,
                tolerance_mm=tolerance_mm,
            )
        else:
            vectors, worst, unsolved = self._plain_inverse(like, iterations, tolerance_mm)
        if worst > 10 * tolerance_mm:
            warnings.warn(
                f"the inverse displacement is off by up to {worst:.2g} mm in {unsolved} of {np.prod(like.shape)}"
                " voxels: the field folds or is too steep there",
                VolumeWarning,
                stacklevel=2,
            )
        return DisplacementField(vectors, like.affine, worst)

    def _plain_inverse(self, like: Volume, iterations: int, tolerance_mm: float) -> tuple[np.ndarray, float, int]:
        """The vectors of the inverse, the largest error in mm, and the number of voxels beyond ten tolerances."""
        mapping = _SplitField(self)
        vectors = np.empty((*like.shape, 3), np.float32)
        worst, unsolved = 0.0, 0
        for slab, voxels in voxel_blocks(like.shape):
            target = apply_affine(like.affine, voxels)
            search = _Search(mapping, target, tolerance_mm)
            for number in range(iterations):
                # where the map is steep, only Newton's steps converge
                search.step(newton=number > _FIXED_POINT_ROUNDS)
                if search.done:
                    break
            vectors[slab] = (search.best - target).reshape(vectors[slab].shape)
            judged = inside(self.shape, apply_affine(mapping.to_voxel, search.best))
            worst = max(worst, float(search.error[judged].max(initial=0.0)))
            unsolved += int((search.error[judged] > 10 * tolerance_mm).sum())
        return vectors, worst, unsolved

    @cached_property
    def _channels(self) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(self.vectors_mm, 3, 0)))

    def linear_part(self) -> AffineTransform:
        """The affine that best fits the field (least squares over at most some ten thousand voxels)."""
        step = tuple(slice(None, None, max(1, n // 24)) for n in self.shape)
        index = np.stack(
            np.meshgrid(*[np.arange(n)[s] for n, s in zip(self.shape, step, strict=True)], indexing="ij"), -1
        )
        points = apply_affine(self.affine, index.reshape(-1, 3).astype(np.float64))
        vectors = self.vectors_mm[step].reshape(-1, 3)
        middle = points.mean(axis=0)
        # the solution of least norm, in which the map does not change across a single slice
        slopes = np.linalg.lstsq(points - middle, vectors - vectors.mean(axis=0), rcond=None)[0].T
        if min(self.shape) == 1 < sorted(self.shape)[1]:
            slopes = self._with_normal(slopes)
        if abs(np.linalg.det(np.eye(3) + slopes)) < 0.05:
            slopes = np.zeros((3, 3))
        matrix = np.eye(4)
        matrix[:3, :3] += slopes
        matrix[:3, 3] = vectors.mean(axis=0) - slopes @ middle
        return AffineTransform(matrix)

    def _with_normal(self, slopes: np.ndarray) -> np.ndarray:
        """The slopes of the map of a single slice, with the normal of the slice mapped to the normal of its image."""
        first, second = (self.affine[:3, k] for k in range(3) if self.shape[k] > 1)
        normal = np.cross(first, second)
        normal /= np.linalg.norm(normal)
        linear = np.eye(3) + slopes
        image = np.cross(linear @ first, linear @ second)
        image /= max(float(np.linalg.norm(image)), 1e-12)
        if image @ normal < 0:
            image = -image
        return np.asarray(slopes + np.outer(image - linear @ normal, normal))


def _linear_in_position(matrix: np.ndarray, vectors: np.ndarray, position: np.ndarray) -> np.ndarray:
    """matrix @ vectors[x] + position @ x for each voxel x.

    Args:
        matrix: (3, 3).
        vectors: (3, D, H, W).
        position: (4, 4), of which the last row is not used.

    Returns:
        (3, D, H, W) float32.
    """
    d, h, w = (np.arange(n, dtype=np.float64) for n in vectors.shape[1:])
    out = np.empty(vectors.shape, np.float32)
    for row, weights, place in zip(out, matrix, position[:3], strict=True):
        plane = place[1] * h[:, None] + place[2] * w + place[3]
        for i, depth in enumerate(d):  # a slice at a time stays in the cache
            row[i] = place[0] * depth + plane
            for weight, component in zip(weights, vectors, strict=True):
                if weight:
                    row[i] += np.float32(weight) * component[i]
    return out


class _SplitField:
    """The map of a displacement field as its linear part and a remainder, which is sampled from the grid.

    Args:
        field: the displacement field.
    """

    def __init__(self, field: DisplacementField):
        self.linear = field.linear_part()
        self.back = self.linear.inverse()
        self.to_voxel = np.linalg.inv(field.affine)
        self._affine = field.affine
        rest = np.empty((3, *field.shape), np.float32)  # x + v(x) - linear(x)
        for slab, voxels in voxel_blocks(field.shape):
            points = apply_affine(field.affine, voxels)
            moved = points + field.vectors_mm[slab].reshape(-1, 3) - self.linear.map(points)
            rest[:, slab] = moved.T.reshape(rest[:, slab].shape)
        self._remainder = torch.from_numpy(rest)

    @property
    def smallest_voxel_mm(self) -> float:
        """The smallest edge of a voxel of the field's grid."""
        return float(np.linalg.norm(self._affine[:3, :3], axis=0).min())

    def remainder(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm: the remainder at world points (N, 3), continued from the border of the grid."""
        return sample_linear(self._remainder, apply_affine(self.to_voxel, points))

    def slopes(self, points: np.ndarray) -> np.ndarray:
        """(N, 3, 3): the Jacobian of the map, from differences over one voxel."""
        slopes = np.empty((len(points), 3, 3))
        for axis in range(3):
            half = 0.5 * self._affine[:3, axis]
            slopes[:, :, axis] = self.remainder(points + half) - self.remainder(points - half)
        # differences along the voxel axes -> derivatives along the world's axes
        slopes = slopes @ np.linalg.inv(self._affine[:3, :3]) + self.linear.matrix[:3, :3]
        flat = np.abs(np.linalg.det(slopes)) < 1e-3
        slopes[flat] = self.linear.matrix[:3, :3]
        result: np.ndarray = slopes
        return result


class _Search:
    """The search for the points that a map takes to given targets, for many targets at once; it needs few steps.

    Args:
        mapping: the map.
        target: (N, 3) world points, mm.
        tolerance_mm: a point is found when the map takes it closer to its target than this.
    """

    def __init__(self, mapping: _SplitField, target: np.ndarray, tolerance_mm: float):
        self.best = mapping.back.map(target)  # (N, 3), the closest points so far
        self.error = np.full(len(target), np.inf)  # (N,), their distances in mm
        self._mapping, self._target, self._tolerance_mm = mapping, target, tolerance_mm
        self._left = np.zeros_like(target)  # from the image of the closest point to the target
        self._length = np.ones(len(target))  # of the next step, as a share of a full one
        self._busy = np.arange(len(target))  # the points that are not found yet

    @property
    def done(self) -> bool:
        """Whether every point is found."""
        return not len(self._busy)

    def step(self, *, newton: bool) -> None:
        """Move each point that is not found yet; if it comes no closer, move it back and halve its next step."""
        trial = self._trial(newton)
        mapped = self._mapping.linear.map(trial)
        left = self._target[self._busy] - mapped - self._mapping.remainder(trial)
        error = np.linalg.norm(left, axis=1)
        closer = error < self.error[self._busy]
        better = self._busy[closer]
        self.best[better], self._left[better], self.error[better] = trial[closer], left[closer], error[closer]
        length = self._length[self._busy]
        self._length[self._busy] = np.where(closer, np.minimum(1.5 * length, 1.0), 0.5 * length)
        self._busy = self._busy[self.error[self._busy] >= self._tolerance_mm]

    def _trial(self, newton: bool) -> np.ndarray:
        """(N, 3): the next positions of the points that are not found yet."""
        at, left, back = self.best[self._busy], self._left[self._busy], self._mapping.back
        if newton:
            longest = 2 * self._mapping.smallest_voxel_mm
            move = np.linalg.solve(self._mapping.slopes(at), left[..., None])[..., 0]
            move *= np.minimum(1.0, longest / np.maximum(np.linalg.norm(move, axis=1, keepdims=True), 1e-9))
        else:
            move = apply_affine(back.matrix, left) - back.matrix[:3, 3]
        trial: np.ndarray = at + self._length[self._busy, None] * move
        return trial


@dataclass(frozen=True, eq=False)
class CompositeTransform:
    """A sequence of transforms.

    Args:
        parts: the transforms in order of application, from fixed to moving space.
    """

    parts: tuple["AffineTransform | DisplacementField", ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must hold at least one transform, got none")

    def map(self, points: np.ndarray) -> np.ndarray:
        """The moving world points (N, 3) of fixed world points (N, 3), RAS+ mm; NaN outside the domain of a part."""
        for part in self.parts:
            points = part.map(points)
        return points

    def unmap(self, points: np.ndarray) -> np.ndarray:
        """The fixed world points (N, 3) that the map takes to moving world points (N, 3), RAS+ mm; NaN for none."""
        for part in reversed(self.parts):
            known = ~np.isnan(points[:, 0])
            moved = np.full(points.shape, np.nan)
            moved[known] = part.unmap(points[known])
            points = moved
        return points


Transform = AffineTransform | DisplacementField | CompositeTransform


def invert(transform: Transform, like: Volume) -> Transform:
    """The inverse map, moving world -> fixed world.


    Args:
        transform: fixed world -> moving world.
        like: an image in the moving world; the inverses of displacement fields are given on its grid.
    """
    if isinstance(transform, AffineTransform):
        return transform.inverse()
    if isinstance(transform, DisplacementField):
        return transform.inverse(like)
    parts: list[AffineTransform | DisplacementField] = []
    grid = like.affine
    for part in reversed(transform.parts):
        parts.append(part.inverse(Volume(like.array, grid)) if isinstance(part, DisplacementField) else part.inverse())
        # the positions of the grid in the domain of this part
        linear = part.linear_part() if isinstance(part, DisplacementField) else part
        grid = linear.inverse().matrix @ grid
    return CompositeTransform(tuple(parts))


def compose_to_field(transforms: Sequence[Transform], like: Volume) -> DisplacementField:
    """Compose `transforms`, applied in their order, into one displacement field on the grid of `like`.

    Args:
        transforms: pull-backs; the first maps points of the fixed world, in which `like` is defined.
        like: an image on the grid of the result.

    Raises:
        ValueError: a point of the grid leaves the domain of one of the fields.
    """
    vectors = np.empty((*like.shape, 3), np.float32)
    for slab, voxels in voxel_blocks(like.shape):
        points = apply_affine(like.affine, voxels)
        moved = points
        for transform in transforms:
            moved = transform.map(moved)
        lost = int(np.isnan(moved[:, 0]).sum())
        if lost:
            raise ValueError(f"like must lie inside every displacement field's grid, got {lost} points outside")
        vectors[slab] = (moved - points).reshape(vectors[slab].shape)
    return DisplacementField(vectors, like.affine)
