"""Maps from one image's space into another's, in memory (RAS+ mm) and on disk (ITK, LPS mm).

Every transform is a pull-back: it takes a world point of the fixed image to the point of the moving image that
belongs there. `resample` in this folder reads the moving image at those points.

| file | holds |
| --- | --- |
| .h5 | affines and displacement fields, one after the other (ITK composite) |
| .mat, .txt, .tfm | one linear transform |
| .nii, .nii.gz | one displacement field: (D, H, W, 1, 3) float32, intent code 1007, LPS mm |
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ..runs.files import atomic_path
from .nifti import NIFTI_SUFFIXES, load_image, nifti_affine, set_nifti_affine
from .sampling import apply_affine, inside, sample_linear, voxel_blocks
from .volume import LPS, Volume, perpendicular_axes
from .warning import VolumeWarning

LINEAR_SUFFIXES = (".mat", ".txt", ".tfm")
VECTOR_INTENT = 1007
_FIXED_POINT_ROUNDS = 10  # of an inversion, before Newton's steps

# ITK's classes that are linear, or whose parts are read
_KINDS = {
    "AffineTransform",
    "CenteredAffineTransform",
    "CenteredEuler3DTransform",
    "ComposeScaleSkewVersor3DTransform",
    "CompositeTransform",
    "DisplacementFieldTransform",
    "Euler3DTransform",
    "FixedCenterOfRotationAffineTransform",
    "GaussianSmoothingOnUpdateDisplacementFieldTransform",
    "IdentityTransform",
    "MatrixOffsetTransformBase",
    "QuaternionRigidTransform",
    "Rigid3DTransform",
    "ScalableAffineTransform",
    "ScaleLogarithmicTransform",
    "ScaleSkewVersor3DTransform",
    "ScaleTransform",
    "ScaleVersor3DTransform",
    "Similarity3DTransform",
    "TranslationTransform",
    "VersorRigid3DTransform",
    "VersorTransform",
}

_SIGNS = np.diag(LPS)[:3]  # LPS of a point or a vector


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """A linear map between two worlds.

    Args:
        matrix: (4, 4), fixed world -> moving world, RAS+ mm.

    Raises:
        ValueError: for a matrix that is not a finite, invertible (4, 4) with last row 0 0 0 1.

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
        if abs(np.linalg.det(matrix[:3, :3])) <= 1e-9:
            raise ValueError(f"matrix must be invertible, got {matrix.tolist()}")
        object.__setattr__(self, "matrix", matrix)

    def map(self, points: np.ndarray) -> np.ndarray:
        """The moving points (N, 3) that belong to fixed world points (N, 3), RAS+ mm."""
        return apply_affine(self.matrix, points)

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
        affine: (4, 4), voxel -> fixed world mm, of the grid that the vectors lie on.
        residual_mm: for a field made by `inverse`, the largest distance that was left.

    Raises:
        ValueError: for another shape, values that are not finite, or an affine that is not invertible.
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
            displacement: (3, D, H, W) or (1, 3, D, H, W) in voxels, ordered (d, h, w).
            affine: (4, 4) of the fixed grid.
            moving_affine: (4, 4) of the moving grid that x + displacement[x] indexes, where it is not the fixed grid.
            pre: fixed world -> moving world, where the moving image was first resampled through it; the field then
                maps straight into the original moving image.

        Example:
            >>> half = DisplacementField.from_voxels(np.full((3, 2, 2, 2), 0.5), np.diag([-2.0, 2.0, 4.0, 1.0]))
            >>> half.vectors_mm[0, 0, 0].tolist()
            [-1.0, 1.0, 2.0]
        """
        displacement = np.asarray(displacement, dtype=np.float64)
        if displacement.ndim == 5 and displacement.shape[0] == 1:
            displacement = displacement[0]
        if displacement.ndim != 4 or displacement.shape[0] != 3:
            raise ValueError(f"displacement must have shape (3, D, H, W) or (1, 3, D, H, W), got {displacement.shape}")
        affine = np.asarray(affine, dtype=np.float64)
        target = affine if moving_affine is None else np.asarray(moving_affine, dtype=np.float64)
        vectors = np.empty((*displacement.shape[1:], 3), np.float32)
        for slab, voxels in voxel_blocks(displacement.shape[1:]):
            moved = voxels + displacement[:, slab].reshape(3, -1).T
            world = apply_affine(target, moved)
            if pre is not None:
                world = pre.map(world)
            vectors[slab] = (world - apply_affine(affine, voxels)).reshape(vectors[slab].shape)
        return cls(vectors, affine)

    def to_voxels(self, *, moving_affine: np.ndarray | None = None) -> np.ndarray:
        """The (3, D, H, W) float32 voxel displacement: moving[x + displacement[x]] belongs at fixed voxel x.

        Args:
            moving_affine: (4, 4) of the moving grid, where it is not the field's own grid.
        """
        inverse = np.linalg.inv(self.affine if moving_affine is None else moving_affine)
        displacement = np.empty((3, *self.shape), np.float32)
        for slab, voxels in voxel_blocks(self.shape):
            moved = apply_affine(self.affine, voxels) + self.vectors_mm[slab].reshape(-1, 3)
            displacement[:, slab] = (apply_affine(inverse, moved) - voxels).T.reshape(displacement[:, slab].shape)
        return displacement

    def map(self, points: np.ndarray) -> np.ndarray:
        """The moving points (N, 3) that belong to fixed world points (N, 3), RAS+ mm; NaN outside the field's grid."""
        voxels = apply_affine(np.linalg.inv(self.affine), points)
        inner = inside(self.shape, voxels)
        moved = np.full(points.shape, np.nan)
        moved[inner] = points[inner] + sample_linear(self._channels, voxels[inner])
        return moved

    def inverse(self, like: Volume, *, iterations: int = 60, tolerance_mm: float = 0.01) -> "DisplacementField":
        """The map back, moving world -> fixed world, on the grid of `like` (an image in the moving world).

        The overall linear part is inverted exactly and the rest by iteration, so large shifts and rotations are fine;
        outside the grid of the field, the linear part continues with the remainder of the border.

        Args:
            like: its grid (shape and affine) is where the inverse is given.
            iterations: at most so many.
            tolerance_mm: stop when every point is closer than this.

        Returns:
            The inverse; `residual_mm` is the largest |T(x) - y| left over the points that come to lie in the field's
            grid. Above ten times the tolerance it is warned about. Where the field folds, one of several places.
        """

        linear = self.linear_part()
        back = linear.inverse()
        remainder = torch.from_numpy(self._remainder(linear))
        to_voxel = np.linalg.inv(self.affine)
        vectors = np.empty((*like.shape, 3), np.float32)
        longest = 2 * float(np.linalg.norm(self.affine[:3, :3], axis=0).min())
        worst, unsolved = 0.0, 0
        for slab, voxels in voxel_blocks(like.shape):
            target = apply_affine(like.affine, voxels)
            best, best_error = back.map(target), np.full(len(target), np.inf)
            # points that are not yet close enough: position, remainder and its length; most converge quickly
            busy, at, rest, error = np.arange(len(best)), best, np.zeros_like(best), best_error
            trial, step = best, np.ones(len(best))
            for number in range(iterations):
                left = target[busy] - linear.map(trial) - sample_linear(remainder, apply_affine(to_voxel, trial))
                size = np.linalg.norm(left, axis=1)
                closer = size < error
                at, rest = np.where(closer[:, None], trial, at), np.where(closer[:, None], left, rest)
                error = np.where(closer, size, error)
                step = np.where(closer, np.minimum(1.5 * step, 1.0), 0.5 * step)  # else from the same place, less far
                best[busy], best_error[busy] = at, error
                far = error >= tolerance_mm
                if not far.any():
                    break
                busy, at, rest, error, step = busy[far], at[far], rest[far], error[far], step[far]
                if number < _FIXED_POINT_ROUNDS:
                    move = apply_affine(back.matrix, rest) - back.matrix[:3, 3]
                else:  # where the map is steep only Newton's steps lead on
                    move = np.linalg.solve(self._slopes(remainder, linear, to_voxel, at), rest[..., None])[..., 0]
                    move *= np.minimum(1.0, longest / np.maximum(np.linalg.norm(move, axis=1, keepdims=True), 1e-9))
                trial = at + step[:, None] * move
            vectors[slab] = (best - target).reshape(vectors[slab].shape)
            judged = inside(self.shape, apply_affine(to_voxel, best))
            worst = max(worst, float(best_error[judged].max(initial=0.0)))
            unsolved += int((best_error[judged] > 10 * tolerance_mm).sum())
        if worst > 10 * tolerance_mm:
            warnings.warn(
                f"the inverse displacement is off by up to {worst:.2g} mm in {unsolved} of {np.prod(like.shape)}"
                " voxels: the field folds or is too steep there",
                VolumeWarning,
                stacklevel=2,
            )
        return DisplacementField(vectors, like.affine, worst)

    def _slopes(
        self, remainder: "torch.Tensor", linear: AffineTransform, to_voxel: np.ndarray, x: np.ndarray
    ) -> np.ndarray:
        """(N, 3, 3): how the mapped point moves with x, from differences over one voxel."""
        slopes = np.empty((len(x), 3, 3))
        for axis in range(3):
            half = 0.5 * self.affine[:3, axis]
            ahead, behind = (sample_linear(remainder, apply_affine(to_voxel, x + sign * half)) for sign in (1, -1))
            slopes[:, :, axis] = ahead - behind
        # differences along the voxel axes -> derivatives along the world's axes
        slopes = slopes @ np.linalg.inv(self.affine[:3, :3]) + linear.matrix[:3, :3]
        flat = np.abs(np.linalg.det(slopes)) < 1e-3
        slopes[flat] = linear.matrix[:3, :3]
        result: np.ndarray = slopes
        return result

    @cached_property
    def _channels(self) -> "torch.Tensor":

        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(self.vectors_mm, 3, 0)))

    def linear_part(self) -> AffineTransform:
        """The affine nearest to the whole field (least squares over at most some ten thousand voxels)."""
        step = tuple(slice(None, None, max(1, n // 24)) for n in self.shape)
        index = np.stack(
            np.meshgrid(*[np.arange(n)[s] for n, s in zip(self.shape, step, strict=True)], indexing="ij"), -1
        )
        points = apply_affine(self.affine, index.reshape(-1, 3).astype(np.float64))
        vectors = self.vectors_mm[step].reshape(-1, 3)
        matrix = np.eye(4)
        if min(self.shape) > 1:
            design = np.column_stack([points, np.ones(len(points))])
            matrix[:3] += np.linalg.lstsq(design, vectors, rcond=None)[0].T
        if min(self.shape) == 1 or np.linalg.det(matrix[:3, :3]) < 0.05:
            matrix = np.eye(4)
            matrix[:3, 3] = vectors.mean(axis=0)
        return AffineTransform(matrix)

    def _remainder(self, linear: AffineTransform) -> np.ndarray:
        """(3, D, H, W) float32: x + v(x) - linear(x)."""
        rest = np.empty((3, *self.shape), np.float32)
        for slab, voxels in voxel_blocks(self.shape):
            points = apply_affine(self.affine, voxels)
            moved = points + self.vectors_mm[slab].reshape(-1, 3) - linear.map(points)
            rest[:, slab] = moved.T.reshape(rest[:, slab].shape)
        return rest


@dataclass(frozen=True, eq=False)
class CompositeTransform:
    """Transforms one after the other.

    Args:
        parts: the first takes the fixed point, the next its result, and so on into moving space.
    """

    parts: tuple["AffineTransform | DisplacementField", ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must hold at least one transform, got none")

    def map(self, points: np.ndarray) -> np.ndarray:
        """The moving points (N, 3) that belong to fixed world points (N, 3), RAS+ mm; NaN where a part has none."""
        for part in self.parts:
            points = part.map(points)
        return points


Transform = AffineTransform | DisplacementField | CompositeTransform


def invert(transform: Transform, like: Volume) -> Transform:
    """The map back, moving world -> fixed world.

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
        # the positions of the grid in the world that this part maps from
        linear = part.linear_part() if isinstance(part, DisplacementField) else part
        grid = linear.inverse().matrix @ grid
    return CompositeTransform(tuple(parts))


def compose_to_field(transforms: Sequence[Transform], like: Volume) -> DisplacementField:
    """One displacement field on the grid of `like` that does what all `transforms` do, the first one first.

    Args:
        transforms: pull-backs; the first maps points of the fixed world, in which `like` is defined.
        like: gives the grid.

    Raises:
        ValueError: where a point of the grid leaves the domain of one of the fields.
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


def write_transform(path: str | os.PathLike[str], transform: Transform) -> None:
    """Write a transform as ITK and ANTs read it; the ending chooses the form (see the module's table).

    Raises:
        ValueError: for another ending, or one that cannot hold this kind of transform.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES) and isinstance(transform, DisplacementField):
        _write_field(path, transform)
    elif name.endswith(".h5"):
        _write_itk(path, _compose_itk(transform))
    elif name.endswith(LINEAR_SUFFIXES) and isinstance(transform, AffineTransform):
        _write_itk(path, _itk_affine(transform, precision="double"))
    else:
        raise ValueError(
            f"{path.name} cannot hold this {type(transform).__name__}: use .h5 for any, .nii.gz for a displacement"
            " field, .mat or .txt for an affine"
        )


def read_transform(path: str | os.PathLike[str]) -> Transform:
    """Read a transform in one of ITK's forms (see the module's table).

    Raises:
        ValueError, OSError: one line for a file that is not there, cut off, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such transform file: {path}")
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return _read_field(path)
    if name.endswith((".h5", *LINEAR_SUFFIXES)):
        return _read_itk(path)
    raise ValueError(f"a transform ends in .nii, .nii.gz, .h5, .mat, .txt or .tfm, got {path.name}")


def _write_field(path: Path, field: DisplacementField) -> None:
    if not perpendicular_axes(field.affine):
        raise ValueError(f"affine must have perpendicular axes to be written for ITK, got {field.affine.tolist()}")
    vectors = (field.vectors_mm * _SIGNS.astype(np.float32))[:, :, :, None, :]
    image = nib.Nifti1Image(vectors, None)
    image.header.set_intent(VECTOR_INTENT)
    set_nifti_affine(image, field.affine, code=1)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _read_field(path: Path) -> DisplacementField:
    image = load_image(path)
    intent = int(image.header["intent_code"])
    if len(image.shape) != 5 or image.shape[3:] != (1, 3) or intent != VECTOR_INTENT:
        raise ValueError(
            f"{path} must be a displacement field of shape (D, H, W, 1, 3) with intent code {VECTOR_INTENT}, got"
            f" {image.shape} with intent code {intent}"
        )
    vectors = np.asarray(image.dataobj, dtype=np.float32)[:, :, :, 0] * _SIGNS.astype(np.float32)
    try:
        return DisplacementField(vectors, nifti_affine(path, image))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _itk_affine(transform: AffineTransform, *, precision: str) -> Any:
    import ants  # takes seconds to load

    flip = LPS
    matrix = flip @ transform.matrix @ flip
    return ants.create_ants_transform(
        transform_type="AffineTransform",
        precision=precision,
        dimension=3,
        matrix=matrix[:3, :3],
        offset=matrix[:3, 3].tolist(),
    )


def _itk_field(field: DisplacementField) -> Any:
    import ants

    if not perpendicular_axes(field.affine):
        raise ValueError(f"affine must have perpendicular axes to be written for ITK, got {field.affine.tolist()}")
    spacing = np.linalg.norm(field.affine[:3, :3], axis=0)
    image = ants.from_numpy(
        field.vectors_mm * _SIGNS.astype(np.float32),
        origin=(_SIGNS * field.affine[:3, 3]).tolist(),
        spacing=spacing.tolist(),
        direction=_SIGNS[:, None] * field.affine[:3, :3] / spacing,
        has_components=True,
    )
    return ants.transform_from_displacement_field(image)


def _compose_itk(transform: Transform) -> Any:
    import ants

    parts = transform.parts if isinstance(transform, CompositeTransform) else (transform,)
    # antspyx cannot write a bare field, but a composite of one; all its parts must be float
    made = [
        _itk_affine(part, precision="float") if isinstance(part, AffineTransform) else _itk_field(part)
        for part in parts
    ]
    return ants.compose_ants_transforms(made)


def _write_itk(path: Path, transform: Any) -> None:
    import ants

    with atomic_path(path) as temporary:
        ants.write_transform(transform, str(temporary))


def _read_itk(path: Path) -> Transform:
    import ants

    _check_itk_file(path)
    try:
        read = ants.read_transform(str(path), precision="double")
    except Exception as error:  # ITK's readers fail in many ways on damaged files
        raise ValueError(f"{path} is not a readable ITK transform (cut off, damaged or another format)") from error
    if read.dimension != 3:
        raise ValueError(f"{path} must hold a 3-D transform, got {read.dimension}-D")
    try:
        if read.transform_type == "CompositeTransform":
            return _composite(read)
        return _linear(read)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_itk_file(path: Path) -> None:
    """Refuse truncated files: ITK reads zeros beyond the end of .mat and .txt files, and prints pages about .h5."""
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path} is empty (0 bytes)")
    suffix = path.suffix.lower()
    if suffix == ".h5" and (len(content) < 48 or content[:8] != b"\x89HDF\r\n\x1a\n"):
        raise ValueError(f"{path} is not an HDF5 file, though its name ends in .h5")
    if suffix in (".txt", ".tfm") and b"FixedParameters:" not in content:
        # the last line of the file, without which ITK takes a centre of 0
        raise ValueError(f"{path} is no ITK transform text or is cut off: it has no FixedParameters")
    _check_kinds(path, content)
    end = _hdf5_end(content) if suffix == ".h5" else _mat_end(content) if suffix == ".mat" else 0
    if len(content) < end:
        raise ValueError(f"{path} is cut off: {len(content)} of {end} bytes; get the file again")


def _check_kinds(path: Path, content: bytes) -> None:
    """Refuse B-splines and other kinds that we do not apply, and a list of transforms, such as one per volume."""
    kinds = [name.decode() for name in re.findall(rb"([A-Za-z0-9]+)_(?:double|float)_\d+_\d+", content)]
    unknown = sorted(set(kinds) - _KINDS)
    if unknown:
        raise ValueError(
            f"{path} must hold linear transforms and displacement fields, got {', '.join(unknown)}; convert it to a"
            " displacement field"
        )
    if len(kinds) > 1 and "CompositeTransform" not in kinds:
        raise ValueError(
            f"{path} must hold one transform, got a list of {len(kinds)} (such as one per volume of a series); save"
            " each one as a file of its own, or a chain of them as an ITK composite"
        )


def _hdf5_end(content: bytes) -> int:
    """The file's length by its superblock (versions 0 and 1, or 2 and 3)."""
    start = 40 if content[8] < 2 else 28
    return int.from_bytes(content[start : start + 8], "little")


def _mat_end(content: bytes) -> int:
    """The length that the headers of a MATLAB 4 file ask for; ITK writes two matrices, parameters and centre."""
    end = 0
    for _ in range(2):
        if len(content) < end + 20:
            return end + 20
        kind, rows, columns, _, name = np.frombuffer(content, "<i4", 5, end).tolist()
        # the tens digit is the number type: 0 is double, 1 is single
        end += 20 + name + rows * columns * (4 if kind // 10 % 10 == 1 else 8)
        if not 0 <= end < 1 << 20:
            return 0  # no little-endian MATLAB 4 file: ITK's reader reports it
    return end


def _itk_map(read: Any, points: np.ndarray) -> np.ndarray:
    import ants

    lps = points * _SIGNS
    result: np.ndarray = np.array([ants.apply_ants_transform_to_point(read, tuple(point)) for point in lps]) * _SIGNS
    return result


def _linear(read: Any) -> AffineTransform:
    """Any linear ITK transform, whatever its parameters mean: found from where it takes four points."""
    points = 100.0 * np.vstack([np.zeros(3), np.eye(3), np.ones(3)])
    moved = _itk_map(read, points)
    matrix = np.eye(4)
    matrix[:3, 3] = moved[0]
    matrix[:3, :3] = (moved[1:4] - moved[0]).T / 100.0
    transform = AffineTransform(matrix)
    if not np.allclose(transform.map(points), moved, atol=1e-3):
        raise ValueError(f"a linear transform is needed, got {read.transform_type}")
    return transform


def _composite(read: Any) -> Transform:
    """The parts of an ITK composite of affines and displacement fields, in the order in which they are applied."""
    fixed, values = np.array(read.fixed_parameters, dtype=np.float64), np.asarray(read.parameters)
    for parts in _splits(fixed, values):
        transform = parts[0] if len(parts) == 1 else CompositeTransform(tuple(parts))
        points = _test_points(parts)
        moved = transform.map(points)
        # single precision inside ITK: some 1e-5 mm at 100 mm
        if np.allclose(moved, _itk_map(read, points), atol=1e-2, equal_nan=False):
            return transform
    raise ValueError("only composites of affine transforms (12 parameters) and displacement fields can be read")


def _test_points(parts: list[AffineTransform | DisplacementField]) -> np.ndarray:
    """Four world points that stay inside the fields, so that a wrong reading of the parts shows."""
    for number, part in enumerate(parts):
        if isinstance(part, DisplacementField):
            size = np.array(part.shape) - 1
            points = apply_affine(part.affine, size * np.array([[0.5, 0.5, 0.5], [0.4, 0.5, 0.6], [0.6, 0.4, 0.5]]))
            for before in reversed(parts[:number]):
                if isinstance(before, AffineTransform):
                    points = before.inverse().map(points)
            return points
    return 50.0 * np.vstack([np.zeros(3), np.eye(3)])


def _splits(fixed: np.ndarray, values: np.ndarray) -> Iterator[list[AffineTransform | DisplacementField]]:
    """Every way to read concatenated ITK parameters as affines (3 fixed, 12) and fields (18 fixed, 3 per voxel)."""
    if not len(fixed) and not len(values):
        yield []
    if len(fixed) >= 18 and _is_grid(fixed[:18]):
        count = 3 * int(np.prod(fixed[:3]))
        if count <= len(values):
            for rest in _splits(fixed[18:], values[count:]):
                yield [_field_of(fixed[:18], values[:count]), *rest]
    if len(fixed) >= 3 and len(values) >= 12 and np.linalg.det(values[:9].reshape(3, 3)) != 0:
        for rest in _splits(fixed[3:], values[12:]):
            yield [_affine_of(fixed[:3], values[:12]), *rest]


def _is_grid(fixed: np.ndarray) -> bool:
    size, spacing, direction = fixed[:3], fixed[6:9], fixed[9:].reshape(3, 3)
    whole = bool((size >= 1).all() and (size == np.round(size)).all())
    return whole and bool((spacing > 0).all()) and np.allclose(direction @ direction.T, np.eye(3), atol=1e-3)


def _affine_of(center: np.ndarray, values: np.ndarray) -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, :3] = values[:9].reshape(3, 3)
    matrix[:3, 3] = values[9:] + center - matrix[:3, :3] @ center
    flip = LPS
    return AffineTransform(flip @ matrix @ flip)


def _field_of(fixed: np.ndarray, values: np.ndarray) -> DisplacementField:
    d, h, w = fixed[:3].astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _SIGNS[:, None] * fixed[9:].reshape(3, 3) * fixed[6:9]
    affine[:3, 3] = _SIGNS * fixed[3:6]
    # ITK stores the first axis fastest, the vector's parts together
    vectors = values.reshape(w, h, d, 3).transpose(2, 1, 0, 3) * _SIGNS
    return DisplacementField(vectors, affine)
