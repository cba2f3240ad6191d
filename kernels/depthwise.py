"""Depthwise convolution of channel-last maps, on the CPU by a compiled kernel (csrc/depthwise.cpp).

Linear layers and norms read channel-last maps without a copy; PyTorch's convolutions of such maps with a group for each
channel take 5 to 50 times as long as the kernel. No result depends on the number of threads.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import arena, native
from .autocast import in_autocast
from .eligibility import are_plain
from .threads import kernel_threads

_WIDTHS = (1, 3, 5, 7)  # of kernels that the library has been compiled for, along the last axis


class _Sizes(ctypes.Structure):  # mirrors csrc/depthwise.cpp
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("size", ctypes.c_int64 * 3),
        ("channels", ctypes.c_int64),
        ("kernel", ctypes.c_int64 * 3),
        ("dilation", ctypes.c_int64 * 3),
        ("threads", ctypes.c_int64),
    )


def depthwise_conv(maps: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1) -> Tensor:
    """A convolution of each channel with a kernel of its own; the size stays, with zeros beyond the border.

    Args:
        maps: (B, *size, C), with one to three axes in `size`.
        weight: (C, 1, *kernel), the weight of a `torch.nn.Conv1d`, `Conv2d` or `Conv3d` with C groups; all sizes odd.
        bias: (C,).
        dilation: distance of neighbouring taps in voxels, along all axes.

    Returns:
        (B, *size, C).

    Raises:
        ValueError: the shapes do not fit together, or the dilation is not positive.
    """
    _check(maps, weight, bias, dilation)
    if _compiled(maps, weight, bias):
        result: Tensor = _Depthwise.apply(maps, weight, bias, dilation)
        return result
    return plain_depthwise_conv(maps, weight, bias, dilation=dilation)


def plain_depthwise_conv(maps: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1) -> Tensor:
    """The same as `depthwise_conv` by PyTorch's convolutions, for any device and type."""
    axes = weight.ndim - 2
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    padding = [dilation * (n // 2) for n in weight.shape[2:]]
    planes = convolve(maps.movedim(-1, 1), weight, bias, 1, padding, dilation, weight.shape[0])
    result: Tensor = planes.movedim(1, -1)
    return result


def _compiled(maps: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [maps, weight] if bias is None else [maps, weight, bias]
    return (
        all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and weight.shape[-1] in _WIDTHS
        and maps.numel() > 0
        and are_plain(tensors)
        and not in_autocast(maps)
        and native.library() is not None
    )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        maps = maps.contiguous()
        ctx.save_for_backward(maps, weight)
        ctx.dilation = dilation
        return _convolved(maps, weight, bias, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        maps, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_maps = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_maps = _convolved(gradient, weight.flip(*range(2, weight.ndim)), None, ctx.dilation)
        if ctx.needs_input_grad[1]:
            taps = maps.new_empty(weight[0].numel(), weight.shape[0])
            native.call("vw_depthwise_weights", _sizes(maps, weight, ctx.dilation), maps, gradient, taps)
            of_weight = taps.t().reshape(weight.shape)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.flatten(0, -2).sum(0)
        return of_maps, of_weight, of_bias, None


def _convolved(maps: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    out = arena.with_large_pages(torch.empty_like(maps))
    taps = weight.flatten(1).t().contiguous()
    added = None if bias is None else bias.contiguous()
    native.call("vw_depthwise", _sizes(maps, weight, dilation), maps, taps, added, out)
    return out


def _check(maps: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> None:
    channels = maps.shape[-1]
    if weight.shape[:2] != (channels, 1) or maps.ndim != weight.ndim or any(n % 2 == 0 for n in weight.shape[2:]):
        raise ValueError(
            f"weight must have shape (C, 1, *kernel) with C = {channels}, {maps.ndim - 2} axes and odd sizes, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), got {tuple(bias.shape)}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")


def _sizes(maps: Tensor, weight: Tensor, dilation: int) -> _Sizes:
    kernel = tuple(weight.shape[2:])
    return _Sizes(
        batch=maps.shape[0],
        size=_three(maps.shape[1:-1]),
        channels=maps.shape[-1],
        kernel=_three(kernel),
        dilation=_three([dilation] * len(kernel)),
        threads=kernel_threads(),
    )


def _three(numbers: Sequence[int]) -> Any:
    """Three numbers for the library; missing axes come first and have size 1."""
    return (ctypes.c_int64 * 3)(*[1] * (3 - len(numbers)), *numbers)
