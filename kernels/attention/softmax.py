"""Softmax attention, efficient linear attention, and the merge of partial results.

Tensors are as in PyTorch's `scaled_dot_product_attention`: q (B, H, Lq, D), k (B, Hk, Lk, D), v (B, Hk, Lk, Dv) with
H a multiple of Hk; query head h reads key head h // (H / Hk). A `mask` is boolean and True means "may attend".
`reference.py` holds slow, plain versions with the same arguments.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..autocast import in_autocast
from .finite import as_nan, for_heads, four_axes, reached_queries, state_as_nan, without_hidden, without_unfit
from .running import MOST_FEATURES, running_context, serves

# Tokens per chunk of causal linear attention. Best of 7 in milliseconds, forward / forward + backward, at
# (1, 4, 4096, 32) on two threads of a busy Zen 5 machine: chunk 16: 86 / 529, 32: 75 / 352, 64: 106 / 323.
_CHUNK = 32


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    q_start: int = 0,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    return_weights: Literal[False] = False,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    q_start: int = 0,
    scale: float | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
) -> tuple[Tensor, ...]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    q_start: int = 0,
    scale: float | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Softmax attention: out_i = sum_j softmax_j(scale q_i·k_j + bias_ij) v_j over the keys j that query i may see.

    A query that sees no key gives 0, with log-sum-exp -inf and gradient 0. One that may see a key or value that is not
    finite gives NaN; what it may not see never reaches it. PyTorch's fused kernel computes the output
    in O(L D) memory; `return_lse` and `return_weights` use a plain form, which needs O(B H Lq Lk).

    Args:
        q: (B, H, Lq, D).
        k: (B, Hk, Lk, D), H a multiple of Hk.
        v: (B, Hk, Lk, Dv).
        mask: bool, broadcastable to (B, H, Lq, Lk); True = may attend.
        bias: floating point, broadcastable to (B, H, Lq, Lk), added to the scaled scores; -inf hides a key.
        causal: query i sees only the keys j <= i + q_start.
        q_start: position of the first query among the keys: 0 for self-attention, Lk - Lq when decoding with a cache.
            PyTorch's own `is_causal` always assumes 0, even if Lq and Lk differ.
        scale: factor on the scores; 1 / sqrt(D) if not given.
        return_lse: also return the log-sum-exp of the scores of each row, (B, H, Lq), which `merge_attention` needs.
        return_weights: also return the weights, (B, H, Lq, Lk).

    Returns:
        out (B, H, Lq, Dv), or a tuple (out, lse), (out, weights) or (out, lse, weights), as requested. Sums over
        float16 and bfloat16 inputs are float32, and so are lse and weights then.

    Raises:
        ValueError: an argument has the wrong shape; the message names it.
        TypeError: an argument has the wrong type; the message names it.

    Example:
        >>> x = torch.eye(2).view(1, 1, 2, 2)
        >>> attention(x, x, x, causal=True, scale=0.0).squeeze().tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    q, k, v = autocast_together(q, k, v)
    _check_qkv(q, k, v)
    score_shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    _check_mask(mask, score_shape, q)
    k, v = without_hidden(mask, k, v)
    if bias is not None:
        _check_tensor("bias", bias, "broadcastable to (B, H, Lq, Lk)")
        if not bias.is_floating_point():
            raise TypeError(f"bias must be floating point, got {bias.dtype} (a boolean mask goes into mask)")
        _check_broadcastable("bias", bias, score_shape, q)
    scale = 1 / math.sqrt(max(q.shape[3], 1)) if scale is None else float(scale)

    if 0 in (*q.shape, *k.shape, *v.shape):
        outs: tuple[Tensor, ...] = _plain(q, k, v, _visible(mask, bias, causal, q_start, q, k), bias, scale)
    else:
        k, v, unfit = without_unfit(k, v)
        if return_lse or return_weights:
            outs = _plain(q, k, v, _visible(mask, bias, causal, q_start, q, k), bias, scale)
        else:
            outs = (_fused(q, k, v, mask, bias, causal, q_start, scale),)
        if unfit is not None:
            visible = _visible(mask, bias, False, 0, q, k)
            rows, rows_of_keys = (
                reached_queries(for_heads(x, q.shape[1]), q.shape[2], visible=visible, causal=causal, q_start=q_start)
                for x in (unfit.tokens, unfit.keys)
            )
            outs = (as_nan(outs[0], rows), *(as_nan(x, rows_of_keys) for x in outs[1:]))
    wanted = [x for x, asked in zip(outs[1:], (return_lse, return_weights), strict=False) if asked]
    return (outs[0], *wanted) if wanted else outs[0]


def autocast_together(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast, the three in autocast's type where they differ in theirs; otherwise as they are."""
    tensors = (q, k, v)
    if not all(isinstance(x, Tensor) for x in tensors) or q.dtype == k.dtype == v.dtype or not in_autocast(q):
        return tensors  # the checks report anything that is not a tensor
    dtype = torch.get_autocast_dtype(q.device.type)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def merge_attention(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge attention over disjoint sets of keys into attention over all of them.

    lse = log sum_p exp(lse_p) and out = sum_p exp(lse_p - lse) out_p. The operation is associative and commutative;
    its neutral element is (0, -inf), the result over no keys.

    Args:
        parts: pairs (out, lse) of shapes (..., L, Dv) and (..., L), as `attention(..., return_lse=True)` returns them.

    Returns:
        out (..., L, Dv) and lse (..., L).

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 6, 4).unbind()
        >>> halves = [
        ...     attention(q, k[:, :, part], v[:, :, part], return_lse=True) for part in (slice(0, 3), slice(3, 6))
        ... ]
        >>> out, lse = merge_attention(halves)
        >>> torch.allclose(out, attention(q, k, v), atol=1e-6)
        True
    """
    if not parts:
        raise ValueError("parts must hold at least one (out, lse) pair, got an empty sequence")
    shape = parts[0][0].shape
    for position, (out, lse) in enumerate(parts):
        if out.shape != shape or lse.shape != shape[:-1]:
            raise ValueError(
                f"parts[{position}] must be (out, lse) of shapes {tuple(shape)} and {tuple(shape[:-1])}, "
                f"got {tuple(out.shape)} and {tuple(lse.shape)}"
            )
    logs = torch.stack([lse for _, lse in parts])
    largest = logs.detach().amax(0)
    largest = largest.masked_fill(largest == -math.inf, 0)  # a row without a visible key in any part
    shares = (logs - largest).exp()
    total = shares.sum(0)
    unseen = total == 0
    total = total.masked_fill(unseen, 1)
    merged = torch.stack([out.to(shares.dtype) for out, _ in parts])
    merged = ((shares / total).unsqueeze(-1) * merged).sum(0)
    lse = (total.log() + largest).masked_fill(unseen, -math.inf)
    return merged.to(parts[0][0].dtype), lse


class LinearAttentionState(NamedTuple):
    """State of causal linear attention after some tokens: for each key channel, the weighted sum of their values."""

    maximum: Tensor  # (B, Hk, D): largest key so far; -inf before the first
    normaliser: Tensor  # (B, Hk, D): sum_j exp(k_j - maximum)
    memory: Tensor  # (B, Hk, D, Dv): sum_j exp(k_j - maximum) v_j


@overload
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    state: LinearAttentionState | None = None,
    return_state: Literal[False] = False,
) -> Tensor: ...


@overload
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    state: LinearAttentionState | None = None,
    return_state: Literal[True],
) -> tuple[Tensor, LinearAttentionState]: ...


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    state: LinearAttentionState | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, LinearAttentionState]:
    """Efficient attention: out_i = sum_c softmax_c(q_i)_c context_c with context_c = sum_j softmax_j(k_c)_j v_j.

    Shen, Zhang, Zhao, Yi and Li, "Efficient attention: attention with linear complexities", WACV 2021.

    The queries are normalised over their D channels and the keys over the tokens. The (Lq, Lk) matrix is not computed,
    and the cost is O(L D Dv). The implied weights W_ij = sum_c softmax_c(q_i)_c softmax_j(k_c)_j are positive, and
    their rows sum to 1. Scores are not scaled by 1 / sqrt(D). With `causal`, the softmax of the keys is taken over the
    tokens up to and including i, in chunks with a running maximum, so that very large or small keys neither overflow
    nor vanish.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hk, Lk, D), H a multiple of Hk.
        v: (B, Hk, Lk, Dv).
        mask: bool, broadcastable to (B, H, Lq, Lk), with size 1 along heads and queries since it hides a key from all
            queries; True = may attend. If no key is visible, the output is 0.
        causal: token i attends to the tokens j <= i; Lq and Lk must be equal.
        state: causal only: the state that a call for the preceding tokens returned.
        return_state: causal only: also return the state after the last token.

    Returns:
        out (B, H, Lq, Dv), or (out, state). Sums are float32 or wider.

    Raises:
        ValueError: an argument has the wrong shape; the message names it.
        TypeError: an argument has the wrong type; the message names it.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
        >>> probe = torch.eye(5).expand(1, 2, 5, 5)  # if v is the identity, the output is the weights
        >>> linear_attention(q, k, probe).sum(-1).round(decimals=5).unique().tolist()
        [1.0]
    """
    q, k, v = autocast_together(q, k, v)
    _check_qkv(q, k, v)
    score_shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    _check_mask(mask, score_shape, q)
    k, v, unfit = without_unfit(*without_hidden(mask, k, v))
    if (state is not None or return_state) and not causal:
        raise ValueError("state and return_state need causal=True, got causal=False")
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"causal linear attention needs as many queries as keys ({k.shape[2]}), got {q.shape[2]} queries"
        )
    groups = q.shape[1] // k.shape[1] if k.shape[1] else 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    query = torch.softmax(q.to(dtype), -1).unflatten(1, (k.shape[1], groups))  # (B, Hk, G, Lq, D)
    keys = k.to(dtype)
    if mask is not None:
        keys = keys.masked_fill(~_key_mask(mask, score_shape), -math.inf)
    values = v.to(dtype)
    if causal:
        state = _start_state(keys, values) if state is None else _checked_state(state, keys, values)
        out, state = _causal_linear(query, keys, values, state)
    else:
        out = query @ _context(keys, values).unsqueeze(2)
    out = out.flatten(1, 2).to(q.dtype)
    if unfit is not None:  # no token that the mask hides is among them
        out = as_nan(out, reached_queries(for_heads(unfit.tokens, q.shape[1]), q.shape[2], causal=causal))
        state = cast("LinearAttentionState | None", state_as_nan(state, unfit.tokens))
    if not return_state:
        return out
    assert state is not None
    return out, state


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    q_start: int,
    scale: float,
) -> Tensor:
    if any(stride == 0 and size > 1 for stride, size in zip(q.stride(), q.shape, strict=True)):
        q = q.contiguous()  # for a query expanded with stride 0 PyTorch uses its plain path: 187 ms instead of 35 ms
    if scale <= 0:
        q, scale = q * scale, 1.0  # the causal kernel scales after it has set hidden keys to -inf: -inf * 0 is NaN
    options: dict[str, Any] = {"scale": scale}
    if q.shape[1] != k.shape[1]:  # an `if`, since under torch.compile the comparison may not be a Python bool
        options["enable_gqa"] = True
    if mask is None and bias is None:
        if not causal or q_start >= k.shape[2] - 1:
            return F.scaled_dot_product_attention(q, k, v, **options)
        if q_start == 0:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    visible = _visible(mask, bias, causal, q_start, q, k)
    assert visible is not None
    blind = ~visible.any(-1, keepdim=True)
    attended = visible | blind  # rows without a visible key attend everywhere, to avoid 0 / 0, and become 0 below
    if bias is None:
        scores_added = attended
    else:
        finite = bias.masked_fill(bias == -math.inf, 0).to(q.dtype)
        scores_added = finite.masked_fill(~attended, -math.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=scores_added, **options)
    return out.masked_fill(blind, 0)


def _plain(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1] if k.shape[1] else 1
    query = (q.to(dtype) * scale).unflatten(1, (k.shape[1], groups))
    scores = (query @ k.to(dtype).mT.unsqueeze(2)).flatten(1, 2)
    if bias is not None:
        scores = scores + bias.masked_fill(bias == -math.inf, 0).to(dtype)
    if visible is None:
        blind = torch.full((1, 1, 1, 1), k.shape[2] == 0, device=q.device)
    else:
        blind = ~visible.any(-1, keepdim=True)
        scores = scores.masked_fill(~(visible | blind), -math.inf)
    lse = torch.logsumexp(scores, -1)
    weights = (scores - lse.unsqueeze(-1)).exp().masked_fill(blind, 0)
    out = weights.unflatten(1, (k.shape[1], groups)) @ v.to(dtype).unsqueeze(2)
    return out.flatten(1, 2).to(q.dtype), lse.masked_fill(blind.squeeze(-1), -math.inf), weights


def _visible(
    mask: Tensor | None, bias: Tensor | None, causal: bool, q_start: int, q: Tensor, k: Tensor
) -> Tensor | None:
    """Whether a query may attend to a key: bool, 4-D, broadcastable to (B, H, Lq, Lk); None if all are visible."""
    visible = None if mask is None else four_axes(mask)
    if bias is not None:
        finite = four_axes(bias) != -math.inf
        visible = finite if visible is None else visible & finite
    if causal:
        i = torch.arange(q.shape[2], device=q.device).unsqueeze(1) + q_start
        earlier = four_axes(torch.arange(k.shape[2], device=q.device) <= i)
        visible = earlier if visible is None else visible & earlier
    if visible is not None and visible.shape[3] != k.shape[2]:
        visible = visible.expand(*visible.shape[:3], k.shape[2])  # also to size 0, where no key is visible
    return visible


def _key_mask(mask: Tensor, score_shape: tuple[int, ...]) -> Tensor:
    mask = four_axes(mask)
    if mask.shape[1] != 1 or mask.shape[2] != 1:
        raise ValueError(
            f"mask of linear attention must have size 1 along heads and queries, (B or 1, 1, 1, {score_shape[3]}), "
            f"got {tuple(mask.shape)}"
        )
    return mask.mT  # (B, 1, Lk, 1)


def _context(keys: Tensor, values: Tensor) -> Tensor:
    """(B, Hk, D, Dv): values weighted by the softmax of the keys over the tokens; 0 if all keys are -inf."""
    if keys.shape[2] == 0:
        return keys.mT @ values
    largest = keys.detach().amax(2, keepdim=True)
    shares = (keys - largest.masked_fill(largest == -math.inf, 0)).exp()
    total = shares.sum(2, keepdim=True)
    return (shares / total.masked_fill(total == 0, 1)).mT @ values


def _start_state(keys: Tensor, values: Tensor) -> LinearAttentionState:
    batch, heads, _, channels = keys.shape
    return LinearAttentionState(
        keys.new_full((batch, heads, channels), -math.inf),
        keys.new_zeros(batch, heads, channels),
        keys.new_zeros(batch, heads, channels, values.shape[3]),
    )


def _checked_state(state: LinearAttentionState, keys: Tensor, values: Tensor) -> LinearAttentionState:
    for name, given, expected in zip(state._fields, state, _start_state(keys, values), strict=True):
        if given.shape != expected.shape:
            raise ValueError(f"state.{name} must have shape {tuple(expected.shape)}, got {tuple(given.shape)}")
    return LinearAttentionState(*(part.to(keys) for part in state))


def _causal_linear(
    query: Tensor, keys: Tensor, values: Tensor, state: LinearAttentionState
) -> tuple[Tensor, LinearAttentionState]:
    length = keys.shape[2]
    if keys.shape[3] <= MOST_FEATURES and serves(query, keys, values, *state):
        whole, after = running_context(query, keys, values, *state)
        return whole, LinearAttentionState(*after)
    outs = []
    train = torch.is_grad_enabled() and any(x.requires_grad for x in (query, keys, values, *state))
    for start in range(0, length, _CHUNK):
        part = slice(start, min(start + _CHUNK, length))
        arguments = (query[:, :, :, part], keys[:, :, part], values[:, :, part], *state)
        if train:  # recompute the (chunk, chunk, D) weights in the backward pass instead of keeping them
            out, *state_parts = checkpoint(_linear_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            out, *state_parts = _linear_chunk(*arguments)
        state = LinearAttentionState(*state_parts)
        outs.append(out)
    if not outs:
        return query @ state.memory.unsqueeze(2), state  # no token: shape (B, Hk, G, 0, Dv)
    return torch.cat(outs, 3), state


def _linear_chunk(
    query: Tensor, keys: Tensor, values: Tensor, maximum: Tensor, normaliser: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of one chunk of tokens and the state after it."""
    # the maximum cancels between numerator and denominator, so it needs no gradient
    running = torch.maximum(keys.detach().cummax(2).values, maximum.detach().unsqueeze(2))  # (B, Hk, T, D)
    shift = running.masked_fill(running == -math.inf, 0)
    past = (maximum.detach().unsqueeze(2) - shift).exp()  # weight of the past, relative to each token's maximum
    steps = keys.shape[2]
    later = torch.ones(steps, steps, dtype=torch.bool, device=keys.device).triu(1).unsqueeze(-1)
    exponent = keys.unsqueeze(2) - shift.unsqueeze(3)  # (B, Hk, T, T, D): key j against query i; <= 0 where j <= i
    shares = exponent.masked_fill(later, -math.inf).exp()
    total = past * normaliser.unsqueeze(2) + shares.sum(3)
    gate = query / total.masked_fill(total == 0, 1).unsqueeze(2)
    within = torch.einsum("bhgtc,bhtjc->bhgtj", gate, shares)
    out = within @ values.unsqueeze(2) + (gate * past.unsqueeze(2)) @ memory.unsqueeze(2)
    last = shares[:, :, -1]  # (B, Hk, T, D)
    memory = past[:, :, -1].unsqueeze(-1) * memory + last.mT @ values
    return out, running[:, :, -1], total[:, :, -1], memory


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, tensor, "of shape (B, heads, L, channels)")
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have shape (B, heads, L, channels), got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must have the type of q, {q.dtype}, got {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name} must be on the device of q, {q.device}, got {tensor.device}")
    batch, heads, _, channels = q.shape
    key_heads, length = k.shape[1], k.shape[2]
    if k.shape[0] != batch or k.shape[3] != channels:
        raise ValueError(
            f"k must have shape ({batch}, Hk, Lk, {channels}) to match q {tuple(q.shape)}, got {tuple(k.shape)}"
        )
    if (key_heads == 0) != (heads == 0) or (key_heads and heads % key_heads):
        raise ValueError(f"k must have a number of heads that divides the {heads} of q, got {key_heads}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must have shape ({batch}, {key_heads}, {length}, Dv) to match k {tuple(k.shape)}, got {tuple(v.shape)}"
        )


def _check_tensor(name: str, value: object, shape: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {type(value).__name__}")


def _check_mask(mask: Tensor | None, score_shape: tuple[int, ...], q: Tensor) -> None:
    if mask is None:
        return
    _check_tensor("mask", mask, "broadcastable to (B, H, Lq, Lk)")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = may attend), got {mask.dtype} (an additive mask goes into bias)")
    _check_broadcastable("mask", mask, score_shape, q)


def _check_broadcastable(name: str, tensor: Tensor, shape: tuple[int, ...], q: Tensor) -> None:
    fits = tensor.dim() <= len(shape) and all(
        given in (1, wanted) for given, wanted in zip(reversed(tensor.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must be broadcastable to (B, H, Lq, Lk) = {shape}, got {tuple(tensor.shape)}")
    if tensor.device != q.device:
        raise ValueError(f"{name} must be on the device of q, {q.device}, got {tensor.device}")
