"""The interface of every attention mechanism: a mixer, called with a pattern.

A mixer is a callable object with two properties, `patterns` and `v_linear`. Mechanisms without parameters are frozen
dataclasses whose fields are the options; mechanisms with parameters are modules. The file of each mixer also contains a
function `reference(mixer, q, k, v, ...)`, which computes the same output in a slow, plain way and shares no code with
the mixer.

Tensors are as in PyTorch's `scaled_dot_product_attention`: q (B, H, Lq, D), k (B, Hk, Lk, D), v (B, Hk, Lk, Dv) with
H a multiple of Hk; query head h reads key head h // (H / Hk). A `mask` is boolean and True means "may attend".
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import wraps
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from ..autocast import in_autocast, without_autocast
from .finite import as_nan, for_heads, reached_queries, state_as_nan, without_hidden, without_unfit
from .softmax import merge_attention


class Pattern(Enum):
    """The keys to which a query may attend, after the four patterns of CAB (Zhang et al. 2022, arXiv 2210.07661).

    In the causal cross pattern, every query attends to all keys, but output t must not depend on queries after t.
    """

    NON_CAUSAL_SELF = "NS"
    CAUSAL_SELF = "CS"
    NON_CAUSAL_CROSS = "NC"
    CAUSAL_CROSS = "CC"


NS, CS, NC, CC = Pattern
NON_CAUSAL = frozenset({NS, NC})
ALL_PATTERNS = frozenset(Pattern)

State_co = TypeVar("State_co", covariant=True)
Extras_co = TypeVar("Extras_co", covariant=True)


@dataclass(frozen=True)
class Mixed(Generic[State_co, Extras_co]):
    """The result of a mixer. `state` and `extras` are named tuples of the mechanism, or None if it has none."""

    out: Tensor  # (B, H, Lq, Dv)
    lse: Tensor | None = (
        None  # (B, H, Lq), log-sum-exp of a softmax over keys, with which results over disjoint sets can be merged
    )
    state: State_co | None = None  # state of a causal mechanism after the tokens so far
    extras: Extras_co | None = None  # choices and losses of the mechanism


class Mixer(Protocol):
    """A mechanism that mixes values along the tokens.

    Some mixers take further keywords, with the same names in all mixers: `bias` is added to the scaled scores, and
    `state` is the result of an earlier call for the preceding tokens. A keyword that a mixer does not take is an error,
    as in any Python function.
    """

    @property
    def patterns(self) -> frozenset[Pattern]:
        """The patterns that the mechanism supports; a call with another one raises `UnsupportedPattern`."""
        ...

    @property
    def v_linear(self) -> bool:
        """Whether the output is W(q, k) v, as `attention_map` requires."""
        ...

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
    ) -> Mixed[object, object]:
        """Mix the values.

        Args:
            q: (B, H, Lq, D).
            k: (B, Hk, Lk, D), H a multiple of Hk.
            v: (B, Hk, Lk, Dv).
            pattern: the attention pattern.
            q_start: position of the first query among the keys, in causal self attention only: query i attends to the
                keys j <= i + q_start. The default is 0, which needs Lq = Lk.
            mask: bool, broadcastable to (B, H, Lq, Lk); True = may attend. Mechanisms that select keys need one value
                per key, with size 1 along heads and queries.
        """
        ...


Call = TypeVar("Call", bound=Callable[..., Any])


def in_one_type(call: Call) -> Call:
    """Decorator for the call of a mixer: under autocast, all inputs get one type.

    It is the type of the mixer's parameters or, for a mixer without parameters, that of autocast.
    """

    @wraps(call)
    def mixed(self: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        if not in_autocast(q):
            return call(self, q, k, v, **options)
        dtype = torch.get_autocast_dtype(q.device.type)
        if isinstance(self, nn.Module):
            floating = (x for x in (*self.parameters(), *self.buffers()) if x.is_floating_point())
            dtype = next((x.dtype for x in floating), dtype)
        with without_autocast(q):
            return call(self, q.to(dtype), k.to(dtype), v.to(dtype), **options)

    return cast(Call, mixed)


def mixing(call: Call) -> Call:
    """Decorator for the call of a mixer that does not pass its keys to `attention`; includes `in_one_type`.

    Masked keys count as zeros. If a key or value is not finite, the output of every query that may attend to it is NaN,
    and so is the state after it; the other outputs are the same as with zeros in its place. A query of a mechanism that
    chooses keys may attend to all keys that the mask and causality allow, because the choice depends on all of them. A
    mechanism with a smaller reach has a method `reached` with the arguments of `reached_queries`; a mechanism whose
    heads choose keys together has a property `heads_choose_together`.
    """
    default = inspect.signature(call).parameters["pattern"].default

    @wraps(call)
    def mixed(self: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        if not q.ndim == k.ndim == v.ndim == 4 or k.shape[:3] != v.shape[:3] or not v.is_floating_point():
            return call(self, q, k, v, **options)  # the mixer reports it
        mask = options.get("mask")
        if mask is not None and mask.ndim <= 4 and mask.shape[-1:] >= k.shape[2:3]:
            mask = mask[..., mask.shape[-1] - k.shape[2] :]  # with a state, the mask covers all keys so far
            k, v = without_hidden(mask, k, v)
        k, v, unfit = without_unfit(k, v)
        result = call(self, q, k, v, **options)
        if unfit is None:
            return result
        marked = unfit.tokens
        if getattr(self, "heads_choose_together", False):
            marked = marked.any(1, keepdim=True).expand_as(marked)
        rows = getattr(self, "reached", reached_queries)(
            for_heads(marked, q.shape[1]),
            q.shape[2],
            causal=options.get("pattern", default) is CS,
            q_start=options.get("q_start") or 0,
        )
        lse = None if result.lse is None else as_nan(result.lse, rows)
        return replace(result, out=as_nan(result.out, rows), lse=lse, state=state_as_nan(result.state, marked))

    return in_one_type(cast(Call, mixed))


class UnsupportedPattern(ValueError):
    """Raised if a mixer is called with a pattern that its mechanism does not support."""


def check_call(mixer: Mixer, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, q_start: int | None) -> int:
    """Check shapes and pattern of a call, and return the position of the first query among the keys.

    Raises:
        UnsupportedPattern: the mechanism does not support the pattern.
        ValueError: a shape does not fit, or q_start is missing or does not apply to the pattern.
    """
    if pattern not in mixer.patterns:
        offered = ", ".join(p.value for p in Pattern if p in mixer.patterns)
        raise UnsupportedPattern(f"pattern of {type(mixer).__name__} must be one of {offered}, got {pattern.value}")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have shape (B, heads, L, channels), got {tuple(tensor.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"k must have shape (B, Hk, Lk, D) to match q {tuple(q.shape)}, got {tuple(k.shape)}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must have shape (B, Hk, Lk, Dv) to match k {tuple(k.shape)}, got {tuple(v.shape)}")
    if pattern is NS and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"pattern must be NC or CC (cross attention) for {q.shape[2]} queries and {k.shape[2]} keys, got "
            f"{pattern.value}"
        )
    if pattern is not CS:
        if q_start is not None:
            raise ValueError(f"q_start needs causal self attention, got q_start={q_start} with {pattern.value}")
        return 0
    if q_start is None and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"causal self attention of {q.shape[2]} queries over {k.shape[2]} keys needs q_start, the position of the "
            f"first query among the keys ({k.shape[2] - q.shape[2]} when decoding with a cache)"
        )
    if q_start is not None and not 0 <= q_start <= k.shape[2] - q.shape[2]:
        raise ValueError(
            f"q_start must be between 0 and {k.shape[2] - q.shape[2]}, so that each of {q.shape[2]} queries is at "
            f"one of {k.shape[2]} keys, got {q_start}"
        )
    return q_start or 0


def key_mask(mask: Tensor | None, k: Tensor) -> Tensor:
    """The mask of a mechanism that needs one value per key: bool (B, Lk), all True without a mask."""
    batch, _, length, _ = k.shape
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=k.device)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = may attend), got {mask.dtype}")
    full = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    if full.shape[1:] != (1, 1, length) or full.shape[0] not in (1, batch):
        raise ValueError(f"mask must have shape (B or 1, 1, 1, {length}), one value per key, got {tuple(mask.shape)}")
    return full[:, 0, 0].expand(batch, length)


def spread_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat keys or values (B, Hk, L, D) for all query heads, (B, H, L, D)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def attention_map(
    mixer: Mixer,
    q: Tensor,
    k: Tensor,
    *,
    pattern: Pattern = NS,
    **options: Any,
) -> Tensor:
    """The weights W (B, H, Lq, Lk) with out = W v, which are the mixer's output if the values are the identity matrix.

    Args:
        mixer: a mixer that is linear in v.
        q: (B, H, Lq, D).
        k: (B, Hk, Lk, D).
        pattern: the attention pattern.
        options: other arguments of the mixer: q_start, mask, bias, ...

    Raises:
        ValueError: the output of the mixer is not linear in v.

    Example:
        >>> from voxelwave.kernels.attention.baselines import SoftmaxAttention
        >>> q = torch.zeros(1, 1, 2, 4)
        >>> attention_map(SoftmaxAttention(), q, q, pattern=CS).squeeze().tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    if not mixer.v_linear:
        raise ValueError(f"{type(mixer).__name__} is not linear in v, so it has no attention map")
    length = k.shape[2]
    identity = torch.eye(length, dtype=k.dtype, device=k.device).expand(*k.shape[:2], length, length)
    return mixer(q, k, identity, pattern=pattern, **options).out


def merge(parts: Sequence[Mixed[object, object]]) -> Mixed[None, None]:
    """Merge results over disjoint sets of keys into the result over all keys; see `merge_attention`.

    Raises:
        ValueError: a part has no log-sum-exp.
    """
    pairs = []
    for position, part in enumerate(parts):
        if part.lse is None:
            raise ValueError(f"parts[{position}] must be the result of a softmax over keys, with lse, got none")
        pairs.append((part.out, part.lse))
    return Mixed(*merge_attention(pairs))
