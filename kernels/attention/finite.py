"""Keys and values that are not finite: they give NaN for the queries that may attend to them, and affect no others.

The product 0 * NaN is NaN, so a weight of 0 does not remove a NaN. Therefore keys and values that are not finite are
set to zero before attention, and the outputs of the queries that may attend to them are set to NaN after it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


def four_axes(tensor: Tensor) -> Tensor:
    """The tensor with leading axes of size 1, so that it has four axes and broadcasts to (B, H, Lq, Lk)."""
    return tensor.reshape((1,) * (4 - tensor.dim()) + tensor.shape)


def without_hidden(mask: Tensor | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k and v with zeros at the keys that the mask hides from every query, so that no value there reaches an output.

    Args:
        mask: bool, broadcastable to (B, H, Lq, Lk); True = may attend.
        k: (B, Hk, Lk, D).
        v: (B, Hk, Lk, Dv).
    """
    if mask is None or mask.dtype != torch.bool or 0 in mask.shape:
        return k, v
    hidden = ~four_axes(mask).flatten(1, 2).any(1)  # (B or 1, Lk or 1)
    hidden = hidden[:, None, :, None]
    return k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)


class Unfit(NamedTuple):
    """The tokens that hold a number that is not finite."""

    keys: Tensor  # bool (B, Hk, Lk), in the key
    tokens: Tensor  # bool (B, Hk, Lk), in the key or the value


def without_unfit(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Unfit | None]:
    """k and v with zeros for each token whose key or value is not finite, and these tokens.

    On the CPU, one sum over each tensor shows whether there are any; if there are none, k and v are returned unchanged,
    with None. Compiled code and other devices skip this check, which would break the graph or wait for the queue.

    Args:
        k: (B, Hk, Lk, D).
        v: (B, Hk, Lk, Dv).
    """
    if _known_to_be_finite(k, v):
        return k, v, None
    keys = ~k.isfinite().all(-1)
    tokens = keys | ~v.isfinite().all(-1)
    rows = tokens.unsqueeze(-1)
    return k.masked_fill(rows, 0), v.masked_fill(rows, 0), Unfit(keys, tokens)


def _known_to_be_finite(k: Tensor, v: Tensor) -> bool:
    if 0 in k.shape:
        return True
    asks = k.device.type == "cpu" and not torch.compiler.is_compiling()
    if not asks or torch._C._functorch.is_batchedtensor(k) or torch._C._functorch.is_batchedtensor(v):
        return False
    # If only the sum overflows, the full check is done and gives the same result.
    return bool((k.detach().sum() + v.detach().sum()).isfinite())


def for_heads(marked: Tensor, heads: int) -> Tensor:
    """Marked keys (B, Hk, Lk) for each of the query heads, (B, H, Lk)."""
    return marked.repeat_interleave(heads // marked.shape[1], 1)


def reached_queries(
    marked: Tensor,
    n_queries: int,
    *,
    visible: Tensor | None = None,
    causal: bool = False,
    q_start: int = 0,
) -> Tensor:
    """The queries that may attend to one of the marked keys, bool (B, H, Lq).

    Args:
        marked: bool (B, H, Lk).
        n_queries: Lq.
        visible: bool, broadcastable to (B, H, Lq, Lk); True = may attend.
        causal: query i attends only to the keys j <= i + q_start.
        q_start: position of the first query among the keys.

    Example:
        >>> reached_queries(torch.tensor([[[False, True, False]]]), 3, causal=True).tolist()
        [[[False, True, True]]]
    """
    if visible is not None:
        visible = four_axes(visible)
        if visible.shape[2] != 1:
            if causal:
                at = torch.arange(n_queries, device=marked.device).unsqueeze(1) + q_start
                visible = visible & (torch.arange(marked.shape[2], device=marked.device) <= at)
            return (visible & marked.unsqueeze(2)).any(-1).expand(*marked.shape[:2], n_queries)
        marked = marked & visible[:, :, 0]
    if not causal:
        return marked.any(-1, keepdim=True).expand(*marked.shape[:2], n_queries)
    last = torch.arange(n_queries, device=marked.device) + q_start  # the last key to which a query attends
    return (marked.cumsum(-1) > 0)[..., last.clamp(0, marked.shape[2] - 1)] & (last >= 0)


def as_nan(x: Tensor, rows: Tensor) -> Tensor:
    """x with NaN in the marked rows: x (B, H, Lq) or (B, H, Lq, channels), rows bool (B, H, Lq)."""
    return x.masked_fill(rows if x.dim() == rows.dim() else rows.unsqueeze(-1), torch.nan)


def state_as_nan(state: object, marked: Tensor) -> object:
    """The state with NaN in all parts of a key head that has a marked token, so that later calls also return NaN.

    Args:
        state: named tuples and tuples of tensors (B, heads, ...); other values in them are unchanged.
        marked: bool (B, Hk, Lk).
    """
    if isinstance(state, Tensor):
        if not state.is_floating_point():
            return state
        hit = marked.any(-1)
        hit = hit.repeat_interleave(state.shape[1] // hit.shape[1], 1)
        return state.masked_fill(hit.reshape(*hit.shape, *(1,) * (state.dim() - 2)), torch.nan)
    if not isinstance(state, tuple):
        return state
    parts = (state_as_nan(part, marked) for part in state)
    kind: Any = type(state)
    return kind(*parts) if hasattr(state, "_fields") else tuple(parts)
