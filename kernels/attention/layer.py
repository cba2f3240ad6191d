"""The layer around a mixer: projections, and one interface for changing heads, scores and weights."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from .mixer import NS, Mixed, Mixer, Pattern, attention_map, spread_heads


class Gates(NamedTuple):
    """Factors on the head outputs, and a loss that keeps the choice of heads balanced."""

    gates: Tensor  # (B, L, H)
    balance: Tensor  # scalar; 0 if there is no choice of heads


@dataclass(frozen=True)
class Edits:
    """Changes to the computation of a `MixingLayer`. The default changes nothing.

    Pruning, ablation and amplification of heads, additions to scores and replacement of weights all use this class.
    """

    gates: Tensor | None = None  # factor on the head outputs, broadcastable to (B, L, H)
    bias: Tensor | Callable[[Tensor, Tensor], Tensor] | None = (
        None  # added to the scaled scores, broadcastable to (B, H, Lq, Lk); or a function of q and k that returns it
    )
    edit_weights: Callable[[Tensor], Tensor] | None = (
        None  # (B, H, Lq, Lk) -> the same shape; only for mixers that are linear in v
    )
    edit_heads: Callable[[Tensor], Tensor] | None = (
        None  # head outputs after the gates, (B, H, Lq, D) -> the same shape
    )


class Seen(NamedTuple):
    """One call of an attention layer, as its `watch` receives it; changes by `Edits` are included."""

    heads: Tensor  # z (B, H, Lq, Dv), the head outputs after the gates
    weights: Callable[[], Tensor] | None  # computes the weights (B, H, Lq, Lk); None if the mixer is not linear in v
    keys: int  # Lk
    apply: Callable[[Tensor], Tensor] | None  # values (B, H, Lk, n) -> weights @ values, without a map; None likewise


class ResidualPoint(nn.Identity):
    """A place in a model where the residual stream (B, L, dim) can be read and replaced; it computes nothing."""


class EditableHeads(nn.Module):
    """Base of the attention layers whose heads, scores and weights can be changed and watched.

    The attributes `edits` and `watch` can be replaced at any time, also for a layer deep inside a model. `watch` is
    called once for each call of the layer.
    """

    heads: int

    def __init__(self) -> None:
        super().__init__()
        self.edits = Edits()
        self.watch: Callable[[Seen], None] | None = None

    @property
    def output_weight(self) -> Tensor:
        """W_O, (dim, H Dv): the layer's output is the heads, side by side, times its transpose, plus a bias."""
        raise NotImplementedError

    @property
    def takes_bias(self) -> bool:
        """Whether the mechanism has scores to which a bias can be added."""
        mixer = getattr(self, "mixer", None)
        return mixer is not None and "bias" in inspect.signature(getattr(mixer, "forward", mixer)).parameters

    @property
    def touched(self) -> bool:
        """Whether there is an edit or a watch."""
        edits = self.edits
        changes = (edits.gates, edits.bias, edits.edit_weights, edits.edit_heads)
        return self.watch is not None or any(change is not None for change in changes)

    def mix_heads(
        self, mixer: Mixer, q: Tensor, k: Tensor, v: Tensor, *, gates: Tensor | None = None, **options: Any
    ) -> Mixed[object, object]:
        """The mixer's result, changed by the edits.

        Args:
            mixer: the mechanism.
            q, k, v: as for a `Mixer`.
            gates: (B, Lq, H), the model's own factors on the head outputs.
            options: other arguments of the mixer.
        """
        edits = self.edits
        if edits.bias is not None:
            given = options.get("bias")
            bias = edits.bias if isinstance(edits.bias, Tensor) else edits.bias(q, k)
            options["bias"] = bias if given is None else given + bias

        def weights() -> Tensor:
            found = attention_map(mixer, q, k, **options)
            return found if edits.edit_weights is None else edits.edit_weights(found)

        def apply(values: Tensor) -> Tensor:
            if edits.edit_weights is not None:
                return weights() @ values
            return mixer(q, spread_heads(k, q.shape[1]), values, **options).out

        if edits.edit_weights is None:
            mixed = mixer(q, k, v, **options)
            out = mixed.out
        else:
            out = weights() @ spread_heads(v, q.shape[1])
            mixed = Mixed(out)
        for factor in (gates, edits.gates):
            if factor is not None:
                out = (out.transpose(1, 2) * factor.to(out.dtype).unsqueeze(-1)).transpose(1, 2)
        if edits.edit_heads is not None:
            out = edits.edit_heads(out)
        if self.watch is not None:
            linear = mixer.v_linear
            self.watch(Seen(out, weights if linear else None, k.shape[2], apply if linear else None))
        return replace(mixed, out=out)


class LayerOutput(NamedTuple):
    """The output of a `MixingLayer`."""

    out: Tensor  # (B, L, dim)
    state: object  # the mixer's state after the last token; None if it has none
    extras: object  # choices and losses of the mixer
    gates: Gates | None  # of the layer's own head gates


class MixingLayer(EditableHeads):
    """y = W_O [gate_h · head_h] with head_h = mixer(W_Q x, W_K context, W_V context).

    Args:
        dim: channels of x and of the output.
        heads: number of query heads, which divides dim.
        mixer: the mechanism; if it is a module, it is trained with the layer.
        key_heads: number of key heads, which divides heads; equal to heads if not given.
        gates: module that computes `Gates` from x (B, L, dim), such as `HeadGates` of mixture_of_heads.py.
        dropout: fraction of the head outputs set to 0 in training; not every mechanism has weights to drop.
        qk_norm: divide queries and keys by their root mean square in each head.
        bias: whether the projections have a bias.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mixer: Mixer,
        *,
        key_heads: int | None = None,
        gates: nn.Module | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        key_heads = heads if key_heads is None else key_heads
        if dim % heads or heads % key_heads:
            raise ValueError(f"heads must divide dim = {dim} and key_heads heads, got {heads} and {key_heads}")
        self.heads, self.key_heads = heads, key_heads
        self.mixer = mixer
        self.gates = gates
        channels = dim // heads
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(dim, key_heads * channels, bias=bias)
        self.value = nn.Linear(dim, key_heads * channels, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)
        self.query_norm = nn.RMSNorm(channels) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(channels) if qk_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    @property
    def output_weight(self) -> Tensor:
        return self.output.weight

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        pattern: Pattern = NS,
        addresses: Tensor | None = None,
        **options: Any,
    ) -> LayerOutput:
        """Let the tokens of x attend to each other, or to those of `context`.

        Args:
            x: (B, L, dim).
            context: (B, Lk, dim), source of keys and values; x itself if not given.
            pattern: the attention pattern.
            addresses: (B, L, dim), tokens from which queries and keys are computed in self attention instead of x, such
                as the model's first embedding; the values are still computed from x.
            options: other arguments of the mixer: q_start, mask, bias, state.
        """
        if context is not None and addresses is not None:
            raise ValueError("addresses need self attention, got a context too")
        source = x if context is None else context
        q = self.query_norm(_heads(self.query(x if addresses is None else addresses), self.heads))
        k = self.key_norm(_heads(self.key(source if addresses is None else addresses), self.key_heads))
        v = _heads(self.value(source), self.key_heads)
        gates = None if self.gates is None else self.gates(x)
        factors = None if gates is None else gates.gates
        mixed = self.mix_heads(self.mixer, q, k, v, gates=factors, pattern=pattern, **options)
        out = self.output(self.dropout(mixed.out).transpose(1, 2).flatten(2))
        return LayerOutput(out, mixed.state, mixed.extras, gates)


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)  # (B, H, L, D)
