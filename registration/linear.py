"""Rigid and affine fits of two volumes by L-BFGS on the mutual information of samples, with an exact gradient.

The fixed image is sampled at points of a jittered lattice. The map transforms these points to the moving image. The
grey values of both images fill a joint histogram by cubic B-splines (Mattes et al., IEEE TMI 2003), whose normalised
mutual information (Studholme et al., Pattern Recognition 1999) hardly depends on the size of the overlap.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import information
from ..volumes import Volume

Kind = Literal["rigid", "affine"]
Metric = Literal["mi", "ncc"]

BINS = 32
_LEAST_SAMPLES = 64  # number in the overlap that a meaningful similarity requires
_RADIUS_MM = 60.0  # a rotation or strain of 1 moves a point of the head by this distance, so all parameters are in mm
_RAMP = 2.0  # number of voxels over which the weight of samples falls to 0 at the border of the moving image
_STRAIN = 0.05  # weight of the penalty on the squared strain of an affine fit, in units of the similarity

# rotations about the three axes, then stretches and shears; a factor of 1 means a rotation or strain of 1
_DIRECTIONS = torch.tensor(
    [
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 1]],
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 1, 0]],
    ],
    dtype=torch.float64,
)


_OUT_OF_PLANE = (2, 3, 4, 8, 10, 11)  # parameters of a fit: translation along z, turns about x and y, and so on


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of the fixed image, and the moving image with which they are compared, at one resolution.

    Args:
        points: (N, 3), world mm.
        fixed: (N,), grey values of the fixed image, in bins from 0 to BINS - 1.
        moving: (D, H, W): the moving image, in bins.
        moving_mask: (1, D, H, W), 1 for voxels to compare; None for all.
        to_voxel: (4, 4), moving world -> moving voxel.
        planar: both images are one slice, across the z axis of the world; only motions in the plane are fitted.
    """

    points: Tensor
    fixed: Tensor
    moving: Tensor
    moving_mask: Tensor | None
    to_voxel: Tensor
    planar: bool = False

    @cached_property
    def for_kernel(self) -> tuple[Tensor, Tensor]:
        """The points (3, N), and the row of each fixed value in the joint histogram (N,), for the compiled kernel."""
        rows = self.fixed.round().clamp(0, BINS - 1).to(torch.int32) * information.COLUMNS
        return self.points.T.contiguous(), rows


def samples_of(
    moving: Volume,
    fixed: Volume,
    *,
    spacing_mm: float,
    count: int,
    seed: int = 0,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
) -> Samples:
    """Smooth both images to a resolution and sample the fixed image.

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        spacing_mm: the resolution; the images are smoothed for a grid of this spacing.
        count: approximate number of points to sample.
        seed: seed of the jitter of the points within their cells.
        moving_mask: on the grid of `moving`; only points that map to its nonzero voxels are compared.
        fixed_mask: on the grid of `fixed`; only its nonzero voxels are sampled.
    """
    coarse_moving, coarse_fixed = coarsened(moving, spacing_mm), coarsened(fixed, spacing_mm)
    world = _lattice(fixed, fixed_mask, count, seed)
    voxels = (world - coarse_fixed.affine[:3, 3]) @ np.linalg.inv(coarse_fixed.affine[:3, :3]).T
    values = _sample(torch.from_numpy(coarse_fixed.array)[None], torch.from_numpy(voxels).float())[0]
    array = torch.from_numpy(_in_bins(coarse_moving.array))
    mask = None
    if moving_mask is not None:
        inside = coarsened(moving_mask.with_array((moving_mask.array != 0).astype(np.float32)), spacing_mm)
        mask = torch.from_numpy(inside.array)[None]
    return Samples(
        points=torch.from_numpy(world),
        fixed=torch.from_numpy(_in_bins(values.numpy(), coarse_fixed.array)),
        moving=array,
        moving_mask=mask,
        to_voxel=torch.from_numpy(np.linalg.inv(coarse_moving.affine)),
        planar=moving.shape[0] == fixed.shape[0] == 1,
    )


