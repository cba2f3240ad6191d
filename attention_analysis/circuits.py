"""Circuits: which heads produce a logit, through which paths, and how much of them two tasks share.

Ideas after arXiv 2310.08744 and 2307.09458.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.attention.layer import MixingLayer
from .edits import Edit, HeadReplacement, ResidualEdit, WeightEdit, intervene
from .trace import Head, Trace, attention_layers, record

Metric = Callable[[Any], Tensor]  # output of the model -> scalar
Input = Literal["q", "k", "v", "z"]


class Attribution(NamedTuple):
    """Additive parts of a logit, each (B); their sum is the logit."""

    heads: dict[Head, Tensor]
    biases: dict[int, Tensor]  # of the output projection of each attention layer
    feeds: dict[str, Tensor]  # of each feed-forward network, by the name of its block
    embedding: Tensor

    @property
    def total(self) -> Tensor:
        """The logit without a bias of the readout."""
        return torch.stack([*self.heads.values(), *self.biases.values(), *self.feeds.values(), self.embedding]).sum(0)


def logit_attribution(model: nn.Module, trace: Trace, direction: Tensor, *, token: int = -1) -> Attribution:
    """Divide direction · (last residual stream) among the heads, the feed-forward networks and the embedding.

    Args:
        model: a model of blocks with points `before`, `between` (after attention) and `after`, each of which adds to
            the residual stream; norms may stand before the sublayers.
        trace: its record.
        direction: u (dim) or (B, dim), such as a class vector; see `through_norm` for a norm before the readout.
        token: place of the token that is read out.
    """
    layers = list(attention_layers(model).values())
    heads: dict[Head, Tensor] = {}
    biases: dict[int, Tensor] = {}
    feeds: dict[str, Tensor] = {}
    for call in trace.calls:
        parts = (call.contributions[:, token] * direction.unsqueeze(-2)).sum(-1)  # (B, H)
        heads |= {Head(call.layer, h): parts[:, h] for h in range(parts.shape[1])}
        layer = layers[call.layer]
        if isinstance(layer, MixingLayer) and layer.output.bias is not None:
            biases[call.layer] = (layer.output.bias.detach() * direction).sum(-1).expand(len(parts))
    blocks = _blocks(trace.residuals)
    for block in blocks:
        added = trace.residuals[f"{block}.after"][0] - trace.residuals[f"{block}.between"][0]
        feeds[block] = (added[:, token] * direction).sum(-1)
    first = trace.residuals[f"{blocks[0]}.before"][0]
    return Attribution(heads, biases, feeds, (first[:, token] * direction).sum(-1))


def through_norm(direction: Tensor, norm: nn.LayerNorm | nn.RMSNorm, stream: Tensor) -> tuple[Tensor, Tensor]:
    """The direction before a norm whose scale is frozen at a recorded stream (B, dim), and the constant it adds.

    direction · norm(x) = new direction (B, dim) · x + constant, at x = stream.
    """
    weight = direction if norm.weight is None else direction * norm.weight.detach()
    if isinstance(norm, nn.LayerNorm):
        eps, size = norm.eps, stream.var(-1, correction=0, keepdim=True)
        weight = weight - weight.mean(-1, keepdim=True)
        constant = direction.new_zeros(()) if norm.bias is None else (direction * norm.bias.detach()).sum(-1)
    else:
        eps = torch.finfo(stream.dtype).eps if norm.eps is None else norm.eps
        size, constant = stream.square().mean(-1, keepdim=True), direction.new_zeros(())
    return weight / (size + eps).sqrt(), constant


@torch.no_grad()
def patch_effects(
    model: nn.Module, clean: Any, corrupted: Any, metric: Metric, components: Sequence[Head | str]
) -> dict[Head | str, float]:
    """Replace one component of the clean run at a time by its value in the corrupted run.

    Args:
        model: the model.
        clean, corrupted: its inputs, of one shape.
        metric: the figure of interest.
        components: heads, or names of residual points.

    Returns:
        component -> (metric patched - clean) / (corrupted - clean): 0 if it does not matter, 1 if it carries all. NaN,
        with a warning, if the runs do not differ.
    """
    source = record(model, corrupted, weights=False)
    at_clean, at_corrupted = float(metric(model(clean))), float(metric(source.output))
    found: dict[Head | str, float] = {}
    for component in components:
        edit: Edit
        if isinstance(component, Head):
            edit = _replacement(source, component)
        else:
            edit = ResidualEdit(component, source.residuals[component][0])
        with intervene(model, [edit]):
            found[component] = _effect(float(metric(model(clean))), at_clean, at_corrupted)
    return found


@torch.no_grad()
def path_effect(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    sender: Head,
    receiver: Head,
    through: Input,
    *,
    freeze_feeds: bool = False,
) -> float:
    """The effect of a sender on a receiver's query, key, value or output alone.

    The sender has its corrupted value and all other heads before the receiver keep their clean values; the receiver's
    input is taken from this run and put into a clean run.

    Args:
        model: a model of `MixingLayer` blocks with residual points.
        clean, corrupted, metric: as for `patch_effects`.
        sender: a head in an earlier layer than `receiver`.
        receiver: the head that reads.
        through: which input of the receiver is changed; "z" changes all three.
        freeze_feeds: whether the feed-forward networks also keep what they add in the clean run.
    """
    if sender.layer >= receiver.layer:
        raise ValueError(f"the sender must be in an earlier layer than the receiver, got {sender} and {receiver}")
    before, source = record(model, clean, weights=False), record(model, corrupted, weights=False)
    layer = list(attention_layers(model).values())[receiver.layer]
    if not isinstance(layer, MixingLayer):
        raise ValueError(f"a path needs a MixingLayer as receiver, got {type(layer).__name__}")
    edits: list[Edit] = [_replacement(source, sender)]
    edits += [
        _replacement(before, Head(call.layer, h))
        for call in before.calls
        for h in range(call.heads.shape[2])
        if call.layer < receiver.layer and Head(call.layer, h) != sender
    ]
    with ExitStack() as stack:
        if freeze_feeds:
            stack.enter_context(_frozen_feeds(model, before))
        stack.enter_context(intervene(model, edits))
        inputs = stack.enter_context(_projections(layer))
        through_path = record(model, clean, weights=False)
        projected = {name: found[-1] for name, found in inputs.items()}
    if through == "z":
        with intervene(model, [_replacement(through_path, receiver)]):
            changed = float(metric(model(clean)))
    else:
        with _replaced_projection(layer, receiver.head, through, projected[through]):
            changed = float(metric(model(clean)))
    return _effect(changed, float(metric(before.output)), float(metric(source.output)))


def circuit(effects: Mapping[Head | str, float], least: float = 0.1) -> set[Head | str]:
    """The components whose effect is larger than `least`."""
    return {component for component, effect in effects.items() if effect > least}


class Overlap(NamedTuple):
    """How much two circuits share."""

    jaccard: float
    share: float  # |A and B| / |A|
    chance: float  # the Jaccard index of random circuits with the same number of heads in each layer


def circuit_overlap(
    first: Collection[Head], second: Collection[Head], heads: Sequence[int], *, samples: int = 1000, seed: int = 0
) -> Overlap:
    """Compare two sets of heads; `heads` are the numbers of heads of the layers."""
    generator = torch.Generator().manual_seed(seed)

    def random_like(chosen: Collection[Head]) -> set[Head]:
        found: set[Head] = set()
        for layer, count in enumerate(heads):
            size = sum(head.layer == layer for head in chosen)
            found |= {Head(layer, h) for h in torch.randperm(count, generator=generator)[:size].tolist()}
        return found

    chance = [_jaccard(random_like(first), random_like(second)) for _ in range(samples)]
    both = set(first) & set(second)
    return Overlap(_jaccard(first, second), len(both) / len(first) if first else math.nan, sum(chance) / samples)


def transfer_weights(trace: Trace, heads: Collection[Head]) -> list[Edit]:
    """Edits that give heads the weights of another run, such as that of another task on inputs of one length."""
    return [
        WeightEdit(head.layer, partial(_given, trace[head.layer].map()[:, [head.head]]), [head.head]) for head in heads
    ]


class Compression(NamedTuple):
    """The metric with a head's product of rank 1, 2, ..., and the smallest rank that keeps the requested share."""

    rank: int
    metric: list[float]  # for rank 1, 2, ...
    full: float
    shifted: float | None  # the metric of this rank on other data, as a share of the full one


