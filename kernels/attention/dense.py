"""Softmax over an explicit set of keys for each query, which the references of the sparse mechanisms use."""

import torch
from torch import Tensor


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """sum_j softmax_j(scale q_i·k_j + bias_ij) v_j over the keys marked in `visible`, computed with all weights.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hk, Lk, D).
        v: (B, Hk, Lk, Dv).
        visible: bool, broadcastable to (B, H, Lq, Lk); the output of a row without a key is 0.
        bias: broadcastable to (B, H, Lq, Lk).
        scale: 1 / sqrt(D) if not given.
    """
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    visible = visible.expand(scores.shape)
    # to avoid -inf - -inf, a row without a key gets equal weights, which are set to 0 afterwards
    blind = ~visible.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~(visible | blind), -torch.inf), -1).masked_fill(blind, 0)
    return weights @ v


def visible_keys(
    n_queries: int, k: Tensor, *, causal: bool = False, q_start: int = 0, mask: Tensor | None = None
) -> Tensor:
    """Bool (B, 1, Lq, Lk): the keys that each query may attend to under the mask and causality."""
    batch, n_keys = k.shape[0], k.shape[2]
    visible = torch.ones(batch, 1, n_queries, n_keys, dtype=torch.bool, device=k.device)
    if causal:
        visible = visible.tril(q_start)
    return visible if mask is None else visible & mask
