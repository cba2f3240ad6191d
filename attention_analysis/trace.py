"""Records of what the attention layers of a model compute: weights, head outputs, contributions, residual stream.

A model can be recorded if its attention layers are `EditableHeads`, such as a `MixingLayer`, and the places of its
residual stream that matter are marked by a `ResidualPoint`. A head is named by the number of its layer, in the order of
`attention_layers`, and its number in the layer.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.attention.layer import EditableHeads, ResidualPoint, Seen


class Head(NamedTuple):
    """The number of a layer in `attention_layers`, and of a head in it."""

    layer: int
    head: int


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of an attention layer; a model may call a layer several times for one batch.

    Args:
        name: the layer's name in the model.
        layer: its number.
        weights: A (B, H, Lq, Lk); None if the mechanism is not linear in v, or if weights were not requested.
        heads: z (B, Lq, H, Dv), the head outputs before W_O.
        output_weight: W_O, (dim, H Dv).
        received: (B, H, Lk), the mean weight that each key receives over all queries; None if the weights hold all
            queries, or if there are none.
    """

    name: str
    layer: int
    weights: Tensor | None
    heads: Tensor
    output_weight: Tensor
    received: Tensor | None = None

    @property
    def contributions(self) -> Tensor:
        """c (B, Lq, H, dim): what each head adds to the layer's output; their sum plus the bias is that output."""
        count, channels = self.heads.shape[2:]
        weight = self.output_weight.unflatten(1, (count, channels))  # (dim, H, Dv)
        return torch.einsum("blhd,mhd->blhm", self.heads, weight)

    def column_means(self) -> Tensor:
        """(B, H, Lk): the mean weight that each key receives over all queries.

        Raises:
            ValueError: the call has no weights.
        """
        return self.map().mean(-2) if self.received is None else self.received

    def map(self) -> Tensor:
        """The weights.

        Raises:
            ValueError: the call has none.
        """
        if self.weights is None:
            raise ValueError(
                f"{self.name} has no recorded weights: its mechanism is not linear in v, or weights=False was given"
            )
        return self.weights


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of one batch.

    Args:
        calls: the calls of the attention layers, in the order in which they were made.
        residuals: the name of a `ResidualPoint` -> the residual stream (B, L, dim) in each of its calls.
        output: the output of the model.
    """

    calls: tuple[LayerCall, ...]
    residuals: Mapping[str, tuple[Tensor, ...]]
    output: Any

    def __getitem__(self, layer: int) -> LayerCall:
        """The call of a layer that was called once.

        Raises:
            KeyError: the layer was not called, or several times.
        """
        found = [call for call in self.calls if call.layer == layer]
        if len(found) != 1:
            raise KeyError(f"layer {layer} must have one call in this record, has {len(found)}")
        return found[0]

    @property
    def maps(self) -> Tensor:
        """A (layers, B, H, Lq, Lk), if every layer was called once and all have one shape.

        Raises:
            ValueError: the shapes differ, or a layer has no weights.
        """
        maps = [call.map() for call in self.calls]
        if len({one.shape for one in maps}) != 1 or len({call.layer for call in self.calls}) != len(maps):
            raise ValueError("the layers must have been called once with maps of one shape")
        return torch.stack(maps)


def attention_layers(model: nn.Module) -> dict[str, EditableHeads]:
    """The name of each attention layer that can be watched -> the layer, in the order of the model's modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, EditableHeads)}


