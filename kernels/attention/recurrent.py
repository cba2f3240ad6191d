"""Attention as a recurrence: the query is a learned constant, so the softmax over past tokens is a running sum.

Feng, Tung, Hajimirsadeghi, Ahmed, Bengio and Mori 2024 (Aaren, arXiv 2405.13956), section 3. With s_j = scale q·k_j,

    o_t = sum_{j <= t} e^{s_j} v_j / sum_{j <= t} e^{s_j}

is a prefix sum under the associative operation on (m, u, w) = (s_j, 1, v_j)

    (m1, u1, w1) + (m2, u2, w2) = (m, u1 e^{m1-m} + u2 e^{m2-m}, w1 e^{m1-m} + w2 e^{m2-m}),   m = max(m1, m2)

whose identity element (-inf, 0, 0) is also used for masked tokens. A new token costs O(Dv).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .gated_scan import gated_scan
from .mixer import CS, NC, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads
from .running import running_softmax, serves_softmax
from .selection import to_blocks


class PrefixState(NamedTuple):
    """Summary of the tokens so far, in 2 + Dv numbers for each head."""

    maximum: Tensor  # (..., ): largest score, -inf before the first token
    normaliser: Tensor  # (..., ): sum of exp(s - maximum)
    memory: Tensor  # (..., Dv): sum of exp(s - maximum) v


def prefix_softmax(
    s: Tensor, v: Tensor, *, state: PrefixState | None = None, chunk: int = 64
) -> tuple[Tensor, Tensor, PrefixState]:
    """The mean of the values up to each token, weighted by the softmax of their scores.

    Args:
        s: (..., L), scores; -inf leaves a token out.
        v: (..., L, Dv).
        state: the state that an earlier call for the preceding tokens returned.
        chunk: number of tokens in a block product; the blocks are computed in parallel.

    Returns:
        out (..., L, Dv), 0 before the first token that counts; the log-sum-exp (..., L); and the state after the last.

    Example:
        >>> prefix_softmax(torch.zeros(3), torch.tensor([[3.0], [1.0], [2.0]]))[0].flatten().tolist()
        [3.0, 2.0, 2.0]
    """
    length = s.shape[-1]
    if state is None and torch.compiler.is_exporting():
        return _prefix_at_once(s, v)
    if state is None:
        empty = s.new_full(s.shape[:-1], -torch.inf)
        state = PrefixState(empty, torch.zeros_like(empty), v.new_zeros(*v.shape[:-2], v.shape[-1]))
    if not length:
        return torch.zeros_like(v), s, state
    if serves_softmax(s, v, *state):
        out, lse, after = running_softmax(s, v, *state)
        return out, lse, PrefixState(*after)
    chunk = min(chunk, length)  # a single step of a stream needs no full block
    ones = torch.ones_like(v[..., :1])
    # the maximum cancels between numerator and denominator, so it needs no gradient
    top = torch.maximum(s.detach().cummax(-1).values, state.maximum.detach().unsqueeze(-1))
    blocks = to_blocks(torch.cat([v, ones], -1), chunk)  # (..., C, T, Dv + 1)
    padding = blocks.shape[-3] * chunk - length
    scores = torch.nn.functional.pad(s, (0, padding), value=-torch.inf).unflatten(-1, (-1, chunk))
    tops = torch.cat([top, top[..., -1:].expand(*top.shape[:-1], padding)], -1)
    shift = tops.masked_fill(tops == -torch.inf, 0).unflatten(-1, (-1, chunk))  # (..., C, T)
    before = torch.cat([state.maximum.detach().unsqueeze(-1), tops.unflatten(-1, (-1, chunk))[..., :-1, -1]], -1)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=s.device).triu(1)
    exponent = scores.unsqueeze(-2) - shift.unsqueeze(-1)  # (..., C, T, T): key j against token t
    within = exponent.masked_fill(later, -torch.inf).exp() @ blocks
    faded = (before.unsqueeze(-1) - shift).exp()  # weight at each token of the sum before the block
    start = torch.cat([state.memory, state.normaliser.unsqueeze(-1)], -1)
    ends, last = gated_scan(faded[..., -1:], within[..., -1, :], h0=start)
    carried = torch.cat([start.unsqueeze(-2), ends[..., :-1, :]], -2).unsqueeze(-2)
    sums = (within + faded.unsqueeze(-1) * carried).flatten(-3, -2)[..., :length, :]
    total = sums[..., -1]
    unseen = total == 0
    total = total.masked_fill(unseen, 1)
    lse = (total.log() + top.masked_fill(unseen, 0)).masked_fill(unseen, -torch.inf)
    return sums[..., :-1] / total.unsqueeze(-1), lse, PrefixState(top[..., -1], last[..., -1], last[..., :-1])


def _prefix_at_once(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor, PrefixState]:
    """The same with all weights, (..., L, L), in operations that every runtime of exported programs has."""
    step = torch.arange(s.shape[-1], device=s.device)
    scores = s.unsqueeze(-2).masked_fill(step > step.unsqueeze(-1), -torch.inf)
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top.masked_fill(top == -torch.inf, 0)).exp()
    sums = weights.sum(-1, keepdim=True)
    unseen = sums == 0
    memory, total = weights @ v, sums.masked_fill(unseen, 1)
    lse = (total.log() + top.masked_fill(unseen, 0)).masked_fill(unseen, -torch.inf)
    state = PrefixState(top[..., -1, 0], sums[..., -1, 0], memory[..., -1, :])
    return memory / total, lse.squeeze(-1), state


def pooled_softmax(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the values, weighted by the softmax of all scores, (..., 1, Dv), and the log-sum-exp (..., 1)."""
    if not s.shape[-1]:
        return v.sum(-2, keepdim=True), s.sum(-1, keepdim=True) - torch.inf
    blind = torch.isneginf(s).all(-1, keepdim=True)
    weights = s.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    lse = s.masked_fill(blind, 0).logsumexp(-1, keepdim=True).masked_fill(blind, -torch.inf)
    return weights.unsqueeze(-2) @ v, lse


