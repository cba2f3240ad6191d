"""How far back heads look, and the tokens that later tokens look back at, in causal models.

An idea after arXiv 2510.13554, for sequences such as scanpaths or windows of EEG. `a` is a causal map (L, L) or, where
said, maps (heads, L, L). A bidirectional encoder has no such figures: its maps raise a ValueError.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .indicators import is_causal


def backward_distance(a: Tensor, rows: slice = slice(None)) -> Tensor:
    """(...): mean over rows t of sum_s a_ts (t - s), for maps (..., L, L)."""
    _check_causal(a)
    index = torch.arange(a.shape[-1], dtype=a.dtype)
    return (a * (index[:, None] - index)).sum(-1)[..., rows].mean(-1)


class LocalGlobal(NamedTuple):
    """Mean maps (L, L) of the heads with the smallest and the largest backward distance, and their indices."""

    local: Tensor
    far: Tensor
    local_heads: Tensor
    far_heads: Tensor


def local_and_global(maps: Tensor, *, share: float = 0.3, rows: slice = slice(None)) -> LocalGlobal:
    """Split heads (heads, L, L) by their backward distance; at least one head is in each set."""
    order = backward_distance(maps, rows).argsort(stable=True)
    count = max(1, round(share * len(order)))
    near, far = order[:count], order[-count:]
    return LocalGlobal(maps[near].mean(0), maps[far].mean(0), near, far)


def middle_layers(count: int, number: int = 5) -> list[int]:
    """Evenly spaced layers of the middle third."""
    first, last = count // 3, max(count // 3, 2 * count // 3 - 1)
    return sorted({round(float(x)) for x in torch.linspace(first, last, min(number, last - first + 1))})


def windowed_distance(a: Tensor, window: int = 10) -> Tensor:
    """WAAD (..., L): sum_s a_ts min(t - s, window)."""
    _check_causal(a)
    index = torch.arange(a.shape[-1])
    age = (index[:, None] - index).clamp(0, window).to(a.dtype)
    return (a * age).sum(-1)


def future_influence(a: Tensor, *, nearest: int = 10, farthest: int = 50, rows: slice = slice(None)) -> Tensor:
    """FAI (..., L): mean of a_ts over the rows t with s + nearest <= t <= s + farthest; NaN without such a row."""
    _check_causal(a)
    length = a.shape[-1]
    index = torch.arange(length)
    used = torch.zeros(length, dtype=torch.bool)
    used[rows] = True
    age = index[:, None] - index
    window = ((age >= nearest) & (age <= farthest) & used[:, None]).to(a.dtype)
    count = window.sum(0)
    return torch.where(count > 0, (a * window).sum(-2) / count.clamp_min(1), torch.nan)


def receiver_kurtosis(a: Tensor) -> Tensor:
    """(...): kurtosis of the column means of maps (..., L, L); large if a few keys receive most of the attention."""
    means = a.mean(-2)
    centred = means - means.mean(-1, keepdim=True)
    variance = centred.square().mean(-1)
    return torch.where(variance > 0, centred.pow(4).mean(-1) / variance.clamp_min(1e-300).square(), torch.nan)


class Plan(NamedTuple):
    """Tokens of a sequence, bool (L) each, and the credit (L) of each token."""

    preplan: Tensor
    anchor: Tensor
    dominated: Tensor
    credit: Tensor


def plan(
    waad: Tensor,
    fai: Tensor,
    *,
    share: float = 0.4,
    amplification: float = 1.5,
    handed_back: float = 0.5,
    back: int = 3,
) -> Plan:
    """Preplan tokens, anchors and credit: weights for the loss of a sequence.

    Preplan tokens are the top `share` of |WAAD_t - WAAD_{t+1}|, anchors that of FAI. An anchor is locally dominated if
    its WAAD is at most the median and one of the `back` tokens before it is a preplan token; it then hands the part
    `handed_back` of its bonus to the latest such token. credit_t = 1 + (amplification - 1) bonus_t.

    Args:
        waad: (L).
        fai: (L); NaN is never an anchor.
    """
    step = torch.zeros_like(waad)
    step[:-1] = (waad[:-1] - waad[1:]).abs()
    preplan, anchor = _top(step, share), _top(fai, share)
    bonus = anchor.to(waad.dtype)
    dominated = torch.zeros_like(anchor)
    for t in anchor.nonzero().flatten().tolist():
        before = preplan[max(0, t - back) : t].nonzero().flatten()
        if len(before) and waad[t] <= waad.median():
            dominated[t] = True
            bonus[t] -= handed_back
            bonus[max(0, t - back) + int(before[-1])] += handed_back
    return Plan(preplan, anchor, dominated, 1 + (amplification - 1) * bonus)


class Lift(NamedTuple):
    """How much more often one kind of peak follows another than by chance, (observed - chance) / chance."""

    lift: float
    low: float  # limits of the interval in which 95 % of the lifts of shuffled peaks lie, around `lift`
    high: float


def coupling(first: Tensor, second: Tensor, *, within: int = 3, shuffles: int = 1000, seed: int = 0) -> Lift:
    """How often a peak of `second` (bool L) is at, or up to `within` tokens after, a peak of `first` (bool L).

    Chance is the mean over random places of the first kind of peak.

    Raises:
        ValueError: there is no peak of a kind.
    """
    if not first.any() or not second.any():
        raise ValueError("coupling needs at least one peak of each kind")
    followed = torch.stack([second.roll(-k) & _not_last(len(second), k) for k in range(within + 1)]).any(0).double()
    return _lift(followed, first, shuffles, seed)


def lift_at(values: Tensor, peaks: Tensor, *, shuffles: int = 1000, seed: int = 0) -> Lift:
    """How much larger a quantity (L), such as the entropy, is at the peaks (bool L) than at random places."""
    return _lift(values.double(), peaks, shuffles, seed)


def _lift(values: Tensor, peaks: Tensor, shuffles: int, seed: int) -> Lift:
    generator = torch.Generator().manual_seed(seed)
    count = int(peaks.sum())
    random = torch.stack(
        [values[torch.randperm(len(values), generator=generator)[:count]].mean() for _ in range(shuffles)]
    )
    chance = values.mean()
    observed = float((values[peaks].mean() - chance) / chance)
    low, high = ((random - chance) / chance).quantile(torch.tensor([0.025, 0.975], dtype=random.dtype)).tolist()
    return Lift(observed, observed - high, observed - low)


def _top(values: Tensor, share: float) -> Tensor:
    known = values.isfinite()
    count = max(1, round(share * int(known.sum())))
    index = values.where(known, -torch.inf).argsort(descending=True, stable=True)[:count]
    top = torch.zeros(len(values), dtype=torch.bool)
    top[index] = True
    return top & known


def _not_last(length: int, count: int) -> Tensor:
    return torch.arange(length) < length - count


def _check_causal(a: Tensor) -> None:
    if not is_causal(a):
        raise ValueError("the map must be causal: a bidirectional encoder has no backward distance or future influence")
