"""Sampling of an array at positions between its voxels."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

_BLOCK = 1 << 20  # number of points processed at once, which limits the memory of coordinates


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points (N, 3) by a (4, 4) matrix.

    The product is written out: BLAS took ten times as long for (N, 3) by (3, 3) on a busy machine.
    """
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    return np.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in affine[:3]], axis=1)


def sample_linear(channels: "torch.Tensor", points: np.ndarray) -> np.ndarray:
    """Trilinear values at voxel coordinates; beyond the outermost voxel centres the border value continues.

    Args:
        channels: (C, D, H, W), float32 or float64.
        points: (N, 3) voxel coordinates (d, h, w), float64, finite.

    Returns:
        (N, C), in the dtype of `channels`.
    """

    size = np.array(channels.shape[1:], dtype=np.float64)
    # grid_sample wants (w, h, d) in [-1, 1]; an axis of one voxel reads that voxel everywhere
    scaled = np.where(size > 1, 2 * points / np.maximum(size - 1, 1) - 1, 0.0)
    grid = torch.from_numpy(np.ascontiguousarray(scaled[:, ::-1])).to(channels.dtype).view(1, 1, 1, -1, 3)
    values = F.grid_sample(channels[None], grid, mode="bilinear", padding_mode="border", align_corners=True)
    return values.view(channels.shape[0], -1).T.numpy()


def sample_nearest(array: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) values of the voxels whose centres are nearest to `points` (N, 3), in the array's own dtype."""
    index = np.floor(points + 0.5).astype(np.int64)
    d, h, w = np.clip(index, 0, np.array(array.shape) - 1).T
    result: np.ndarray = array[d, h, w]
    return result


def inside(shape: tuple[int, ...], points: np.ndarray) -> np.ndarray:
    """(N,) whether voxel coordinates (N, 3) are inside the grid, including the outer half of its border voxels."""
    # a small tolerance, so that a grid's own rounded border is inside
    edge = 0.5 + 1e-6
    near = (points >= -edge) & (points <= np.array(shape) - 1 + edge)
    return np.asarray(near.all(axis=1))


def slabs(shape: Sequence[int], voxels: int) -> Iterator[slice]:
    """Slabs along the first axis of a (D, H, W) grid, of at most `voxels` voxels unless a single slice has more."""
    d, h, w = shape
    depth = max(1, voxels // (h * w))
    for start in range(0, d, depth):
        yield slice(start, min(start + depth, d))


def voxel_blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, np.ndarray]]:
    """Slabs along the first axis with the (N, 3) voxel indices in them."""
    _, h, w = shape
    for slab in slabs(shape, _BLOCK):
        index = np.meshgrid(np.arange(slab.start, slab.stop), np.arange(h), np.arange(w), indexing="ij")
        yield slab, np.stack(index, -1).reshape(-1, 3).astype(np.float64)
