"""Bi-level routing attention: regions choose regions, and then their tokens attend to each other.

Zhu, Wang, Ke, Zhang and Lau 2023 (BiFormer, arXiv 2303.08810), section 3.2. A grid of tokens is divided into regions.
The mean queries and keys of the regions (without gradient) give the affinity between regions, and the tokens of a
region attend to all tokens of its best regions. With n regions the cost is O(n^2 C + L top (L / n) D); n near L^(2/3)
is best.

There are two differences from the official code: padding tokens take no part in attention, and the scale is
D^(-1/2) with D the channels of a head, not all channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import attend_gathered, serves
from .dense import dense_attention, visible_keys
from .mixer import NC, NON_CAUSAL, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads
from .selection import top_k
from .softmax import attention


class RegionRoutes(NamedTuple):
    """The regions that were chosen."""

    chosen: Tensor  # (B, 1 or H, query regions, K), indices of key regions, best first


@dataclass(frozen=True)
class BilevelAttention:
    """Attention of the tokens of a region to the tokens of its `top` best regions.

    It supports self and cross attention without causality. In cross attention, the grids of queries and keys may
    differ, like those of a fixed and a moving image; the tokens are in the order of the flattened grid.

    Args:
        grid: number of tokens along each axis of the queries.
        region: number of tokens of a region along each axis; see `regions_of`. The last region of an axis may be
            shorter.
        top: number of regions to which a region attends; with all regions, this is plain attention.
        key_grid: number of tokens along each axis of the keys; `grid` if None.
        per_head: each head chooses separately (ours); otherwise the affinities are summed over the heads.
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    patterns: ClassVar[frozenset[Pattern]] = NON_CAUSAL
    v_linear: ClassVar[bool] = True

    grid: tuple[int, ...]
    region: tuple[int, ...]
    top: int
    key_grid: tuple[int, ...] | None = None
    per_head: bool = False
    scale: float | None = None

    def __post_init__(self) -> None:
        axes = {len(self.grid), len(self.region), len(self.key_grid or self.grid)}
        if len(axes) > 1 or min(self.region) < 1 or self.top < 1:
            raise ValueError(
                "grid, region and key_grid must have as many axes, region and top be at least 1, "
                f"got {self.grid}, {self.region}, {self.key_grid} and top={self.top}"
            )

    @property
    def heads_choose_together(self) -> bool:
        """Whether the keys of one head decide which regions another one sees."""
        return not self.per_head

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
    ) -> Mixed[None, RegionRoutes]:
        check_call(self, q, k, v, pattern, q_start)
        key_grid = self.key_grid or self.grid
        for name, tensor, grid in (("q", q, self.grid), ("k", k, key_grid)):
            if tensor.shape[2] != math.prod(grid):
                raise ValueError(
                    f"{name} must have {math.prod(grid)} tokens for its grid {grid}, got {tensor.shape[2]}"
                )
        heads = q.shape[1]
        wide = torch.promote_types(q.dtype, torch.float32)
        seen = key_mask(mask, k)
        rows, real_rows = _region_index(self.grid, self.region, q.device)  # (R, T)
        columns, real_columns = _region_index(key_grid, self.region, q.device)
        if not rows.numel() or not columns.numel():
            return Mixed(q.new_zeros(*q.shape[:3], v.shape[3]))
        visible = seen[:, columns] & real_columns  # (B, C, S)
        counted = visible if pattern is NS else real_rows.expand(q.shape[0], *rows.shape)
        keys, values = spread_heads(k, heads).to(wide), spread_heads(v, heads).to(wide)
        query, key_regions = q.to(wide)[:, :, rows], keys[:, :, columns]  # (B, H, regions, tokens, D)
        chosen = self._route(query.detach(), key_regions.detach(), counted, visible)
        top = chosen.shape[3]
        if top == len(columns):
            out = attention(q.to(wide), keys, values, mask=mask, scale=self.scale)
            return Mixed(out.to(q.dtype), extras=RegionRoutes(chosen))

        scale = q.shape[3] ** -0.5 if self.scale is None else self.scale
        if serves(q, k, v):
            alive = torch.where(visible, columns, -1)[:, None, :, None].expand(-1, chosen.shape[1], -1, top, -1)
            index = alive.gather(2, chosen[..., None].expand(-1, -1, -1, -1, columns.shape[1])).flatten(3)
            out = attend_gathered(q, k, v, rows.where(real_rows, -1), index, scale=scale)
            return Mixed(out, extras=RegionRoutes(chosen))

        # the tokens of the chosen regions, (B, 1 or H, R, top S), concatenated
        place = columns[chosen].flatten(3).expand(-1, heads, -1, -1)
        picked = seen[torch.arange(q.shape[0], device=q.device).view(-1, 1, 1, 1), place]
        picked = picked & real_columns[chosen].flatten(3)
        head = torch.arange(q.shape[0] * heads, device=q.device).view(q.shape[0], heads, 1, 1)
        flat = (head * k.shape[2] + place).flatten()
        keys, values = (
            x.flatten(0, 2).index_select(0, flat).view(-1, len(rows), top * columns.shape[1], x.shape[3])
            for x in (keys, values)
        )
        allowed = blind = None
        if mask is not None or columns.numel() > k.shape[2]:
            blind = ~picked.any(-1, keepdim=True)
            allowed = (picked | blind).flatten(0, 1).unsqueeze(2)  # (B H, R, 1, top S)
        out = F.scaled_dot_product_attention(query.flatten(0, 1), keys, values, attn_mask=allowed, scale=scale)
        out = out.unflatten(0, (-1, heads))
        if blind is not None:
            out = out.masked_fill(blind.unsqueeze(3), 0)
        back = torch.where(real_rows, rows, rows.numel()).flatten().argsort()[: q.shape[2]]  # padding comes last
        return Mixed(out.flatten(2, 3)[:, :, back].to(q.dtype), extras=RegionRoutes(chosen))

    def _route(self, query: Tensor, keys: Tensor, counted: Tensor, visible: Tensor) -> Tensor:
        means = []
        for x, real in ((query, counted), (keys, visible)):
            weight = real[:, None, :, :, None].to(x)
            means.append((x * weight).sum(3) / weight.sum(3).clamp_min(1))
        affinity = means[0] @ means[1].mT  # (B, H, R, C)
        if not self.per_head:
            affinity = affinity.sum(1, keepdim=True)
        affinity = affinity.masked_fill(~visible.any(-1)[:, None, None], -torch.inf)
        return top_k(affinity, min(self.top, affinity.shape[-1]))


