"""Layers of networks for signals (channels, windows, times) by compiled kernels (csrc/signal_layers.cpp), for the CPU.

`serves` says whether the kernels can process tensors; otherwise callers compute the same in plain PyTorch. A kernel
reads a channel once and keeps it in the cache until its result is written. No result depends on the number of threads.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import eligibility, native
from .autocast import in_autocast
from .products import wide_product
from .threads import kernel_threads

_ROW = 16  # samples; rows of the first block have a multiple of them, as in the kernel


class _Signals(ctypes.Structure):  # mirrors csrc/signal_layers.cpp
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("channels", "windows", "planes", "times", "outputs", "taps", "left")),
        *((name, ctypes.c_int64) for name in ("electrodes", "depth", "fixed")),
        *((name, ctypes.c_float) for name in ("epsilon", "kept")),
        *((name, ctypes.c_int64) for name in ("least", "threads")),
        ("scratch", ctypes.c_void_p),
    )


class Dropped:
    """Which values dropout keeps, and by how much it scales them.

    Args:
        shape: of the values.
        drop_prob: probability of a zero, rounded to a multiple of 1/65,536; other values are scaled accordingly.
    """

    def __init__(self, shape: torch.Size, drop_prob: float):
        zeros = round(drop_prob * 65536)
        numbers = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        self.bits = numbers.view(torch.int16)[: shape.numel()]  # 16 random bits for each value
        self.least, self.factor = zeros - 32768, 65536 / (65536 - zeros)

    def mask(self, like: Tensor) -> Tensor:
        """0 or the factor for each value, in the type and shape of `like`."""
        keep = (self.bits >= self.least).to(like.device, like.dtype)
        return keep.mul_(self.factor).view(like.shape)


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels can process these tensors: float32 values on the CPU, outside autocast and transforms."""
    return not in_autocast(tensors[0]) and eligibility.serves("vw_signal_block", *tensors)


def filter_channels(h: Tensor, taps: Tensor, scale: Tensor | None = None, *, left: int, outputs: int) -> Tensor:
    """Filter each channel with zeros around it, and sum its planes: out[t] = sum of taps[p, j] * h[p, t + j - left].

    Args:
        h: (C, P, windows, times).
        taps: (C, P, k).
        scale: (C, windows), factors of the result.
        left: taps before the sample of the result, 0 to k - 1.
        outputs: samples of the result.

    Returns:
        (C, windows, outputs).
    """
    result: Tensor = _Filter.apply(h, taps, scale, left, outputs)
    return result


