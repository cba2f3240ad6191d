"""Sinks: tokens that receive much attention whatever the query, and the calibration that takes part of it away.

Ideas after the ACT paper (Yu et al., ICML 2024) and arXiv 2503.03321. `a` is a map (..., Lq, Lk) whose rows sum to 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .edits import WeightEdit, intervene
from .trace import Head


def column_means(a: Tensor, *, causal: bool) -> Tensor:
    """(..., Lk): the mean weight on each key over the queries that can see it."""
    if not causal:
        return a.mean(-2)
    length = a.shape[-1]
    return a.sum(-2) / torch.arange(length, 0, -1, dtype=a.dtype, device=a.device)


def relative_columns(a: Tensor, *, causal: bool) -> Tensor:
    """(..., Lk): the sum of the weights on each key over that of uniform attention to all visible keys; 1 is uniform.

    In a causal map, early keys receive more than late ones also by uniform attention, which this removes.
    """
    queries, keys = a.shape[-2:]
    if not causal:
        return a.mean(-2) * keys
    uniform = (1 / torch.arange(1, queries + 1, dtype=a.dtype, device=a.device)).flip(0).cumsum(0).flip(0)
    return a.sum(-2) / uniform


def attention_sinks(a: Tensor, *, causal: bool, alpha: float | None = 5.0) -> Tensor:
    """Bool (..., Lk): keys whose column mean is above alpha / Lk, or above 0.1 if alpha is None (the official code).

    The first token is among them; callers that report it apart drop it.
    """
    least = 0.1 if alpha is None else alpha / a.shape[-1]
    return column_means(a, causal=causal) > least


def massive_dimensions(x: Tensor, *, ratio: float = 50.0, inputs: float = 0.8) -> Tensor:
    """Bool (dim) of residual streams (B, L, dim): dimensions that are massive in some token.

    A dimension counts if the largest size among the tokens is more than `ratio` times the median, in at least the share
    `inputs` of the inputs.
    """
    size = x.abs()
    massive = size.amax(1) > ratio * size.median(1).values
    return massive.double().mean(0) >= inputs


def activation_sinks(x: Tensor, dimensions: Tensor, *, least: float = 20.0) -> Tensor:
    """Bool (B, L): tokens with a normalised size of at least `least` in one of the massive dimensions, bool (dim)."""
    if not dimensions.any():
        return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    normed = x / x.square().mean(-1, keepdim=True).add(torch.finfo(x.dtype).tiny).sqrt()
    return normed[..., dimensions].abs().amax(-1) >= least


def without_keys(a: Tensor, keys: Tensor) -> Tensor:
    """Set the weights on keys, bool (Lk), to 0 and divide the rows by their sums; a row without another key stays."""
    kept = a.masked_fill(keys, 0)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(torch.finfo(a.dtype).tiny), a)


class Relevance(NamedTuple):
    """The loss change without the sinks, and the mean loss change without as many random other keys."""

    sinks: float
    others: float

    @property
    def idle(self) -> bool:
        """Whether the sinks matter less than a hundredth of other keys."""
        return abs(self.sinks) < 0.01 * abs(self.others)


@torch.no_grad()
def sink_relevance(
    model: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    layer: int,
    sinks: Tensor,
    *,
    repeats: int = 10,
    seed: int = 0,
) -> Relevance:
    """What the sinks of a layer, bool (Lk), contribute to a loss, compared with random other keys.

    `loss` maps the output of the model to a scalar.
    """
    full = loss(model(inputs))

    def change(keys: Tensor) -> float:
        with intervene(model, [WeightEdit(layer, lambda a: without_keys(a, keys))]):
            return float(loss(model(inputs)) - full)

    generator = torch.Generator().manual_seed(seed)
    others = (~sinks).nonzero().flatten()
    found = []
    for _ in range(repeats):
        keys = torch.zeros_like(sinks)
        keys[others[torch.randperm(len(others), generator=generator)[: int(sinks.sum())]]] = True
        found.append(abs(change(keys)))
    return Relevance(change(sinks), sum(found) / len(found))


def calibrate(a: Tensor, sinks: Tensor, *, beta: float = 0.4, first_row: bool = True) -> Tensor:
    """Multiply the weights on sinks by beta, and spread the freed weight over the other keys in proportion (ACT).

    Rows keep their sums, zeros stay 0, and the ratios among the other keys stay. A row that sees nothing but sinks is
    left as it is.

    Args:
        a: (..., Lq, Lk).
        sinks: bool, broadcastable to (..., Lk); key 0 never counts as a sink.
        beta: 1 changes nothing.
        first_row: leave row 0 as it is.
    """
    chosen = sinks.clone()
    chosen[..., 0] = False
    on_sinks = a * chosen.unsqueeze(-2)
    others = a - on_sinks
    rest = others.sum(-1, keepdim=True)
    freed = (1 - beta) * on_sinks.sum(-1, keepdim=True)
    changed = (rest > 0) & (freed != 0)
    if first_row:
        changed = changed & (torch.arange(a.shape[-2], device=a.device).unsqueeze(1) > 0)
    factor = 1 + freed / rest.clamp_min(torch.finfo(a.dtype).tiny)
    return torch.where(changed, beta * on_sinks + others * factor, a)


def calibration_edit(head: Head, *, causal: bool, beta: float = 0.4, alpha: float | None = 5.0) -> WeightEdit:
    """An edit that calibrates the sinks of one head, which are found in each sample."""

    def change(a: Tensor) -> Tensor:
        return calibrate(a, attention_sinks(a, causal=causal, alpha=alpha), beta=beta)

    return WeightEdit(head.layer, change, heads=[head.head])


class Gain(NamedTuple):
    """The metric's gain by the calibration of one head alone."""

    head: Head
    gain: float


@torch.no_grad()
def choose_heads(
    model: nn.Module,
    heads: Sequence[Head],
    metric: Callable[[], float],
    *,
    causal: bool,
    beta: float = 0.4,
    alpha: float | None = 5.0,
    layers: int | None = None,
) -> list[Gain]:
    """Calibrate each head alone on a calibration set and return those that raise the metric, best first.

    Args:
        model: the model.
        heads: the heads to try.
        metric: runs the model; larger is better.
        causal: whether the maps are causal.
        beta, alpha: see `calibrate` and `attention_sinks`.
        layers: number of layers of the model; if given, the first two and the last are left out.
    """
    plain = metric()
    found = []
    for head in heads:
        if layers is not None and not 2 <= head.layer < layers - 1:
            continue
        with intervene(model, [calibration_edit(head, causal=causal, beta=beta, alpha=alpha)]):
            gain = metric() - plain
        if gain > 0:
            found.append(Gain(head, gain))
    return sorted(found, key=lambda one: -one.gain)
