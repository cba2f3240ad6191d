"""Attention without one of its properties: controls that show which properties of attention a task needs.

After "Deconstructing attention" (2025, arXiv 2510.11602). Each variant removes one property and keeps the others:

    no pairwise term      `KeyScoredAttention` (non_approx): scores depend on the key only, a running sum
    no dependence on x    `FixedMapAttention` (rnd_emb_qk, fixed_seq_qk): queries and keys are constants
    no dependence on the  `MixingLayer(...)(x, addresses=x_0)` (static_emb_qk): queries and keys of the embedding,
     hidden state          values of the layer
    no exact softmax      `AssociativeMemory("taylor")` (taylor)
    no scores at all      `UniformAttention` (ours)
    no token mixing       `GatedUnit` (mlp), in place of a layer

`place_variant` distributes a variant over the layers of a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dense import dense_attention, visible_keys
from .mixer import ALL_PATTERNS, CS, NS, Mixed, Pattern, check_call, in_one_type, key_mask, mixing, spread_heads
from .recurrent import PrefixState, pooled_softmax, prefix_softmax
from .softmax import attention

T = TypeVar("T")


@dataclass(frozen=True)
class UniformAttention:
    """The mean of the visible values, in all patterns; of queries and keys, only the number is used."""

    patterns: ClassVar[frozenset[Pattern]] = ALL_PATTERNS
    v_linear: ClassVar[bool] = True

    @mixing
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
    ) -> Mixed[None, None]:
        start = check_call(self, q, k, v, pattern, q_start)
        wide = torch.promote_types(q.dtype, torch.float32)
        seen = key_mask(mask, k)[:, None, :, None].to(wide)
        sums, counts = spread_heads(v, q.shape[1]).to(wide) * seen, seen
        if pattern is CS:
            rows = slice(start, start + q.shape[2])
            sums, counts = (x.cumsum(2)[:, :, rows] for x in (sums, counts))
        else:
            sums, counts = (x.sum(2, keepdim=True).expand(-1, -1, q.shape[2], -1) for x in (sums, counts))
        return Mixed((sums / counts.clamp_min(1)).to(q.dtype))


@dataclass(frozen=True)
class KeyScoredAttention:
    """Softmax attention in which key j has the score scale SiLU(q_j)·k_j for every query, as in `RecurrentAttention`.

    It supports self attention only, because token j gives both q_j and k_j. Causal calls stream with a `PrefixState`.
    """

    patterns: ClassVar[frozenset[Pattern]] = frozenset({NS, CS})
    v_linear: ClassVar[bool] = True

    scale: float | None = None

    @mixing
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
        state: PrefixState | None = None,
    ) -> Mixed[PrefixState, None]:
        check_call(self, q, k, v, pattern, q_start)
        if q_start or (state is not None and pattern is not CS):
            raise ValueError(f"state needs causal self attention, and q_start 0, got {pattern.value}, {q_start}")
        wide = torch.promote_types(q.dtype, torch.float32)
        keys, values = (spread_heads(x, q.shape[1]).to(wide) for x in (k, v))
        scale = q.shape[3] ** -0.5 if self.scale is None else self.scale
        scores = scale * (F.silu(q.to(wide)) * keys).sum(-1)
        scores = scores.masked_fill(~key_mask(mask, k)[:, None], -torch.inf)
        if pattern is CS:
            out, lse, after = prefix_softmax(scores, values, state=state)
            return Mixed(out.to(q.dtype), lse, after)
        out, lse = pooled_softmax(scores, values)
        return Mixed(out.to(q.dtype).expand(-1, -1, q.shape[2], -1), lse.expand(-1, -1, q.shape[2]))


class FixedMapAttention(nn.Module):
    """Softmax attention with stored queries and keys, from random embeddings or from one real sequence.

    It supports self attention only. An input that is longer than the stored sequence is an error.

    Args:
        query: (H, n, D), stored with the model and not trained.
        key: (H, n, D), likewise.
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    patterns = frozenset({NS, CS})
    v_linear = True
    query: Tensor
    key: Tensor

    def __init__(self, query: Tensor, key: Tensor, *, scale: float | None = None) -> None:
        super().__init__()
        if query.dim() != 3 or query.shape != key.shape:
            shapes = f"{tuple(query.shape)} and {tuple(key.shape)}"
            raise ValueError(f"query and key must have one shape (H, n, D), got {shapes}")
        self.register_buffer("query", query.detach().clone())
        self.register_buffer("key", key.detach().clone())
        self.scale = scale

    @classmethod
    def random(cls, heads: int, length: int, channels: int, *, seed: int = 0) -> "FixedMapAttention":
        """Stored queries and keys drawn from a normal distribution."""
        generator = torch.Generator().manual_seed(seed)
        return cls(*torch.randn(2, heads, length, channels, generator=generator).unbind())

    @in_one_type
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
    ) -> Mixed[None, None]:
        start = check_call(self, q, k, v, pattern, q_start)
        stored = self.query.shape[1]
        if max(k.shape[2], start + q.shape[2]) > stored:
            raise ValueError(
                f"inputs must have at most {stored} tokens, as the stored sequence, got "
                f"{max(k.shape[2], start + q.shape[2])}"
            )
        shape = (q.shape[0], -1, -1, -1)
        query = self.query[:, start : start + q.shape[2]].to(q).expand(shape)
        key = self.key[:, : k.shape[2]].to(q).expand(shape)
        values = spread_heads(v, q.shape[1])
        out = attention(query, key, values, mask=mask, causal=pattern is CS, q_start=start, scale=self.scale)
        return Mixed(out)


