"""Measure the distortion of echo-planar images along the phase-encoding axis, from two images with opposite encoding.

Off-resonance shifts a voxel by +d along the axis in one image and by -d in the other, and brightens it where the image
is compressed (Andersson et al., NeuroImage 2003). The shift is fitted so that both corrected images agree.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.threads import ordered_sums
from ..volumes import Volume
from .free_form import bending_slope, separable, spline_basis
from .levels import normalized, smooth
from .warp import invert_displacement, warp

_AXES = {"i": 0, "j": 1, "k": 2}
_STAGES = ((9.0, 30.0, 40), (4.0, 18.0, 40), (0.0, 9.0, 40))  # blur (full width) and control points in mm, iterations
_STEP_MM = 1.0
_BENDING = 1e-4


def axis_number(phase_axis: str) -> int:
    """The number of the voxel axis, 0 to 2, for a phase-encoding axis such as "j" or "j-"."""
    return _AXES[phase_axis[0]]


def axis_direction(image: Volume, phase_axis: str) -> np.ndarray:
    """The unit vector (3,) in the world along the phase-encoding axis of an image, without its sign."""
    step: np.ndarray = image.affine[:3, axis_number(phase_axis)]
    unit: np.ndarray = step / np.linalg.norm(step)
    return unit


@ordered_sums()
def shift_of_reversed_pair(b0: Volume, reversed_b0: Volume, phase_axis: str) -> np.ndarray:
    """The shift of each point of the undistorted head in `b0`, in mm along the phase-encoding axis.

    Args:
        b0: (D, H, W).
        reversed_b0: (D, H, W), on the same grid, with reversed phase encoding.
        phase_axis: "i", "j" or "k", with or without "-".

    Returns:
        (D, H, W); the point at x of the undistorted head appears at x + shift in `b0`, at x - shift in `reversed_b0`.

    Raises:
        ValueError: the images lie on different grids.
    """
    if b0.shape != reversed_b0.shape or not np.allclose(b0.affine, reversed_b0.affine, atol=1e-2):
        raise ValueError(
            "the reversed b0 must lie on the grid of the diffusion image, "
            f"got {reversed_b0.shape} and {b0.shape} or different affines"
        )
    axis = axis_number(phase_axis)
    spacing = torch.tensor(b0.spacing)
    images = [normalized(torch.from_numpy(v.array.astype(np.float32))[None, None]) for v in (b0, reversed_b0)]
    shift = torch.zeros(1, 1, *b0.shape)
    for blur_mm, control_mm, count in _STAGES:
        blurred = [smooth(image, [blur_mm / 2.355 / float(mm) for mm in spacing]) for image in images]
        shift = _fit(blurred, shift, axis, spacing, control_mm, count)
    return np.asarray(shift[0, 0].numpy())


def undistorted(image: Volume, shift_mm: np.ndarray, phase_axis: str) -> Volume:
    """The image without the distortion: it is read at x + shift, and its brightness is corrected."""
    array = torch.from_numpy(image.array.astype(np.float32))[None, None]
    shift = torch.from_numpy(shift_mm.astype(np.float32))[None, None]
    axis = axis_number(phase_axis)
    return image.with_array(_corrected(array, shift, axis, image.spacing[axis], 1)[0, 0].numpy())


def distorted_to_undistorted(shift_mm: np.ndarray, image: Volume, phase_axis: str) -> np.ndarray:
    """The displacement of each distorted voxel to its undistorted place, (D, H, W) in mm along the axis."""
    axis, mm = axis_number(phase_axis), image.spacing[axis_number(phase_axis)]
    u = torch.zeros(1, 3, *shift_mm.shape)
    u[0, axis] = torch.from_numpy(shift_mm / mm)
    inverse, _ = invert_displacement(u, iterations=60, tolerance=0.005)
    return np.asarray(inverse[0, axis].numpy() * mm)


def _fit(images: list[Tensor], shift: Tensor, axis: int, spacing: Tensor, control_mm: float, count: int) -> Tensor:
    """Add a B-spline to the shift, so that both corrected images agree."""
    mm = float(spacing[axis])
    bases = [spline_basis(n, max(1.0, control_mm / float(s))) for n, s in zip(shift.shape[2:], spacing, strict=True)]
    points = torch.zeros(1, 1, *[basis.shape[1] for basis in bases], requires_grad=True)
    optimizer = torch.optim.LBFGS([points], max_iter=count, history_size=6, line_search_fn="strong_wolfe")
    scale = float(((images[0] + images[1]) ** 2).mean())

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            total = shift + separable(points, bases)
            there, back = (
                _corrected(image, total, axis, mm, sign) for image, sign in zip(images, (1, -1), strict=True)
            )
            loss = ((there - back) ** 2).mean() / scale
            loss.backward()
        with torch.no_grad():
            bend = bending_slope(points) / points.numel()
            loss = loss + _BENDING / 2 * (points * bend).sum()
            assert points.grad is not None
            points.grad += _BENDING * bend
        return loss

    optimizer.step(closure)
    fitted: Tensor = (shift + separable(points, bases)).detach()
    return fitted


def _corrected(image: Tensor, shift_mm: Tensor, axis: int, mm: float, sign: int) -> Tensor:
    """The image, read at x + sign * shift and multiplied by the change of volume."""
    voxels = sign * shift_mm / mm
    u = torch.cat([voxels if a == axis else torch.zeros_like(voxels) for a in range(3)], dim=1)
    pad = [0, 0, 0, 0, 0, 0]
    pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = 1
    longer = F.pad(voxels, pad, mode="replicate")
    n = voxels.shape[axis + 2]
    slope = (longer.narrow(axis + 2, 2, n) - longer.narrow(axis + 2, 0, n)) / 2
    return warp(image, u, padding="border") * (1 + slope).clamp(min=0.05)
