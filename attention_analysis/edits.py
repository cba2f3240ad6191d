"""Changes to a running model at four places: scores, weights, heads, residual stream.

    with intervene(model, [HeadGate(1, torch.tensor([1.0, 0.0, 1.0, 1.0]))]):
        logits = model(batch)

The model is as before when the block ends, also after an exception. Nested blocks and the edits of a list apply in
order. Without an edit, the output has the same bytes.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.attention.layer import EditableHeads
from .trace import attention_layers, check_layers, residual_points

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ScoreBias:
    """Add to the scaled scores of a layer.

    Args:
        layer: number of the layer.
        bias: broadcastable to (B, H, Lq, Lk), or a function of q (B, H, Lq, D) and k (B, Hk, Lk, D) that returns it.
    """

    layer: int
    bias: Tensor | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """Replace the weights of a layer.

    Args:
        layer: number of the layer.
        change: a function of the weights (B, heads, Lq, Lk) of these heads that returns the same shape.
        heads: the heads to change; all if None.
    """

    layer: int
    change: Change
    heads: Collection[int] | None = None


@dataclass(frozen=True, eq=False)
class HeadGate:
    """Multiply the head outputs of a layer by factors, broadcastable to (B, Lq, H)."""

    layer: int
    factors: Tensor


@dataclass(frozen=True, eq=False)
class HeadReplacement:
    """Replace the outputs of some heads of a layer.

    Args:
        layer: number of the layer.
        change: the new outputs z (B, heads, Lq, Dv), or a function that computes them from the old ones.
        heads: the heads to change; all if None.
    """

    layer: int
    change: Tensor | Change
    heads: Collection[int] | None = None


@dataclass(frozen=True, eq=False)
class ResidualEdit:
    """Replace the residual stream (B, L, dim) at a point; `change` is the new value or a function of the old one."""

    point: str
    change: Tensor | Change


Edit = ScoreBias | WeightEdit | HeadGate | HeadReplacement | ResidualEdit


@contextmanager
def intervene(model: nn.Module, edits: Sequence[Edit]) -> Iterator[None]:
    """Apply edits to a model until the block ends.

    Args:
        model: a model with `EditableHeads`, see trace.py.
        edits: the changes; those of one kind and layer apply in order. In a layer, scores come before weights, weights
            before gates, and gates before the replacement of heads.

    Raises:
        ValueError: the model has no such layer or residual point.
    """
    layers = list(attention_layers(model).values())
    points = residual_points(model)
    check_layers(model, {edit.layer for edit in edits if not isinstance(edit, ResidualEdit)})
    if unknown := [edit.point for edit in edits if isinstance(edit, ResidualEdit) and edit.point not in points]:
        raise ValueError(f"the residual point must be one of {', '.join(points) or '(none)'}, got {unknown[0]}")
    before = [layer.edits for layer in layers]
    handles = []
    try:
        for edit in edits:
            if isinstance(edit, ResidualEdit):
                handles.append(points[edit.point].register_forward_hook(partial(_replace_stream, edit.change)))
            else:
                _add(layers[edit.layer], edit)
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.edits = old
        for handle in handles:
            handle.remove()


def remove_heads(model: nn.Module, heads: Collection[tuple[int, int]]) -> list[HeadGate]:
    """Edits that set the outputs of (layer, head) pairs to 0."""
    layers = list(attention_layers(model).values())
    by_layer: dict[int, Tensor] = {}
    for layer, head in heads:
        check_layers(model, [layer])
        by_layer.setdefault(layer, torch.ones(layers[layer].heads, device=layers[layer].output_weight.device))[head] = 0
    return [HeadGate(layer, factors) for layer, factors in by_layer.items()]


def _add(layer: EditableHeads, edit: ScoreBias | WeightEdit | HeadGate | HeadReplacement) -> None:
    old = layer.edits
    if isinstance(edit, ScoreBias):
        layer.edits = replace(old, bias=edit.bias if old.bias is None else partial(_sum, old.bias, edit.bias))
    elif isinstance(edit, HeadGate):
        layer.edits = replace(old, gates=edit.factors if old.gates is None else old.gates * edit.factors)
    elif isinstance(edit, WeightEdit):
        layer.edits = replace(old, edit_weights=_after(old.edit_weights, edit.heads, edit.change))
    else:
        layer.edits = replace(old, edit_heads=_after(old.edit_heads, edit.heads, edit.change))


def _after(before: Change | None, heads: Collection[int] | None, change: Tensor | Change) -> Change:
    def apply(x: Tensor) -> Tensor:
        if before is not None:
            x = before(x)
        chosen = list(range(x.shape[1])) if heads is None else list(heads)
        part = x if heads is None else x[:, chosen]
        new = change.to(x) if isinstance(change, Tensor) else change(part)
        if new.shape != part.shape:
            raise ValueError(f"an edit must keep the shape {tuple(part.shape)}, got {tuple(new.shape)}")
        return new if heads is None else x.index_copy(1, torch.tensor(chosen, device=x.device), new)

    return apply


def _sum(
    first: Tensor | Callable[[Tensor, Tensor], Tensor],
    second: Tensor | Callable[[Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
) -> Tensor:
    one, two = (bias if isinstance(bias, Tensor) else bias(q, k) for bias in (first, second))
    return one + two


def _replace_stream(change: Tensor | Change, module: nn.Module, given: Any, stream: Tensor) -> Tensor:
    new = change.to(stream) if isinstance(change, Tensor) else change(stream)
    if new.shape != stream.shape:
        raise ValueError(f"a residual edit must keep the shape {tuple(stream.shape)}, got {tuple(new.shape)}")
    return new