def residual_points(model: nn.Module) -> dict[str, ResidualPoint]:
    """The name of each marked place of the residual stream -> its module."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ResidualPoint)}


def record(
    model: nn.Module, *inputs: Any, layers: Collection[int] | None = None, weights: bool = True, **options: Any
) -> Trace:
    """Run the model, in the mode that it is in, and keep what its attention layers computed.

    The output is the same as without a record. Weights are computed by the identity-value probe, see `attention_map`,
    so they exist for all mechanisms that are linear in v.

    Args:
        model: a model with `EditableHeads`.
        inputs, options: the arguments of the model.
        layers: numbers of the layers to record; all if None.
        weights: whether to keep the weights, L^2 numbers for each head; `stream` keeps only sums of them.

    Raises:
        ValueError: the model has no such layer.
    """
    return record_run(model, lambda: model(*inputs, **options), layers=layers, weights=weights)


@torch.no_grad()
def record_run(
    model: nn.Module,
    run: Callable[[], Any],
    *,
    layers: Collection[int] | None = None,
    weights: bool = True,
    most_keys: int | None = None,
    rows: int = 64,
) -> Trace:
    """`record` for a function that runs the model in its own way; its result is the output.

    Of a layer with more than `most_keys` keys, such as one over the voxels of a scan, no whole map is computed: the
    weights hold `rows` queries, which are spread evenly, and `received` is computed from all queries.
    """
    calls: list[LayerCall] = []
    residuals: dict[str, list[Tensor]] = {name: [] for name in residual_points(model)}

    def keep(number: int, name: str, layer: EditableHeads, seen: Seen) -> None:
        found = received = None
        if weights and seen.weights is not None:
            if most_keys is None or seen.keys <= most_keys:
                found = seen.weights()
            else:
                found, received = _rows_and_means(seen, rows)
        heads = seen.heads.transpose(1, 2).detach().clone()
        calls.append(LayerCall(name, number, found, heads, layer.output_weight.detach(), received))

    def hook(name: str, module: nn.Module, given: Any, stream: Tensor) -> None:
        residuals[name].append(stream.detach().clone())

    handles = [point.register_forward_hook(partial(hook, name)) for name, point in residual_points(model).items()]
    try:
        with watching(model, keep, layers):
            output = run()
    finally:
        for handle in handles:
            handle.remove()
    return Trace(tuple(calls), {name: tuple(found) for name, found in residuals.items()}, output)


def _rows_and_means(seen: Seen, rows: int) -> tuple[Tensor, Tensor]:
    """Weights of some queries (B, H, rows, Lk), and the mean over all queries (B, H, Lk), in memory of order Lk.

    The output is linear in the values, so a gradient with respect to values of one channel is a sum of rows of the map.
    """
    assert seen.apply is not None
    batch, heads, queries = seen.heads.shape[:3]
    with torch.enable_grad():
        values = seen.heads.new_zeros(batch, heads, seen.keys, 1, requires_grad=True)
        out = seen.apply(values)[..., 0]  # (B, H, Lq)
        chosen = torch.linspace(0, queries - 1, min(rows, queries)).round().long().tolist()
        sums = [out.sum(), *(out[..., i].sum() for i in chosen)]
        found = [torch.autograd.grad(one, values, retain_graph=True)[0][..., 0] for one in sums]
    return torch.stack(found[1:], 2), found[0] / queries


@torch.no_grad()
def stream(
    model: nn.Module,
    batches: Iterable[Any],
    measures: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    layers: Collection[int] | None = None,
) -> dict[str, dict[int, Tensor]]:
    """Means of measures over many batches; the map of a layer is released before the next layer runs.

    Args:
        model: a model with `EditableHeads`.
        batches: inputs of the model; a tuple is several arguments.
        measures: name -> function of a map (B, H, Lq, Lk) with one row per sample, (B, ...).
        layers: numbers of the layers; all if None.

    Returns:
        name -> number of the layer -> the mean over all samples (and calls), without the first axis.

    Raises:
        ValueError: the model has no such layer, or a measured layer has no map.
    """
    sums: dict[str, dict[int, Tensor]] = {name: {} for name in measures}
    counts: dict[int, int] = {}

    def add(number: int, name: str, layer: EditableHeads, seen: Seen) -> None:
        if seen.weights is None:
            raise ValueError(f"{name} has no attention map: its mechanism is not linear in v")
        weights = seen.weights()
        counts[number] = counts.get(number, 0) + len(weights)
        for key, measure in measures.items():
            value = measure(weights).double().sum(0)
            sums[key][number] = value + sums[key].get(number, 0)

    with watching(model, add, layers):
        for batch in batches:
            model(*batch) if isinstance(batch, tuple) else model(batch)
    return {key: {number: value / counts[number] for number, value in found.items()} for key, found in sums.items()}


@contextmanager
def watching(
    model: nn.Module,
    look: Callable[[int, str, EditableHeads, Seen], None],
    layers: Collection[int] | None = None,
) -> Iterator[None]:
    """Call `look` with number, name, layer and result of every call of an attention layer, until the block ends.

    Raises:
        ValueError: the model has no such layer.
    """
    found = list(attention_layers(model).items())
    chosen = check_layers(model, range(len(found)) if layers is None else layers)
    before = [layer.watch for _, layer in found]
    try:
        for number in chosen:
            name, layer = found[number]
            layer.watch = partial(_both, layer.watch, partial(look, number, name, layer))
        yield
    finally:
        for (_, layer), watch in zip(found, before, strict=True):
            layer.watch = watch


def check_layers(model: nn.Module, layers: Collection[int]) -> list[int]:
    """The numbers of layers, sorted.

    Raises:
        ValueError: the model has no attention layer, or none of that number.
    """
    count = len(attention_layers(model))
    if not count:
        raise ValueError(f"{type(model).__name__} has no attention layer that can be watched, such as a MixingLayer")
    if wrong := sorted(set(layers) - set(range(count))):
        raise ValueError(f"layers must be numbers below {count}, got {', '.join(map(str, wrong))}")
    return sorted(set(layers))


def _both(first: Callable[[Seen], None] | None, second: Callable[[Seen], None], seen: Seen) -> None:
    if first is not None:
        first(seen)
    second(seen)
