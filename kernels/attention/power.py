"""PowerAttention: a static sparse mask with a reach of 2^n after n layers.

Chen, Wang, Zhou et al. 2025 (arXiv 2503.03588). The tokens form blocks. With beta(i) = i // block and
d = beta(i) - beta(j), query i attends to key j <= i if d < window, or d is a power of two, or beta(j) < sink. With
blocks of one token, window 1 and no sink, a token reaches after n layers exactly the distances that have at most n ones
in binary, which include all distances below 2^n. The paper keeps full attention in 2 of every 7 layers.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocks import attend_lists, pack, serves
from .dense import dense_attention, visible_keys
from .mixer import CS, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads
from .parts import HIDDEN, Part, attend_parts
from .selection import to_blocks


@dataclass(frozen=True)
class PowerAttention:
    """Attention to near blocks and to blocks at distances that are powers of two.

    It takes O(L (window + sink + log2(L / block)) block D) multiply-adds and O(L D) memory. The non-causal form (ours)
    uses |d|. Cross patterns are not supported, since positions in two sequences are not comparable.

    Args:
        block: number of tokens in a block; 64 suits short sequences, the paper uses 256.
        window: number of near blocks to which a query attends, including its own block.
        sink: number of first blocks to which every query attends.
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    patterns: ClassVar[frozenset[Pattern]] = frozenset({NS, CS})
    v_linear: ClassVar[bool] = True

    block: int = 256
    window: int = 5
    sink: int = 1
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.block < 1 or self.window < 1 or self.sink < 0:
            raise ValueError(
                "block and window must be at least 1 and sink not negative, "
                f"got {self.block}, {self.window} and {self.sink}"
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
    ) -> Mixed[None, None]:
        start = check_call(self, q, k, v, pattern, q_start)
        causal = pattern is CS
        n_queries, n_keys = q.shape[2], k.shape[2]
        if not q.numel():
            return Mixed(q.new_zeros(*q.shape[:3], v.shape[3]))
        scale = q.shape[3] ** -0.5 if self.scale is None else self.scale
        if serves(q, k, v):
            lists = self._lists(start, n_queries, n_keys, causal)
            visible = None if mask is None else key_mask(mask, k)
            packed = pack(k, self.block)
            out, _ = attend_lists(q, packed, v, lists, scale=scale, causal=causal, start=start, visible=visible)
            return Mixed(out)
        wide = torch.promote_types(q.dtype, torch.float32)
        first, lead = divmod(start, self.block)  # queries may start in the middle of a block
        query = q.to(wide)
        rows = self._blocks(F.pad(query, (0, 0, lead, 0)) if lead else query)  # (B H, R, T, D)
        keys, values = (self._blocks(spread_heads(x, q.shape[1]).to(wide)) for x in (k, v))
        hidden = None
        if mask is not None or (n_keys % self.block and not causal):  # the padded keys are after every query
            seen = F.pad(key_mask(mask, k), (0, -n_keys % self.block)).unflatten(1, (-1, self.block))
            bias = torch.zeros_like(seen, dtype=wide).masked_fill(~seen, HIDDEN)
            hidden = bias.repeat_interleave(q.shape[1], 0).unsqueeze(2)  # (B H, C, 1, T)
        parts = self._parts(rows, keys, values, hidden, first, causal)
        out = attend_parts(parts, rows.shape[1], scale=scale)
        out = out.flatten(1, 2)[:, lead : lead + n_queries]
        return Mixed(out.reshape(*q.shape[:3], v.shape[3]).to(q.dtype))

    def _blocks(self, x: Tensor) -> Tensor:
        padding = -x.shape[2] % self.block
        padded = F.pad(x, (0, 0, 0, padding)) if padding else x  # padding by 0 would copy
        blocks: Tensor = padded.unflatten(2, (-1, self.block)).flatten(0, 1)
        return blocks

    def offsets(self, blocks: int) -> list[int]:
        """The distances in blocks, without the sink, that occur among this number of blocks; 0 is the first."""
        powers = [1 << p for p in range(blocks.bit_length()) if self.window <= 1 << p < blocks]
        return [*range(min(self.window, blocks)), *powers]

    def _lists(self, start: int, n_queries: int, n_keys: int, causal: bool) -> list[list[int]]:
        """The key blocks to which each block of queries attends."""
        count = -(-n_keys // self.block)
        offsets = self.offsets(count)
        steps = sorted({0, *(-d for d in offsets), *(() if causal else offsets)})
        lists = []
        for row in range(start // self.block, (start + n_queries - 1) // self.block + 1):
            sinks = range(min(self.sink, count, row + 1) if causal else min(self.sink, count))
            lists.append(sorted({*sinks, *(row + d for d in steps if 0 <= row + d < count)}))
        return lists

    def reached(self, marked: Tensor, n_queries: int, *, causal: bool = False, q_start: int = 0) -> Tensor:
        """The queries that may see one of the marked keys, bool (B, H, Lq) of (B, H, Lk)."""
        inside = to_blocks(marked.unsqueeze(-1), self.block).squeeze(-1)  # (B, H, C, T)
        blocks = inside.shape[2]
        column = torch.arange(blocks, device=marked.device)
        d = column.unsqueeze(1) - column
        apart = d if causal else d.abs()
        near = torch.isin(apart, torch.tensor(self.offsets(blocks), device=marked.device))
        seen = near | ((column < self.sink) & (apart >= 0))
        if causal:
            seen = seen & (d > 0)  # in the own block, order counts
        rows = (seen & inside.any(-1).unsqueeze(2)).any(-1).unsqueeze(-1).expand(inside.shape)
        if causal:
            rows = rows | (inside.cumsum(-1) > 0)
        return rows.flatten(2)[..., q_start : q_start + n_queries]

    def _parts(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, first: int, causal: bool) -> list[Part]:
        count, blocks = q.shape[1], k.shape[1]
        offsets = self.offsets(blocks)
        parts = []
        near = self.window - 1  # contiguous, so they are one part for the rows that have all of them
        begin = max(0, near - first)
        joined = causal and near > 1 and begin < count
        if joined:
            at = slice(first + begin - near, first + count - 1)
            bias = None if hidden is None else _windows(hidden[:, at].mT, near).mT
            k_near, v_near = (_windows(x[:, at], near) for x in (k, v))
            parts.append(Part(q[:, begin:], k_near, v_near, slice(begin, count), False, bias))
        for d in offsets if causal else [*offsets, *(-d for d in offsets[1:])]:
            rows = slice(max(0, d - first), min(count, blocks - first + d))  # those whose key block exists
            if joined and 0 < d <= near:
                rows = slice(rows.start, min(begin, rows.stop))
            at = slice(first + rows.start - d, first + rows.stop - d)
            if rows.start >= rows.stop:
                continue
            bias = None if hidden is None else hidden[:, at]
            diagonal = causal and d == 0
            if diagonal and bias is not None:
                bias = bias + torch.full_like(bias[0, 0, 0], HIDDEN).expand(self.block, -1).triu(1)
            parts.append(Part(q[:, rows], k[:, at], v[:, at], rows, diagonal and bias is None, bias))
        for sink in range(min(self.sink, blocks)):
            distance = (torch.arange(count) + first - sink).tolist()
            far = [
                r for r, d in enumerate(distance) if (d if causal else abs(d)) not in offsets and (d > 0 or not causal)
            ]
            if far:
                rows_far = torch.tensor(far, device=q.device)
                shape = (-1, len(far), -1, -1)
                k_sink, v_sink = (x[:, sink : sink + 1].expand(shape) for x in (k, v))
                bias = None if hidden is None else hidden[:, sink : sink + 1].expand(shape)
                parts.append(Part(q[:, rows_far], k_sink, v_sink, rows_far, False, bias))
        return parts


def _windows(x: Tensor, near: int) -> Tensor:
    """Windows of `near` neighbouring blocks of (N, C, T, D), as a view (N, C - near + 1, near T, D)."""
    windows: Tensor = x.flatten(1, 2).unfold(1, near * x.shape[2], x.shape[2])
    return windows.mT


def power_mask(length: int, *, block: int, window: int, sink: int, causal: bool = True) -> Tensor:
    """The mask of the paper, bool (length, length): the keys (columns) to which each query (row) attends."""
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1 if causal else length):
            d = abs(i // block - j // block)
            allowed[i, j] = d < window or d & (d - 1) == 0 or j // block < sink
    return allowed


def reference(
    mixer: PowerAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention with the explicit mask."""
    allowed = power_mask(k.shape[2], block=mixer.block, window=mixer.window, sink=mixer.sink, causal=pattern is CS)[
        q_start : q_start + q.shape[2]
    ]
    visible = visible_keys(q.shape[2], k, causal=pattern is CS, q_start=q_start, mask=mask)
    return dense_attention(q, k, v, allowed & visible, scale=mixer.scale)
