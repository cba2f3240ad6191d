"""The layers around the scan of a residual network by compiled kernels (csrc/pixel_layers.cpp), without gradients.

They read channel-last maps and compute several layers for a few pixels at a time, which stay in the cache. `serves`
says whether they can process tensors. Symbols: C channels of the features, d of the scan, K directions, L = H * W.
"""

import ctypes
from typing import Any, NamedTuple

from torch import Tensor

from . import arena, native
from .autocast import in_autocast
from .eligibility import serves_inference
from .threads import kernel_threads


class _Pixels(ctypes.Structure):  # mirrors csrc/pixel_layers.cpp
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "inner", "hidden", "projected")),
        ("directions", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("threads", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
    )


class Leaving(NamedTuple):
    """Parameters of the layers after the scan, see `leave`, in the order of csrc/pixel_layers.cpp."""

    norm_weight: Tensor
    norm_bias: Tensor
    gate: Tensor
    scanned_weight: Tensor
    scanned_bias: Tensor
    out: Tensor
    skip: Tensor
    mlp_weight: Tensor
    mlp_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor
    skip2: Tensor


class _Leaving(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in Leaving._fields)


def serves(function: str, features: Tensor, *parameters: Tensor) -> bool:
    """Whether a kernel can process these tensors: float32 on the CPU, no gradient, no autocast, no transforms."""
    return not in_autocast(features) and serves_inference(function, features, *parameters)


def normalise(features: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """A layer norm over the channels of (B, H, W, C).

    Args:
        features: (B, H, W, C).
        weight, bias: (C,).
        epsilon: added to the variance.
    """
    result = arena.empty(*features.shape)
    _call("vw_pixel_norm", _sizes(features, epsilon=epsilon), features, weight, bias, result)
    return result


def filter_map(features: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None = None) -> Tensor:
    """A convolution of 3 x 3 pixels with zeros around the map, + `added`: (B, H, W, C) to (B, H, W, C').

    Args:
        features: (B, H, W, C).
        weight: (C', C, 3, 3).
        bias: (C',).
        added: (B, H, W, C'), as of a residual connection.
    """
    result = arena.empty(*features.shape[:3], weight.shape[0])
    sizes = _sizes(features, inner=weight.shape[0])
    taps = weight.permute(0, 2, 3, 1)
    _call("vw_pixel_filter", sizes, features, taps, bias, added, result, scratch="vw_filter_scratch")
    return result


def enter(features: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """A layer norm and a linear layer without bias: (B, H, W, C) to (B, H, W, d).

    Args:
        features: (B, H, W, C).
        norm_weight, norm_bias: (C,) of the norm.
        weight: (d, C).
        epsilon: of the norm.
    """
    content = arena.empty(*features.shape[:3], weight.shape[0])
    sizes = _sizes(features, inner=weight.shape[0], epsilon=epsilon)
    _call("vw_pixel_enter", sizes, features, norm_weight, norm_bias, weight, content)
    return content


def convolve(content: Tensor, taps: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU of a depthwise convolution of 3 x 3 pixels, and a linear layer without bias of the result.

    Args:
        content: (B, H, W, d).
        taps: (d, 1, 3, 3).
        bias: (d,).
        weight: (P, d).

    Returns:
        (B, H, W, d) and (B, H, W, P).
    """
    mixed, projected = arena.empty(*content.shape), arena.empty(*content.shape[:3], weight.shape[0])
    sizes = _sizes(content, inner=content.shape[3], projected=weight.shape[0])
    _call("vw_pixel_convolve", sizes, content, taps.flatten(1).T, bias, weight, mixed, projected)
    return mixed, projected


def leave(features: Tensor, scanned: Tensor, gates: Tensor, parameters: Leaving, epsilon: float) -> Tensor:
    """The rest of a block after its scan: skip2 f + MLP(norm(f)) of f = skip x + out (norm(y) * silu(gate norm(x))).

    y is the sum over the directions of the scan times its gates.

    Args:
        features: (B, H, W, C), x.
        scanned: (B, L, K, d).
        gates: (B, K, d).
        parameters: gate (d, C), out (C, d), fc1 (h, C), fc2 (C, h); weights and biases of the norms before the scan
            (C,), after it (d,) and before the MLP (C,); biases of fc1 and fc2; factors of both skips (C,).
        epsilon: of all norms.

    Returns:
        (B, H, W, C).
    """
    result = arena.empty(*features.shape)
    inner, hidden = parameters.gate.shape[0], parameters.fc1.shape[0]
    sizes = _sizes(features, inner=inner, hidden=hidden, directions=gates.shape[1], epsilon=epsilon)
    kept = [each.contiguous() for each in parameters]
    pointers = _Leaving(*(each.data_ptr() for each in kept))
    _call("vw_pixel_leave", sizes, ctypes.byref(pointers), features, scanned, gates, result, keep=kept)
    return result


def _sizes(features: Tensor, **others: Any) -> _Pixels:
    batch, height, width, channels = features.shape
    shape = {"batch": batch, "height": height, "width": width, "channels": channels}
    return _Pixels(**{**shape, **others}, threads=kernel_threads())


def _call(
    name: str,
    sizes: _Pixels,
    *arguments: Any,
    keep: list[Tensor] | None = None,
    scratch: str = "vw_pixel_scratch",
) -> None:
    count = native.function(scratch, ctypes.c_int64)(ctypes.byref(sizes))
    memory = arena.empty(count)
    sizes.scratch = memory.data_ptr()
    whole = [each.contiguous() if isinstance(each, Tensor) else each for each in arguments]
    native.call(name, sizes, *whole, keep=[memory, *(keep or [])])
