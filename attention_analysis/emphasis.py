"""Emphasis of a group of tokens, against the fading of its attention in deep layers.

An idea after arXiv 2501.12206. The default adds alpha times the row's standard deviation of the scores; the published
form adds alpha |s|, whose effect depends on the origin of the scores, which a softmax ignores.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .edits import ScoreBias, WeightEdit

Form = Literal["deviation", "absolute"]


class Fading(NamedTuple):
    """The weight on a group in each layer (layers), and its slope per layer."""

    share: Tensor
    slope: float


def fading_curve(maps: Tensor, group: Tensor, rows: slice = slice(-1, None)) -> Fading:
    """The group's weight in maps (layers, ..., H, Lq, Lk), as the mean over heads, samples and the given rows."""
    share = (maps[..., rows, :] * group).sum(-1).flatten(1).mean(1)
    layer = torch.arange(len(share), dtype=share.dtype)
    centred = layer - layer.mean()
    slope = (centred * share).sum() / centred.square().sum().clamp_min(1)
    return Fading(share, float(slope))


class Choice(NamedTuple):
    """Tokens, bool (L) each."""

    emphasised: Tensor
    bottom: Tensor


def choose_tokens(first: Tensor, late: Tensor, *, class_token: int = 0, share: float = 0.25) -> Choice:
    """Choose tokens by the first encoder layer, less the outliers of a late layer.

    The local stream is the top `share` by the class token's attention in the first layer, the spatial stream the top
    `share` by the sum of attention received there. The bottom set receives more than Q3 + 1.5 (Q3 - Q1) in the late
    layer. The class token is never chosen.

    Args:
        first: map of the first layer, mean over heads, (L, L).
        late: map of the second-last layer, mean over heads, (L, L).
    """
    others = torch.arange(len(first)) != class_token
    count = max(1, round(share * int(others.sum())))

    def top(values: Tensor) -> Tensor:
        chosen = torch.zeros_like(others)
        chosen[values.masked_fill(~others, -torch.inf).argsort(descending=True, stable=True)[:count]] = True
        return chosen

    received = late.sum(0)
    low, high = received[others].quantile(torch.tensor([0.25, 0.75], dtype=received.dtype))
    bottom = (received > high + 1.5 * (high - low)) & others
    return Choice((top(first[class_token]) | top(first.sum(0))) & ~bottom, bottom)


def emphasise_scores(
    scores: Tensor,
    emphasised: Tensor,
    bottom: Tensor | None = None,
    *,
    alpha: float | Tensor = 0.7,
    beta: float | Tensor = 0.3,
    form: Form = "deviation",
) -> Tensor:
    """s + alpha size(s) on the emphasised tokens and s + beta size(s) on the bottom set.

    Args:
        scores: (..., Lq, Lk); -inf is a key that is not visible.
        emphasised: bool (Lk).
        bottom: bool (Lk); none if None.
        alpha, beta: numbers, or tensors broadcastable to (..., Lq, Lk), such as one number per head.
        form: size is the row's standard deviation over visible keys ("deviation"), or |s| ("absolute").
    """
    visible = scores > -torch.inf
    finite = scores.where(visible, 0)
    if form == "absolute":
        size = finite.abs()
    else:
        count = visible.sum(-1, keepdim=True).clamp_min(1)
        mean = finite.sum(-1, keepdim=True) / count
        size = (((finite - mean).square() * visible).sum(-1, keepdim=True) / count).sqrt()
    added = alpha * size * emphasised
    if bottom is not None:
        added = added + beta * size * bottom
    return scores + added


def emphasise(
    a: Tensor,
    emphasised: Tensor,
    bottom: Tensor | None = None,
    *,
    alpha: float | Tensor = 0.7,
    beta: float | Tensor = 0.3,
    rows: slice = slice(-1, None),
) -> Tensor:
    """Weights (..., Lq, Lk) after `emphasise_scores` with "deviation" in some rows.

    The scores are log a, up to a constant of the row, which the deviation ignores; so this works for any mechanism with
    a map. Rows keep their sum of 1, zeros stay 0, and tokens outside both sets keep their ratios.
    """
    if bottom is None:
        bottom = torch.zeros_like(emphasised)
    out = a.clone()
    changed = emphasise_scores(a[..., rows, :].log(), emphasised, bottom, alpha=alpha, beta=beta)
    blind = changed.isneginf().all(-1, keepdim=True)
    unchanged = changed == a[..., rows, :].log()
    new = changed.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    out[..., rows, :] = torch.where(unchanged.all(-1, keepdim=True), a[..., rows, :], new)
    return out


def emphasis_edits(
    layers: Collection[int],
    emphasised: Tensor,
    bottom: Tensor | None = None,
    *,
    alpha: float | Tensor = 0.7,
    beta: float = 0.3,
) -> list[WeightEdit]:
    """Edits that emphasise tokens for the last query in all heads of some layers."""

    def change(a: Tensor) -> Tensor:
        return emphasise(a, emphasised, bottom, alpha=alpha, beta=beta)

    return [WeightEdit(layer, change) for layer in layers]


def absolute_emphasis(layer: int, emphasised: Tensor, *, alpha: float, scale: float | None = None) -> ScoreBias:
    """The published form, s + alpha |s| for the last query, as a bias for softmax attention with the scores q·k."""

    def bias(q: Tensor, k: Tensor) -> Tensor:
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q[:, :, -1:] @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        added = q.new_zeros(*q.shape[:3], k.shape[2])
        added[:, :, -1:] = alpha * scores.abs() * emphasised
        return added

    return ScoreBias(layer, bias)


def factor_by_rank(sensitivity: Tensor, alpha: float) -> Tensor:
    """alpha times the rank of each head's sensitivity (H), from 1 / H to 1, as (H, 1, 1): ours."""
    rank = sensitivity.argsort(stable=True).argsort(stable=True)
    return alpha * (rank + 1).to(sensitivity.dtype).view(-1, 1, 1) / len(sensitivity)