@torch.no_grad()
def compress_head(
    model: nn.Module,
    head: Head,
    product: Literal["qk", "ov"],
    metric: Callable[[], float],
    *,
    keep: float = 0.95,
    shifted: Callable[[], float] | None = None,
) -> Compression:
    """Approximate W_Q^T W_K or W_O W_V of a head by matrices of rank r; the model is restored.

    Args:
        model: a model with `MixingLayer`s without normed queries.
        head: the head.
        product: "qk" for the scores, with their biases, or "ov" for the output.
        metric: runs the model; larger is better, and positive.
        keep: share of the full metric.
        shifted: the metric on other data, on which a low rank may fail; both should be reported.
    """
    layer = list(attention_layers(model).values())[head.layer]
    if not isinstance(layer, MixingLayer) or layer.key_heads != layer.heads:
        raise ValueError("the compression of a head needs a MixingLayer with as many key heads as heads")
    if product == "qk" and not isinstance(layer.query_norm, nn.Identity):
        raise ValueError("normed queries and keys have no product of weights")
    full = metric()
    full_shifted = None if shifted is None else shifted()
    channels = layer.output.in_features // layer.heads
    values, rank, at_rank = [], channels, None
    for r in range(1, channels + 1):
        with _low_rank(layer, head.head, product, r):
            values.append(metric())
            if values[-1] >= keep * full and shifted is not None:
                at_rank = shifted()
        if values[-1] >= keep * full:
            rank = r
            break
    ratio = None if at_rank is None or not full_shifted else at_rank / full_shifted
    return Compression(rank, values, full, ratio)


