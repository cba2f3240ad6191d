"""Displacement and velocity fields in voxels: warping, composition, integration, inversion, derivatives.

A displacement u is (B, 3, D, H, W), in voxels, ordered (d, h, w). It is a pull-back: it is defined on the fixed grid,
and the fixed voxel x corresponds to the moving point x + u(x). The map is written id + u.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import fields


def voxel_grid(
    shape: Sequence[int], *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The index of each voxel, (1, 3, D, H, W), ordered (d, h, w).

    Example:
        >>> voxel_grid((1, 2, 3))[0, 2].tolist()
        [[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]]
    """
    axes = [torch.arange(n, device=device, dtype=dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def warp(
    moving: Tensor,
    displacement: Tensor,
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Resample the moving image on the fixed grid: warped[x] = moving[x + displacement[x]].

    The sizes of `moving` and `displacement` may differ; both count voxels from the centre of voxel (0, 0, 0), which is
    the sampling that `grid_sample` calls align_corners=True.

    Args:
        moving: (B, C, D', H', W'), any intensity unit; labels may be integers, which `mode="nearest"` keeps exactly.
        displacement: (B, 3, D, H, W) in voxels, ordered (d, h, w). A batch of 1 is applied to every image of `moving`.
        mode: "bilinear" (trilinear in 3-D) for intensities, "nearest" for labels.
        padding: value of points outside `moving`: "zeros" (values fade to 0 over the border voxel), or "border", the
            value of the nearest voxel.

    Returns:
        The warped image, (B, C, D, H, W), in the type of `moving`.

    Raises:
        ValueError: the shapes do not match, or `mode` or `padding` is unknown.
        TypeError: integers with `mode="bilinear"`.

    Example:
        >>> moving = torch.arange(4.0).view(1, 1, 1, 1, 4)
        >>> one_voxel_right = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 4)
        >>> warp(moving, one_voxel_right).flatten().tolist()
        [1.0, 2.0, 3.0, 0.0]
    """
    _check_displacement(displacement)
    if moving.ndim != 5 or displacement.shape[0] not in (1, moving.shape[0]):
        raise ValueError(
            f"moving must have shape (B, C, D, H, W) with the batch of displacement {tuple(displacement.shape)}, "
            f"got {tuple(moving.shape)}"
        )
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f'mode must be "bilinear" or "nearest", got "{mode}"')
    if padding not in ("zeros", "border"):
        raise ValueError(f'padding must be "zeros" or "border", got "{padding}"')
    if not moving.is_floating_point() and mode == "bilinear":
        raise TypeError(f'moving must hold floating-point numbers for mode="bilinear", got {moving.dtype}')
    # float64 represents every 32-bit label; half precision could not even represent the coordinates
    dtype = torch.promote_types(moving.dtype, torch.float32) if moving.is_floating_point() else torch.float64
    displacement = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    grid = _sampling_grid(displacement, moving.shape[2:]).to(dtype).expand(moving.shape[0], -1, -1, -1, -1)
    return _sample(moving.to(dtype), grid, mode, padding).to(moving.dtype)


def _check_displacement(displacement: Tensor, name: str = "displacement") -> None:
    if displacement.ndim != 5 or displacement.shape[1] != 3:
        raise ValueError(f"{name} must have shape (B, 3, D, H, W), got {tuple(displacement.shape)}")


def _sampling_grid(displacement: Tensor, moving_shape: Sequence[int]) -> Tensor:
    """The points id + u in the form of `grid_sample` with align_corners=False: (B, D, H, W, 3), (w, h, d), edges at ±1.

    With align_corners=True an axis of length 1 would have no scale; the sampled voxels are the same.
    """
    points = []
    for axis, (n, n_moving) in enumerate(zip(displacement.shape[2:], moving_shape, strict=True)):
        index = torch.arange(n, device=displacement.device, dtype=displacement.dtype)
        centre = ((2 * index + 1) / n_moving - 1).view([-1 if a == axis else 1 for a in range(3)])
        points.append(torch.add(centre, displacement[:, axis], alpha=2 / n_moving))
    return torch.stack(points[::-1], dim=-1)


def _sample(image: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """`grid_sample` on all CPU threads; since PyTorch parallelises only over the batch, the grid is cut into slabs."""
    batch, n_slices = grid.shape[:2]
    slabs = 1 if torch.compiler.is_exporting() else torch.get_num_threads()
    if slabs == 1 or image.device.type != "cpu" or batch > 1 or n_slices < 2 * slabs:
        return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=False)
    per_slab = -(-n_slices // slabs)
    if per_slab * slabs != n_slices:
        grid = F.pad(grid, (0, 0, 0, 0, 0, 0, 0, per_slab * slabs - n_slices))
    grid = grid.view(slabs, per_slab, *grid.shape[2:])
    image = image.expand(slabs, -1, -1, -1, -1)
    sampled = F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=False)
    return sampled.transpose(0, 1).flatten(1, 2)[None, :, :n_slices]


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The displacement of (id + outer) after (id + inner): first `inner` is applied to a point, then `outer`.

    warp(image, compose(outer, inner)) equals warp(warp(image, outer), inner), but the image is interpolated only once.
    Outside its grid, `outer` has its value at the border.

    Args:
        outer: (B, 3, D', H', W') in voxels; it is read at the points to which `inner` maps.
        inner: (B, 3, D, H, W) in voxels, on the grid of the result.

    Returns:
        x -> inner(x) + outer(x + inner(x)), (B, 3, D, H, W) in voxels.

    Example:
        >>> left, up = torch.zeros(2, 1, 3, 4, 4, 4)
        >>> left[:, 2], up[:, 0] = -1, 0.5
        >>> compose(left, up)[0, :, 2, 2, 2].tolist()
        [0.5, 0.0, -1.0]
    """
    _check_displacement(outer, "outer")
    _check_displacement(inner, "inner")
    return inner + warp(outer, inner, padding="border")


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """The displacement at time 1 of the flow along a stationary velocity, by scaling and squaring.

    The method is that of Arsigny et al., MICCAI 2006. `integrate(-velocity)` is the inverse, up to interpolation error.

    Args:
        velocity: (B, 3, D, H, W) in voxels per unit of time.
        steps: number of squarings; the first map is that for the time 1 / 2^steps.

    Returns:
        The displacement, (B, 3, D, H, W) in voxels.

    Example:
        >>> velocity = torch.ones(1, 3, 4, 4, 4)
        >>> bool(torch.allclose(integrate(velocity), velocity))
        True
    """
    _check_displacement(velocity, "velocity")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    displacement: Tensor = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


@torch.no_grad()
def invert_displacement(
    displacement: Tensor, *, iterations: int = 30, tolerance: float = 0.01
) -> tuple[Tensor, Tensor]:
    """The displacement v whose map id + v inverts id + u, by fixed-point iteration, and its residual.

    The iteration is v <- v - step * (v + u(x + v)). The step of a voxel is halved whenever its residual would grow, so
    the iteration also converges if u is steep (Chen et al., Medical Physics 2008, with this safeguard). For transforms
    in world coordinates, see `volumes.invert`.

    Args:
        displacement: u, (B, 3, D, H, W) in voxels.
        iterations: the largest number of iterations.
        tolerance: residual in voxels; the iteration stops when the residual of every voxel is at most this value.

    Returns:
        inverse: v, (B, 3, D, H, W) in voxels.
        residual: |v(x) + u(x + v(x))|, (B, 1, D, H, W) in voxels, which is the distance between x and its image under
            both maps. Where u folds, several points map to x, and v finds one of them; `jacobian_determinant` shows
            such places.

    Example:
        >>> shift = torch.full((1, 3, 4, 4, 4), 0.5)
        >>> inverse, residual = invert_displacement(shift)
        >>> float(inverse.mean()), float(residual.max())
        (-0.5, 0.0)
    """
    _check_displacement(displacement)
    inverse = torch.zeros_like(displacement)
    error = displacement
    residual = error.norm(dim=1, keepdim=True)
    step = torch.ones_like(residual)
    for _ in range(iterations):
        if residual.max() <= tolerance:
            break
        trial = inverse - step * error
        trial_error = trial + warp(displacement, trial, padding="border")
        trial_residual = trial_error.norm(dim=1, keepdim=True)
        better = trial_residual < residual
        inverse = torch.where(better, trial, inverse)
        error = torch.where(better, trial_error, error)
        residual = torch.where(better, trial_residual, residual)
        step = torch.where(better, (1.5 * step).clamp(max=1), 0.5 * step)
    return inverse, residual


def gradient(field: Tensor) -> Tensor:
    """The derivatives of each channel along each axis, per voxel: central inside, one-sided on the border.

    The differences are the same as in `numpy.gradient`; along an axis of length 1, the derivative is 0.

    Args:
        field: (B, C, D, H, W).

    Returns:
        (B, C, 3, D, H, W), the third axis ordered (d, h, w).

    Example:
        >>> gradient(torch.arange(4.0).view(1, 1, 1, 1, 4))[0, 0, 2].flatten().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    derivatives = []
    for axis in (2, 3, 4):
        n = field.shape[axis]
        if n == 1:
            derivatives.append(torch.zeros_like(field))
            continue
        difference = field.diff(dim=axis)
        inner = (difference.narrow(axis, 1, n - 2) + difference.narrow(axis, 0, n - 2)) / 2
        derivatives.append(
            torch.cat([difference.narrow(axis, 0, 1), inner, difference.narrow(axis, n - 2, 1)], dim=axis)
        )
    return torch.stack(derivatives, dim=2)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """The determinant of the Jacobian of id + u: the volume that a voxel of the fixed grid covers in the moving image.

    It uses central differences, and one-sided ones on the border voxels (`gradient`). Learn2Reg's measures leave out a
    border of 2 voxels, see `jacobian`. The map folds where the determinant is 0 or less.

    Args:
        displacement: (B, 3, D, H, W) in voxels.

    Returns:
        (B, 1, D, H, W); 1 means no change of volume.

    Example:
        >>> shrink = -0.1 * voxel_grid((4, 4, 4))
        >>> round(float(jacobian_determinant(shrink).mean()), 3)
        0.729
    """
    _check_displacement(displacement)
    if len(displacement) == 1 and fields.serves(displacement) and not displacement.requires_grad:
        return fields.determinant(fields.interleaved(displacement))[None, None]
    a, b, c = gradient(displacement).unbind(dim=1)  # each (B, 3, D, H, W): the gradient of one component
    a0, a1, a2 = a[:, 0] + 1, a[:, 1], a[:, 2]
    b0, b1, b2 = b[:, 0], b[:, 1] + 1, b[:, 2]
    c0, c1, c2 = c[:, 0], c[:, 1], c[:, 2] + 1
    determinant = a0 * (b1 * c2 - b2 * c1) - a1 * (b0 * c2 - b2 * c0) + a2 * (b0 * c1 - b1 * c0)
    return determinant[:, None]


def resize_displacement(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """The same displacement on a finer or coarser grid whose corner voxels coincide with the old ones.

    Vectors keep their length relative to the distance between the corner voxels (align_corners=True): components are
    multiplied by (new length - 1) / (old length - 1) of their axis.

    Args:
        displacement: (B, 3, D, H, W) in voxels of the old grid.
        shape: (D', H', W') of the new grid.

    Returns:
        (B, 3, D', H', W') in voxels of the new grid.

    Example:
        >>> resize_displacement(torch.ones(1, 3, 3, 3, 3), (5, 5, 3))[0, :, 0, 0, 0].tolist()
        [2.0, 2.0, 1.0]
    """
    _check_displacement(displacement)
    shape = tuple(shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be three positive lengths (D, H, W), got {shape}")
    if shape == tuple(displacement.shape[2:]):
        return displacement
    factors = [
        (new - 1) / (old - 1) if old > 1 else 1.0 for new, old in zip(shape, displacement.shape[2:], strict=True)
    ]
    resized = F.interpolate(displacement, size=shape, mode="trilinear", align_corners=True)
    return resized * torch.tensor(factors, device=resized.device, dtype=resized.dtype).view(1, 3, 1, 1, 1)
