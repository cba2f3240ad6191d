"""Nested submodels: one set of weights that contains several sizes, each a prefix of the next.

After Nemotron Elastic (2025, arXiv 2511.16664), whose router code is not public. The units of each axis (embedding
channels, attention heads, neurons, layers) are sorted by importance, and a size keeps the first units of each axis.
During training, the other units are masked; afterwards `extract` removes them, and the result equals the masked model.

With layer or RMS normalisation, a masked model and the extracted one differ (by 0.7 in a toy model) unless the norm
divides by the number of active channels, as `ActiveNorm` does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mixer import NS, Mixer, Pattern


class LayerSize(NamedTuple):
    """Numbers of active units of a layer, or of all its units."""

    embedding: int
    heads: int
    neurons: int


class LayerMasks(NamedTuple):
    """Factors on the units of a layer: 0 or 1, or values in between for a soft choice."""

    embedding: Tensor  # (dim,)
    heads: Tensor  # (heads,)
    neurons: Tensor  # (neurons,)


def prefix_mask(count: int, length: int, like: Tensor) -> Tensor:
    """Ones for the first `count` units, then zeros, (length,)."""
    return (torch.arange(length, device=like.device) < count).to(like)


class ActiveNorm(nn.Module):
    """Layer normalisation over the active channels: mean and variance divide by the number of active channels.

    Args:
        dim: number of all channels.
        epsilon: added to the variance.
    """

    def __init__(self, dim: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.epsilon = epsilon

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalise x (..., dim) with factors (dim,); masked channels are 0."""
        active = mask.sum().clamp_min(1)
        mean = (x * mask).sum(-1, keepdim=True) / active
        centred = (x - mean) * mask
        variance = centred.square().sum(-1, keepdim=True) / active
        out: Tensor = centred * (variance + self.epsilon).rsqrt() * self.weight + self.bias
        return out * mask


