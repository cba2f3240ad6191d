"""Small models with known truth, without training and in float64, with which the measures are tested.

G1 attention maps of a known pattern; G2 a two-layer induction model; G3 a classifier whose heads have known shares;
G4 a copy model with known retrieval heads; G5 a model in which known heads read the image; G6 attention along a graph.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..kernels.attention.baselines import SoftmaxAttention
from ..kernels.attention.layer import MixingLayer, ResidualPoint
from ..kernels.attention.mixer import ALL_PATTERNS, CS, NS, Mixed, Mixer, Pattern

_F64 = torch.float64
_NEVER = 1e4  # a difference of scores at which the smaller weight is exactly 0


@dataclass(frozen=True, eq=False)
class GivenMap:
    """A mixer with given weights (H, L, L) or (B, H, L, L): out = A v. Its scores are log A, for a bias and a mask."""

    patterns: ClassVar[frozenset[Pattern]] = ALL_PATTERNS
    v_linear: ClassVar[bool] = True

    weights: Tensor

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Mixed[None, None]:
        weights = self.weights
        if bias is not None or mask is not None:
            scores = weights.log() if bias is None else weights.log() + bias
            scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
            blind = scores.isneginf().all(-1, keepdim=True)
            weights = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        return Mixed(weights @ v)


class HandmadeBlock(nn.Module):
    """Attention and, if given, a feed-forward network, each added to the residual stream."""

    def __init__(self, mixing: MixingLayer, feed: nn.Module | None = None) -> None:
        super().__init__()
        self.mixing, self.feed = mixing, feed
        self.before, self.between, self.after = ResidualPoint(), ResidualPoint(), ResidualPoint()

    def forward(self, x: Tensor, pattern: Pattern) -> Tensor:
        x = self.before(x)
        x = self.between(x + self.mixing(x, pattern=pattern).out)
        if self.feed is not None:
            x = x + self.feed(x)
        out: Tensor = self.after(x)
        return out


class HandmadeModel(nn.Module):
    """Blocks and a linear readout of the last token: (B, L, dim) -> logits (B, classes).

    Args:
        blocks: the blocks.
        readout: (classes, dim).
        pattern: the attention pattern.
    """

    readout: Tensor

    def __init__(self, blocks: Sequence[HandmadeBlock], readout: Tensor, pattern: Pattern = NS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer("readout", readout)
        self.pattern = pattern

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, self.pattern)
        return x[:, -1] @ self.readout.mT


# G1: maps


def uniform_map(length: int, *, causal: bool = True) -> Tensor:
    """(L, L): every visible key has the same weight."""
    return _rows_to_1(_causal(length) if causal else torch.ones(length, length, dtype=_F64))


def band_map(length: int, width: int) -> Tensor:
    """(L, L), causal: the last `width` tokens, including the token itself, have the same weight."""
    return _rows_to_1(_causal(length).triu(1 - width))


def lag_map(length: int, lag: int) -> Tensor:
    """(L, L), causal: each token attends to the token `lag` places before; the first ones attend to token 0."""
    index = torch.arange(length)
    return torch.eye(length, dtype=_F64)[(index - lag).clamp_min(0)]


def sink_map(length: int, column: int) -> Tensor:
    """(L, L), causal: each token attends to one column; tokens before it attend to themselves."""
    index = torch.arange(length)
    return torch.eye(length, dtype=_F64)[torch.minimum(index, torch.tensor(column))]


def block_map(length: int, size: int) -> Tensor:
    """(L, L), not causal: each token attends equally to the tokens of its block of `size` tokens."""
    block = torch.arange(length) // size
    return _rows_to_1((block[:, None] == block).to(_F64))


def map_model(layers: Sequence[Tensor], *, channels: int = 4, seed: int = 0, pattern: Pattern = NS) -> HandmadeModel:
    """A model whose layers have given maps, each (H, L, L); values, outputs and readout are random."""
    generator = torch.Generator().manual_seed(seed)
    heads = len(layers[0])
    blocks = [HandmadeBlock(_random_layer(heads, channels, GivenMap(maps), generator)) for maps in layers]
    return HandmadeModel(blocks, _normal(3, heads * channels, generator), pattern)


# G2: induction


class InductionModel(HandmadeModel):
    """Items and labels x_1 l_1 ... x_N l_N x_t: the previous-token head joins them, the matching head finds the label.

    In layer 0, head 0 attends to the previous token with a score of beta1 (other scores are 0). The feed-forward
    network keeps only the item of the label's own pair. In layer 1, head 0 scores a label with alpha times the weight
    of the target's item in it, plus beta2. All other heads are random and write where no known head reads. After Reddy
    (2023, arXiv 2312.03002).

    Args:
        pairs: N.
        items: number of items, which are orthonormal.
        labels: number of labels.
        beta1, alpha, beta2: strengths.
        noise_heads: random heads in each layer.
        gain: factor on the logits.
        seed: of the random heads.
    """

    def __init__(
        self,
        pairs: int = 4,
        items: int = 6,
        labels: int = 5,
        *,
        beta1: float = 8.0,
        alpha: float = 8.0,
        beta2: float = 2.0,
        noise_heads: int = 3,
        gain: float = 10.0,
        seed: int = 0,
    ) -> None:
        sizes = {"position": 2 * pairs + 1, "item": items, "slot": pairs * items, "label": labels, "flag": 1, "one": 1}
        sizes |= {"buffer": pairs * items, "match": items, "out": labels}
        known = sum(sizes.values())
        heads = 1 + noise_heads
        channels = max(pairs * items, 2 * pairs + 1, -(-(known + 4) // heads))
        space = _Subspaces(sizes, heads * channels)
        generator = torch.Generator().manual_seed(seed)
        first = _random_layer(heads, channels, SoftmaxAttention(scale=1.0), generator, writes=space.rest)
        second = _random_layer(heads, channels, SoftmaxAttention(scale=1.0), generator, writes=space.rest)
        with torch.no_grad():
            _clear_head(first, 0)
            place = space["position"]
            for i in range(2 * pairs):
                first.query.weight[i, place.start + i + 1] = beta1
                first.key.weight[i, place.start + i] = 1
            _copy(first, 0, space["slot"], space["buffer"])
            _clear_head(second, 0)
            for i in range(items):
                second.query.weight[i, space["item"].start + i] = alpha
                second.key.weight[i, space["match"].start + i] = 1
            second.query.weight[items, space["one"].start] = beta2
            second.key.weight[items, space["flag"].start] = 1
            _copy(second, 0, space["label"], space["out"])
        readout = torch.zeros(labels, space.dim, dtype=_F64)
        readout[:, space["out"]] = gain * torch.eye(labels, dtype=_F64)
        feed = _own_pair(space, pairs, items)
        super().__init__([HandmadeBlock(first, feed), HandmadeBlock(second)], readout, CS)
        self.space, self.pairs = space, pairs

    def embed(self, items: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        """Tokens (B, 2 N + 1, dim) of items (B, N), labels (B, N) and targets (B,)."""
        batch, pairs = items.shape
        space = self.space
        x = torch.zeros(batch, 2 * pairs + 1, space.dim, dtype=_F64)
        x[:, :, space["position"]] = torch.eye(2 * pairs + 1, dtype=_F64)
        x[:, :, space["one"]] = 1
        count = space["item"].stop - space["item"].start
        rows = torch.arange(batch)
        for i in range(pairs):
            x[rows, 2 * i, space["item"].start + items[:, i]] = 1
            x[rows, 2 * i, space["slot"].start + i * count + items[:, i]] = 1
            x[rows, 2 * i + 1, space["label"].start + labels[:, i]] = 1
            x[:, 2 * i + 1, space["flag"]] = 1
        x[rows, -1, space["item"].start + target] = 1
        return x


# G3: a classifier with known shares


def planted_classifier(
    shares: Tensor, *, classes: int = 3, channels: int = 6, maps: Tensor | None = None, seed: int = 0
) -> tuple[HandmadeModel, Tensor]:
    """logit_c = sum_h g_h class_c·z_h of the last token, with known shares g (H).

    Args:
        shares: g.
        classes: number of classes.
        channels: Dv.
        maps: (H, L, L) or (B, H, L, L) weights; softmax attention with random queries and keys if None.
        seed: of the other weights.

    Returns:
        the model, which reads tokens (B, L, H channels) whose first `classes` entries are 0, and the class vectors
        (classes, channels).
    """
    generator = torch.Generator().manual_seed(seed)
    mixer: Mixer = SoftmaxAttention() if maps is None else GivenMap(maps)
    layer = _random_layer(len(shares), channels, mixer, generator)
    vectors = _normal(classes, channels, generator)
    with torch.no_grad():
        layer.output.weight.zero_()
        layer.output.weight[:classes] = (shares.to(_F64)[None, :, None] * vectors[:, None]).flatten(1)
    return HandmadeModel([HandmadeBlock(layer)], torch.eye(classes, len(shares) * channels, dtype=_F64)), vectors


# G4: copying


class CopyModel(HandmadeModel):
    """A causal model that continues a sequence by the token that once followed the present one.

    Retrieval heads attend to the token whose predecessor equals the present token, and copy it; the other heads attend
    at random, and copy weakly. Logits are those of the next token.

    Args:
        vocabulary: number of tokens.
        heads: number of heads.
        retrieval: the retrieval heads.
        seed: of the other heads.
    """

    def __init__(self, vocabulary: int, heads: int, retrieval: Collection[int], *, seed: int = 0) -> None:
        channels = max(vocabulary, -(-3 * vocabulary // heads))
        space = _Subspaces({"token": vocabulary, "previous": vocabulary, "out": vocabulary}, heads * channels)
        generator = torch.Generator().manual_seed(seed)
        layer = _random_layer(heads, channels, SoftmaxAttention(scale=1.0), generator)
        with torch.no_grad():
            for head in range(heads):
                if head in retrieval:
                    _clear_head(layer, head)
                    rows = slice(head * channels, head * channels + vocabulary)
                    layer.query.weight[rows, space["token"]] = 30 * torch.eye(vocabulary, dtype=_F64)
                    layer.key.weight[rows, space["previous"]] = torch.eye(vocabulary, dtype=_F64)
                else:
                    layer.query.weight[head * channels : (head + 1) * channels] *= 8
                strength = 1.0 if head in retrieval else 0.01
                _copy(layer, head, space["token"], space["out"], strength)
        readout = torch.zeros(vocabulary, space.dim, dtype=_F64)
        readout[:, space["out"]] = torch.eye(vocabulary, dtype=_F64)
        super().__init__([HandmadeBlock(layer)], readout, CS)
        self.space = space

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, L, dim) of token numbers (B, L)."""
        x = torch.zeros(*tokens.shape, self.space.dim, dtype=_F64)
        x.scatter_(2, (self.space["token"].start + tokens).unsqueeze(2), 1)
        x[:, 1:].scatter_(2, (self.space["previous"].start + tokens[:, :-1]).unsqueeze(2), 1)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, vocabulary) after the last of the tokens (B, L)."""
        return super().forward(self.embed(tokens))


# G5: two streams


class TwoStreamModel(HandmadeModel):
    """Image tokens, text tokens and a query token, in which exactly the heads in `readers` read the image.

    A reader gives a token with evidence a score that is higher by `evidence`; the other heads read the text.

    Args:
        layers, heads: sizes.
        readers: (layer, head) of the heads that read the image.
        classes: number of classes; the content of a token is a vector over classes.
        evidence: score of evidence.
        seed: of the other weights.
    """

    def __init__(
        self,
        layers: int = 2,
        heads: int = 4,
        readers: Collection[tuple[int, int]] = ((0, 1), (1, 2)),
        *,
        classes: int = 4,
        evidence: float = 2.0,
        seed: int = 0,
    ) -> None:
        sizes = {"image": 1, "text": 1, "one": 1, "evidence": 1, "content": classes, "seen": classes, "read": classes}
        channels = max(classes + 2, -(-(sum(sizes.values())) // heads))
        space = _Subspaces(sizes, heads * channels)
        generator = torch.Generator().manual_seed(seed)
        blocks = []
        for number in range(layers):
            layer = _random_layer(heads, channels, SoftmaxAttention(scale=1.0), generator)
            with torch.no_grad():
                for head in range(heads):
                    reader = (number, head) in readers
                    own = layer.query.weight[(head + 1) * channels - 1].clone()
                    _clear_head(layer, head)
                    row = head * channels
                    layer.query.weight[row, space["one"]] = _NEVER
                    layer.key.weight[row, space["image" if reader else "text"]] = 1
                    layer.query.weight[row + 1, space["one"]] = 1
                    layer.key.weight[row + 1, space["content"]] = own[:classes]
                    if reader:
                        layer.key.weight[row + 1, space["content"]] = 0
                        layer.key.weight[row + 1, space["evidence"]] = evidence
                    _copy(layer, head, space["content"], space["seen" if reader else "read"])
            blocks.append(HandmadeBlock(layer))
        readout = torch.zeros(classes, space.dim, dtype=_F64)
        readout[:, space["seen"]] = readout[:, space["read"]] = torch.eye(classes, dtype=_F64)
        super().__init__(blocks, readout)
        self.space = space

    def embed(self, image: Tensor, text: Tensor, evidence: Tensor) -> Tensor:
        """Tokens (B, N + T + 1, dim).

        Args:
            image: (B, N, classes), content of the image tokens, which are the first N tokens.
            text: (B, T, classes), content of the text tokens.
            evidence: (B, N) bool, the image tokens with evidence.
        """
        batch, patches = evidence.shape
        x = torch.zeros(batch, patches + text.shape[1] + 1, self.space.dim, dtype=_F64)
        x[:, :, self.space["one"]] = 1
        x[:, :patches, self.space["image"]] = 1
        x[:, patches:, self.space["text"]] = 1
        x[:, :patches, self.space["content"]] = image
        x[:, patches:-1, self.space["content"]] = text
        x[:, :patches, self.space["evidence"]] = evidence.unsqueeze(2).to(_F64)
        return x


# G6: a graph


def neighbour_map(adjacency: Tensor) -> Tensor:
    """(n, n): each node attends equally to its neighbours; a node without one attends to itself."""
    edges = adjacency.bool()
    alone = ~edges.any(1)
    return _rows_to_1((edges | torch.diag(alone)).to(_F64))


def ring_graph(nodes: int, *, chords: int = 0, seed: int = 0) -> Tensor:
    """Bool (n, n): a ring and some random chords."""
    index = torch.arange(nodes)
    edges = ((index[:, None] - index).abs() == 1) | ((index[:, None] - index).abs() == nodes - 1)
    generator = torch.Generator().manual_seed(seed)
    free = torch.triu(~edges, 1).nonzero()
    for a, b in free[torch.randperm(len(free), generator=generator)[:chords]].tolist():
        edges[a, b] = edges[b, a] = True
    return edges


# parts


class _Subspaces:
    """Names of consecutive channels; the channels after them are free."""

    def __init__(self, sizes: dict[str, int], dim: int) -> None:
        self._slices: dict[str, slice] = {}
        start = 0
        for name, size in sizes.items():
            self._slices[name] = slice(start, start + size)
            start += size
        assert start <= dim
        self.dim, self.rest = dim, slice(start, dim)

    def __getitem__(self, name: str) -> slice:
        return self._slices[name]


def _own_pair(space: _Subspaces, pairs: int, items: int) -> nn.Sequential:
    """max(0, buffer of slot i + [this is label i] - 1), summed over i: the item of the label's own pair."""
    into, out = nn.Linear(space.dim, pairs * items).to(_F64), nn.Linear(pairs * items, space.dim, bias=False).to(_F64)
    with torch.no_grad():
        into.weight.zero_()
        into.bias.fill_(-1)
        out.weight.zero_()
        for i in range(pairs):
            for k in range(items):
                row = i * items + k
                into.weight[row, space["buffer"].start + row] = 1
                into.weight[row, space["position"].start + 2 * i + 1] = 1
                out.weight[space["match"].start + k, row] = 1
    return nn.Sequential(into, nn.ReLU(), out).requires_grad_(False)


