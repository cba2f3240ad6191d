"""The layer around a mixer: projections, and the one door through which heads, scores and weights are changed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from .mixer import NS, Mixer, Pattern, attention_map, spread_heads


class Gates(NamedTuple):
    """Factors on the head outputs, and the loss that keeps their choice balanced."""

    gates: Tensor  # (B, L, H)
    balance: Tensor  # scalar; 0 where nothing is chosen


@dataclass(frozen=True)
class Edits:
    """What is changed inside a `MixingLayer` while it runs. The default changes nothing.

    Pruning, ablation and reinforcement of heads, steering of scores and replaced weights all enter here.
    """

    gates: Tensor | None = None  # factor on the head outputs, broadcastable to (B, L, H)
    bias: Tensor | None = None  # added to the scaled scores, broadcastable to (B, H, Lq, Lk)
    edit_weights: Callable[[Tensor], Tensor] | None = None  # (B, H, Lq, Lk) -> the same shape; mixers linear in v
    edit_heads: Callable[[Tensor], Tensor] | None = None  # head outputs after the gates, (B, H, Lq, D) -> the same


class LayerOutput(NamedTuple):
    """What a `MixingLayer` gives."""

    out: Tensor  # (B, L, dim)
    state: object  # the mixer's state after the last token, None where it has none
    extras: object  # what the mixer chose on the way
    gates: Gates | None  # of the layer's own head gates


class MixingLayer(nn.Module):
    """y = W_O [gate_h · head_h] with head_h = mixer(W_Q x, W_K context, W_V context).

    Args:
        dim: channels of x and of the output.
        heads: number of query heads, which divides dim.
        mixer: the mechanism; a module is trained with the layer.
        key_heads: number of key heads, which divides heads; as many as heads if not given.
        gates: module that gives `Gates` from x (B, L, dim), as `HeadGates` of mixture_of_heads.py does.
        dropout: share of the head outputs set to 0 in training; not every mechanism has weights to drop.
        qk_norm: divide queries and keys by their root mean square in each head.
        bias: the projections have a bias.

    `edits` may be replaced at any time, also for a layer deep inside a model.
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
        self.edits = Edits()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        pattern: Pattern = NS,
        addresses: Tensor | None = None,
        **options: Any,
    ) -> LayerOutput:
        """Mix the tokens of x, or those of `context` into x.

        Args:
            x: (B, L, dim).
            context: (B, Lk, dim), source of keys and values; x itself if not given.
            pattern: who sees whom.
            addresses: (B, L, dim), tokens whose queries and keys replace those of x in self attention, such as the
                model's first embedding; the values stay those of x.
            options: what else the mixer takes: q_start, mask, bias, state.
        """
        if context is not None and addresses is not None:
            raise ValueError("addresses belong to self attention, got a context too")
        source = x if context is None else context
        q = self.query_norm(_heads(self.query(x if addresses is None else addresses), self.heads))
        k = self.key_norm(_heads(self.key(source if addresses is None else addresses), self.key_heads))
        v = _heads(self.value(source), self.key_heads)
        edits = self.edits
        if edits.bias is not None:
            given = options.get("bias")
            options["bias"] = edits.bias if given is None else given + edits.bias
        state = extras = None
        if edits.edit_weights is None:
            mixed = self.mixer(q, k, v, pattern=pattern, **options)
            out, state, extras = mixed.out, mixed.state, mixed.extras
        else:
            weights = edits.edit_weights(attention_map(self.mixer, q, k, pattern=pattern, **options))
            out = weights @ spread_heads(v, self.heads)
        gates = None if self.gates is None else self.gates(x)
        for factor in (None if gates is None else gates.gates, edits.gates):
            if factor is not None:
                out = (out.transpose(1, 2) * factor.to(out.dtype).unsqueeze(-1)).transpose(1, 2)
        if edits.edit_heads is not None:
            out = edits.edit_heads(out)
        out = self.output(self.dropout(out).transpose(1, 2).flatten(2))
        return LayerOutput(out, state, extras, gates)


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)  # (B, H, L, D)