def norm_elu(
    h: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, variance: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch norm and ELU.

    Args:
        h: (C, windows, times).
        weight, bias: (C,) of the norm.
        mean, variance: (C,) of the norm; those of `h` if None.
        epsilon: of the norm.

    Returns:
        The result (C, windows, times), its means over time (C, windows), and the mean and the biased variance (C,) of
        the norm.
    """
    result, means, _, *found = _NormElu.apply(h, weight, bias, mean, variance, epsilon, None, True)
    return result, means, *_given_or(mean, variance, found)


def norm_elu_means(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    epsilon: float,
    dropped: Dropped | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch norm and ELU, of whose result only means over time are needed.

    Args:
        h, weight, bias, mean, variance, epsilon: as in `norm_elu`.
        dropped: dropout of the result; None: nothing is dropped.

    Returns:
        The means over time (C, windows) before and after dropout, and the mean and the biased variance (C,) of the
        norm.
    """
    _, means, kept, *found = _NormElu.apply(h, weight, bias, mean, variance, epsilon, dropped, False)
    return means, means if dropped is None else kept, *_given_or(mean, variance, found)


def filtered_block(
    x: Tensor,
    spatial: Tensor,
    taps: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spatial filters, temporal filters, batch norm, ELU and the means of pairs of samples.

    Args:
        x: (windows, electrodes, times), without a gradient.
        spatial: (C, electrodes).
        taps: (F, k), each for C / F channels in order, with (k - 1) // 2 taps before the sample of the result.
        weight, bias: (C,) of the norm.
        mean, variance: (C,) of the norm; those of the filtered signals if None.
        epsilon: of the norm.

    Returns:
        The result (C, windows, times // 2), and the mean and the biased variance (C,) of the norm.
    """
    result, *found = _Block.apply(x, spatial, taps, weight, bias, mean, variance, epsilon)
    return result, *_given_or(mean, variance, found)


def _given_or(mean: Tensor | None, variance: Tensor | None, found: list[Tensor]) -> tuple[Tensor, Tensor]:
    return (found[0], found[1]) if mean is None or variance is None else (mean, variance)


def split_pairs(h: Tensor, dropped: Dropped | None) -> Tensor:
    """Dropout, then samples 0, 2, 4 ... and samples 1, 3, 5 ... apart.

    Args:
        h: (C, windows, times).
        dropped: dropout of the values; None: nothing is dropped.

    Returns:
        (C, 2, windows, ceil(times / 2)); if the number of samples is odd, the second half ends with zeros.
    """
    result: Tensor = _Split.apply(h, dropped)
    return result


def mix(weight: Tensor, h: Tensor) -> Tensor:
    """A 1 x 1 convolution: (N, C) and (C, windows, times) to (N, windows, times)."""
    result: Tensor = _Mix.apply(weight, h)
    return result


def mix_pairs(h: Tensor, both: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
    """Products of channels with two matrices, one of which needs only the samples of even number.

    Args:
        h: (C, 2, windows, times), as `split_pairs` returns it.
        both: (N, C).
        even: (M, C).

    Returns:
        (N, 2, windows, times) and (M, windows, times).
    """
    of_both, of_even = _MixPairs.apply(h, both, even)
    return of_both, of_even


class _MixPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, both: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(h, both, even)
        of_both = wide_product(both, h.flatten(1))
        of_even = wide_product(even, _even_half(h))
        return of_both.view(-1, *h.shape[1:]), of_even.view(-1, *h.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_both: Tensor, of_even: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, both, even = ctx.saved_tensors
        of_both, of_even = of_both.flatten(1).contiguous(), of_even.flatten(1).contiguous()
        of_h = wide_product(both.T, of_both)
        wide_product(even.T, of_even, add_to=of_h[:, : of_even.shape[1]])
        return of_h.view_as(h), of_both @ h.flatten(1).T, of_even @ _even_half(h).T


def _even_half(h: Tensor) -> Tensor:
    half: Tensor = h[:, 0].flatten(1)  # a view: the windows and times of a half are next to each other
    return half


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, h: Tensor) -> Tensor:
        h = h.contiguous()
        ctx.save_for_backward(weight, h)
        return wide_product(weight, h.flatten(1)).view(-1, *h.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        weight, h = ctx.saved_tensors
        grad = grad.flatten(1).contiguous()
        return grad @ h.flatten(1).T, wide_product(weight.T, grad).view_as(h)


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, taps: Tensor, scale: Tensor | None, left: int, outputs: int) -> Tensor:
        h, taps = h.contiguous(), taps.contiguous()
        scale = None if scale is None else scale.contiguous()
        ctx.save_for_backward(h, taps, scale)
        ctx.sizes = {**_sizes_of(h), "outputs": outputs, "taps": taps.shape[-1], "left": left}
        out = h.new_empty(h.shape[0], h.shape[2], outputs)
        _call("vw_signal_filter", ctx.sizes, h, taps, scale, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, taps, scale = ctx.saved_tensors
        of_h, of_taps = torch.empty_like(h), torch.empty_like(taps)
        of_scale = None if scale is None else torch.empty_like(scale)
        _call("vw_signal_filter_backward", ctx.sizes, h, taps, scale, grad.contiguous(), of_h, of_taps, of_scale)
        return of_h, of_taps, of_scale, None, None


class _NormElu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        epsilon: float,
        dropped: Dropped | None,
        whole: bool,
    ) -> tuple[Tensor | None, ...]:
        h = h.contiguous()
        fixed = mean is not None and variance is not None
        if mean is None or variance is None:
            mean, variance = torch.empty_like(weight), torch.empty_like(weight)
        ctx.sizes = {**_sizes_of(h.unsqueeze(1)), "fixed": fixed, "epsilon": epsilon, **_sizes_of_dropped(dropped)}
        ctx.bits = None if dropped is None else dropped.bits
        ctx.save_for_backward(h, weight, bias, mean, variance)
        result = torch.empty_like(h) if whole else None
        means = h.new_empty(h.shape[:2])
        kept = None if dropped is None else torch.empty_like(means)
        _call("vw_signal_norm", ctx.sizes, h, weight, bias, mean, variance, ctx.bits, result, means, kept)
        if fixed:
            return result, means, kept, None, None
        ctx.mark_non_differentiable(mean, variance)
        return result, means, kept, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, of_means: Tensor, of_kept: Tensor | None, _: None, __: None) -> Any:
        h, weight, bias, mean, variance = ctx.saved_tensors
        of_h, of_weight, of_bias = torch.empty_like(h), torch.empty_like(weight), torch.empty_like(bias)
        grads = [None if each is None else each.contiguous() for each in (grad, of_means, of_kept)]
        results = of_h, of_weight, of_bias
        _call("vw_signal_norm_backward", ctx.sizes, h, weight, bias, mean, variance, ctx.bits, *grads, *results)
        of_mean = _of_fixed_mean(ctx, 3, weight, of_bias, variance)
        return of_h, of_weight, of_bias, of_mean, None, None, None, None


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        spatial: Tensor,
        taps: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        epsilon: float,
    ) -> tuple[Tensor | None, ...]:
        windows, electrodes, times = x.shape
        x = F.pad(x, (0, -times % _ROW)).contiguous()
        spatial, taps = spatial.contiguous(), taps.contiguous()
        fixed = mean is not None and variance is not None
        if mean is None or variance is None:
            mean, variance = torch.empty_like(weight), torch.empty_like(weight)
        length = taps.shape[1]
        ctx.sizes = {
            **{"channels": len(spatial), "windows": windows, "planes": 1, "times": times, "outputs": times},
            **{"taps": length, "left": (length - 1) // 2, "electrodes": electrodes},
            **{"depth": len(spatial) // len(taps), "fixed": fixed, "epsilon": epsilon},
        }
        ctx.save_for_backward(x, spatial, taps, weight, bias, mean, variance)
        out = x.new_empty(len(spatial), windows, times // 2)
        _call("vw_signal_block", ctx.sizes, x, spatial, taps, weight, bias, mean, variance, out)
        if fixed:
            return out, None, None
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> Any:
        _, spatial, taps, weight, bias, _, variance = ctx.saved_tensors
        of_spatial, of_weight, of_bias = torch.empty_like(spatial), torch.empty_like(weight), torch.empty_like(bias)
        of_taps = taps.new_empty(len(spatial), taps.shape[1])
        inputs, results = ctx.saved_tensors, (of_spatial, of_taps, of_weight, of_bias)
        _call("vw_signal_block_backward", ctx.sizes, *inputs, grad.contiguous(), *results)
        of_mean = _of_fixed_mean(ctx, 5, weight, of_bias, variance)
        of_taps = of_taps.view(len(taps), -1, taps.shape[1]).sum(1)
        return None, of_spatial, of_taps, of_weight, of_bias, of_mean, None, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, dropped: Dropped | None) -> Tensor:
        ctx.sizes = {**_sizes_of(h.unsqueeze(1)), **_sizes_of_dropped(dropped)}
        ctx.bits, ctx.shape = None if dropped is None else dropped.bits, h.shape
        out = h.new_empty(h.shape[0], 2, h.shape[1], -(-h.shape[2] // 2))
        _call("vw_signal_split", ctx.sizes, h.contiguous(), ctx.bits, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        of_h = grad.new_empty(ctx.shape)
        _call("vw_signal_split_backward", ctx.sizes, grad.contiguous(), ctx.bits, of_h)
        return of_h, None


def _of_fixed_mean(ctx: Any, place: int, weight: Tensor, of_bias: Tensor, variance: Tensor) -> Tensor | None:
    """The gradient of a mean that was given."""
    if not ctx.sizes["fixed"] or not ctx.needs_input_grad[place]:
        return None
    return -of_bias * weight * torch.rsqrt(variance + ctx.sizes["epsilon"])


def _sizes_of(h: Tensor) -> dict[str, int]:
    channels, planes, windows, times = h.shape
    return {"channels": channels, "planes": planes, "windows": windows, "times": times, "outputs": times}


def _sizes_of_dropped(dropped: Dropped | None) -> dict[str, Any]:
    return {} if dropped is None else {"least": dropped.least, "kept": dropped.factor}


def _call(name: str, sizes: dict[str, Any], *arguments: Any) -> None:
    signals = _Signals(**sizes, threads=kernel_threads())
    scratch = None
    if "taps" in sizes:
        count = native.function("vw_signal_scratch", ctypes.c_int64)(ctypes.byref(signals))
        scratch = torch.empty(signals.threads * count, dtype=torch.float32, device="cpu")
        signals.scratch = scratch.data_ptr()
    native.call(name, signals, *arguments, keep=[scratch])
