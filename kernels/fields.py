"""Displacement fields on the CPU by the compiled kernels (csrc/fields.cpp): the inner loop of registration.

The plain versions are in `registration.warp`, `registration.similarity` and `registration.refine`, which also work on
other devices and types. Here an image is (D, H, W) and a field (D, H, W, 4), both float32 and contiguous. A field holds
the displacement along (d, h, w) in voxels and a 0, so that the processor can load a whole vector at once. `serves`
returns whether the library can be used. No result depends on the number of threads.
"""

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import native
from .threads import kernel_threads

WINDOW = 5  # width of the window of `Correlation`, in voxels
_REACH = 4.0  # radius of a Gaussian kernel in sigmas; the weights beyond it sum to 6e-5

_Lengths = ctypes.c_int64 * 3
_Numbers = ctypes.c_float * 3
_Array = ctypes.Array[ctypes.c_int64] | ctypes.Array[ctypes.c_float] | ctypes.Array[ctypes.c_double]
_Argument = _Array | ctypes.c_float | ctypes.c_void_p


def serves(*tensors: Tensor) -> bool:
    """Whether the compiled library can process these tensors, which must be float32 on the CPU."""
    usable = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    return usable and native.library() is not None


def interleaved(displacement: Tensor) -> Tensor:
    """A displacement (1, 3, D, H, W) in voxels as a field."""
    field = displacement.new_zeros(*displacement.shape[2:], 4)
    field[..., :3] = displacement[0].permute(1, 2, 3, 0)
    return field


def planar(field: Tensor) -> Tensor:
    """A field as a displacement (1, 3, D, H, W)."""
    return field[..., :3].permute(3, 0, 1, 2)[None].contiguous()


def warp(image: Tensor, field: Tensor, *, out: Tensor | None = None) -> Tensor:
    """image[x + field[x]] with linear interpolation; points outside the image get the value at its border.

    Args:
        image: (D', H', W').
        field: (D, H, W, 4).
        out: tensor for the result.

    Returns:
        (D, H, W).
    """
    image, out = image.contiguous(), field.new_empty(field.shape[:3]) if out is None else out
    _call("warp", image, _Lengths(*image.shape), field, _shape(field), out)
    return out


def resample(image: Tensor, matrix: np.ndarray, shape: Sequence[int], *, outside: float = 0.0) -> Tensor:
    """image[matrix x] on a grid, with linear interpolation.

    Args:
        image: (D', H', W').
        matrix: (4, 4), from voxels of the grid to voxels of the image.
        shape: (D, H, W) of the grid.
        outside: value for points that are more than half a voxel outside the image.

    Returns:
        (D, H, W).
    """
    image, out = image.contiguous(), image.new_empty(*shape)
    numbers = (ctypes.c_double * 12)(*np.asarray(matrix, dtype=np.float64)[:3].ravel())
    _call("affine", image, _Lengths(*image.shape), numbers, _Lengths(*shape), ctypes.c_float(outside), out)
    return out


def compose(outer: Tensor, inner: Tensor, scale: float = 1.0, *, out: Tensor | None = None) -> Tensor:
    """The displacement of (id + outer) after (id + scale * inner), as in `registration.warp.compose`.

    Args:
        outer: (D, H, W, 4).
        inner: (D, H, W, 4).
        scale: factor of `inner`.
        out: tensor for the result, which must not be `outer`.
    """
    out = torch.empty_like(outer) if out is None else out
    _call("compose", outer, inner, ctypes.c_float(scale), _shape(outer), out)
    return out


def descent(image: Tensor, slope: Tensor, scale: Sequence[float], *, out: Tensor | None = None) -> Tensor:
    """The descent direction of a loss, -slope * gradient(image) * scale.

    Args:
        image: (D, H, W); its gradient is that of `registration.warp.gradient`.
        slope: (D, H, W), derivative of the loss with respect to each voxel of the image.
        scale: factors of the three components.
        out: tensor for the result.

    Returns:
        (D, H, W, 4).
    """
    field = image.new_empty(*image.shape, 4) if out is None else out
    _call("descent", image, slope.contiguous(), _shape(image), _Numbers(*scale), field)
    return field


