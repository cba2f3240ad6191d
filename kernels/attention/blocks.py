"""Attention between blocks of tokens by the compiled kernels (csrc/attention.cpp), without gradients.

The plain versions are in `parts.py`, `selection.py` and `landmark.py`, which also work on other devices and types and
with gradients. `serves` returns whether the library can be used instead. Results do not depend on the number of
threads.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import native
from ..eligibility import serves_inference
from ..threads import kernel_threads

_PAD = 16  # keys of a block and channels of a value are filled up to a multiple of this
_MOST_CHANNELS = 256  # of a head
MOST_CHOSEN = 8  # blocks that a query can choose


class _Sizes(ctypes.Structure):
    """`struct Attention` of attention.cpp."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                *("heads", "shared", "queries", "keys", "channels", "values", "block", "padded", "blocks"),
                *("items_bias", "causal", "start", "chosen"),
            )
        ),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "bias")),
        ("threads", ctypes.c_int64),
    )


def serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the compiled library can process these tensors: float32 on the CPU, with no gradient to be computed."""
    small = max(q.shape[-1], v.shape[-1]) <= _MOST_CHANNELS
    return small and serves_inference("vw_attention_gathered", q, k, v)


class PackedKeys(NamedTuple):
    """Keys in blocks, packed for the kernels."""

    packed: Tensor  # (B, Hk, C, D, block rounded up)
    length: int
    block: int


def pack(k: Tensor, block: int) -> PackedKeys:
    """Pack keys (B, Hk, L, D) in blocks; the last block may be shorter."""
    batch, heads, length, channels = k.shape
    blocks, padded = -(-length // block), -(-block // _PAD) * _PAD
    packed = k.new_empty(batch, heads, blocks, channels, padded)
    keys = k.contiguous()
    sizes = _Sizes(heads=batch * heads, keys=length, channels=channels, block=block, padded=padded, blocks=blocks)
    sizes.threads = kernel_threads()
    native.call("vw_attention_pack", sizes, keys, packed)
    return PackedKeys(packed, length, block)


def attend_lists(
    q: Tensor,
    k: PackedKeys,
    v: Tensor,
    lists: Sequence[Sequence[int]],
    *,
    scale: float,
    causal: bool = False,
    start: int = 0,
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each block of queries to the key blocks of its list, with the log-sum-exp.

    Args:
        q: (B, H, Lq, D); query i is at position i + start, and its block is that of a key at this position.
        k: packed keys of Hk heads, H a multiple of Hk.
        v: (B, Hk, Lk, Dv).
        lists: for each block of queries, from the one of the first query on, different key blocks.
        scale: factor on the scores.
        causal: in its own block, a query sees only the keys up to its position.
        start: position of the first query.
        visible: bool (B, Lk), the keys that are not masked; all if None.

    Returns:
        out (B, H, Lq, Dv) and lse (B, H, Lq); 0 and -inf for a query without a key.
    """
    values = padded_values(v)
    sizes, held = _sizes(q, k, values, visible, scale)
    sizes.causal, sizes.start = causal, start
    first = torch.tensor([0, *(len(each) for each in lists)]).cumsum(0).int()
    flat = torch.tensor([block for each in lists for block in each], dtype=torch.int32)
    out, lse = q.new_empty(*q.shape[:3], values.shape[3]), q.new_empty(q.shape[:3])
    native.call("vw_attention_lists", sizes, first, flat, out, lse, keep=held)
    return out[..., : v.shape[3]].contiguous(), lse


def attend_gathered(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, index: Tensor, *, scale: float, own_keys_last: bool = False
) -> Tensor:
    """Softmax attention of rows of queries to keys that are gathered for each row.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hk, Lk, D), H a multiple of Hk.
        v: (B, Hk, Lk, Dv).
        rows: (R, T), the queries of each row, -1 for none; each query is in one row.
        index: (B, 1 or H, R, n), the keys of each row, which are different; -1 for none.
        scale: factor on the scores.
        own_keys_last: the last T keys of a row are those of its T queries: query i sees only the first i + 1 of them.

    Returns:
        (B, H, Lq, Dv), 0 for a query without a key.
    """
    values = padded_values(v)
    query, keys, places = q.contiguous(), k.contiguous(), index.contiguous()
    sizes = _Sizes(
        heads=q.shape[0] * q.shape[1],
        shared=q.shape[1] // k.shape[1],
        queries=q.shape[2],
        keys=k.shape[2],
        channels=q.shape[3],
        values=values.shape[3],
        block=rows.shape[1],
        blocks=rows.shape[0],
        items_bias=q.shape[1] // index.shape[1],
        causal=own_keys_last,
        chosen=index.shape[3],
        scale=scale,
        q=query.data_ptr(),
        k=keys.data_ptr(),
        v=values.data_ptr(),
        threads=kernel_threads(),
    )
    out = q.new_empty(*q.shape[:3], values.shape[3])
    native.call("vw_attention_gathered", sizes, rows.contiguous(), places, out, None, keep=(query, keys, values))
    return out[..., : v.shape[3]].contiguous()