class GatedUnit(nn.Module):
    """W_down (SiLU(W_gate x) * W_up x) for each token, with as many weights as an attention layer of that width.

    Args:
        dim: channels; the inner width is 4/3 of it, so that 3 dim inner = 4 dim^2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = round(4 * dim / 3)
        self.gate, self.up = nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.down = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def place_variant(
    depth: int,
    variant: Callable[[], T],
    softmax: Callable[[], T],
    where: Literal["everywhere", "hybrid", "skip"] = "everywhere",
) -> list[T | None]:
    """A list with one mixer for each layer; layers are counted from 1.

    "everywhere" uses the variant in each layer, "hybrid" uses the variant in odd layers and softmax in even layers, and
    "skip" is a hybrid whose odd layers are removed (None) after training.
    """
    if where == "everywhere":
        return [variant() for _ in range(depth)]
    if where not in ("hybrid", "skip"):
        raise ValueError(f'where must be "everywhere", "hybrid" or "skip", got "{where}"')
    odd = variant if where == "hybrid" else lambda: None
    return [odd() if layer % 2 else softmax() for layer in range(1, depth + 1)]


def reference(
    mixer: UniformAttention | KeyScoredAttention | FixedMapAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax over explicit scores: zeros, scores of the keys only, or scores of the stored tokens."""
    visible = visible_keys(q.shape[2], k, causal=pattern is CS, q_start=q_start, mask=mask)
    heads = q.shape[1]
    if isinstance(mixer, FixedMapAttention):
        rows = slice(q_start, q_start + q.shape[2])
        query = mixer.query[:, rows].to(q).expand(len(q), -1, -1, -1)
        key = mixer.key[:, : k.shape[2]].to(q).expand(len(q), -1, -1, -1)
        return dense_attention(query, key, v.repeat_interleave(heads // v.shape[1], 1), visible, scale=mixer.scale)
    if isinstance(mixer, UniformAttention):
        return dense_attention(torch.zeros_like(q), k, v, visible)
    scale = q.shape[3] ** -0.5 if mixer.scale is None else mixer.scale
    keys = k.repeat_interleave(heads // k.shape[1], 1)
    scores = scale * torch.einsum("bhjd,bhjd->bhj", q * torch.sigmoid(q), keys)
    return dense_attention(torch.zeros_like(q), k, v, visible, bias=scores.unsqueeze(2))
