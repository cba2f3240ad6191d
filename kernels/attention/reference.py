"""Slow, plain attention that computes every weight; the tests compare `softmax.py` with it."""

import torch
from torch import Tensor


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    q_start: int = 0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute softmax attention row by row; arguments as in `attention`.

    Returns:
        out (B, H, Lq, Dv), lse (B, H, Lq) and weights (B, H, Lq, Lk).
    """
    (batch, heads, n_queries, channels), n_keys = q.shape, k.shape[2]
    scale = channels**-0.5 if scale is None else scale
    shape = (batch, heads, n_queries, n_keys)
    visible = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
    added = torch.zeros(shape, dtype=q.dtype) if bias is None else bias.expand(shape)
    out = torch.zeros(batch, heads, n_queries, v.shape[3], dtype=q.dtype)
    lse = torch.full((batch, heads, n_queries), -torch.inf, dtype=q.dtype)
    weights = torch.zeros(shape, dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            key_head = h // (heads // k.shape[1])
            for i in range(n_queries):
                seen = [
                    j
                    for j in range(n_keys)
                    if visible[b, h, i, j] and added[b, h, i, j] > -torch.inf and (not causal or j <= i + q_start)
                ]
                if not seen:
                    continue
                scores = torch.stack([scale * q[b, h, i] @ k[b, key_head, j] + added[b, h, i, j] for j in seen])
                weights[b, h, i, seen] = torch.softmax(scores, 0)
                lse[b, h, i] = torch.logsumexp(scores, 0)
                out[b, h, i] = torch.softmax(scores, 0) @ v[b, key_head, seen]
    return out, lse, weights


def linear_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute efficient attention row by row; arguments as in `linear_attention`.

    Returns:
        out (B, H, Lq, Dv) and the weights (B, H, Lq, Lk), which `linear_attention` never computes.
    """
    (batch, heads, n_queries, _), n_keys = q.shape, k.shape[2]
    visible = torch.ones(batch, n_keys, dtype=torch.bool) if mask is None else mask.expand(batch, 1, 1, n_keys)[:, 0, 0]
    weights = torch.zeros(batch, heads, n_queries, n_keys, dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            key_head = h // (heads // k.shape[1])
            for i in range(n_queries):
                seen = [j for j in range(n_keys) if visible[b, j] and (not causal or j <= i)]
                if seen:
                    over_tokens = torch.softmax(k[b, key_head, seen], 0)  # (seen, D)
                    weights[b, h, i, seen] = over_tokens @ torch.softmax(q[b, h, i], 0)
    return weights @ v.repeat_interleave(heads // v.shape[1], 1), weights
