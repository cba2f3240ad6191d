"""Normalised mutual information of two volumes under a linear map, and the samples from which it is computed."""

import numpy as np
from scipy.ndimage import map_coordinates

from ..volumes import Volume

HISTOGRAM_BINS = 32


def normalized_mutual_information(
    moving: Volume,
    fixed: Volume,
    world: np.ndarray | None = None,
    *,
    mask: Volume | None = None,
    samples: int = 100_000,
) -> tuple[float, float]:
    """The normalised mutual information of two images under a map, (H(m) + H(f)) / H(m, f), in 1..2 (Studholme 1999).

    Args:
        moving: (D, H, W), any unit.
        fixed: (D, H, W), any unit; about `samples` of its voxels, on a regular lattice, are compared.
        world: (4, 4), fixed world -> moving world, RAS mm; the identity by default.
        mask: on the grid of `fixed`; only its nonzero voxels are compared.
        samples: number of voxels to compare.

    Returns:
        value: over the region where the images overlap; 1 if they do not.
        overlap: the fraction of the compared voxels in that region, 0..1.
    """
    points, values = lattice(fixed, mask, samples)
    return nmi_of_samples(moving, points, values, np.eye(4) if world is None else world)


def lattice(fixed: Volume, mask: Volume | None, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample `fixed` on a regular lattice of voxels, about cubic in mm: world points (4, N) and their values (N,)."""
    pitch_mm = (np.prod(fixed.shape) * np.prod(fixed.spacing) / samples) ** (1 / 3)
    steps = [max(1, round(pitch_mm / s)) for s in fixed.spacing]
    voxels = np.meshgrid(*[np.arange(n % s // 2, n, s) for n, s in zip(fixed.shape, steps, strict=True)], indexing="ij")
    index = tuple(axis.ravel() for axis in voxels)
    if mask is not None:
        inside = mask.array[index] != 0
        index = tuple(axis[inside] for axis in index)
    points = fixed.affine @ np.stack([*index, np.ones(len(index[0]))])
    return points, np.asarray(fixed.array[index], dtype=np.float32)


def nmi_of_samples(moving: Volume, points: np.ndarray, values: np.ndarray, world: np.ndarray) -> tuple[float, float]:
    """Compute `normalized_mutual_information` from the samples of the fixed image that `lattice` returns."""
    voxels = (np.linalg.inv(moving.affine) @ world @ points)[:3]
    limits = np.array(moving.shape)[:, None] - 1
    inside = ((voxels >= 0) & (voxels <= limits)).all(axis=0)
    if inside.sum() < 64:
        return 1.0, 0.0
    sampled = map_coordinates(moving.array.astype(np.float32, copy=False), voxels[:, inside], order=1)
    joint, _, _ = np.histogram2d(values[inside], sampled, bins=HISTOGRAM_BINS)
    both = _entropy(joint)
    single = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
    return (single / both if both > 0 else 1.0), float(inside.mean())


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
