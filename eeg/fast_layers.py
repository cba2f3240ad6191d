"""Layers of a convolutional network for signals in (channels, batch, times), which are fast on a CPU and exact.

Each layer equals the plain layers of PyTorch up to rounding; the tests compare them. Times in comments were
measured on two cores of an AMD EPYC with 64 windows of 256 channels and 512 samples.

The layers that write into memory of their own have a second form in PyTorch's functions alone, which `torch.compile`
and `torch.export` can trace.
"""

import ctypes
import math
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.autocast import without_autocast
from ..kernels.signal_layers import Dropped

_CHUNK = 2**18  # values processed at once in batch_norm_elu, so that they stay in the cache
_LONGEST_BLOCK = 256  # samples of output up to which a filter is one Toeplitz product


def toeplitz(taps: Tensor, n_in: int, n_out: int, *, left: int = 0, stride: int = 1) -> Tensor:
    """Matrices of filters: M[c, t, s] = taps[c, s - stride * t + left], 0 outside the filter.

    Args:
        taps: (C, k).
        n_in: samples of the input, the last axis of the result.
        n_out: samples of the output.
        left: number of zeros assumed before the first sample.
        stride: samples from one output to the next.

    Returns:
        (C, n_out, n_in).

    Example:
        >>> toeplitz(torch.tensor([[1.0, 2.0, 3.0]]), 4, 2).int().tolist()
        [[[1, 2, 3, 0], [0, 1, 2, 3]]]
    """
    before = stride * (n_out - 1) - left
    padded = F.pad(taps, (before, n_in + left - taps.shape[-1]))  # (C, n_in + stride * (n_out - 1))
    if torch.compiler.is_compiling():
        return _shifted(padded, n_in, stride)
    shifted: Tensor = _Shifted.apply(padded, n_in, stride)
    return shifted


def _shifted(padded: Tensor, n_in: int, stride: int) -> Tensor:
    return padded.unfold(-1, n_in, stride).flip(1)


