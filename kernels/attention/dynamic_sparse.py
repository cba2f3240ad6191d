"""Dynamic hierarchical sparse attention: keys form chunks, and a block of queries attends to the best chunks.

Xiong et al. 2025 (DHSA, arXiv 2510.24606), first version of the official code. The boundaries of chunks depend on the
keys. A chunk's key is the sum of its keys divided by the square root of their number, so that the spread of the scores
of independent keys does not depend on the length of the chunk; a block of queries is pooled in the same way. The tokens
of the best chunks are kept up to a budget.

The official code pools all queries of a block and chooses chunk boundaries over the whole sequence, so outputs depend
on later tokens. Here (ours), a causal block chooses chunks by its first query, and a boundary is used only when the
keys on which it depends are in the past. The tokens of the query's own block and the `local` tokens before it are
always visible.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import attend_gathered, serves
from .dense import dense_attention, visible_keys
from .mixer import ALL_PATTERNS, CC, CS, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads
from .parts import HIDDEN, Part, attend_parts
from .selection import to_blocks


class DynamicSparseState(NamedTuple):
    """The tokens so far, and the query that chooses the chunks for the current block."""

    keys: Tensor  # (B, Hk, L, D)
    values: Tensor  # (B, Hk, L, Dv)
    leader: Tensor  # (B, H, D)


class KeptTokens(NamedTuple):
    """The tokens that were chosen."""

    boundaries: Tensor  # bool (B, Lk), True where a chunk begins
    kept: Tensor  # (B, 1 or H, blocks of queries, n), key indices, the best chunk first
    real: Tensor  # bool of the same shape, False for padding


@dataclass(frozen=True)
class DynamicSparseAttention:
    """Attention to the tokens of the best chunks, in all patterns.

    Args:
        budget: number of keys that a block of queries keeps, including near keys; with all keys, this is plain
            attention.
        local: number of keys before a block that are always kept, in causal self attention only.
        block: number of queries that choose together.
        longest: length of the longest chunk; a chunk begins at every multiple of it, and block and local must be
            multiples of it.
        margin: number of keys on either side on which a boundary depends.
        threshold: change (1 - cosine of the mean keys) above which a boundary is possible.
        radius: a boundary is possible only at the largest change within this number of tokens.
        per_head: each head chooses separately (ours); otherwise chunk scores are averaged over the heads.
        predict: function that returns the score of a boundary at each key (B, L) from keys (B, Hk, L, D), such as
            `BoundaryPredictor`; it must depend on at most `margin` later keys. If None, the score is the change of the
            mean keys (ours).
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    patterns: ClassVar[frozenset[Pattern]] = ALL_PATTERNS
    v_linear: ClassVar[bool] = True
    heads_choose_together: ClassVar[bool] = True  # the chunks are common to all

    budget: int = 1024
    local: int = 64
    block: int = 128
    longest: int = 64
    margin: int = 4
    threshold: float = 0.3
    radius: int = 8
    per_head: bool = False
    predict: Callable[[Tensor], Tensor] | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.block % self.longest or self.local % self.longest:
            raise ValueError(
                f"block and local must be multiples of longest = {self.longest}, got {self.block} and {self.local}"
            )
        if self.longest > 1 and self.local < self.margin + self.radius:
            raise ValueError(
                f"local must be at least margin + radius = {self.margin + self.radius}, so that boundaries before it "
                f"are settled, got {self.local}"
            )

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
        state: DynamicSparseState | None = None,
    ) -> Mixed[DynamicSparseState, KeptTokens]:
        """See `Mixer`. With a state, q, k and v hold only the new tokens, and the mask covers all tokens."""
        if state is not None:
            if pattern is not CS or q_start is not None:
                raise ValueError(
                    f"state needs causal self attention and replaces q_start, got {pattern.value} and q_start {q_start}"
                )
            q_start = state.keys.shape[2]
            k, v = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        start = check_call(self, q, k, v, pattern, q_start)
        if start % self.block and state is None:
            raise ValueError(f"q_start must be a multiple of block = {self.block} without a state, got {q_start}")
        wide = torch.promote_types(q.dtype, torch.float32)
        heads, n_queries = q.shape[1:3]
        causal = pattern is CS
        seen = key_mask(mask, k)
        keys, values = spread_heads(k, heads).to(wide), spread_heads(v, heads).to(wide)
        first, lead = divmod(start, self.block)
        rows = to_blocks(F.pad(q.to(wide), (0, 0, lead, 0)), self.block)  # (B, H, R, T, D)
        if not q.numel() or not k.shape[2]:
            after = (
                DynamicSparseState(k, v, q.new_zeros(*q.shape[:2], q.shape[3])) if causal and state is None else state
            )
            return Mixed(q.new_zeros(*q.shape[:3], v.shape[3]), state=after)
        with torch.no_grad():
            leaders = rows[:, :, :, 0].clone()
            if state is not None and lead:
                leaders[:, :, 0] = state.leader
            if pattern not in (CS, CC):  # padding counts as queries of zeros
                within = to_blocks(seen.unsqueeze(-1).to(wide), self.block)[:, None] if pattern is NS else 1
                leaders = (rows * within).sum(3)
            boundaries = self._boundaries(k, seen)
            limit = None
            if causal:
                limit = (torch.arange(rows.shape[2], device=q.device) + first) * self.block - self.local
            kept, real = self._choose(leaders, keys, seen, boundaries, limit)
        scale = q.shape[3] ** -0.5 if self.scale is None else self.scale
        if serves(q, k, v):
            queries = torch.arange(-lead, rows.shape[2] * self.block - lead, device=q.device).view(-1, self.block)
            queries = queries.where(queries < n_queries, -1).clamp_min(-1)
            index = self._index(seen, kept, real, first, causal)
            out = attend_gathered(q, k, v, queries, index, scale=scale, own_keys_last=causal)
        else:
            parts = self._parts(rows, keys, values, seen, kept, real, first, causal)
            out = attend_parts(parts, rows.shape[2], scale=scale).flatten(1, 2)[:, lead : lead + n_queries]
            out = out.reshape(*q.shape[:3], v.shape[3]).to(q.dtype)
        after = DynamicSparseState(k, v, leaders[:, :, -1]) if causal else None
        if after is not None and not (start + n_queries) % self.block:
            after = after._replace(leader=torch.zeros_like(after.leader))  # the next token begins a new block
        return Mixed(out, state=after, extras=KeptTokens(boundaries, kept, real))

    def _boundaries(self, k: Tensor, seen: Tensor) -> Tensor:
        length = k.shape[2]
        k = k.to(torch.promote_types(k.dtype, torch.float32)) * seen[:, None, :, None]
        change = change_of_mean_keys(k, self.margin) if self.predict is None else self.predict(k)
        around = F.pad(change, (self.radius, self.radius), value=-torch.inf).unfold(1, 2 * self.radius + 1, 1)
        before, after = around[..., : self.radius], around[..., self.radius + 1 :]
        peak = (change.unsqueeze(2) > before).all(2) & (change.unsqueeze(2) >= after).all(2)
        regular = torch.arange(length, device=k.device) % self.longest == 0
        return (peak & (change > self.threshold)) | regular

    def _choose(
        self, leaders: Tensor, keys: Tensor, seen: Tensor, boundaries: Tensor, limit: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The visible tokens of the best chunks, (B, 1 or H, R, n), and which of them are not padding."""
        batch, heads, length, channels = keys.shape
        chunk = boundaries.cumsum(1) - 1  # (B, L)
        chunks = int(chunk[:, -1].max()) + 1
        size = torch.zeros(batch, chunks, dtype=torch.long, device=keys.device).scatter_add(1, chunk, seen.long())
        place = chunk[:, None, :, None].expand(-1, heads, -1, channels)
        sums = keys.new_zeros(batch, heads, chunks, channels).scatter_add(2, place, keys * seen[:, None, :, None])
        pooled = sums * size.clamp_min(1).rsqrt()[:, None, :, None]
        scores = leaders @ pooled.mT  # (B, H, R, C)
        if not self.per_head:
            scores = scores.mean(1, keepdim=True)
        open_to = (size > 0)[:, None, None].expand_as(scores)
        room = self.budget
        if limit is not None:
            begin = boundaries.new_zeros(batch, chunks, dtype=torch.long)
            begin.scatter_reduce_(
                1, chunk, torch.arange(length, device=keys.device).expand_as(chunk), "amin", include_self=False
            )
            open_to = open_to & (begin[:, None] < limit[:, None])[:, None]
            room = max(0, self.budget - self.local - self.block)
        ranked, order = scores.masked_fill(~open_to, -torch.inf).sort(dim=-1, descending=True, stable=True)
        sizes = size[:, None, None].expand_as(order).gather(-1, order).masked_fill(torch.isneginf(ranked), 0)
        ends = sizes.cumsum(-1)
        room = min(room, int(ends[..., -1].max()))
        slot = torch.arange(room, device=keys.device).expand(*order.shape[:3], room).contiguous()
        rank = torch.searchsorted(ends, slot, right=True).clamp_max(chunks - 1)
        inside = slot - (ends - sizes).gather(-1, rank)
        in_time = (~seen).to(torch.uint8).argsort(dim=1, stable=True)  # the visible keys first, in temporal order
        ahead = (size.cumsum(1) - size)[:, None, None].expand_as(order).gather(-1, order.gather(-1, rank))
        kept = in_time[:, None, None].expand(*order.shape[:3], -1).gather(-1, (ahead + inside).clamp_max(length - 1))
        return kept, slot < ends[..., -1:]

    def _index(self, seen: Tensor, kept: Tensor, real: Tensor, first: int, causal: bool) -> Tensor:
        """The keys of each block of queries, (B, 1 or H, R, n), -1 for none; in causal calls its own keys are last."""
        index = kept.where(real, -1)
        if not causal:
            return index
        blocks, length = kept.shape[2], seen.shape[1]
        begin = (torch.arange(blocks, device=kept.device) + first).unsqueeze(1) * self.block - self.local
        near = begin + torch.arange(self.local + self.block, device=kept.device)  # (R, local + block)
        there = (near >= 0) & (near < length) & seen[:, near.clamp(0, length - 1)]  # (B, R, local + block)
        near = near.where(there, -1).unsqueeze(1).expand(-1, kept.shape[1], -1, -1)
        return torch.cat([index, near], -1)

    def _parts(
        self,
        rows: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor,
        kept: Tensor,
        real: Tensor,
        first: int,
        causal: bool,
    ) -> list[Part]:
        batch, blocks = rows.shape[0], rows.shape[2]
        queries = rows.flatten(0, 1)  # (B H, R, T, D)
        parts = [self._gathered(queries, keys, values, kept, real)]
        if not causal:
            return parts
        length = keys.shape[2]
        at = (torch.arange(blocks, device=rows.device) + first).unsqueeze(1) * self.block
        for reach, begin in ((self.local, -self.local), (self.block, 0)):
            if not reach:
                continue
            index = at + begin + torch.arange(reach, device=rows.device)  # (R, reach)
            inside = (index >= 0) & (index < length)
            index = index.clamp(0, length - 1)
            there = inside & seen[:, index]  # (B, R, reach)
            part = self._gathered(queries, keys, values, index.expand(batch, 1, -1, -1), there.unsqueeze(1))
            if begin == 0:
                later = torch.full((reach, reach), HIDDEN, device=rows.device, dtype=rows.dtype).triu(1)
                part = part._replace(bias=later if part.bias is None else part.bias + later)
            parts.append(part)
        return parts

    def _gathered(self, queries: Tensor, keys: Tensor, values: Tensor, index: Tensor, real: Tensor) -> Part:
        batch, heads, length = keys.shape[:3]
        shape = (batch * heads, *index.shape[2:])
        head = torch.arange(batch * heads, device=keys.device).view(batch, heads, 1, 1)
        flat = (head * length + index).flatten()
        k, v = (x.flatten(0, 2).index_select(0, flat).view(*shape, x.shape[3]) for x in (keys, values))
        bias = None
        if not bool(real.all()):
            bias = torch.zeros_like(real, dtype=keys.dtype).masked_fill(~real, HIDDEN)
            bias = bias.expand(batch, heads, -1, -1).flatten(0, 1).unsqueeze(2)  # (B H, R, 1, n)
        return Part(queries, k, v, bias=bias)


def change_of_mean_keys(k: Tensor, margin: int) -> Tensor:
    """1 - cosine between the mean of the `margin` keys before and from each position, (B, L), averaged over heads."""
    sums = F.pad(k, (0, 0, margin, margin)).unfold(2, margin, 1).sum(-1)  # at i: keys i - margin ... i - 1
    length = k.shape[2]
    left, right = sums[:, :, :length], sums[:, :, margin : margin + length]
    change: Tensor = 1 - F.cosine_similarity(left, right, dim=-1)
    return change.mean(1)


def boundary_gain(weights: Tensor, margin: int = 4, epsilon: float = 1e-6) -> Tensor:
    """The gain of a boundary before each key, (B, L), from the weights of a trained model (B, H, L, L).

    r = (max(a, b) + epsilon) / (min(a, b) + epsilon), where a and b are the mean weights over heads that later queries
    (from the row after the `margin` following keys) put on the `margin` keys before and after the position. r is 1 if a
    window does not fit; the paper keeps boundaries with r > 1.1.
    """
    mean = weights.mean(1)
    length = mean.shape[-1]
    corner = F.pad(mean, (1, 0, 1, 0)).cumsum(1).cumsum(2)  # (B, L + 1, L + 1), sums over rows and columns before
    gain = mean.new_ones(mean.shape[0], length)
    place = torch.arange(margin, max(margin, length - margin), device=mean.device)
    if not len(place):
        return gain
    later = corner[:, -1].unsqueeze(1) - corner[:, place + margin]  # (B, places, L + 1): column sums of later rows
    at = [later.gather(2, (place + s).expand(len(mean), -1).unsqueeze(2)).squeeze(2) for s in (-margin, 0, margin)]
    before, after = at[1] - at[0], at[2] - at[1]
    gain[:, place] = (torch.maximum(before, after) + epsilon) / (torch.minimum(before, after) + epsilon)
    return gain


class BoundaryPredictor(nn.Module):
    """Predicts the score of a boundary at each key from the keys around it; trained by `focal_loss` on large gains.

    The labels are `boundary_gain` > 1.1.

    Args:
        channels: channels of all key heads together.
        hidden: width of the window encoder and of the classifier.
        margin: number of keys on either side.
    """

    def __init__(self, channels: int, *, hidden: int = 32, margin: int = 4) -> None:
        super().__init__()
        self.margin = margin
        self.encode = nn.Linear(margin * channels, hidden)
        self.classify = nn.Sequential(nn.Linear(4 * hidden + 1, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, k: Tensor) -> Tensor:
        """Probability of a boundary, (B, L), from keys (B, Hk, L, D)."""
        tokens = k.transpose(1, 2).flatten(2)
        windows = F.pad(tokens, (0, 0, self.margin, self.margin)).unfold(1, self.margin, 1).flatten(2)
        left, right = (self.encode(windows[:, s : s + k.shape[2]]) for s in (0, self.margin))
        cosine = F.cosine_similarity(left, right, dim=-1).unsqueeze(-1)
        features = torch.cat([left, right, (left - right).abs(), left * right, cosine], -1)
        probability: Tensor = self.classify(features).squeeze(-1).sigmoid()
        return probability


def focal_loss(probability: Tensor, label: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean binary cross-entropy in which each case has the weight (1 - probability of the true label) ** gamma."""
    entropy = F.binary_cross_entropy(probability, label.to(probability), reduction="none")
    return ((1 - (-entropy).exp()) ** gamma * entropy).mean()


def reference(
    mixer: DynamicSparseAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention with the mask of the kept tokens, which are chosen for one block after the other."""
    (batch, heads, n_queries, _), n_keys = q.shape, k.shape[2]
    keys, query = k.detach().repeat_interleave(heads // k.shape[1], 1), q.detach()
    live = visible_keys(1, k, mask=mask)[:, 0, 0]
    allowed = torch.zeros(batch, heads, n_queries, n_keys, dtype=torch.bool)
    for b in range(batch):
        chunks = _reference_chunks(mixer, k[b].detach(), live[b])
        for at in range(0, n_queries, mixer.block):
            rows = range(at, min(n_queries, at + mixer.block))
            lowest = at + q_start - mixer.local if pattern is CS else n_keys
            leader = query[b, :, at]
            if pattern not in (CS, CC):
                leader = query[b][:, [i for i in rows if pattern is not NS or live[b, i]]].sum(1)
            ranking = []
            for chunk in chunks:
                inside = [j for j in chunk if live[b, j]]
                if inside and chunk[0] < lowest:
                    ranking.append((inside, (leader * keys[b][:, inside].sum(1) / len(inside) ** 0.5).sum(-1)))
            room = mixer.budget - (mixer.local + mixer.block if pattern is CS else 0)
            for h in range(heads):
                own = [score[h] if mixer.per_head else score.mean() for _, score in ranking]
                order = torch.stack(own).argsort(descending=True, stable=True).tolist() if own else []
                kept = [j for c in order for j in ranking[c][0]][: max(0, room)]
                for i in rows:
                    allowed[b, h, i, kept] = True
                    if pattern is CS:
                        allowed[b, h, i, max(0, lowest) : i + q_start + 1] = True
    return dense_attention(q, k, v, allowed & live[:, None, None], scale=mixer.scale)


def _reference_chunks(mixer: DynamicSparseAttention, k: Tensor, live: Tensor) -> list[list[int]]:
    length, m = k.shape[1], mixer.margin
    k = k * live[:, None]
    change = []
    for i in range(length):
        left, right = k[:, max(0, i - m) : i].sum(1), k[:, i : i + m].sum(1)
        lengths = left.norm(dim=-1).clamp_min(1e-8) * right.norm(dim=-1).clamp_min(1e-8)
        change.append((1 - (left * right).sum(-1) / lengths).mean().item())
    chunks: list[list[int]] = []
    for i in range(length):
        before = change[max(0, i - mixer.radius) : i]
        after = change[i + 1 : i + 1 + mixer.radius]
        peak = change[i] > mixer.threshold and all(change[i] > x for x in before) and all(change[i] >= x for x in after)
        if peak or i % mixer.longest == 0:
            chunks.append([])
        chunks[-1].append(i)
    return chunks