def coarsened(volume: Volume, spacing_mm: float) -> Volume:
    """The volume at a coarser resolution: smoothed by a Gaussian and subsampled, by one matrix product per axis.

    Args:
        volume: (D, H, W).
        spacing_mm: axes finer than this are subsampled by the largest integer factor that does not go beyond it.

    Returns:
        float32; its first voxel is at the position of the first voxel of `volume`.
    """
    steps = [max(1, int(spacing_mm / mm + 0.1)) for mm in volume.spacing]
    array = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32))
    for axis, step in sorted(enumerate(steps), key=lambda item: -item[1]):  # the strongest reduction first
        if step > 1:
            weights = _thinning(array.shape[axis], step)
            array = torch.movedim(torch.tensordot(weights, array, dims=([1], [axis])), 0, axis)
    return Volume(array.contiguous().numpy(), volume.affine @ np.diag([*steps, 1.0]), volume.source)


def _thinning(n: int, step: int) -> Tensor:
    """Gaussian weights of n voxels for every `step`-th voxel; each row sums to 1."""
    sigma = 0.42 * math.sqrt(step**2 - 1)
    distance = torch.arange(0, n, step)[:, None] - torch.arange(n)
    weights = torch.exp(-((distance / sigma) ** 2) / 2)
    return weights / weights.sum(dim=1, keepdim=True)