def both_directions(s: Tensor, v: Tensor) -> Tensor:
    """Concatenated averages over the past and over the future, (..., L, 2 Dv).

    Merging them would give the same result for every token, so they are concatenated (ours).
    """
    forward, _, _ = prefix_softmax(s, v)
    backward, _, _ = prefix_softmax(s.flip(-1), v.flip(-2))
    return torch.cat([forward, backward.flip(-2)], -1)


class RecurrentAttention(nn.Module):
    """Attention with learned constant queries, one for each head; of q, only the number of tokens is used.

    Causal self attention streams with a `PrefixState`. Without causality (ours), this is attention pooling, which has
    the same output for every query. Rows of the weights sum to 1.

    Args:
        heads: number of query heads.
        channels: channels of a head, D.
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    patterns = frozenset({NS, CS, NC})
    v_linear = True

    def __init__(self, heads: int, channels: int, *, scale: float | None = None) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(heads, channels))
        self.scale = channels**-0.5 if scale is None else scale

    @mixing
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        mask: Tensor | None = None,
        q_start: int | None = None,
        state: PrefixState | None = None,
    ) -> Mixed[PrefixState, None]:
        check_call(self, q, k, v, pattern, q_start)
        if q_start:
            raise ValueError(f"q_start must be 0, since the past is given by state, got {q_start}")
        if state is not None and pattern is not CS:
            raise ValueError(f"state needs causal self attention, got {pattern.value}")
        wide = torch.promote_types(q.dtype, torch.float32)
        heads = q.shape[1]
        keys, values = spread_heads(k, heads).to(wide), spread_heads(v, heads).to(wide)
        scores = self.scale * (keys @ self.query.to(wide).unsqueeze(-1)).squeeze(-1)
        scores = scores.masked_fill(~key_mask(mask, k)[:, None], -torch.inf)
        if pattern is CS:
            out, lse, after = prefix_softmax(scores, values, state=state)
            return Mixed(out.to(q.dtype), lse, after)
        out, lse = pooled_softmax(scores, values)
        return Mixed(out.to(q.dtype).expand(-1, -1, q.shape[2], -1), lse.expand(-1, -1, q.shape[2]))


def reference(
    mixer: RecurrentAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """The recurrence of the paper (appendix), one token at a time; without causality, its last output for all."""
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scores = mixer.scale * torch.einsum("bhjd,hd->bhj", k, mixer.query)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., 0, :], -torch.inf)
    highest = torch.full_like(scores[..., 0], -1e300)
    normaliser, total, outs = torch.zeros_like(highest), torch.zeros_like(v[:, :, 0]), []
    for t in range(k.shape[2]):
        new = torch.maximum(highest, scores[..., t].clamp_min(-1e300)).detach()
        fade, gain = (highest - new).exp(), (scores[..., t] - new).exp() * (scores[..., t] > -torch.inf)
        normaliser = normaliser * fade + gain
        total = total * fade.unsqueeze(-1) + gain.unsqueeze(-1) * v[:, :, t]
        highest = new
        safe = normaliser + (normaliser == 0)
        outs.append(total / safe.unsqueeze(-1))
    return torch.stack(outs, 2) if pattern is CS else outs[-1].unsqueeze(2).expand(-1, -1, q.shape[2], -1)
