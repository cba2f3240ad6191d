"""Known warps to apply to an image: random smooth fields, a local swelling, a shift along one axis."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ..volumes import Volume
from ..volumes.sampling import apply_affine, voxel_blocks

Warp = Callable[[np.ndarray], np.ndarray]  # world points (N, 3) -> displacement in mm (N, 3)

KINDS = ("bspline", "swelling", "phase_encoding")
_GRID_MM = 4.0


def known_warps(
    points: np.ndarray, direction: np.ndarray, *, seeds: range, peak_mm: float = 8.0
) -> Iterator[tuple[str, int, Warp]]:
    """Warps whose longest vector on `points` has length `peak_mm`: for each seed, one warp of each kind in `KINDS`.

    Args:
        points: (N, 3), the world points of a head.
        direction: (3,), the unit vector along which "phase_encoding" moves points.
        seeds: seeds of the warps.
        peak_mm: length of the longest vector.
    """
    for seed in seeds:
        yield "bspline", seed, smooth_warp(points, seed=seed, peak_mm=peak_mm)
        yield "swelling", seed, swelling(points, seed=seed, peak_mm=peak_mm)
        yield "phase_encoding", seed, smooth_warp(points, seed=100 + seed, peak_mm=peak_mm, direction=direction)


def smooth_warp(
    points: np.ndarray, *, seed: int, peak_mm: float, sigma_mm: float = 12.0, direction: np.ndarray | None = None
) -> Warp:
    """White noise on a grid of 4 mm, smoothed by a Gaussian and interpolated linearly."""
    low, high = points.min(axis=0) - 40, points.max(axis=0) + 40
    shape = np.ceil((high - low) / _GRID_MM).astype(int) + 1
    rng = np.random.default_rng(seed)
    noise = [
        gaussian_filter(rng.standard_normal(shape), sigma_mm / _GRID_MM) for _ in range(3 if direction is None else 1)
    ]
    field = np.stack(noise) if direction is None else direction[:, None, None, None] * noise[0]

    def warp(at: np.ndarray) -> np.ndarray:
        voxels = ((at - low) / _GRID_MM).T
        return np.stack([map_coordinates(part, voxels, order=1, mode="nearest") for part in field], axis=1)

    field *= peak_mm / np.linalg.norm(warp(points), axis=1).max()
    return warp


def swelling(points: np.ndarray, *, seed: int, peak_mm: float, sigma_mm: float = 20.0) -> Warp:
    """A local swelling (odd seeds) or shrinkage (even seeds): d * exp(-|d|^2 / 2 sigma^2) around a random point."""
    centre = points[np.random.default_rng(seed).integers(len(points))]
    factor = (1 if seed % 2 else -1) * peak_mm / (sigma_mm * np.exp(-0.5))

    def warp(at: np.ndarray) -> np.ndarray:
        away = at - centre
        moved: np.ndarray = factor * away * np.exp(-(away**2).sum(axis=1, keepdims=True) / (2 * sigma_mm**2))
        return moved

    return warp


def warped_by(image: Volume, warp: Warp, *, compressed_along: np.ndarray | None = None) -> Volume:
    """The image, read at x + warp(x), as float32; 0 outside.

    Args:
        image: (D, H, W).
        warp: the displacement of the points of the result.
        compressed_along: (3,), a unit vector; if given, the signal is multiplied by 1 plus the derivative of the warp
            along it, since an echo-planar image is brighter where it is compressed.
    """
    read = np.zeros(image.shape, np.float32)
    to_voxel, array = np.linalg.inv(image.affine), image.array.astype(np.float32)
    for slab, voxels in voxel_blocks(image.shape):
        points = apply_affine(image.affine, voxels)
        moved = warp(points)
        values = map_coordinates(array, apply_affine(to_voxel, points + moved).T, order=1)
        if compressed_along is not None:
            ahead = warp(points + compressed_along) - warp(points - compressed_along)
            values = values * np.maximum(1 + 0.5 * (ahead @ compressed_along), 0.05)
        read[slab] = values.reshape(read[slab].shape)
    return image.with_array(read)


def source_of(warp: Warp, points: np.ndarray, *, rounds: int = 60) -> np.ndarray:
    """The points (N, 3) that x + warp(x) maps to `points`."""
    found = points.copy()
    for _ in range(rounds):
        found = points - warp(found)
    return found