class ElasticLayer(nn.Module):
    """A pre-norm layer of attention and MLP, x + W_O heads(norm x), then x + W_2 gelu(W_1 norm x), in any size.

    Args:
        size: numbers of all channels, heads and neurons.
        channels: channels of a head; the same in every size.
        mixer: a mechanism without parameters for each head.
    """

    def __init__(self, size: LayerSize, channels: int, mixer: Mixer) -> None:
        super().__init__()
        if isinstance(mixer, nn.Module) and any(True for _ in mixer.parameters()):
            raise ValueError(
                f"mixer must have no parameters, as they could not be extracted, got {type(mixer).__name__}"
            )
        self.size, self.channels, self.mixer = size, channels, mixer
        width = size.heads * channels
        self.mixing_norm, self.neuron_norm = ActiveNorm(size.embedding), ActiveNorm(size.embedding)
        self.query, self.key, self.value = (nn.Linear(size.embedding, width) for _ in range(3))
        self.output = nn.Linear(width, size.embedding)
        self.up, self.down = nn.Linear(size.embedding, size.neurons), nn.Linear(size.neurons, size.embedding)

    def masks(self, size: LayerSize) -> LayerMasks:
        """The factors that keep the first units of each axis."""
        like = self.output.bias
        return LayerMasks(*(prefix_mask(n, full, like) for n, full in zip(size, self.size, strict=True)))

    def forward(self, x: Tensor, masks: LayerMasks | None = None, *, pattern: Pattern = NS) -> Tensor:
        """(B, L, embedding) -> (B, L, embedding); without masks, at full size."""
        masks = self.masks(self.size) if masks is None else masks
        x = x * masks.embedding
        normed = self.mixing_norm(x, masks.embedding)
        q, k, v = (
            f(normed).unflatten(-1, (-1, self.channels)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        mixed = self.mixer(q, k, v, pattern=pattern).out * masks.heads[:, None, None]
        x = x + self.output(mixed.transpose(1, 2).flatten(2)) * masks.embedding
        inner = F.gelu(self.up(self.neuron_norm(x, masks.embedding))) * masks.neurons
        out: Tensor = x + self.down(inner) * masks.embedding
        return out

    @torch.no_grad()
    def reorder(self, embedding: Tensor, heads: Tensor, neurons: Tensor) -> None:
        """Sort the units by the given order (indices) of each axis; apart from this, the function is unchanged."""
        rows = (heads.unsqueeze(1) * self.channels + torch.arange(self.channels, device=heads.device)).flatten()
        for linear, outs, ins in (
            *((projection, rows, embedding) for projection in (self.query, self.key, self.value)),
            (self.output, embedding, rows),
            (self.up, neurons, embedding),
            (self.down, embedding, neurons),
        ):
            linear.weight.copy_(linear.weight[outs][:, ins].clone())
            linear.bias.copy_(linear.bias[outs].clone())
        for norm in (self.mixing_norm, self.neuron_norm):
            norm.weight.copy_(norm.weight[embedding].clone())
            norm.bias.copy_(norm.bias[embedding].clone())

    @torch.no_grad()
    def extract(self, size: LayerSize) -> "ElasticLayer":
        """A layer of the given size, with the first units of this layer."""
        if any(not 1 <= n <= full for n, full in zip(size, self.size, strict=True)):
            raise ValueError(f"size must be between 1 and {tuple(self.size)} on each axis, got {tuple(size)}")
        small = ElasticLayer(size, self.channels, self.mixer).to(self.output.weight)
        own = self.state_dict()
        for name, parameter in small.named_parameters():
            parameter.copy_(own[name][tuple(slice(n) for n in parameter.shape)])
        return small


class ElasticStack(nn.Module):
    """A sequence of elastic layers; each layer is given the size of its active part, or None to skip it."""

    def __init__(self, layers: Sequence[ElasticLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, sizes: Sequence[LayerSize | None] | None = None, *, pattern: Pattern = NS) -> Tensor:
        """(B, L, embedding) -> (B, L, embedding); a skipped layer returns x unchanged."""
        for n, layer in enumerate(self.layers):
            assert isinstance(layer, ElasticLayer)
            size = layer.size if sizes is None else sizes[n]
            if size is not None:
                x = layer(x, layer.masks(size), pattern=pattern)
        return x

    def extract(self, sizes: Sequence[LayerSize | None]) -> "ElasticStack":
        """The stack of the remaining layers in these sizes; all layers must keep the same embedding."""
        if len({size.embedding for size in sizes if size is not None}) > 1:
            raise ValueError(f"all layers must keep the same embedding, got {list(sizes)}")
        kept = [layer.extract(s) for layer, s in zip(self.layers, sizes, strict=True) if s is not None]  # type: ignore[operator]
        return ElasticStack(kept)


def layer_cost(size: LayerSize, channels: int) -> int:
    """Number of parameters of an `ElasticLayer` of that size."""
    width = size.heads * channels
    projections = 3 * (size.embedding + 1) * width + (width + 1) * size.embedding
    return projections + (size.embedding + 1) * size.neurons + (size.neurons + 1) * size.embedding + 4 * size.embedding


def channel_importance(activations: Tensor) -> Tensor:
    """Sum of magnitudes (channels,) of values (..., channels): outputs of a norm, or neurons before the activation."""
    return activations.abs().sum(tuple(range(activations.dim() - 1)))


def head_importance(q: Tensor) -> Tensor:
    """Norm of the queries of each head, (H,), from (B, H, L, D)."""
    result: Tensor = q.norm(dim=-1).sum((0, 2))
    return result


def scan_ranking(s: Tensor, groups: int, kept_channels: int) -> tuple[Tensor, Tensor]:
    """Order of the heads and of the head channels of a scan, most important first.

    The heads of a group share B and C. All groups therefore keep equally many heads, which are ranked within their
    group, and all heads keep the same channels.

    Args:
        s: (B, L, heads, channels), LN(X) W_x.
        groups: number of groups of heads; must divide the number of heads.
        kept_channels: number of channels from which the importance of a head is computed.

    Returns:
        The order of the heads within each group, (groups, heads / groups), as indices among all heads; and the order of
        the channels (channels,).
    """
    heads = s.shape[2]
    if heads % groups:
        raise ValueError(f"groups must divide the {heads} heads, got {groups}")
    totals = s.sum((0, 1))  # (heads, channels)
    channels = totals.norm(dim=0).argsort(descending=True, stable=True)
    strength = totals[:, channels[:kept_channels]].norm(dim=1).view(groups, -1)
    first = torch.arange(groups, device=s.device).unsqueeze(1) * (heads // groups)
    return strength.argsort(dim=1, descending=True, stable=True) + first, channels


def depth_importance(full: Tensor, without: Sequence[Tensor]) -> Tensor:
    """The change (layers,) of the output without each layer j: sum (M_full - M_-j)^2 / sum M_full^2.

    The paper removes the least important layer and measures again, until one layer is left.
    """
    return torch.stack([(full - other).square().sum() / full.square().sum() for other in without])


class SizeRouter(nn.Module):
    """Chooses one of several numbers of units on an axis for a given budget, by Gumbel softmax.

    Args:
        budgets: number of possible budgets.
        counts: numbers of units to choose from, ascending.
        hidden: width of the hidden layer.
    """

    ascending: Tensor

    def __init__(self, budgets: int, counts: Sequence[int], *, hidden: int = 32) -> None:
        super().__init__()
        self.counts = tuple(counts)
        self.budgets = budgets
        self.register_buffer("ascending", torch.tensor(counts, dtype=torch.float32), persistent=False)
        self.choose = nn.Sequential(nn.Linear(budgets, hidden), nn.LeakyReLU(), nn.Linear(hidden, len(counts)))

    def forward(self, budget: int, *, temperature: float = 1.0, hard: bool = False) -> tuple[Tensor, Tensor]:
        """The mask (largest count,) and the expected count; `hard` makes one choice, with straight-through gradient."""
        wanted = F.one_hot(torch.tensor(budget, device=self.ascending.device), self.budgets).to(self.ascending)
        share = F.gumbel_softmax(self.choose(wanted), tau=temperature, hard=hard)
        masks = torch.stack([prefix_mask(count, self.counts[-1], share) for count in self.counts])
        return share @ masks, share @ self.ascending


def elastic_loss(student: Tensor, teacher: Tensor, cost: Tensor, target: float, *, weight: float = 1.0) -> Tensor:
    """KL divergence from the frozen full model (last axis of the logits) plus weight |cost - target| / target."""
    task = F.kl_div(student.log_softmax(-1), teacher.detach().log_softmax(-1), reduction="batchmean", log_target=True)
    return task + weight * (cost - target).abs() / target


def draw_budget(budgets: int, stage: int, generator: torch.Generator | None = None) -> int:
    """Draw the budget of a training step: with equal weights in stage 1, budget n with weight n + 1 in stage 2."""
    weights = torch.ones(budgets) if stage == 1 else torch.arange(1.0, budgets + 1)
    return int(torch.multinomial(weights, 1, generator=generator))