def _random_layer(
    heads: int, channels: int, mixer: Mixer, generator: torch.Generator, *, writes: slice | None = None
) -> MixingLayer:
    dim = heads * channels
    layer = MixingLayer(dim, heads, mixer, bias=False).double().requires_grad_(False)
    for linear in (layer.query, layer.key, layer.value, layer.output):
        linear.weight.copy_(_normal(dim, dim, generator) / dim**0.5)
    if writes is not None:
        kept = layer.output.weight[writes].clone()
        layer.output.weight.zero_()
        layer.output.weight[writes] = kept
    return layer


def _clear_head(layer: MixingLayer, head: int) -> None:
    """Set all weights of a head to 0."""
    channels = layer.output.in_features // layer.heads
    own = slice(head * channels, (head + 1) * channels)
    for linear in (layer.query, layer.key, layer.value):
        linear.weight[own] = 0
    layer.output.weight[:, own] = 0


def _copy(layer: MixingLayer, head: int, read: slice, write: slice, strength: float = 1.0) -> None:
    """Let a head copy some channels of the tokens to other channels of the output."""
    channels = layer.output.in_features // layer.heads
    own = slice(head * channels, (head + 1) * channels)
    layer.value.weight[own] = 0
    layer.output.weight[:, own] = 0
    for i in range(read.stop - read.start):
        layer.value.weight[own.start + i, read.start + i] = 1
        layer.output.weight[write.start + i, own.start + i] = strength


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=_F64)


def _causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=_F64).tril()


def _rows_to_1(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