class LocalEnhancement(nn.Module):
    """A depthwise convolution of the values on their grid ("LEPE"), which BiFormer adds to the output of attention.

    Args:
        heads: key heads.
        channels: channels of the values of a head.
        axes: number of axes of the grid, 1 to 3.
        kernel: width along each axis, odd.
    """

    def __init__(self, heads: int, channels: int, axes: int, *, kernel: int = 5) -> None:
        super().__init__()
        if kernel % 2 == 0 or not 1 <= axes <= 3:
            raise ValueError(f"kernel must be odd and the grid have 1 to 3 axes, got {kernel} and {axes}")
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.convolution = convolution(
            heads * channels, heads * channels, kernel, padding="same", groups=heads * channels
        )

    def forward(self, v: Tensor, grid: tuple[int, ...], mask: Tensor | None = None) -> Tensor:
        """(B, Hk, L, Dv) values -> (B, Hk, L, Dv); masked values count as 0."""
        values = v * key_mask(mask, v)[:, None, :, None].to(v)
        image = values.mT.flatten(1, 2).unflatten(2, grid)  # (B, Hk Dv, *grid)
        local: Tensor = self.convolution(image).flatten(2).unflatten(1, (v.shape[1], v.shape[3]))
        return local.mT


def regions_of(grid: tuple[int, ...], count: int = 7) -> tuple[int, ...]:
    """The region sizes that give `count` regions along each axis, as in BiFormer."""
    return tuple(-(-side // count) for side in grid)


def _region_index(grid: tuple[int, ...], region: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The token indices of each region (R, T), and which of them are real; padding has index 0."""
    numbers = torch.arange(math.prod(grid), device=device).view(grid)
    padding = [p for side, size in zip(reversed(grid), reversed(region), strict=True) for p in (0, -side % size)]
    numbers = F.pad(numbers, padding, value=-1)
    for axis, size in enumerate(region):
        numbers = numbers.unflatten(2 * axis, (-1, size))
    axes = range(len(grid))
    numbers = numbers.permute(*(2 * a for a in axes), *(2 * a + 1 for a in axes))
    numbers = numbers.reshape(math.prod(numbers.shape[: len(grid)]), math.prod(region))
    return numbers.clamp_min(0), numbers >= 0


def reference(
    mixer: BilevelAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention with the explicit mask [region of j is chosen by the region of i]."""
    batch, heads, n_queries, _ = q.shape
    keys = k.detach().repeat_interleave(heads // k.shape[1], 1)
    live = visible_keys(1, k, mask=mask)[:, 0, 0]
    row_regions = _regions(mixer.grid, mixer.region)
    column_regions = _regions(mixer.key_grid or mixer.grid, mixer.region)
    allowed = torch.zeros(batch, heads, n_queries, k.shape[2], dtype=torch.bool)
    for b in range(batch):
        inside = [[j for j in columns if live[b, j]] for columns in column_regions]
        for rows in row_regions:
            counted = [i for i in rows if pattern is NC or live[b, i]]
            scores = torch.full((heads, len(inside)), -torch.inf, dtype=q.dtype)
            for c, columns in enumerate(inside):
                if columns and counted:
                    scores[:, c] = (q[b, :, counted].detach().mean(1) * keys[b, :, columns].mean(1)).sum(-1)
                elif columns:
                    scores[:, c] = 0
            for h in range(heads):
                own = scores[h] if mixer.per_head else scores.sum(0)
                for c in own.argsort(descending=True, stable=True)[: mixer.top].tolist():
                    for i in rows:
                        allowed[b, h, i, inside[c]] = True
    return dense_attention(q, k, v, allowed, scale=mixer.scale)


def _regions(grid: tuple[int, ...], region: tuple[int, ...]) -> list[list[int]]:
    """The tokens of each region, in the order of the flattened grid of regions."""
    members: dict[tuple[int, ...], list[int]] = {}
    for token in range(math.prod(grid)):
        rest, place = token, []
        for side in reversed(grid):
            place.append(rest % side)
            rest //= side
        members.setdefault(tuple(p // s for p, s in zip(reversed(place), region, strict=True)), []).append(token)
    return [members[key] for key in sorted(members)]
