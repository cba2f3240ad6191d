"""Softmax attention over a union of parts; each part is a batch of small dense blocks, with one common normalisation.

The parts of a query contain disjoint keys, so their results can be merged by log-sum-exp. In the backward pass, the
weights of a part are exp(scores - lse) with the lse of the union, so the merge itself needs no gradient.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HIDDEN = -1e30  # a bias that hides a key; finite, so that a part without a visible key gives no NaN


class Part(NamedTuple):
    """Some blocks of queries, and the keys to which each block attends."""

    q: Tensor  # (N, R, T, D)
    k: Tensor  # (N, R, S, D), may be a view with stride 0
    v: Tensor  # (N, R, S, Dv)
    rows: slice | Tensor = slice(None)  # the R blocks among all blocks of queries, each at most once
    causal: bool = False  # if True, S = T, and query i of a block attends to its keys j <= i
    bias: Tensor | None = None  # added to the scores, broadcastable to (N, R, T, S); has no gradient


def attend_parts(parts: Sequence[Part], blocks: int, *, scale: float) -> Tensor:
    """out (N, blocks, T, Dv), softmax over the keys of all parts; 0 for a query whose keys are hidden or missing."""
    layout = [(part.rows, part.causal, part.bias) for part in parts]
    value_channels = parts[0].v.shape[-1]
    tensors = []
    for part in parts:  # the fused kernel needs values with as many channels as the keys
        wide = max(part.q.shape[-1], value_channels)
        tensors += [x if x.shape[-1] == wide else F.pad(x, (0, wide - x.shape[-1])) for x in part[:3]]
    out: Tensor = _Union.apply(layout, blocks, scale, *tensors)
    return out[..., :value_channels]


class _Union(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layout: list[tuple[slice | Tensor, bool, Tensor | None]], blocks: int, scale: float, *tensors: Tensor
    ) -> Tensor:
        first = tensors[0]
        shape = (first.shape[0], blocks, first.shape[2])
        results = []
        highest = first.new_full(shape, HIDDEN)
        for (rows, causal, bias), q, k, v in _zipped(layout, tensors):
            out, lse = _attend(q, k, v, causal, bias, scale)
            results.append((out, lse))
            highest[:, rows] = torch.maximum(highest[:, rows], lse)
        total = torch.zeros_like(highest)  # (N, blocks, T)
        for (rows, _, _), (_, lse) in zip(layout, results, strict=True):
            total[:, rows] += (lse - highest[:, rows]).exp()
        union = highest + total.clamp_min(torch.finfo(total.dtype).tiny).log()
        seen = highest > HIDDEN / 2
        whole = first.new_zeros(*shape, first.shape[3])
        for (rows, _, _), (out, lse) in zip(layout, results, strict=True):
            share = ((lse - union[:, rows]).exp() * seen[:, rows]).unsqueeze(-1)
            if isinstance(rows, slice):
                whole[:, rows].addcmul_(out, share)
            else:
                whole[:, rows] += out * share
        ctx.layout, ctx.scale = layout, scale
        ctx.save_for_backward(whole, union, seen, *tensors)
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        whole, union, seen, *tensors = ctx.saved_tensors
        grad = grad * seen.unsqueeze(-1)
        grads: list[Tensor | None] = [None, None, None]
        for (rows, causal, bias), q, k, v in _zipped(ctx.layout, tensors):
            upstream, out, lse = (x[:, rows].contiguous() for x in (grad, whole, union))
            grads += _differentiate(upstream, out, lse, q, k, v, causal, bias, ctx.scale)
        return tuple(grads)


def _zipped(
    layout: Sequence[tuple[slice | Tensor, bool, Tensor | None]], tensors: Sequence[Tensor]
) -> "list[tuple[tuple[slice | Tensor, bool, Tensor | None], Tensor, Tensor, Tensor]]":
    return list(zip(layout, tensors[0::3], tensors[1::3], tensors[2::3], strict=True))


def _fuses(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.numel() > 0


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    if _fuses(q) and k.shape[2]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=None if bias is None else bias.expand(*q.shape[:3], k.shape[2]), scale=scale
        )
        return out, lse
    scores = _scores(q, k, causal, bias, scale)
    lse = scores.logsumexp(-1).clamp_min(HIDDEN)
    return (scores - lse.unsqueeze(-1)).exp() @ v, lse


def _differentiate(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    bias: Tensor | None,
    scale: float,
) -> list[Tensor]:
    if _fuses(q) and k.shape[2]:
        return list(
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad,
                q,
                k,
                v,
                out,
                lse,
                0.0,
                causal,
                attn_mask=None if bias is None else bias.expand(*q.shape[:3], k.shape[2]),
                scale=scale,
            )
        )
    weights = (_scores(q, k, causal, bias, scale) - lse.unsqueeze(-1)).exp()
    from_weights = grad @ v.mT - (grad * out).sum(-1, keepdim=True)
    from_scores = scale * weights * from_weights
    return [from_scores @ k, from_scores.mT @ q, weights.mT @ grad]


def _scores(q: Tensor, k: Tensor, causal: bool, bias: Tensor | None, scale: float) -> Tensor:
    scores = scale * q @ k.mT
    if bias is not None:
        scores = scores + bias
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, HIDDEN)
    return scores
