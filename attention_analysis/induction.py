"""Progress measures of an induction circuit: how far a model has learned to find a label in its context.

An idea after Reddy (2023, arXiv 2312.03002). A sequence is x_1 l_1 ... x_N l_N x_t: items and labels in turn, and a
target, whose label is asked for; maps are causal, (B, H, 2 N + 1, 2 N + 1).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class InductionMeasures(NamedTuple):
    """Means over the batch."""

    item_label: Tensor  # ILA1 (H), weight of a label on its own item in the first layer
    target_label: Tensor  # TILA2 (H), weight of the target on the correct labels in the second layer
    target_labels: Tensor  # TLA2 (H), weight of the target on all labels
    context_label: Tensor  # CLA, probability that the prediction is one of the labels in the context
    strength: Tensor  # IH (H), mean weight of the target on a correct label less that on another one


def induction_measures(
    first: Tensor, second: Tensor, labels: Tensor, target_label: Tensor, logits: Tensor
) -> InductionMeasures:
    """Measure one batch.

    Args:
        first: map of the first layer.
        second: map of the second layer.
        labels: (B, N) int, the labels in the context.
        target_label: (B,) int, the label of the target's item.
        logits: (B, classes), the prediction.
    """
    pairs = labels.shape[1]
    if first.shape[-1] != 2 * pairs + 1 or second.shape[-1] != 2 * pairs + 1:
        raise ValueError(f"the maps must have {2 * pairs + 1} tokens for {pairs} pairs, got {first.shape[-1]}")
    at = torch.arange(1, 2 * pairs, 2)
    own = first[..., at, at - 1].mean(-1)
    on_labels = second[:, :, -1, at]  # (B, H, N)
    correct = (labels == target_label[:, None]).unsqueeze(1).to(on_labels.dtype)
    count, others = correct.sum(-1), pairs - correct.sum(-1)
    right = (on_labels * correct).sum(-1)
    wrong = (on_labels * (1 - correct)).sum(-1)
    strength = right / count.clamp_min(1) - wrong / others.clamp_min(1)
    seen = torch.zeros_like(logits).scatter_(1, labels, 1.0)
    likely = (logits.softmax(-1) * seen).sum(-1)
    known = count[:, 0] > 0  # sequences without the target's label have no correct one
    return InductionMeasures(
        own.mean(0), right[known].mean(0), on_labels.sum(-1).mean(0), likely.mean(), strength[known].mean(0)
    )


def known_first_weight(beta1: float, pair: int) -> float:
    """Weight of label `pair` (from 0) on its item in the handmade model: e^beta1 / (e^beta1 + 2 pair + 1)."""
    grown = float(torch.tensor(beta1, dtype=torch.float64).exp())
    return grown / (grown + 2 * pair + 1)


def known_second_weight(alpha: float, beta1: float, beta2: float, correct: int, pairs: int) -> float:
    """Weight of the target on the correct label (from 0) in the handmade model with N pairs."""
    scores = torch.full((pairs,), beta2, dtype=torch.float64)
    scores[correct] += alpha * known_first_weight(beta1, correct)
    grown = scores.exp()
    return float(grown[correct] / (grown.sum() + pairs + 1))


def onset(steps: Sequence[float], values: Sequence[float]) -> float:
    """The step of the steepest rise on a logarithmic axis of steps; NaN if the values never rise.

    A step of 0 does not count; the values are smoothed over three points.
    """
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if step > 0]
    if len(kept) < 3:
        return float("nan")
    place = torch.tensor([step for step, _ in kept], dtype=torch.float64).log()
    curve = torch.tensor([value for _, value in kept], dtype=torch.float64)
    padded = torch.cat([curve[:1], curve, curve[-1:]])
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    slope = smooth.diff() / place.diff()
    if not slope.max() > 0:
        return float("nan")
    best = int((slope >= slope.max() * (1 - 1e-9)).nonzero().median())  # the middle of a straight rise
    return float(((place[best] + place[best + 1]) / 2).exp())


def onset_order(steps: Sequence[float], curves: Mapping[str, Sequence[float]]) -> list[tuple[str, float]]:
    """The name and the onset of each curve, earliest first; curves that never rise are last."""
    found = [(name, onset(steps, values)) for name, values in curves.items()]
    return sorted(found, key=lambda one: (one[1] != one[1], one[1]))