def attend_chosen(
    q: Tensor, k: PackedKeys, v: Tensor, chosen: Tensor, *, scale: float, visible: Tensor | None = None
) -> Tensor:
    """Softmax attention of each query within each of the key blocks that it chose, one result per choice.

    Args:
        q: (B, H, Lq, D).
        k: packed keys of Hk heads, H a multiple of Hk.
        v: (B, Hk, Lk, Dv).
        chosen: (B, H, Lq, K), block indices.
        scale: factor on the scores.
        visible: bool (B, Lk), the keys that are not masked; all if None.

    Returns:
        (B, H, Lq, K, Dv), 0 for a block without a visible key.
    """
    values = padded_values(v)
    sizes, held = _sizes(q, k, values, visible, scale)
    sizes.chosen = chosen.shape[3]
    heads, blocks = q.shape[0] * q.shape[1], k.packed.shape[2]
    order = torch.empty(heads * q.shape[2] * chosen.shape[3], dtype=torch.int32, device="cpu")
    first = torch.empty(heads * (blocks + 1), dtype=torch.int32, device="cpu")
    out = q.new_empty(*chosen.shape, values.shape[3])
    native.call("vw_attention_chosen", sizes, chosen.contiguous(), order, first, out, keep=held)
    return out[..., : v.shape[3]].contiguous()


def merge_blocks(reached: Tensor, scores: Tensor, own: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """The outputs within some blocks, weighted by the softmax over their scores, and the log-sum-exp of the scores.

    Args:
        reached: (B, H, Lq, K, Dv).
        scores: (B, H, Lq, K); -inf leaves a block out.
        own: (B, H, Lq, Dv) and (B, H, Lq), output and score of one more block, if there is one.
    """
    values = reached.shape[4]
    inner = padded_values(reached)
    sizes = _Sizes(heads=reached.shape[0] * reached.shape[1], queries=reached.shape[2], chosen=reached.shape[3])
    sizes.values, sizes.threads = inner.shape[4], kernel_threads()
    out, lse = inner.new_empty(*inner.shape[:3], inner.shape[4]), inner.new_empty(inner.shape[:3])
    more = (None, None) if own is None else (own[1], padded_values(own[0]))
    native.call("vw_attention_merge", sizes, scores.contiguous(), inner, *more, out, lse)
    return out[..., :values].contiguous(), lse


def best_keys(
    q: Tensor, k: Tensor, bias: Tensor, count: int, *, scale: float, step: int | None = None, start: int = 0
) -> tuple[Tensor, Tensor]:
    """The keys with the largest scores scale q·k + bias, the best first; of equal ones, the first.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hk, C, D), H a multiple of Hk.
        bias: (B, C); -inf hides a key.
        count: number of keys to choose, at most C.
        scale: factor on the products.
        step: if given, query i sees only the first (i + start) // step keys.
        start: position of the first query.

    Returns:
        indices and scores (B, H, Lq, count); the score is -inf if there are too few keys.
    """
    packed = pack(k, k.shape[2])
    sizes, held = _sizes(q, packed, k, None, scale)
    padded = F.pad(bias.float(), (0, packed.packed.shape[4] - k.shape[2])).contiguous()
    sizes.bias, sizes.items_bias = padded.data_ptr(), q.shape[1]
    sizes.causal, sizes.start, sizes.chosen = step is not None, start, count
    best = torch.empty(*q.shape[:3], count, dtype=torch.long, device="cpu")
    kept = q.new_empty(*q.shape[:3], count)
    native.call("vw_attention_best", sizes, ctypes.c_int64(step or 1), best, kept, keep=(*held, padded))
    return best, kept


def padded_values(v: Tensor) -> Tensor:
    """Values (..., Dv), contiguous, with zeros up to a number of channels that the library can load."""
    more = -v.shape[-1] % _PAD
    return (F.pad(v, (0, more)) if more else v).contiguous()


def _sizes(
    q: Tensor, k: PackedKeys, v: Tensor, visible: Tensor | None, scale: float
) -> tuple[_Sizes, tuple[Tensor, ...]]:
    """The struct of a call, and the tensors to which it points, which must outlive it."""
    batch, heads, queries, channels = q.shape
    query, values = q.contiguous(), v.contiguous()
    blocks, padded = k.packed.shape[2], k.packed.shape[4]
    held = [query, k.packed, values]
    bias = None
    if visible is not None and not visible.all():
        seen = F.pad(visible, (0, blocks * k.block - k.length)).unflatten(1, (blocks, k.block))
        hidden = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        bias = F.pad(hidden, (0, padded - k.block)).contiguous()
        held.append(bias)
    sizes = _Sizes(
        heads=batch * heads,
        shared=heads // k.packed.shape[1],
        queries=queries,
        keys=k.length,
        channels=channels,
        values=values.shape[3],
        block=k.block,
        padded=padded,
        blocks=blocks,
        items_bias=heads,
        scale=scale,
        q=query.data_ptr(),
        k=k.packed.data_ptr(),
        v=values.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        threads=kernel_threads(),
    )
    return sizes, tuple(held)
