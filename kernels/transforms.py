"""Transforms between two worlds by the compiled kernels (csrc/transforms.cpp); `volumes` has versions in plain NumPy.

A field is (D, H, W, 3) float32, contiguous: the displacement in mm of each voxel of its grid. No result depends on the
number of threads.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import native
from .threads import kernel_threads

_Lengths = ctypes.c_int64 * 3


def available() -> bool:
    """Whether the compiled library can be used."""
    return native.library() is not None


@dataclass(frozen=True, eq=False)
class Source:
    """The point of an image from which each voxel x of a grid is read: end(start(x) + field(start(x))).

    Args:
        shape: (D, H, W) of the grid.
        start: (4, 4), from voxels of the grid to the field's world.
        end: (4, 4), from that world to voxels of the image.
        vectors: the field; None for no displacement.
        to_field: (4, 4), from the world to voxels of the field.
    """

    shape: Sequence[int]
    start: np.ndarray
    end: np.ndarray
    vectors: np.ndarray | None = None
    to_field: np.ndarray | None = None

    def linear(self, image: np.ndarray, outside: float) -> tuple[np.ndarray, int]:
        """Read the image by linear interpolation, and count the voxels outside the field's grid.

        Args:
            image: (D', H', W') float32, the moving image.
            outside: the value of points more than half a voxel outside the image or the field.

        Returns:
            (D, H, W) float32, and a count.
        """
        image, out = np.ascontiguousarray(image, dtype=np.float32), np.empty(self.shape, np.float32)
        lost = np.empty(self.shape[0], np.int64)
        head, tail = self._arguments(image.shape)
        _call("linear", image, *head, *tail, ctypes.c_float(outside), out, lost)
        return out, int(lost.sum())

    def nearest(self, image_shape: Sequence[int]) -> tuple[np.ndarray, int]:
        """The index of the nearest voxel of the image in C order, or -1 outside, and the same count as `linear`.

        Returns:
            (D, H, W) int64, and a count.
        """
        out, lost = np.empty(self.shape, np.int64), np.empty(self.shape[0], np.int64)
        head, tail = self._arguments(image_shape)
        _call("nearest", *head, *tail, out, lost)
        return out, int(lost.sum())

    def _arguments(self, image_shape: Sequence[int]) -> tuple[tuple[object, ...], tuple[object, ...]]:
        vectors = None if self.vectors is None else _field(self.vectors)
        field_shape = (1, 1, 1) if vectors is None else vectors.shape[:3]
        to_field = np.eye(4) if self.to_field is None else self.to_field
        head = (_Lengths(*image_shape), _affine(self.start), vectors, _Lengths(*field_shape), _affine(to_field))
        return head, (_affine(self.end), _Lengths(*self.shape))


def invert(
    vectors: np.ndarray,
    affine: np.ndarray,
    linear: np.ndarray,
    like: np.ndarray,
    shape: Sequence[int],
    *,
    iterations: int,
    tolerance_mm: float,
) -> tuple[np.ndarray, float, int]:
    """The inverse of a field on another grid, by fixed-point iteration and then Newton's method.

    Outside its grid, the field continues with its linear part plus the remainder at the border.

    Args:
        vectors: the field.
        affine: (4, 4), voxel -> world of the field.
        linear: (4, 4), the linear part of x -> x + field(x).
        like: (4, 4), voxel -> world of the grid of the result.
        shape: (D, H, W) of that grid.
        iterations: the largest number of iterations of a voxel.
        tolerance_mm: a voxel is solved when the field maps its solution to within this distance of it.

    Returns:
        The inverse (D, H, W, 3) float32; the largest remaining error in mm, among voxels whose solution lies inside
        the field's grid; and the number of these voxels with an error of more than ten times the tolerance.
    """
    out, worst, unsolved = np.empty((*shape, 3), np.float32), np.empty(shape[0]), np.empty(shape[0], np.int64)
    maps = (affine, np.linalg.inv(affine), linear, np.linalg.inv(linear), like)
    vectors = _field(vectors)
    limits = (ctypes.c_int64(iterations), ctypes.c_double(tolerance_mm), ctypes.c_double(10 * tolerance_mm))
    lengths = _Lengths(*vectors.shape[:3]), _Lengths(*shape)
    _call("invert", vectors, lengths[0], *map(_affine, maps), lengths[1], *limits, out, worst, unsolved)
    return out, float(worst.max()), int(unsolved.sum())


def _field(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _affine(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix[:3], dtype=np.float64)


def _call(name: str, *arguments: object) -> None:
    words = [ctypes.c_void_p(one.ctypes.data) if isinstance(one, np.ndarray) else one for one in arguments]
    native.function(f"vw_transform_{name}")(*words, ctypes.c_int64(kernel_threads()))