@contextmanager
def _low_rank(layer: MixingLayer, head: int, product: str, rank: int) -> Iterator[None]:
    channels = layer.output.in_features // layer.heads
    own = slice(head * channels, (head + 1) * channels)
    saved = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    try:
        if product == "qk":
            query, key = (_with_bias(linear, own) for linear in (layer.query, layer.key))  # (D, dim + 1)
            left, size, right = torch.linalg.svd(query.mT @ key, full_matrices=False)
            size = size[:channels].where(torch.arange(channels, device=size.device) < rank, 0).sqrt()
            _set_with_bias(layer.query, own, (left[:, :channels] * size).mT)
            _set_with_bias(layer.key, own, size[:, None] * right[:channels])
        else:
            value = _with_bias(layer.value, own)
            left, size, right = torch.linalg.svd(layer.output.weight[:, own] @ value, full_matrices=False)
            size = size[:channels].where(torch.arange(channels, device=size.device) < rank, 0).sqrt()
            layer.output.weight[:, own] = left[:, :channels] * size
            _set_with_bias(layer.value, own, size[:, None] * right[:channels])
        yield
    finally:
        layer.load_state_dict(saved)


def _with_bias(linear: nn.Linear, own: slice) -> Tensor:
    weight = linear.weight[own]
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias[own]
    return torch.cat([weight, bias[:, None]], 1)


def _set_with_bias(linear: nn.Linear, own: slice, both: Tensor) -> None:
    linear.weight[own] = both[:, :-1]
    if linear.bias is not None:
        linear.bias[own] = both[:, -1]


def _replacement(trace: Trace, head: Head) -> HeadReplacement:
    z = trace[head.layer].heads[:, :, [head.head]].transpose(1, 2)
    return HeadReplacement(head.layer, z, heads=[head.head])


def _effect(patched: float, clean: float, corrupted: float) -> float:
    if abs(corrupted - clean) < 1e-12 * max(1.0, abs(clean)):
        warnings.warn(
            "the clean and the corrupted run have the same metric, so patching has no effect to measure", stacklevel=2
        )
        return math.nan
    return (patched - clean) / (corrupted - clean)


def _jaccard(first: Collection[Head], second: Collection[Head]) -> float:
    union = set(first) | set(second)
    return len(set(first) & set(second)) / len(union) if union else math.nan


def _given(weights: Tensor, a: Tensor) -> Tensor:
    return weights.to(a).expand_as(a)


def _blocks(residuals: Mapping[str, Any]) -> list[str]:
    """The names of blocks that have the points before, between and after."""
    names = [name.rpartition(".")[0] for name in residuals if name.endswith(".before")]
    blocks = [name for name in names if f"{name}.between" in residuals and f"{name}.after" in residuals]
    if not blocks:
        raise ValueError("the model needs blocks with the residual points before, between and after")
    return blocks


@contextmanager
def _frozen_feeds(model: nn.Module, clean: Trace) -> Iterator[None]:
    """Let every feed-forward network add what it added in the clean run."""
    current: dict[str, Tensor] = {}
    edits: list[Edit] = []
    for block in _blocks(clean.residuals):
        added = clean.residuals[f"{block}.after"][0] - clean.residuals[f"{block}.between"][0]
        edits.append(ResidualEdit(f"{block}.between", partial(_keep, current, block)))
        edits.append(ResidualEdit(f"{block}.after", partial(_kept_plus, current, block, added)))
    with intervene(model, edits):
        yield


def _keep(current: dict[str, Tensor], block: str, stream: Tensor) -> Tensor:
    current[block] = stream
    return stream


def _kept_plus(current: dict[str, Tensor], block: str, added: Tensor, stream: Tensor) -> Tensor:
    return current[block] + added


@contextmanager
def _projections(layer: MixingLayer) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of the projections of a layer."""
    found: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
    handles = [
        linear.register_forward_hook(lambda module, given, out, name=name: found[name].append(out))
        for name, linear in zip("qkv", (layer.query, layer.key, layer.value), strict=True)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced_projection(layer: MixingLayer, head: int, through: str, value: Tensor) -> Iterator[None]:
    linear = {"q": layer.query, "k": layer.key, "v": layer.value}[through]
    channels = layer.query.out_features // layer.heads
    number = head if through == "q" else head // (layer.heads // layer.key_heads)
    own = slice(number * channels, (number + 1) * channels)

    def replace(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[..., own] = value[..., own]
        return out

    handle = linear.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