class _Shifted(torch.autograd.Function):
    """(C, n) -> (C, rows, n_in), each row starts `stride` samples after the row below it; the last row starts at 0."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, n_in: int, stride: int) -> Tensor:
        ctx.length, ctx.stride = padded.shape[-1], stride
        return _shifted(padded, n_in, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # Row t is shifted to the right so that the contributions to one sample are in one column.
        channels, rows, _ = grad.shape
        length = ctx.length
        skewed = grad.new_zeros(channels, rows, length)
        strides = (rows * length, length - ctx.stride, 1)
        skewed.as_strided(grad.shape, strides, ctx.stride * (rows - 1)).copy_(grad)
        return skewed.sum(1), None, None


def filter_channels(h: Tensor, taps: Tensor, *, pool: bool = False) -> Tensor:
    """Filter each channel by its own taps with zeros around ("same"), and optionally average pairs of samples.

    Args:
        h: (C, batch, times).
        taps: (C, k), applied as cross-correlation; the first tap is (k - 1) // 2 samples before the output sample.
        pool: return the mean of samples 2 t and 2 t + 1 for each t; the last sample of an odd number is dropped.

    Returns:
        (C, batch, times), or (C, batch, times // 2) with `pool`.
    """
    left, stride, n_out = (taps.shape[-1] - 1) // 2, 1, h.shape[-1]
    if pool:  # the mean of two neighbours is one filter: the mean of the filter and its copy a sample later
        taps, stride, n_out = (F.pad(taps, (0, 1)) + F.pad(taps, (1, 0))) / 2, 2, n_out // 2
    if n_out <= _LONGEST_BLOCK:
        return torch.bmm(h, toeplitz(taps, h.shape[-1], n_out, left=left, stride=stride).mT)
    block = _LONGEST_BLOCK // 2
    blocks = math.ceil(n_out / block)
    span = stride * (block - 1) + taps.shape[-1]
    padded = F.pad(h, (left, stride * block * (blocks - 1) + span - left - h.shape[-1]))
    pieces = padded.unfold(-1, span, stride * block)  # (C, batch, blocks, span)
    filtered = torch.bmm(pieces.flatten(1, 2), toeplitz(taps, span, block, stride=stride).mT)
    return filtered.view(*h.shape[:2], -1)[..., :n_out]


def pooled_taps(taps: Tensor) -> tuple[Tensor, int]:
    """Taps of a filter with a mean of pairs of samples at its end, for even and odd samples apart.

    Args:
        taps: (C, k) of the filter, with (k - 1) // 2 taps before the sample of the result.

    Returns:
        (C, 2, n) taps of the even and of the odd samples, and the number of taps before the sample of the result.
    """
    length = taps.shape[-1]
    before = (length - 1) // 2 % 2  # an even number of taps before the sample
    both = (F.pad(taps, (before, 1)) + F.pad(taps, (before + 1, 0))) / 2
    both = F.pad(both, (0, both.shape[-1] % 2))
    return both.unflatten(-1, (-1, 2)).mT.contiguous(), ((length - 1) // 2 + before) // 2


def filtered_moments(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of x filtered by each filter (zero-padded), computed without filtering.

    The mean is linear in the taps, and the mean square is a quadratic form w' R w, where R[i, j] is the sum of
    x[t + i] x[t + j] over the windows. Along a diagonal of R only the ends of the window change, so the lagged products
    of whole windows (by FFT) and of their ends suffice. Computed in float64, because the variance is a difference.

    Args:
        x: (batch, n_chans, times).
        taps: (F, k).

    Returns:
        Mean (F,) and biased variance (F,), in the type of the taps.
    """
    length = taps.shape[-1]
    times, count = x.shape[-1], x.numel()
    left = (length - 1) // 2
    signal = x.double().flatten(0, 1)  # (N, times)
    padded = F.pad(signal, (left, length - 1 - left))
    head, tail = padded[:, : length - 1], padded[:, times:]  # (N, k - 1)

    sums = padded[:, :times].sum().unsqueeze(0)
    sums = torch.cat([sums, sums + (tail - head).sum(0).cumsum(0)])  # (k,) sums of x[t + j]

    spectrum = torch.fft.rfft(signal, _fft_length(times + length))
    whole = torch.fft.irfft(spectrum.real.square().add_(spectrum.imag.square()).sum(0), _fft_length(times + length))[
        :length
    ]
    tails, heads = _by_diagonal(tail.T @ tail), _by_diagonal(head.T @ head)  # (k - 1, k): [m, lag]
    first = (whole - tails.sum(0)).unsqueeze(0)
    products = torch.cat([first, first + (tails - heads).cumsum(0)])  # (k, k): [i, lag] = R[i, i + lag]
    index = torch.arange(length, device=x.device)
    lag = (index - index.unsqueeze(1)).abs()
    quadratic = products[torch.minimum(index, index.unsqueeze(1)), lag]  # R

    w = taps.double()
    mean = w @ sums / count
    variance = ((w @ quadratic) * w).sum(-1) / count - mean.square()
    return mean.to(taps.dtype), variance.clamp(min=0).to(taps.dtype)


def _by_diagonal(matrix: Tensor) -> Tensor:
    """(n, n) -> (n, n + 1), in which [m, lag] is matrix[m, m + lag], 0 beyond the edge."""
    n = len(matrix)
    padded = F.pad(matrix, (0, n + 1)).flatten()  # every row is followed by n + 1 zeros
    rows = torch.arange(n, device=matrix.device).unsqueeze(1)
    return padded[rows * (2 * n + 1) + rows + torch.arange(n + 1, device=matrix.device)]


def _fft_length(least: int) -> int:
    """The smallest length of at least `least` that has only the prime factors 2, 3 and 5."""
    while True:
        rest = least
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return least
        least += 1


def even_and_mean(h: Tensor) -> tuple[Tensor, Tensor]:
    """Samples 0, 2, 4 ..., and the means of samples (0, 1), (2, 3) ...: (..., times) -> two of (..., times // 2)."""
    if torch.compiler.is_compiling():
        pairs = h[..., : 2 * (h.shape[-1] // 2)].unflatten(-1, (-1, 2))
        return pairs[..., 0], pairs.mean(-1)
    even, mean = _EvenAndMean.apply(h)
    return even, mean


class _EvenAndMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        ctx.shape = h.shape
        last = 2 * (h.shape[-1] // 2)
        even = h[..., 0:last:2].contiguous()
        return even, (even + h[..., 1:last:2]).mul_(0.5)

    @staticmethod
    def backward(ctx: Any, grad_even: Tensor, grad_mean: Tensor) -> Tensor:
        grad = grad_mean.new_empty(ctx.shape)
        last = 2 * (ctx.shape[-1] // 2)
        half = grad_mean * 0.5
        torch.add(grad_even, half, out=grad[..., 0:last:2])
        grad[..., 1:last:2] = half
        grad[..., last:] = 0
        return grad


def dropout(h: Tensor, drop_prob: float, training: bool) -> Tensor:
    """Dropout of single values, with 16 random bits each; PyTorch's Bernoulli draws take 50 ms, these 6 ms.

    Args:
        h: any shape.
        drop_prob: probability of a zero, rounded to a multiple of 1/65,536; other values are scaled accordingly.
        training: if False, `h` is returned.
    """
    if not training or not drops(drop_prob):
        return h
    if torch.compiler.is_compiling():  # their generator has no 64-bit numbers
        return F.dropout(h, round(drop_prob * 65536) / 65536)
    return h * Dropped(h.shape, drop_prob).mask(h)


def drops(drop_prob: float) -> bool:
    """Whether `dropout` drops anything."""
    return round(drop_prob * 65536) > 0


def batch_norm_elu(h: Tensor, norm: nn.BatchNorm2d, *, offset: Tensor | None = None) -> Tensor:
    """Batch norm and ELU with alpha 1, in pieces that stay in the cache; pairs of samples are averaged.

    Args:
        h: (C, n, times), or (C, n, 2, times) where the axis of length 2 is a pair that is averaged at the end.
        norm: the batch norm; in training mode its running statistics are updated, as in PyTorch.
        offset: (C,) a constant added to `h`; it changes only the running mean.

    Returns:
        (C, n, times) in the type of the norm's weights, under autocast too.
    """
    h = h.to(norm.weight.dtype)
    with without_autocast(h):
        if torch.compiler.is_compiling():  # the pieces would fix the size of the batch
            return _plain_batch_norm_elu(h, norm, offset)
        return _batch_norm_elu(h, norm, offset)


def _plain_batch_norm_elu(h: Tensor, norm: nn.BatchNorm2d, offset: Tensor | None) -> Tensor:
    """The same by PyTorch's own functions."""
    if norm.training:
        flat = h.flatten(1)
        mean, variance = flat.mean(1), flat.var(1, correction=0)
        keep_statistics(norm, mean.detach(), variance.detach(), count=flat.shape[1], offset=offset)
    else:
        mean, variance = running(norm)
        mean = mean if offset is None else mean - offset
    gain = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = norm.bias - gain * mean
    ones = (-1,) + (1,) * (h.ndim - 1)
    z = F.elu(h * gain.view(ones) + shift.view(ones))
    return z.mean(2) if h.ndim == 4 else z


def _batch_norm_elu(h: Tensor, norm: nn.BatchNorm2d, offset: Tensor | None) -> Tensor:
    result: Tensor
    if norm.training:
        result, mean, variance = _BatchNormElu.apply(h, norm.weight, norm.bias, None, None, norm.eps)
        update_running(norm, mean if offset is None else mean + offset, variance, count=h[0].numel())
        return result
    mean, variance = running(norm)
    mean = mean if offset is None else mean - offset
    result, _, _ = _BatchNormElu.apply(h, norm.weight, norm.bias, mean, variance, norm.eps)
    return result


def running(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Running mean and variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def norm_arguments(
    norm: nn.BatchNorm2d, offset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]:
    """Weight, bias, mean, variance and epsilon of a batch norm; mean and variance are None if it is in training.

    Args:
        norm: the batch norm.
        offset: (C,) a constant which is not added to the values that are normalised.
    """
    if norm.training:
        return norm.weight, norm.bias, None, None, norm.eps
    mean, variance = running(norm)
    return norm.weight, norm.bias, mean if offset is None else mean - offset, variance, norm.eps


def keep_statistics(
    norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, *, count: int, offset: Tensor | None = None
) -> None:
    """Update the running statistics of a batch norm in training, of values without the offset."""
    if norm.training:
        update_running(norm, mean if offset is None else mean + offset, variance, count=count)


@torch.no_grad()
def update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, *, count: int) -> None:
    """Update the running statistics as PyTorch does, with the unbiased variance.

    Args:
        norm: the layer whose statistics are updated.
        mean, variance: (C,) of the batch; the variance is biased.
        count: number of values from which each was computed.
    """
    assert norm.momentum is not None
    running_mean, running_variance = running(norm)
    running_mean.lerp_(mean, norm.momentum)
    running_variance.lerp_(variance * (count / (count - 1)), norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


class _BatchNormElu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, variance: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        h = h.contiguous()
        fixed = mean is not None and variance is not None
        if mean is None or variance is None:
            mean, variance = h.new_empty(len(h)), h.new_empty(len(h))
        slopes = torch.empty_like(h)
        result = h.new_empty(*h.shape[:2], h.shape[-1])
        for rows in _chunks(h):
            part, slope = h[rows], slopes[rows]
            if not fixed:
                flat = part.flatten(1)
                torch.mean(flat, 1, out=mean[rows])
                torch.sub(flat, mean[rows].unsqueeze(1), out=slope.flatten(1))
                torch.linalg.vecdot(slope.flatten(1), slope.flatten(1), out=variance[rows])
                variance[rows] /= flat.shape[1]
            gain = weight[rows] * torch.rsqrt(variance[rows] + eps)
            shift = bias[rows] - mean[rows] * gain
            z = torch.addcmul(shift.unsqueeze(1), part.flatten(1), gain.unsqueeze(1)).view_as(part)
            # ELU(z) = max(z, 0) + exp(min(z, 0)) - 1, and that exponential is its slope; F.elu takes 70 ms, this 20 ms
            torch.clamp(z, max=0, out=slope).exp_()
            z.clamp_(min=0).add_(slope).sub_(1)
            if h.ndim == 4:
                torch.add(z[:, :, 0], z[:, :, 1], out=result[rows]).mul_(0.5)
            else:
                result[rows] = z
        ctx.save_for_backward(h, slopes, weight, mean, variance)
        ctx.eps, ctx.fixed = eps, fixed
        ctx.mark_non_differentiable(*(() if fixed else (mean, variance)))
        return result, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None, __: None) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None, None]:
        h, slopes, weight, mean, variance = ctx.saved_tensors
        count = h[0].numel()
        grad_h = torch.empty_like(h)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
        for rows in _chunks(h):
            slope, result = slopes[rows], grad_h[rows]
            if h.ndim == 4:
                half = grad[rows] * 0.5
                for i in (0, 1):
                    torch.mul(half, slope[:, :, i], out=result[:, :, i])
            else:
                torch.mul(grad[rows], slope, out=result)
            invstd = torch.rsqrt(variance[rows] + ctx.eps)
            flat = result.flatten(1)
            normed = (h[rows].flatten(1) - mean[rows].unsqueeze(1)).mul_(invstd.unsqueeze(1))
            grad_bias[rows] = flat.sum(1)
            grad_weight[rows] = torch.linalg.vecdot(flat, normed)
            if not ctx.fixed:
                flat.sub_(grad_bias[rows].unsqueeze(1) / count).sub_(
                    normed.mul_(grad_weight[rows].unsqueeze(1) / count)
                )
            flat.mul_((weight[rows] * invstd).unsqueeze(1))
        grad_mean = -grad_h.flatten(1).sum(1) if ctx.fixed and ctx.needs_input_grad[3] else None
        return grad_h, grad_weight, grad_bias, grad_mean, None, None


def _chunks(h: Tensor) -> list[slice]:
    """Slices of channels with about `_CHUNK` values each."""
    step = max(1, _CHUNK // max(1, h[0].numel()))
    return [slice(start, start + step) for start in range(0, len(h), step)]


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, for this process.

    By default every tensor above 32 MiB is allocated from the system page by page and returned at once, which takes
    longer than the arithmetic on it (22 ms, 2 ms for a copy). Nothing happens except on Linux with glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no block by mmap
        mallopt(-1, 2**31 - 4097)  # M_TRIM_THRESHOLD, bytes
