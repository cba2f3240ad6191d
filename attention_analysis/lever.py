"""The first token as a lever: its weight makes the differences among the other weights larger or smaller.

An idea after ZeroTuning (Han et al. 2025, arXiv 2505.11739). In a model that is not causal, the lever is the class
token. The change is a bias of log gamma on the score, so it also works in fused kernels.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.attention.layer import EditableHeads
from .edits import Edit, ScoreBias, WeightEdit, intervene
from .trace import Head, attention_layers


def scale_key(a: Tensor, gamma: float, *, key: int = 0) -> Tensor:
    """Multiply the weight on one key by gamma, and divide the rows by their sums: a_0' = gamma a_0 / D, a_j' = a_j / D.

    D = (gamma - 1) a_0 + 1. The gap between two other keys changes by -(a_i - a_j) (gamma - 1) a_0 / D: gamma above 1
    flattens, gamma below 1 sharpens. Zeros stay 0.
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    factor = torch.ones(a.shape[-1], dtype=a.dtype, device=a.device)
    factor[key] = gamma
    new: Tensor = a * factor / ((gamma - 1) * a[..., key] + 1).unsqueeze(-1)
    return new


def lever_edits(
    model: nn.Module, heads: Collection[Head], gamma: float, *, key: int = 0, form: Literal["bias", "weight"] = "bias"
) -> list[Edit]:
    """Edits that scale one key's weight in some heads.

    Args:
        model: the model.
        heads: the heads to change.
        gamma: 1 changes nothing.
        key: the lever.
        form: "bias" adds log gamma to the score, for mixers that take a bias; "weight" changes the weights, with the
            same result.
    """
    layers = list(attention_layers(model).values())
    edits: list[Edit] = []
    for number in sorted({head.layer for head in heads}):
        chosen = sorted(head.head for head in heads if head.layer == number)
        if form == "bias":
            edits.append(ScoreBias(number, _bias(layers[number], chosen, gamma, key)))
        else:
            edits.append(WeightEdit(number, lambda a: scale_key(a, gamma, key=key), heads=chosen))
    return edits


class LeverProfile(NamedTuple):
    """What gamma does in one head alone: the change of the metric for each value."""

    head: Head
    change: dict[float, float]

    @property
    def direction(self) -> Literal["up", "down", "none"]:
        """Whether a larger or a smaller gamma raises the metric more."""
        best = max(self.change, key=lambda gamma: self.change[gamma])
        if self.change[best] <= 0:
            return "none"
        return "up" if best > 1 else "down"


@torch.no_grad()
def profile_heads(
    model: nn.Module,
    heads: Sequence[Head],
    metric: Callable[[], float],
    *,
    gammas: Sequence[float] = (0.6, 1.5),
    key: int = 0,
) -> list[LeverProfile]:
    """Try some values in each head alone; `metric` runs the model, and larger is better."""
    plain = metric()
    found = []
    for head in heads:
        change = {}
        for gamma in gammas:
            with intervene(model, lever_edits(model, [head], gamma, key=key)):
                change[gamma] = metric() - plain
        found.append(LeverProfile(head, change))
    return found


def dominant_heads(profiles: Sequence[LeverProfile], share: float = 0.5) -> list[Head]:
    """The heads of the commoner direction with the largest effect; 0.4 to 0.7 of them is usual."""
    groups = {way: [p for p in profiles if p.direction == way] for way in ("up", "down")}
    chosen = max(groups.values(), key=len)
    ranked = sorted(chosen, key=lambda profile: -max(profile.change.values()))
    return [profile.head for profile in ranked[: max(1, round(share * len(ranked)))]] if ranked else []


class Search(NamedTuple):
    """The best gamma, and the figure for each one tried."""

    gamma: float
    values: dict[float, float]


@torch.no_grad()
def search_gamma(
    model: nn.Module,
    heads: Collection[Head],
    metric: Callable[[], float],
    *,
    gammas: Sequence[float] = (0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0),
    key: int = 0,
) -> Search:
    """Choose gamma by a validation metric, where larger is better.

    Without labels, the metric can be the negative `output_entropy`. Of equal values, the one nearest to 1 is taken.
    """
    values = {}
    for gamma in gammas:
        with intervene(model, lever_edits(model, heads, gamma, key=key)):
            values[gamma] = metric()
    best = max(values.values())
    near = [gamma for gamma, value in values.items() if value == best]
    return Search(min(near, key=lambda gamma: abs(math.log(gamma))), values)


def output_entropy(logits: Tensor) -> float:
    """Mean entropy in nats of the class probabilities of logits (B, classes)."""
    return float(torch.special.entr(logits.softmax(-1)).sum(-1).mean())


def _bias(layer: EditableHeads, heads: Sequence[int], gamma: float, key: int) -> Callable[[Tensor, Tensor], Tensor]:
    def bias(q: Tensor, k: Tensor) -> Tensor:
        added = q.new_zeros(1, layer.heads, 1, k.shape[2])
        added[0, list(heads), 0, key] = math.log(gamma)
        return added

    return bias
