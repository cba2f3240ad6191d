"""The importance of heads by removal, by gradient, and by removal one after the other.

An idea after arXiv 2303.13731; where its abstract is silent, the definitions are ours.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .edits import Edit, HeadGate, HeadReplacement, intervene, remove_heads
from .trace import Head, attention_layers, record


class Importance(NamedTuple):
    """What the removal of one head changes in each sample, (B) each."""

    head: Head
    probability: Tensor  # p_true(full) - p_true(without)
    divergence: Tensor  # Jensen-Shannon divergence of the class probabilities in bits, 0 to 1
    loss: Tensor  # loss(without) - loss(full)
    feature: Tensor  # 1 - cosine of the logits, or of the given features


class Interval(NamedTuple):
    """A mean with a bootstrap interval."""

    mean: float
    low: float
    high: float


def heads_of(model: nn.Module) -> list[Head]:
    """All heads of a model."""
    return [Head(i, h) for i, layer in enumerate(attention_layers(model).values()) for h in range(layer.heads)]


@torch.no_grad()
def importance_by_removal(
    model: nn.Module,
    inputs: Any,
    target: Tensor,
    *,
    how: Literal["zero", "mean"] = "zero",
    features: Callable[[Any], Tensor] | None = None,
) -> list[Importance]:
    """Remove each head alone from a classifier and compare its logits (B, classes).

    Args:
        model: a model with logits as output.
        inputs: its argument.
        target: (B,) int, the true classes.
        how: replace the head's output by 0, or by its mean over the batch.
        features: computes features (B, n) from the inputs, with the model as it then is; the logits if None.
    """
    full = model(inputs)
    full_features = full if features is None else features(inputs)
    means = {call.layer: call.heads.mean(0, keepdim=True) for call in record(model, inputs, weights=False).calls}
    rows = torch.arange(len(target))
    found = []
    for head in heads_of(model):
        with intervene(model, _removal(model, head, how, means, len(target))):
            logits = model(inputs)
            own = logits if features is None else features(inputs)
        before, after = full.softmax(-1), logits.softmax(-1)
        loss = nn.functional.cross_entropy(logits, target, reduction="none")
        loss = loss - nn.functional.cross_entropy(full, target, reduction="none")
        change = 1 - nn.functional.cosine_similarity(own.flatten(1), full_features.flatten(1), dim=1)
        found.append(
            Importance(head, (before - after)[rows, target], jensen_shannon(before, after), loss, change.clamp_min(0))
        )
    return found


@torch.no_grad()
def loss_change(model: nn.Module, inputs: Any, loss: Callable[[Any], Tensor]) -> dict[Head, Tensor]:
    """loss(without the head) - loss(full) for any task; `loss` maps the model's output to a value per sample (B)."""
    full = loss(model(inputs))
    found = {}
    for head in heads_of(model):
        with intervene(model, remove_heads(model, [head])):
            found[head] = loss(model(inputs)) - full
    return found


def gate_gradient(model: nn.Module, inputs: Any, value: Callable[[Any], Tensor]) -> dict[Head, float]:
    """d value / d gate for each head at gate 1, the cheap proxy of its removal; exact for a value linear in the heads.

    `value` maps the model's output to a scalar.
    """
    layers = list(attention_layers(model).values())
    gates = [torch.ones(layer.heads, dtype=layer.output_weight.dtype, requires_grad=True) for layer in layers]
    with torch.enable_grad(), intervene(model, [HeadGate(i, gate) for i, gate in enumerate(gates)]):
        slopes = torch.autograd.grad(value(model(inputs)), gates, allow_unused=True)
    return {
        Head(i, h): 0.0 if slope is None else float(slope[h])
        for i, slope in enumerate(slopes)
        for h in range(layers[i].heads)
    }


@torch.no_grad()
def removal_curve(model: nn.Module, order: Sequence[tuple[int, int]], metric: Callable[[], float]) -> list[float]:
    """The metric with 0, 1, 2, ... of the heads removed in this order; `metric` runs the model."""
    values = []
    for count in range(len(order) + 1):
        with intervene(model, remove_heads(model, order[:count])):
            values.append(metric())
    return values


def random_orders(heads: Sequence[Head], count: int = 10, *, seed: int = 0) -> list[list[Head]]:
    """Random orders of the heads, with which a removal curve is compared."""
    generator = torch.Generator().manual_seed(seed)
    return [[heads[i] for i in torch.randperm(len(heads), generator=generator)] for _ in range(count)]


def area_between(first: Sequence[float], second: Sequence[float]) -> float:
    """The area between two removal curves, over a share of removed heads from 0 to 1 (trapezoids)."""
    difference = torch.tensor(second, dtype=torch.float64) - torch.tensor(first, dtype=torch.float64)
    return float(torch.trapezoid(difference) / max(1, len(difference) - 1))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions (..., n) in bits, from 0 to 1."""
    middle = torch.special.entr((p + q) / 2).sum(-1)
    nats = middle - (torch.special.entr(p).sum(-1) + torch.special.entr(q).sum(-1)) / 2
    bits: Tensor = (nats / torch.log(torch.tensor(2.0, dtype=p.dtype))).clamp(0, 1)
    return bits


def bootstrap(values: Tensor, *, samples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of values (B) with a percentile bootstrap interval over samples."""
    generator = torch.Generator().manual_seed(seed)
    wide = values.double().cpu()
    index = torch.randint(len(wide), (samples, len(wide)), generator=generator)
    tail = (1 - level) / 2
    low, high = wide[index].mean(1).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(float(wide.mean()), low, high)


def over_units(
    values: Tensor, units: Sequence[str], *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """`bootstrap` of the means of units, such as subjects with several recordings or layouts with several scenes.

    With a single unit, the limits are NaN: nothing is known about the spread. NaN among the values is left out.
    """
    names = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    index = torch.tensor([names[unit] for unit in units])
    wide = values.double().cpu()
    means = torch.stack([wide[index == number].nanmean() for number in range(len(names))])
    means = means[~means.isnan()]
    if len(means) < 2:
        return Interval(float(means.mean()), math.nan, math.nan)
    return bootstrap(means, samples=samples, level=level, seed=seed)


def by_class(values: Tensor, target: Tensor) -> dict[int, Interval]:
    """`bootstrap` of the samples of each class."""
    return {c: bootstrap(values[target == c]) for c in target.unique().tolist()}


def _removal(model: nn.Module, head: Head, how: str, means: dict[int, Tensor], batch: int) -> list[Edit]:
    if how == "zero":
        return list(remove_heads(model, [head]))
    mean = means[head.layer][:, :, head.head : head.head + 1].transpose(1, 2)  # (1, 1, L, Dv)
    return [HeadReplacement(head.layer, mean.expand(batch, -1, -1, -1), heads=[head.head])]
