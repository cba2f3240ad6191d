"""The images of a refinement at one resolution: scaled, smoothed, and on a coarser grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def normalized(image: Tensor) -> Tensor:
    """The image in [0, 1]: 0 for the darkest 1 %, 1 for the brightest 0.5 % of the foreground.

    The scale then depends neither on a few bright vessels nor on negative values that interpolation causes in a
    background of 0.
    """
    values = image.float().flatten()
    values = values[:: max(1, values.numel() // 1_000_000)]  # enough for a quantile
    low = values.kthvalue(max(1, round(0.01 * values.numel()))).values
    above = (values - low).clamp_(min=0)
    bright = above[above > 0.02 * above.max()]
    if not bright.numel():  # only a few voxels are not background
        low, bright = image.min(), image.float().max()[None] - image.min()
    high = bright.kthvalue(max(1, round(0.995 * bright.numel()))).values
    return ((image.float() - low) / high).clamp_(0, 1)


@dataclass(frozen=True, eq=False)
class Level:
    """Both images on a coarse grid that has the corners of the full grid; `spacing` is (1, 3, 1, 1, 1) in mm."""

    fixed: Tensor
    moving: Tensor
    mask: Tensor
    spacing: Tensor


def level_of(fixed: Tensor, moving: Tensor, mask: Tensor, spacing: Sequence[float], target_mm: float) -> Level:
    """Downsample both images and the mask to about `target_mm`, along the axes that are finer than that.

    Args:
        fixed, moving, mask: (1, 1, D, H, W).
        spacing: voxel spacing along (d, h, w), in mm.
        target_mm: spacing of the level.
    """
    shape, steps = [], []
    for n, mm in zip(fixed.shape[2:], spacing, strict=True):
        # an axis that is already coarse or short keeps its length
        coarse = max(min(n, 8), round((n - 1) * mm / target_mm) + 1)
        shape.append(n if coarse > 0.8 * n else coarse)
        # there is no motion along an axis of one voxel, so its length must not make the level count as finer
        steps.append(mm * (n - 1) / (shape[-1] - 1) if n > 1 else max(mm, target_mm))
    # against aliasing: sigma is half the factor, minus the blur of the voxel itself
    factors = [(n - 1) / (m - 1) if n > 1 else 1.0 for n, m in zip(fixed.shape[2:], shape, strict=True)]
    sigmas = [0.5 * math.sqrt(max(0.0, factor**2 - 1)) for factor in factors]
    sizes = zip(fixed.shape[2:], shape, sigmas, strict=True)
    reductions = [None if n == m else interpolation_matrix(n, m) @ _gaussian(n, sigma) for n, m, sigma in sizes]

    def resized(image: Tensor) -> Tensor:
        for axis, matrix in enumerate(reductions):
            image = image if matrix is None else along(image, axis, matrix.to(image))
        return image

    inside = (F.interpolate(mask, size=shape, mode="trilinear", align_corners=True) > 0.5).float()
    if not inside.any():
        inside = torch.ones_like(inside)
    return Level(resized(fixed), resized(moving), inside, fixed.new_tensor(steps).view(1, 3, 1, 1, 1))


def interpolation_matrix(n: int, m: int) -> Tensor:
    """The matrix (m, n) of a linear interpolation of n values at m places, of which the first and last are the ends.

    The numbers are float64, on the CPU.
    """
    places = torch.linspace(0, n - 1, m, dtype=torch.float64, device="cpu")[:, None]
    return (1 - (places - _indices(n)).abs()).clamp(min=0)


def _gaussian(n: int, sigma: float) -> Tensor:
    """The matrix (n, n) of a Gaussian smoothing, renormalised at the border."""
    index = _indices(n)
    if sigma <= 0.05:
        return torch.eye(n, dtype=torch.float64, device="cpu")
    weights = torch.exp(-((index[:, None] - index) ** 2) / (2 * sigma**2))
    return weights / weights.sum(dim=1, keepdim=True)


def _indices(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64, device="cpu")


def smooth(image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian smoothing with sigmas in voxels, renormalised at the border; small matrices are faster than conv3d."""
    for axis, (n, sigma) in enumerate(zip(image.shape[2:], sigmas, strict=True)):
        if sigma > 0.05 and n > 1:
            image = along(image, axis, _gaussian(n, sigma).to(image))
    return image


def blur_of(image: Tensor) -> float:
    """The share of its squared gradient that an image in [0, 1] keeps when it is smoothed by one voxel.

    The share is 0.4 to 0.5 for a T1w scan with voxels of 1 mm, and 0.8 for the average of 40 such scans. Borders of the
    foreground do not count.

    Args:
        image: (1, 1, D, H, W).
    """
    inside = smooth((image > 0.1).float(), (3.0,) * 3) > 0.95
    sharp, smoothed = (_squared_gradient(values)[inside].sum() for values in (image, smooth(image, (1.0,) * 3)))
    return float(smoothed / sharp) if sharp > 0 else 1.0


def _squared_gradient(image: Tensor) -> Tensor:
    axes = [axis for axis in (2, 3, 4) if image.shape[axis] > 1]
    return torch.stack([part**2 for part in torch.gradient(image, dim=axes)]).sum(dim=0)


def along(image: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Apply a matrix (m, n) along one axis of length n of an image (B, C, D, H, W)."""
    if axis == 2:
        return image @ matrix.T
    if axis == 1:
        return matrix @ image
    flat = matrix @ image.flatten(3)
    return flat.view(*flat.shape[:3], *image.shape[3:])