def without_outliers(volume: Volume) -> Volume:
    """The volume (float32), clipped to its 0.1st and 99.9th percentiles, so that bright outliers do not waste bins."""
    array = volume.array.astype(np.float32)
    some = array[tuple(slice(None, None, max(1, n // 64)) for n in array.shape)]
    low, high = np.percentile(some, [0.1, 99.9]).astype(np.float32)
    return volume.with_array(np.clip(array, low, high) if high > low else array)


@dataclass(frozen=True)
class Similarity:
    """The similarity of two images under a map.

    Args:
        value: normalised mutual information, 1 to 2, or squared correlation, 0 to 1; lowest without overlap.
        overlap: fraction of the samples that map into the moving image.
    """

    value: float
    overlap: float


def similarity(samples: Samples, world: np.ndarray, metric: Metric = "mi") -> Similarity:
    """The similarity under a map (4, 4) from the fixed to the moving world."""
    value, overlap, _ = _compare(samples, torch.from_numpy(world), metric, with_slope=False)
    return Similarity(value, overlap)


def fit(
    samples: Samples,
    start: np.ndarray,
    kind: Kind,
    *,
    metric: Metric = "mi",
    iterations: int = 50,
    tether: float = 0.0,
    still: np.ndarray | None = None,
) -> np.ndarray:
    """The map near `start` with the highest similarity.

    Args:
        samples: the samples at one resolution.
        start: (4, 4), fixed world -> moving world.
        kind: "rigid" fits rotation and translation; "affine" also fits stretches and shears.
        metric: "mi" for any two contrasts, "ncc" for one contrast.
        iterations: the largest number of iterations.
        tether: weight of a penalty on motion away from `start`, in units of the similarity per mm^2 of translation and
            of rotation at 60 mm from the centre. It keeps parameters that the images hardly determine, such as the
            position along the normal of a few slices, at their start.
        still: (3,), a unit vector in the fixed world along which an affine fit does not stretch or shear, such as the
            normal of a slab, whose few slices do not show the length of the head.

    Returns:
        (4, 4), fixed world -> moving world.
    """
    beginning, directions = torch.from_numpy(start), _DIRECTIONS[: 3 if kind == "rigid" else 9]
    centre = samples.points.mean(dim=0)
    if still is not None:
        normal = torch.from_numpy(still).double()
        in_plane = torch.eye(3, dtype=torch.float64) - normal[:, None] * normal
        directions = torch.cat([directions[:3], in_plane @ directions[3:] @ in_plane])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.from_numpy(parameters) / _RADIUS_MM
        world, slopes = _moved(beginning, centre, free, directions)
        value, _, slope = _compare(samples, world, metric, with_slope=True)
        gradient = -(slopes * slope).sum(dim=(1, 2))
        gradient[6:] += 2 * _STRAIN * free[6:]
        strain = float((free[6:] ** 2).sum())
        if samples.planar:
            gradient[[k for k in _OUT_OF_PLANE if k < len(free)]] = 0
        gradient[:6] += 2 * tether * _RADIUS_MM**2 * free[:6]
        motion = float((free[:6] ** 2).sum()) * _RADIUS_MM**2
        return _STRAIN * strain + tether * motion - value, (gradient / _RADIUS_MM).numpy()

    found = scipy.optimize.minimize(
        loss,
        np.zeros(3 + len(directions)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxls": 12, "ftol": 1e-7, "gtol": 1e-7},
    )
    world, _ = _moved(beginning, centre, torch.from_numpy(found.x) / _RADIUS_MM, directions)
    return np.asarray(world.numpy())


def _moved(start: Tensor, centre: Tensor, free: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """`start` after a small motion about `centre`, and its derivative with respect to each parameter.

    Args:
        free: (3 + K,): the translation in units of the radius, and the factors of K directions.
        directions: (K, 3, 3); their weighted sum is the logarithm of the linear part.

    Returns:
        (4, 4) and (3 + K, 4, 4).
    """
    logarithm = (free[3:, None, None] * directions).sum(dim=0)
    # the exponential of [[M, N], [0, M]] contains that of M and its derivative in the direction N
    blocks = torch.zeros(len(directions), 6, 6, dtype=free.dtype)
    blocks[:, :3, :3] = blocks[:, 3:, 3:] = logarithm
    blocks[:, :3, 3:] = directions
    exponential = torch.linalg.matrix_exp(blocks)
    linear, slopes = start[:3, :3] @ exponential[0, :3, :3], start[:3, :3] @ exponential[:, :3, 3:]
    world = torch.eye(4, dtype=free.dtype)
    world[:3, :3] = linear
    world[:3, 3] = start[:3, :3] @ centre + start[:3, 3] + free[:3] * _RADIUS_MM - linear @ centre
    derivative = torch.zeros(len(free), 4, 4, dtype=free.dtype)
    derivative[[0, 1, 2], [0, 1, 2], 3] = _RADIUS_MM
    derivative[3:, :3, :3] = slopes
    derivative[3:, :3, 3] = -slopes @ centre
    return world, derivative


def _compare(samples: Samples, world: Tensor, metric: Metric, *, with_slope: bool) -> tuple[float, float, Tensor]:
    """The similarity, the overlap, and the derivative of the similarity with respect to the map, (4, 4)."""
    to_voxel = samples.to_voxel @ world
    if metric == "mi" and information.serves(samples.moving):
        return _compiled_information(samples, to_voxel, with_slope=with_slope)
    voxels = (samples.points @ to_voxel[:3, :3].T + to_voxel[:3, 3]).float()
    inside, by_place = _inside(voxels, samples.moving.shape)
    if samples.moving_mask is not None:
        inside = inside * (_sample(samples.moving_mask, voxels)[0] > 0.5)
    used = inside > 0
    inside = inside[used]
    overlap = float(inside.sum()) / len(voxels)
    slope = torch.zeros(4, 4, dtype=torch.float64)
    if len(inside) < _LEAST_SAMPLES:
        return (1.0 if metric == "mi" else 0.0), overlap, slope
    voxels, fixed = voxels[used], samples.fixed[used]
    grey, by_position = _interpolated(samples.moving, voxels)
    measure = _mutual_information if metric == "mi" else _correlation
    value, by_grey, by_weight = measure(grey, fixed, inside)
    if not with_slope:
        return value, overlap, slope
    by_voxel = (by_grey * by_position + by_weight * by_place[used].T).double()  # (3, N)
    points = samples.points[used]
    by_matrix = torch.cat([by_voxel @ points, by_voxel.sum(dim=1, keepdim=True)], dim=1)  # by to_voxel's rows
    slope[:3] = samples.to_voxel[:3, :3].T @ by_matrix
    return value, overlap, slope


def _compiled_information(samples: Samples, to_voxel: Tensor, *, with_slope: bool) -> tuple[float, float, Tensor]:
    """`_compare` with the mutual information by the compiled kernel."""
    mask = None if samples.moving_mask is None else samples.moving_mask[0].float()
    value, weights, by_matrix = information.mutual_information(
        *samples.for_kernel, samples.moving, mask, to_voxel, least=_LEAST_SAMPLES, with_slope=with_slope
    )
    slope = torch.zeros(4, 4, dtype=torch.float64)
    slope[:3] = samples.to_voxel[:3, :3].T @ by_matrix
    return value, weights / len(samples.points), slope


def _inside(voxels: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The weight of points by their distance from the border of a grid, (N,), and its derivatives, (N, 3).

    It rises from 0, half a voxel outside, to 1. This ramp keeps the similarity continuous when points enter or leave
    the grid; without it, fits stopped at false optima.
    """
    size = torch.tensor(shape, dtype=torch.float32)
    width = torch.minimum(torch.tensor(_RAMP), size / 4)
    low, high = (voxels + 0.5) / width, (size - 0.5 - voxels) / width
    along = torch.minimum(low, high)
    slope = torch.where(low < high, 1.0, -1.0) / width * ((along > 0) & (along < 1))
    along = along.clamp(0, 1)
    by_axis = [slope[:, i] * along[:, i - 1] * along[:, i - 2] for i in range(3)]
    return along.prod(dim=1), torch.stack(by_axis, dim=1)


def _mutual_information(moving: Tensor, fixed: Tensor, weight: Tensor) -> tuple[float, Tensor, Tensor]:
    """Normalised mutual information of weighted grey values in bins, and its derivatives.

    Args:
        moving, fixed: grey values in bins, (N,).
        weight: 0 to 1, (N,).

    Returns:
        The value, and its derivatives with respect to each moving value and each weight, (N,).
    """
    row = fixed.round().long().clamp(0, BINS - 1) * information.COLUMNS
    first = moving.floor()
    place = row + first.long().clamp(0, BINS - 1)  # the spline of bin b is centred on column b + 1
    shares, slopes = _spline(moving - first), _spline_slope(moving - first)
    joint = torch.zeros(BINS * (BINS + 3), dtype=torch.float64)
    for k in range(4):
        joint += torch.bincount(place + k, (shares[k] * weight).double(), minlength=joint.numel())
    total = float(weight.sum())
    joint = joint.view(BINS, BINS + 3) / total
    by_fixed, by_moving = joint.sum(dim=1, keepdim=True), joint.sum(dim=0, keepdim=True)
    logs = [torch.log(p.clamp(min=1e-12)) for p in (joint, by_fixed, by_moving)]
    parts = zip((joint, by_fixed, by_moving), logs, strict=True)
    entropy, entropy_fixed, entropy_moving = (-float((p * log).sum()) for p, log in parts)
    if entropy <= 1e-9:
        return 1.0, torch.zeros_like(moving), torch.zeros_like(moving)
    value = (entropy_fixed + entropy_moving) / entropy
    # d entropy / d p = -log p - 1; the constants cancel, since the weights of a sample sum to 1
    by_bin = ((value * logs[0] - logs[1] - logs[2]) / entropy).float().flatten()
    at_bins = [by_bin[place + k] for k in range(4)]
    by_grey, by_weight = torch.zeros_like(moving), torch.zeros_like(moving)
    for k in range(4):
        by_grey += slopes[k] * at_bins[k]
        by_weight += shares[k] * at_bins[k]
    mean = float((by_weight * weight).sum()) / total
    return value, by_grey * weight / total, (by_weight - mean) / total


def _spline(t: Tensor) -> list[Tensor]:
    """The four cubic B-spline weights of a value at `t` in [0, 1) after a bin."""
    return [(1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6]


def _spline_slope(t: Tensor) -> list[Tensor]:
    return [-((1 - t) ** 2) / 2, 1.5 * t**2 - 2 * t, 0.5 + t - 1.5 * t**2, t**2 / 2]


def _correlation(moving: Tensor, fixed: Tensor, weight: Tensor) -> tuple[float, Tensor, Tensor]:
    """The squared correlation of weighted grey values, with the same derivatives as `_mutual_information`."""
    total = float(weight.sum())
    m = moving - float((weight * moving).sum()) / total
    f = fixed - float((weight * fixed).sum()) / total
    mm, ff, mf = (float((weight * a * b).sum()) for a, b in ((m, m), (f, f), (m, f)))
    if mm * ff <= 1e-12:
        return 0.0, torch.zeros_like(moving), torch.zeros_like(moving)
    value = mf * mf / (mm * ff)
    by_product, by_moving, by_fixed = 2 * mf / (mm * ff), value / mm, value / ff
    by_grey = weight * (by_product * f - 2 * by_moving * m)
    return value, by_grey, by_product * m * f - by_moving * m * m - by_fixed * f * f


def _sample(image: Tensor, voxels: Tensor) -> Tensor:
    """Channels of an image (C, D, H, W) at voxel positions (N, 3), by linear interpolation: (C, N)."""
    size = torch.tensor(image.shape[1:], dtype=torch.float32)
    grid = ((2 * voxels + 1) / size - 1).flip(1)[None, None, None]
    return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0, :, 0, 0]


def _interpolated(image: Tensor, voxels: Tensor) -> tuple[Tensor, Tensor]:
    """An image (D, H, W) at voxel positions (N, 3), by linear interpolation, and its exact derivative there.

    Returns:
        (N,) and (3, N).
    """
    shape = torch.tensor(image.shape)
    position = torch.minimum(voxels.clamp(min=0), (shape - 1).float())
    first = torch.minimum(position.long(), (shape - 2).clamp(min=0))
    d, h, w = (position - first).unbind(dim=1)
    steps = [step if n > 1 else 0 for n, step in zip(image.shape, image.stride(), strict=True)]
    start, values = first @ torch.tensor(image.stride()), image.flatten()
    (a, b), (c, e), (f, g), (k, m) = (
        [values[start + i * steps[0] + j * steps[1] + step] for step in (0, steps[2])] for i in (0, 1) for j in (0, 1)
    )
    along_w = [b - a, e - c, g - f, m - k]
    near, near_h, far, far_h = (p + w * q for p, q in zip((a, c, f, k), along_w, strict=True))
    low, high = near + h * (near_h - near), far + h * (far_h - far)
    by_h = (near_h - near) + d * ((far_h - far) - (near_h - near))
    low_w, high_w = along_w[0] + h * (along_w[1] - along_w[0]), along_w[2] + h * (along_w[3] - along_w[2])
    return low + d * (high - low), torch.stack([high - low, by_h, low_w + d * (high_w - low_w)])


def _in_bins(values: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Grey values scaled to 0 to BINS - 1 over the range of `image`."""
    image = values if image is None else image
    low, high = float(image.min()), float(image.max())
    return ((values - low) * ((BINS - 1) / max(high - low, 1e-30))).astype(np.float32).clip(0, BINS - 1.001)


def _lattice(fixed: Volume, mask: Volume | None, count: int, seed: int) -> np.ndarray:
    """World points (N, 3): one random point in each cell of a lattice whose cells are about cubic in mm."""
    pitch_mm = (np.prod(fixed.shape) * np.prod(fixed.spacing) / count) ** (1 / 3)
    steps = np.array([max(1.0, pitch_mm / mm) for mm in fixed.spacing])
    cells = [np.arange(max(1, math.floor(n / step))) for n, step in zip(fixed.shape, steps, strict=True)]
    corners = np.stack(np.meshgrid(*cells, indexing="ij"), axis=-1).reshape(-1, 3)
    jitter = np.random.default_rng(seed).random(corners.shape)
    points = np.minimum((corners + jitter) * steps - 0.5, np.array(fixed.shape) - 1).clip(min=0)
    if mask is not None:
        points = points[mask.array[tuple(points.round().astype(int).T)] != 0]
    return np.asarray(points @ fixed.affine[:3, :3].T + fixed.affine[:3, 3])
