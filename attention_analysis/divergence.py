"""How much each head's output depends on a group of tokens, and the reinforcement of the heads that depend on it.

An idea after VHD and VHR (He et al. 2024, arXiv 2412.13949), generalised: the group can be the moving image (does the
registration look at it?), a set of electrodes, or the target object.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .edits import Edit, HeadGate, ScoreBias, WeightEdit, intervene
from .trace import Head, Trace, attention_layers, record


class Divergence(NamedTuple):
    """Of each head, (layers, H) each."""

    absolute: Tensor  # |z(with the group) - z(without)|
    relative: Tensor  # that, divided by |z(with the group)|
    without: Tensor  # |z(without the group)|^2


@torch.no_grad()
def divergence(
    model: nn.Module,
    inputs: Any,
    *,
    group: Tensor | None = None,
    without: Any = None,
    query: int = -1,
) -> Divergence:
    """Compare each head's output at one query with and without a group of tokens, as the mean over the batch.

    Args:
        model: a model whose layers have the same number of heads and are called once.
        inputs: its argument.
        group: bool (Lk), keys that no layer of that many keys may attend to in the second run; places are kept.
        without: in place of `group`, the argument of a second run from which the group is absent.
        query: place of the query of interest.

    Raises:
        ValueError: neither or both of `group` and `without` are given.
    """
    if (group is None) == (without is None):
        raise ValueError("divergence needs either group, keys to hide, or without, an input that lacks the group")
    if group is not None:
        # nothing is hidden in the first run, which takes the same way through the kernels as the second
        with intervene(model, hide_keys(model, torch.zeros_like(group))):
            full = record(model, inputs, weights=False)
        with intervene(model, hide_keys(model, group)):
            lacking = record(model, inputs, weights=False)
    else:
        full = record(model, inputs, weights=False)
        lacking = record(model, without, weights=False)
    seen, blind = (torch.stack([call.heads[:, query] for call in trace.calls]) for trace in (full, lacking))
    change = (seen - blind).norm(dim=-1)  # (layers, B, H)
    size = seen.norm(dim=-1)
    relative = change / size.clamp_min(torch.finfo(size.dtype).tiny)
    return Divergence(change.mean(1), relative.mean(1), blind.square().sum(-1).mean(1))


def dependence(full: Trace, lacking: Trace) -> dict[Head, float]:
    """How much of each head's output a part of the input determines: |z(with) - z(without)| / |z(with)|.

    Both are sums over all queries and samples, so that also models whose layers differ in size can be compared; calls
    of one layer are joined. 0: the head does not read the part.

    Args:
        full: the record with the whole input.
        lacking: the record without the part, with the same calls.
    """
    changes: dict[Head, float] = {}
    sizes: dict[Head, float] = {}
    for with_part, without in zip(full.calls, lacking.calls, strict=True):
        change = (with_part.heads - without.heads).double().norm(dim=-1).sum((0, 1))
        size = with_part.heads.double().norm(dim=-1).sum((0, 1))
        for h in range(len(change)):
            head = Head(with_part.layer, h)
            changes[head] = changes.get(head, 0.0) + float(change[h])
            sizes[head] = sizes.get(head, 0.0) + float(size[h])
    return {head: changes[head] / size if size > 0 else 0.0 for head, size in sizes.items()}


GroupOf = Callable[[int], Tensor | None]  # number of keys -> bool (Lk), or None if the layer has other keys


def hide_keys(model: nn.Module, group: Tensor | GroupOf, layers: Collection[int] | None = None) -> list[Edit]:
    """Edits that hide keys, bool (Lk), in layers with that number of keys.

    Scores get a bias of -inf. A mechanism without a bias keeps its other weights, which are divided by their sum; a row
    without another weight then becomes 0. A function as `group` is asked at each call, so it can depend on the input.
    """
    of = partial(_if_fitting, group) if isinstance(group, Tensor) else group
    found = list(attention_layers(model).values())
    numbers = range(len(found)) if layers is None else layers
    return [
        ScoreBias(number, partial(_hiding_bias, of))
        if found[number].takes_bias
        else WeightEdit(number, partial(_hiding_weights, of))
        for number in numbers
    ]


def _if_fitting(group: Tensor, keys: int) -> Tensor | None:
    return group if len(group) == keys else None


def _hiding_bias(group: GroupOf, q: Tensor, k: Tensor) -> Tensor:
    bias = q.new_zeros(1, 1, 1, k.shape[2])
    if (hidden := group(k.shape[2])) is not None:
        bias[..., hidden.to(q.device)] = -torch.inf
    return bias


def _hiding_weights(group: GroupOf, a: Tensor) -> Tensor:
    hidden = group(a.shape[-1])
    if hidden is None:
        return a
    kept = a.masked_fill(hidden.to(a.device), 0)
    return kept * (a.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny))


def without_outliers(found: Divergence) -> Tensor:
    """The absolute divergence (layers, H), set to 0 for outliers of their layer.

    A head is one if its divergence is above the mean by more than a standard deviation of the layer's heads, and its
    squared output without the group is too.
    """

    def high(values: Tensor) -> Tensor:
        return values > values.mean(1, keepdim=True) + values.std(1, correction=0, keepdim=True)

    return found.absolute.masked_fill(high(found.absolute) & high(found.without), 0)


def total_divergence(values: Tensor, top: int) -> Tensor:
    """T-VHD: the sum over layers of the `top` largest divergences of (..., layers, H)."""
    return values.topk(min(top, values.shape[-1]), -1).values.sum((-2, -1))


def dependent_heads(values: Tensor, layers: Collection[int] | None = None) -> list[Head]:
    """The heads above the median of their layer, for divergences (layers, H)."""
    chosen = range(len(values)) if layers is None else layers
    above = values > values.median(1, keepdim=True).values
    return [Head(layer, h) for layer in sorted(chosen) for h in above[layer].nonzero().flatten().tolist()]


def reinforce(model: nn.Module, heads: Collection[Head], alpha: float = 2.0) -> list[Edit]:
    """Edits that multiply the outputs of heads by alpha; 1 changes nothing, and 4 is reported to break models."""
    layers = list(attention_layers(model).values())
    by_layer: Mapping[int, Tensor] = {
        number: torch.ones(layers[number].heads, dtype=layers[number].output_weight.dtype)
        for number in {head.layer for head in heads}
    }
    for head in heads:
        by_layer[head.layer][head.head] = alpha
    return [HeadGate(number, factors.to(layers[number].output_weight)) for number, factors in by_layer.items()]


@torch.no_grad()
def reinforce_by_layer(
    model: nn.Module,
    inputs: Any,
    group: Tensor,
    *,
    alpha: float = 2.0,
    layers: Sequence[int] | None = None,
    query: int = -1,
) -> tuple[list[Edit], list[Head]]:
    """Choose and reinforce heads layer by layer, so that a later layer is chosen with the earlier ones reinforced.

    Returns:
        the edits and the heads; they are kept for all further steps of a generation.
    """
    edits: list[Edit] = []
    chosen: list[Head] = []
    for layer in range(len(attention_layers(model))) if layers is None else layers:
        with intervene(model, edits):
            values = without_outliers(divergence(model, inputs, group=group, query=query))
        heads = dependent_heads(values, [layer])
        chosen += heads
        edits += reinforce(model, heads, alpha)
    return edits, chosen
