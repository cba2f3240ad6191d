"""Running sums over the tokens of causal attention by the compiled kernels (csrc/memory.cpp), without gradients.

The plain versions are in `gated_scan.py` and `recurrent.py`, which also work on other devices and types and with
gradients. Results do not depend on the number of threads.
"""

import ctypes

import torch
from torch import Tensor

from .. import native
from ..eligibility import serves_inference
from ..threads import kernel_threads
from .blocks import padded_values

MOST_FEATURES = 512  # of `running_context`


class _Sizes(ctypes.Structure):
    """`struct Running` of memory.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("heads", "tokens", "features", "values", "groups", "threads"))


def serves(*tensors: Tensor) -> bool:
    """Whether the compiled library can process these tensors: float32 on the CPU, with no gradient to be computed."""
    return serves_inference("vw_running_context", *tensors)


def serves_memory(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, memory: Tensor) -> bool:
    """Whether `running_memory` can process these tensors, whose shapes must be exactly those that it documents."""
    given = [q, k, v, memory] if log_decay is None else [q, k, v, memory, log_decay]
    heads, length = k.shape[:-2], k.shape[-2]
    fit = (
        q.shape == k.shape
        and v.shape[:-1] == k.shape[:-1]
        and memory.shape == (*heads, k.shape[-1], v.shape[-1])
        and (log_decay is None or log_decay.shape == (*heads, length))
    )
    return fit and serves(*given)


def serves_softmax(s: Tensor, v: Tensor, highest: Tensor, normaliser: Tensor, memory: Tensor) -> bool:
    """The same for `running_softmax`."""
    heads = s.shape[:-1]
    fit = v.shape[:-1] == s.shape and highest.shape == normaliser.shape == heads
    return fit and memory.shape == (*heads, v.shape[-1]) and serves(s, v, highest, normaliser, memory)


def running_memory(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
    """out_t = q_t S_t with the memory S_t = decay_t S_{t-1} + k_t v_tᵀ.

    Args:
        q: (..., L, D).
        k: (..., L, D).
        v: (..., L, Dv).
        decay: (..., L); 1 if None.
        memory: (..., D, Dv), S before the first token.

    Returns:
        out (..., L, Dv) and the memory after the last token (..., D, Dv).
    """
    channels = v.shape[-1]
    values, state = padded_values(v), padded_values(memory.clone())
    out = torch.empty_like(values)
    sizes = _sizes(values, k.shape[-1])
    native.call(
        "vw_running_memory",
        sizes,
        q.contiguous(),
        k.contiguous(),
        values,
        None if decay is None else decay.contiguous(),
        state,
        out,
    )
    return out[..., :channels].contiguous(), state[..., :channels].contiguous()


def running_softmax(
    s: Tensor, v: Tensor, highest: Tensor, normaliser: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The mean of the values up to each token, weighted by the softmax of their scores.

    Args:
        s: (..., L), scores; -inf leaves a token out.
        v: (..., L, Dv).
        highest: (...), the largest score before the first token, or -inf.
        normaliser: (...), the sum of exp(s - highest) of earlier tokens.
        memory: (..., Dv), the sum of exp(s - highest) v of earlier tokens.

    Returns:
        out (..., L, Dv), the log-sum-exp (..., L), and the three sums after the last token.
    """
    channels = v.shape[-1]
    values, total = padded_values(v), padded_values(memory.clone())
    top, weight = (
        highest.clone(memory_format=torch.contiguous_format),
        normaliser.clone(memory_format=torch.contiguous_format),
    )
    out, lse = torch.empty_like(values), torch.empty_like(s, memory_format=torch.contiguous_format)
    native.call("vw_running_softmax", _sizes(values, 0), s.contiguous(), values, top, weight, total, out, lse)
    return out[..., :channels].contiguous(), lse, (top, weight, total[..., :channels].contiguous())


def running_context(
    q: Tensor, k: Tensor, v: Tensor, highest: Tensor, normaliser: Tensor, memory: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """out_t = sum_f q_tf context_f, where context_f is the mean of the values so far, weighted by softmax_j(k_jf).

    Args:
        q: (B, Hk, G, L, D), queries of G heads that share a key head.
        k: (B, Hk, L, D), with D at most `MOST_FEATURES`.
        v: (B, Hk, L, Dv).
        highest: (B, Hk, D), the largest key before the first token, or -inf.
        normaliser: (B, Hk, D), the sum of exp(k - highest) of earlier tokens.
        memory: (B, Hk, D, Dv), the sum of exp(k - highest) v of earlier tokens.

    Returns:
        out (B, Hk, G, L, Dv) and the three sums after the last token.
    """
    channels = v.shape[-1]
    values, state = padded_values(v), padded_values(memory.clone())
    sizes = _sizes(values, k.shape[-1])
    sizes.groups = q.shape[2]
    before = highest.contiguous(), normaliser.contiguous()
    top, weight = (torch.empty_like(each) for each in before)
    out = values.new_empty(*q.shape[:-1], values.shape[-1])
    native.call("vw_running_context", sizes, q.contiguous(), k.contiguous(), values, *before, state, top, weight, out)
    return out[..., :channels].contiguous(), (top, weight, state[..., :channels].contiguous())


def _sizes(values: Tensor, features: int) -> _Sizes:
    tokens, channels = values.shape[-2:]
    heads = values.numel() // (tokens * channels)
    return _Sizes(heads=heads, tokens=tokens, features=features, values=channels, threads=kernel_threads())
