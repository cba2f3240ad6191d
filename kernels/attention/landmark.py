"""Landmark attention: a query attends to the tokens of an earlier block through the landmark of that block.

Mohtashami and Jaggi 2023 (arXiv 2305.16300), grouped softmax of section 3.1. Keys form blocks of S tokens; block b
has a landmark score s_iλb. Query i in block c gives

    p_i = softmax over { s_ij : j in block c, j <= i } and { s_iλb : b < c }
    w_ij = p_i(j) in the own block,  p_i(λ_b) softmax_{j in b}(s_ij) in an earlier block b

so rows sum to 1, and a landmark has no value. The landmark of a query's own block is never visible. With `top`, only
the best blocks of each query are kept and p_i is renormalised, as at inference in the paper.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .blocks import MOST_CHOSEN, attend_chosen, attend_lists, best_keys, merge_blocks, pack, serves
from .mixer import ALL_PATTERNS, CS, NON_CAUSAL, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads
from .selection import attend_chosen_blocks, to_blocks, top_k

# number of queries whose blocks are chosen together, so that their scores stay in the cache
_ROWS = 2048


class LandmarkBlocks(NamedTuple):
    """The blocks that each query chose."""

    chosen: Tensor  # (B, H, Lq, K), block indices, the best first
    scores: Tensor  # (B, H, Lq, K), their landmark scores; -inf if there are fewer than K blocks


@dataclass(frozen=True)
class LandmarkAttention:
    """Attention through landmarks, in all patterns.

    Only causal self attention has a current block, at absolute positions; in the other patterns (ours), queries attend
    to every block through its landmark. The cost is O(Lq (Lk / block + top block) D); with all blocks (`top=None`, for
    training) it is that of softmax attention.

    Args:
        block: number of tokens in a block; the last block may be shorter.
        top: number of blocks that a query keeps; all if None.
        score: landmark scores if a call gives no landmark keys (ours, needs no training). "mean" is q·mean key + log of
            the number of keys, a lower bound of the exact log-sum-exp with equality if all scores of the block are
            equal; "exact" is that log-sum-exp, and the weights are then those of softmax attention.
        agree: whether queries share their blocks: "none", "heads" by the largest score among the heads, or "tokens" by
            the largest score among heads and queries, which depends on later queries and so is not causal.
        group_dropout: fraction of (query, block) pairs hidden in training; draws from PyTorch's global generator.
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    v_linear: ClassVar[bool] = True

    block: int = 64
    top: int | None = None
    score: Literal["mean", "exact"] = "mean"
    agree: Literal["none", "heads", "tokens"] = "none"
    group_dropout: float = 0.0
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.block < 1 or (self.top is not None and self.top < 1) or not 0 <= self.group_dropout <= 1:
            raise ValueError(
                "block and top must be at least 1 and group_dropout between 0 and 1, "
                f"got {self.block}, {self.top} and {self.group_dropout}"
            )

    @property
    def patterns(self) -> frozenset[Pattern]:
        """All four patterns; only the two non-causal ones if queries share blocks across tokens."""
        return NON_CAUSAL if self.agree == "tokens" else ALL_PATTERNS

    @property
    def heads_choose_together(self) -> bool:
        """Whether the keys of one head decide which blocks another one sees."""
        return self.agree != "none"

    @mixing
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
        landmarks: Tensor | None = None,
    ) -> Mixed[None, LandmarkBlocks]:
        """See `Mixer`; `landmarks` (B, Hk, ceil(Lk / block), D) are the blocks' landmark keys."""
        start = check_call(self, q, k, v, pattern, q_start)
        scale = q.shape[3] ** -0.5 if self.scale is None else self.scale
        if self._compiled(q, k, v) and (landmarks is None or landmarks.dtype == q.dtype):
            return self._retrieve(q, k, v, key_mask(mask, k), landmarks, start, pattern is CS, scale)
        dtype = torch.promote_types(q.dtype, torch.float32)
        query, keys, values = q.to(dtype), to_blocks(k.to(dtype), self.block), to_blocks(v.to(dtype), self.block)
        visible = to_blocks(key_mask(mask, k).unsqueeze(-1), self.block).squeeze(-1)  # (B, C, S)
        position = torch.arange(q.shape[2], device=q.device) + start
        pointers = self._pointers(keys, visible, landmarks)
        step = q.shape[2] if self.agree == "tokens" or self.top is None else _ROWS
        routes = [
            self._route(query[:, :, rows], position[rows], pattern is CS, pointers, keys, visible, scale)
            for rows in (slice(r, r + step) for r in range(0, max(1, q.shape[2]), max(1, step)))
        ]
        chosen, kept = (torch.cat([route[n] for route in routes], 2) for n in range(2))  # (B, H, Lq, K)
        reached = attend_chosen_blocks(query, keys, values, visible, chosen, scale=scale)
        own = self._own_block(query, keys, values, visible, position, scale) if pattern is CS else None
        out, lse = _weighted(reached, kept, own)
        return Mixed(out.to(q.dtype), lse, extras=LandmarkBlocks(chosen, kept))

    def _compiled(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether the compiled kernels can retrieve the blocks: each query chooses a few blocks by itself."""
        few = self.top is not None and self.top <= min(MOST_CHOSEN, k.shape[2] // self.block)
        return few and self.agree == "none" and not self.group_dropout and self.score == "mean" and serves(q, k, v)

    def _retrieve(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor,
        landmarks: Tensor | None,
        start: int,
        causal: bool,
        scale: float,
    ) -> Mixed[None, LandmarkBlocks]:
        """The output by the compiled kernels, for the keys (B, Lk) that are visible."""
        assert self.top is not None
        in_blocks = to_blocks(visible.unsqueeze(-1), self.block).squeeze(-1)  # (B, C, S)
        pointers = self._pointers(to_blocks(k, self.block), in_blocks, landmarks)
        assert pointers is not None
        bias = pointers[1][:, 0, 0].masked_fill(~in_blocks.any(-1), -torch.inf)
        step = self.block if causal else None
        chosen, kept = best_keys(q, pointers[0], bias, self.top, scale=scale, step=step, start=start)
        packed = pack(k, self.block)
        reached = attend_chosen(q, packed, v, chosen, scale=scale, visible=visible)
        own = None
        if causal:
            first, last = start // self.block, (start + q.shape[2] - 1) // self.block
            lists = [[block] for block in range(first, last + 1)]
            own = attend_lists(q, packed, v, lists, scale=scale, causal=True, start=start, visible=visible)
        out, lse = merge_blocks(reached, kept, own)
        return Mixed(out, lse, extras=LandmarkBlocks(chosen, kept))

    def _pointers(self, keys: Tensor, visible: Tensor, landmarks: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The landmark keys (B, Hk, C, D) and a term added to their scores (B, 1, 1, C); None for exact scores."""
        count = visible.sum(-1).clamp_min(1).to(keys.dtype)  # (B, C)
        if landmarks is not None:
            expected = (*keys.shape[:3], keys.shape[4])
            if landmarks.shape != expected:
                raise ValueError(f"landmarks must have shape {expected}, got {tuple(landmarks.shape)}")
            return landmarks.to(keys.dtype), torch.zeros_like(count)[:, None, None]
        if self.score == "exact":
            return None
        sums = (keys * visible[:, None, :, :, None]).sum(3)
        return sums / count[:, None, :, None], count.log()[:, None, None]

    def _route(
        self,
        query: Tensor,
        position: Tensor,
        causal: bool,
        pointers: tuple[Tensor, Tensor] | None,
        keys: Tensor,
        visible: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """The blocks that each of some queries keeps, and the landmark scores of these blocks."""
        heads, blocks = query.shape[1], keys.shape[2]
        if causal and self.top is not None and len(position):  # later blocks are hidden from all of these queries
            blocks = min(blocks, max(int(position[-1]) // self.block, self.top))
        if pointers is not None:
            scores = scale * query @ spread_heads(pointers[0][:, :, :blocks], heads).mT + pointers[1][..., :blocks]
        else:
            spread = keys[:, :, :blocks].repeat_interleave(heads // keys.shape[1], 1)
            inner = scale * torch.einsum("bhid,bhcsd->bhics", query, spread)
            seen = (visible | ~visible.any(-1, keepdim=True))[:, None, None, :blocks]
            scores = inner.masked_fill(~seen, -torch.inf).logsumexp(-1)
        hidden = ~visible[:, None, None, :blocks].any(-1)
        if causal:
            later = torch.arange(blocks, device=query.device) >= (position // self.block).unsqueeze(1)
            hidden = hidden | later
        scores = scores.masked_fill(hidden, -torch.inf)
        if self.group_dropout:
            scores = scores.masked_fill(torch.rand_like(scores) < self.group_dropout, -torch.inf)
        chosen = self._chosen(scores)
        return chosen, scores.gather(-1, chosen)

    def _chosen(self, scores: Tensor) -> Tensor:
        blocks = scores.shape[-1]
        if self.top is None or self.top >= blocks:
            return torch.arange(blocks, device=scores.device).expand(*scores.shape)
        if self.agree == "heads":
            return top_k(scores.amax(1, keepdim=True), self.top).expand(-1, scores.shape[1], -1, -1)
        if self.agree == "tokens" and scores.shape[2]:
            return top_k(scores.amax((1, 2), keepdim=True), self.top).expand(*scores.shape[:3], -1)
        return top_k(scores, self.top)

    def _own_block(
        self, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, position: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Softmax over the visible keys of each query's own block, and its log-sum-exp."""
        heads, n_queries = query.shape[1:3]
        lead = int(position[0]) % self.block if n_queries else 0  # queries may start in the middle of a block
        first = int(position[0]) // self.block if n_queries else 0
        rows = to_blocks(torch.nn.functional.pad(query, (0, 0, lead, 0)), self.block)  # (B, H, C, S, D)
        blocks = slice(first, first + rows.shape[2])
        keys, values = (x[:, :, blocks].repeat_interleave(heads // x.shape[1], 1) for x in (keys, values))
        later = torch.ones(self.block, self.block, dtype=torch.bool, device=query.device).triu(1)
        hidden = later | ~visible[:, None, blocks, None]
        scores = (scale * rows @ keys.mT).masked_fill(hidden, -torch.inf)
        lse = scores.logsumexp(-1, keepdim=True)
        blind = lse == -torch.inf
        weights = (scores - lse.masked_fill(blind, 0)).exp()
        out = (weights @ values).flatten(2, 3)[:, :, lead : lead + n_queries]
        return out, lse.flatten(2)[:, :, lead : lead + n_queries]


def _weighted(reached: Tensor, kept: Tensor, own: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """The main softmax over the blocks' scores and the own block, as an output and its log-sum-exp.

    Args:
        reached: (B, H, Lq, K, Dv), the outputs within the chosen blocks.
        kept: (B, H, Lq, K), their landmark scores.
        own: (B, H, Lq, Dv) and (B, H, Lq), output and log-sum-exp of the own block, if there is one.
    """
    main = kept if own is None else torch.cat([kept, own[1].unsqueeze(-1)], -1)
    if not main.shape[-1]:
        return reached.sum(-2), kept.new_full(kept.shape[:-1], -torch.inf)
    blind = torch.isneginf(main).all(-1, keepdim=True)
    seen = main.masked_fill(blind, 0)
    share = seen.softmax(-1).masked_fill(blind, 0).unsqueeze(-1)
    out = (share[..., : kept.shape[-1], :] * reached).sum(-2)
    if own is not None:
        out = out + share[..., -1, :] * own[0]
    return out, seen.logsumexp(-1).masked_fill(blind.squeeze(-1), -torch.inf)


def reference(
    mixer: LandmarkAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
    landmarks: Tensor | None = None,
) -> Tensor:
    """Grouped softmax with explicit weights, one query at a time, for `agree` "none" and without dropout."""
    size, scale = mixer.block, q.shape[3] ** -0.5 if mixer.scale is None else mixer.scale
    n_keys, shared = k.shape[2], q.shape[1] // k.shape[1]
    rows = []
    for b in range(q.shape[0]):
        live = (
            set(range(n_keys))
            if mask is None
            else set(mask.expand(q.shape[0], 1, 1, n_keys)[b, 0, 0].nonzero()[:, 0].tolist())
        )
        for h in range(q.shape[1]):
            keys, values = k[b, h // shared], v[b, h // shared]
            for i in range(q.shape[2]):
                query = q[b, h, i]
                last = i + q_start if pattern is CS else n_keys
                own = last // size if pattern is CS else n_keys
                groups = []  # (landmark score, block, keys)
                for c in range(min(own, -(-n_keys // size))):
                    inside = [j for j in range(c * size, min(n_keys, (c + 1) * size)) if j in live]
                    if inside and landmarks is not None:
                        groups.append((scale * query @ landmarks[b, h // shared, c], c, inside))
                    elif inside and mixer.score == "mean":
                        groups.append(
                            (scale * query @ keys[inside].mean(0) + q.new_tensor(len(inside)).log(), c, inside)
                        )
                    elif inside:
                        groups.append((torch.logsumexp(scale * keys[inside] @ query, 0), c, inside))
                groups = sorted(groups, key=lambda group: (-group[0].item(), group[1]))[: mixer.top]
                current = [j for j in range(own * size, min(last + 1, n_keys)) if j in live] if pattern is CS else []
                main = [scale * query @ keys[j] for j in current] + [score for score, _, _ in groups]
                row = values.new_zeros(values.shape[1])
                if main:
                    p = torch.softmax(torch.stack(main), 0)
                    for n, j in enumerate(current):
                        row = row + p[n] * values[j]
                    for n, (_, _, inside) in enumerate(groups):
                        row = (
                            row + p[len(current) + n] * torch.softmax(scale * keys[inside] @ query, 0) @ values[inside]
                        )
                rows.append(row)
    return torch.stack(rows).view(*q.shape[:3], -1)
