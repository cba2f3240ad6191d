"""A cubic B-spline free-form deformation with a bending penalty (Rueckert et al., IEEE TMI 1999), fitted by Adam."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .forces import Force
from .levels import Level, along
from .warp import gradient, warp

_BENDING = 0.03
_STEP_MM = 0.6  # initial learning rate of Adam on the control points at the 2 mm level; it falls to 0 by a cosine


def fit_level(
    level: Level,
    start: Tensor,
    control: Tensor | None,
    force: Force,
    count: int,
    control_mm: float,
    finest_mm: float,
    *,
    direction: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Fit a cubic B-spline displacement, which is added to `start`, by Adam on its control points.

    Args:
        level: both images at one resolution.
        start: (1, 3, D, H, W) in voxels of the level.
        control: the dense displacement of the B-spline on the previous level, in mm; None on the first level.
        force: the force against the level's fixed image.
        count: number of iterations.
        control_mm: distance between control points.
        finest_mm: voxel size of the finest level, to which the learning rate is proportional.
        direction: (3,), a unit vector along the axes of the grid; if given, the B-spline has only the component along
            it.

    Returns:
        The displacement in voxels, the part of the B-spline (1, 3 or 1, D, H, W) in mm, and the last loss.
    """
    axes = None if direction is None else direction.to(start).view(1, 3, 1, 1, 1)
    bases = [
        spline_basis(n, max(1.0, control_mm / float(mm))).to(start)
        for n, mm in zip(start.shape[2:], level.spacing.flatten(), strict=True)
    ]
    if control is None:
        points = start.new_zeros(1, 3 if axes is None else 1, *[basis.shape[1] for basis in bases])
    else:
        control = F.interpolate(control, size=start.shape[2:], mode="trilinear", align_corners=True)
        points = separable(control, [torch.linalg.pinv(basis) for basis in bases])
    transposed = [basis.T for basis in bases]
    source = torch.cat([level.moving, gradient(level.moving)[:, 0] / level.spacing], dim=1)
    first, second, loss = torch.zeros_like(points), torch.zeros_like(points), 0.0
    for i in range(count):
        added = separable(points, bases) if axes is None else separable(points, bases) * axes
        sampled = warp(source, start + added / level.spacing, padding="border")
        value, slope = force(sampled[:, :1])
        loss = float(value)
        steep = sampled[:, 1:] * slope
        steep = (
            separable(steep if axes is None else (steep * axes).sum(dim=1, keepdim=True), transposed) / slope.numel()
        )
        steep += _BENDING * bending_slope(points) / points[0, 0].numel()
        first.lerp_(steep, 0.1)
        second.lerp_(steep**2, 0.01)
        rate = _STEP_MM * finest_mm / 2 * (0.5 + 0.5 * math.cos(math.pi * i / count))
        points -= rate * (first / (1 - 0.9 ** (i + 1))) / ((second / (1 - 0.99 ** (i + 1))).sqrt() + 1e-10)
    control = separable(points, bases)
    return start + (control if axes is None else control * axes) / level.spacing, control, loss


def spline_basis(n: int, step: float) -> Tensor:
    """The values of the cubic B-splines at n voxels, (n, control points), with a control point every `step` voxels."""
    points = math.ceil((n - 1) / step) + 3
    x = (torch.arange(n)[:, None] / step - (torch.arange(points) - 1)).abs()
    return torch.where(x < 1, 2 / 3 - x**2 + x**3 / 2, (2 - x).clamp(min=0) ** 3 / 6)


def separable(field: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Return a field (B, C, D, H, W) with one matrix (new length, length) applied along each axis."""
    for axis, matrix in enumerate(matrices):
        field = along(field, axis, matrix)
    return field


def bending_slope(points: Tensor) -> Tensor:
    """Half the gradient of the sum of squared second differences, in which mixed differences count twice."""
    slope = torch.zeros_like(points)
    for a in (2, 3, 4):
        bend, n = points.diff(n=2, dim=a), points.shape[a]
        for offset, weight in enumerate((1, -2, 1)):
            slope.narrow(a, offset, n - 2).add_(bend, alpha=weight)
        for b in range(a + 1, 5):
            twist = points.diff(dim=a).diff(dim=b)
            for i in (0, 1):
                for j in (0, 1):
                    part = slope.narrow(a, i, n - 1).narrow(b, j, points.shape[b] - 1)
                    part.add_(twist, alpha=2 if i == j else -2)
    return slope