def determinant(field: Tensor) -> Tensor:
    """The Jacobian determinant of id + field, (D, H, W), as in `registration.warp.jacobian_determinant`."""
    out = field.new_empty(field.shape[:3])
    _call("determinant", field, _shape(field), out)
    return out


class Smoother:
    """Gaussian smoothing of fields; at the border, the weights are renormalised.

    Args:
        shape: (D, H, W).
        sigmas: along (d, h, w), in voxels; a sigma below 0.05 does not smooth.
        spacing: along (d, h, w), in mm, for the length of vectors; None if nobody asks for it.
    """

    def __init__(self, shape: Sequence[int], sigmas: Sequence[float], spacing: Sequence[float] | None = None):
        tables = [_weights(n, sigma) for n, sigma in zip(shape, sigmas, strict=True)]
        self._weights = torch.cat([table.flatten() for table in tables])
        self._radius = _Lengths(*(table.shape[1] // 2 for table in tables))
        self._spacing = _Numbers(*(spacing or (1, 1, 1)))
        self._longest = None if spacing is None else torch.empty(shape[0], dtype=torch.float32, device="cpu")

    def __call__(self, field: Tensor, *, out: Tensor | None = None) -> tuple[Tensor, float]:
        """The smoothed field, and the length in mm of its longest vector, or NaN; `out` must not be `field`."""
        out = torch.empty_like(field) if out is None else out
        longest = ctypes.c_void_p() if self._longest is None else self._longest
        _call("smooth", field, _shape(field), self._weights, self._radius, self._spacing, out, longest)
        return out, math.nan if self._longest is None else math.sqrt(float(self._longest.max()))


class Correlation:
    """The squared correlation of two images over windows of 5 x 5 x 5 voxels, and its descent direction.

    Args:
        fixed: (D, H, W).
        mask: (D, H, W), 1 for the voxels to use and 0 elsewhere.
        terms: for each window, the number of voxels and the mean and the sum of squared deviations of `fixed`, each
            (D, H, W).
    """

    def __init__(self, fixed: Tensor, mask: Tensor, terms: tuple[Tensor, Tensor, Tensor]):
        self._fixed, self._mask = (fixed * mask).contiguous(), mask.contiguous()
        self._terms = [term.contiguous() for term in terms]
        self._voxels = float(mask.sum())

    def __call__(self, warped: Tensor, scale: Sequence[float], *, out: Tensor | None = None) -> tuple[float, Tensor]:
        """The loss (the negative mean squared correlation) and -slope * gradient(warped) * scale, (D, H, W, 4)."""
        field = warped.new_empty(*warped.shape, 4) if out is None else out
        loss = torch.empty(warped.shape[0], dtype=torch.float64, device="cpu")
        images = (warped, self._fixed, self._mask, *self._terms)
        _call("correlation", *images, _shape(warped), _Numbers(*scale), field, loss)
        return -float(loss.sum()) / self._voxels, field


def _weights(n: int, sigma: float) -> Tensor:
    """The weights of the neighbours of each of n positions, (n, 2 * radius + 1); 0 beyond the border."""
    radius = min(math.ceil(_REACH * sigma), n - 1) if sigma > 0.05 else 0
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32)
    place = torch.arange(n)[:, None] + offset
    weights = torch.exp(-(offset**2) / (2 * max(sigma, 1e-3) ** 2)) * ((place >= 0) & (place < n))
    return weights / weights.sum(dim=1, keepdim=True)


def _shape(tensor: Tensor) -> ctypes.Array[ctypes.c_int64]:
    return _Lengths(*tensor.shape[:3])


def _call(name: str, *arguments: Tensor | _Argument) -> None:
    """Call a function of the library; tensors must be contiguous."""
    for tensor in arguments:
        assert not isinstance(tensor, Tensor) or tensor.is_contiguous(), name
    words = [ctypes.c_void_p(one.data_ptr()) if isinstance(one, Tensor) else one for one in arguments]
    native.function(f"vw_field_{name}")(*words, ctypes.c_int64(kernel_threads()))
