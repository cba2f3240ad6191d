"""Indicators of a head's pattern: entropy, concentration, diversity, sink and local focus; and strength by distance.

The indicators are an idea after "Deconstructing attention" (2025, arXiv 2510.11602), the strength by distance after
arXiv 2303.13731. `a` is always a map of weights (..., Lq, Lk) whose rows sum to 1; `visible` is bool, broadcastable to
it, and marks the keys that a query may attend to (all if None).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Indicator(NamedTuple):
    """One indicator of one head."""

    layer: int
    head: int
    indicator: str
    value: float


def causal_keys(length: int) -> Tensor:
    """Bool (L, L): the keys that causal attention shows to each query."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def is_causal(a: Tensor) -> bool:
    """Whether no query gives weight to a later key."""
    return a.shape[-1] == a.shape[-2] and not bool(a.triu(1).any())


def row_entropy(a: Tensor, visible: Tensor | None = None) -> Tensor:
    """(..., Lq): -sum a log a / log(visible keys), from 0 to 1; NaN for a row with fewer than two visible keys."""
    counts = _counts(a, visible)
    entropy = torch.special.entr(a).sum(-1)
    return torch.where(counts > 1, entropy / counts.clamp_min(2).log(), torch.nan)


def entropy(a: Tensor, visible: Tensor | None = None) -> Tensor:
    """(...): mean of `row_entropy` over the rows with at least two visible keys."""
    return row_entropy(a, visible).nanmean(-1)


def concentration(a: Tensor, *, rows: bool = False) -> Tensor:
    """The Frobenius norm of the map (...), or the norm of each row (..., Lq)."""
    norm: Tensor = torch.linalg.vector_norm(a, dim=-1 if rows else (-2, -1))
    return norm


def diversity(a: Tensor, visible: Tensor | None = None) -> Tensor:
    """(...) of maps (..., H, Lq, Lk): mean over the visible pairs of the standard deviation over heads.

    For a causal map, this is 2 / (L (L + 1)) sum_{j <= i} std_h a_hij.
    """
    spread = a.std(-3, correction=0)
    if visible is None:
        return spread.flatten(-2).mean(-1)
    seen = visible.expand(spread.shape)
    return (spread * seen).sum((-2, -1)) / seen.sum((-2, -1))


def first_key_share(a: Tensor) -> Tensor:
    """(...): mean over rows of the weight on key 0."""
    return a[..., 0].mean(-1)


def local_focus(a: Tensor, lag: int) -> Tensor:
    """(...): mean weight on the key `lag` places before the query."""
    return a.diagonal(-lag, -2, -1).mean(-1)


def indicator_table(maps: Tensor, *, causal: bool, lags: tuple[int, ...] = (0, 1, 2, 3)) -> list[Indicator]:
    """All indicators of the heads of maps (layers, B, H, L, L), as means over the batch.

    The diversity of a layer is listed for each of its heads.
    """
    visible = causal_keys(maps.shape[-1]) if causal else None
    found = {
        "entropy": entropy(maps, visible),
        "concentration": concentration(maps),
        "diversity": diversity(maps, visible).unsqueeze(-1).expand(maps.shape[:3]),
        "first key": first_key_share(maps),
        **{f"lag {lag}": local_focus(maps, lag) for lag in lags if lag < maps.shape[-1]},
    }
    return [
        Indicator(layer, head, name, float(value))
        for name, values in found.items()
        for layer, row in enumerate(values.mean(1))
        for head, value in enumerate(row)
    ]


def grid_rings(shape: tuple[int, ...], metric: Literal["chebyshev", "euclidean"] = "chebyshev") -> Tensor:
    """Int (L, L): the distance between the tokens of a grid in row-major order; Euclidean distances are rounded."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    place = torch.stack(axes, -1).flatten(0, -2)
    return torch.cdist(place, place, torch.inf if metric == "chebyshev" else 2.0).round().long()


def graph_rings(adjacency: Tensor) -> Tensor:
    """Int (L, L): number of edges on the shortest path between two nodes; -1 if there is none."""
    edges = adjacency.bool()
    count = len(edges)
    hops = torch.full((count, count), -1)
    reached = torch.eye(count, dtype=torch.bool)
    hops[reached] = 0
    for step in range(1, count):
        new = (reached.double() @ edges.double() > 0) & (hops < 0)
        if not new.any():
            break
        hops[new] = step
        reached = new
    return hops


class RingStrength(NamedTuple):
    """Attention by distance."""

    total: Tensor  # (..., R), mean over tokens of the weight on the ring at distance r
    per_token: Tensor  # (..., R), the weight on a single token of the ring, over the tokens that have such a ring
    class_share: Tensor  # (...), the weight on the class tokens


def ring_strength(a: Tensor, rings: Tensor, *, class_tokens: int = 0) -> RingStrength:
    """Attention against distance; the totals and the class tokens' share sum to 1.

    Rings are cut at the border of a grid; `per_token` corrects for this.

    Args:
        a: (..., L, L).
        rings: int (n, n), distances; -1 is no ring.
        class_tokens: number of tokens before the n others, L = class_tokens + n; their own rows do not count.
    """
    if a.shape[-1] != class_tokens + len(rings) or a.shape[-2] != a.shape[-1]:
        raise ValueError(
            f"a must have shape (..., {class_tokens + len(rings)}, {class_tokens + len(rings)}) to match rings and "
            f"class_tokens, got {tuple(a.shape)}"
        )
    rows = a[..., class_tokens:, :]
    inside = rows[..., class_tokens:]
    sums, each = [], []
    for radius in range(int(rings.max()) + 1):
        member = (rings == radius).to(a.dtype)
        count = member.sum(-1)
        weight = (inside * member).sum(-1)
        sums.append(weight.mean(-1))
        each.append((weight / count.clamp_min(1)).sum(-1) / (count > 0).sum().clamp_min(1))
    return RingStrength(torch.stack(sums, -1), torch.stack(each, -1), rows[..., :class_tokens].sum(-1).mean(-1))


def _counts(a: Tensor, visible: Tensor | None) -> Tensor:
    if visible is None:
        return torch.full(a.shape[:-1], a.shape[-1], dtype=a.dtype, device=a.device)
    return visible.to(a.device).expand(a.shape).sum(-1).to(a.dtype)
