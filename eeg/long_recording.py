"""A network that classifies a whole recording of any length at once.

Each second of EEG becomes one token, the logarithm of the power after learned filters, as in ShallowConvNet. A few
layers mix the tokens by any mechanism of `kernels.attention.choice`; attention pooling (Ilse et al. 2018, arXiv
1802.04712) combines them into one vector. A token depends only on its own second. If the state of the mechanism has
constant size, the network can therefore read a stream of any length: giving the seconds one at a time has the same
result as a single call.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.attention.choice import Place, mixer_of
from ..kernels.attention.graph_window import GraphWindowAttention
from ..kernels.attention.layer import MixingLayer, ResidualPoint
from ..kernels.attention.mixer import CS, NS, Mixed, Mixer, Pattern
from ..kernels.attention.recurrent import PrefixState, pooled_softmax, prefix_softmax
from .electrode_positions import neighbours

_LEAST_POWER = 1e-4  # for scaled windows; keeps the logarithm of a flat channel finite
_LOWEST_HZ, _HIGHEST_HZ = 2.0, 40.0  # range of the initial filters
_KERNEL_S = 0.5
_POWER_HZ = 32.0  # rate at which power is sampled; the output of filters half a second long varies no faster


class RecordingState(NamedTuple):
    """The state of a stream; its size does not grow with the recording."""

    rest: Tensor  # (B, n_chans, samples of the current second)
    mixers: tuple[object, ...]  # the state of each layer, None before the first second
    pooled: PrefixState | None
    logits: Tensor | None  # (B, n_outputs) after the last whole second


class LongRecordingNet(nn.Module):
    """A network that computes the logits of whole recordings.

    Args:
        n_chans: number of channels.
        n_outputs: number of classes.
        sfreq: sampling rate in Hz.
        mixer: mechanism of the layers, see `mixer_of`; causal if possible. Mechanisms that need a grid, a graph or the
            length in advance are refused.
        dim: channels of a token.
        heads: heads of each layer; must divide dim.
        depth: number of layers.
        filters: number of temporal filters, which are initialised as waves from 2 to 40 Hz.
        components: number of spatial filters, each combined with every temporal filter. Not used with `electrode_hops`.
        electrode_hops: if given, the electrodes within a second attend to each other: in training within this number of
            steps in the graph of neighbouring electrodes, in evaluation without limit (arXiv 2505.02130). None uses
            spatial filters instead.
        channels: names of the electrodes in the 10-05 system, for `electrode_hops`.
        drop_prob: probability of the dropout in the layers and before the output.
        drop_seconds: share of the seconds that are hidden in training.

    Raises:
        ValueError: an argument is out of range, or an electrode has no standard position.

    Example:
        >>> network = LongRecordingNet(n_chans=2, n_outputs=2, sfreq=64.0)
        >>> network(torch.zeros(3, 2, 640), samples=torch.tensor([640, 100, 64])).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        n_chans: int,
        n_outputs: int,
        sfreq: float,
        *,
        mixer: str = "recurrent",
        dim: int = 32,
        heads: int = 4,
        depth: int = 2,
        filters: int = 8,
        components: int = 8,
        electrode_hops: int | None = None,
        channels: Sequence[str] | None = None,
        drop_prob: float = 0.3,
        drop_seconds: float = 0.2,
    ) -> None:
        super().__init__()
        _check_sizes(n_chans=n_chans, n_outputs=n_outputs, dim=dim, heads=heads, depth=depth, filters=filters)
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        for name, share in (("drop_prob", drop_prob), ("drop_seconds", drop_seconds)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
        if not 8 <= sfreq < torch.inf:
            raise ValueError(f"sfreq must be at least 8 Hz, got {sfreq:g}")
        self.n_chans, self.heads, self.second, self.drop_seconds = n_chans, heads, round(sfreq), drop_seconds
        if electrode_hops is None:
            _check_sizes(components=components)
            self.stem: nn.Module = _SpatialStem(n_chans, self.second, dim, filters, components)
        else:
            self.stem = _ElectrodeStem(n_chans, self.second, dim, heads, filters, electrode_hops, channels)
        place = Place(heads, dim // heads)
        self.blocks = nn.ModuleList(_Block(dim, heads, mixer_of(mixer, place), drop_prob) for _ in range(depth))
        patterns = self._mixer(0).patterns
        if not patterns & {CS, NS}:
            raise ValueError(f"mixer must have self attention, got {mixer}")
        self.pattern = CS if CS in patterns else NS
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1)
        self.drop = nn.Dropout(drop_prob)
        self.final_layer = nn.Linear(dim, n_outputs)

    def forward(self, x: Tensor, samples: Tensor | None = None) -> Tensor:
        """Logits (B, n_outputs).

        Args:
            x: (B, n_chans, n), recordings scaled as in training; shorter ones are padded at the end with any values.
            samples: (B,) int, samples of each recording; n if None. An incomplete last second is left out.

        Raises:
            ValueError: a shape does not fit, or a recording has no whole second.
        """
        seconds = self._count_seconds(x, samples)
        tokens, live = self._tokens(x, seconds)
        seen = live
        if self.training and self.drop_seconds:
            kept = live & (torch.rand(live.shape, device=x.device) >= self.drop_seconds)
            seen = torch.where(kept.any(1, keepdim=True), kept, live)
        if self.pattern is CS or seconds is None:
            tokens = self._mix(tokens, self.pattern, seen)
        else:  # the result of a non-causal mechanism may depend on the number of tokens
            rows = [self._mix(row[None, :n], NS, s[None, :n]) for row, s, n in zip(tokens, seen, seconds, strict=True)]
            tokens = nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True)
        score, values = self._scored(tokens)
        pooled, _ = pooled_softmax(score.masked_fill(~seen, -torch.inf), values)
        return self._decide(pooled[:, 0])

    @torch.no_grad()
    def stream(self, x: Tensor, state: RecordingState | None = None) -> RecordingState:
        """Continue to read recordings; `logits` of the state equal those of `forward` over all samples so far.

        Args:
            x: (B, n_chans, n), the next samples, any number of them.
            state: the state returned by the previous call.

        Raises:
            ValueError: the mechanism has no state of constant size, or a shape does not fit.
        """
        if self.training:
            raise ValueError("a stream needs the network in evaluation mode: call eval() first")
        if state is None:
            if not self.streams:
                name = type(self._mixer(0)).__name__
                raise ValueError(f"{name} has no state of constant size, so it cannot read a stream")
            state = RecordingState(x[..., :0], (None,) * len(self.blocks), None, None)
        self._check_shape(x)
        x = torch.cat([state.rest, x], -1)
        whole = x.shape[-1] // self.second
        rest = x[..., whole * self.second :].clone()  # a view would keep all samples in memory
        if not whole:
            return state._replace(rest=rest)
        tokens, _ = self._tokens(x, None)
        after = []
        for block, before in zip(self.blocks, state.mixers, strict=True):
            options = {} if before is None else {"state": before}
            tokens, new = block(tokens, CS, **options)
            after.append(new)
        score, values = self._scored(tokens)
        out, _, pooled = prefix_softmax(score, values, state=state.pooled)
        return RecordingState(rest, tuple(after), pooled, self._decide(out[:, -1]))

    @property
    def streams(self) -> bool:
        """Whether the state of the mechanism has a size that does not depend on the length of the recording."""
        if self.pattern is not CS:
            return False
        sizes = set()
        for length in (3, 70):  # the second is longer than a chunk
            q = self.score.weight.new_zeros(1, self.heads, length, self.norm.normalized_shape[0] // self.heads)
            with torch.no_grad():
                sizes.add(_numbers(self._mixer(0)(q, q, q, pattern=CS).state))
        return len(sizes) == 1 and 0 not in sizes

    def _mixer(self, block: int) -> Mixer:
        mixer: Mixer = cast(_Block, self.blocks[block]).mixing.mixer
        return mixer

    def _mix(self, tokens: Tensor, pattern: Pattern, seen: Tensor) -> Tensor:
        for block in self.blocks:
            tokens, _ = block(tokens, pattern, mask=seen[:, None, None])
        return tokens

    def _tokens(self, x: Tensor, seconds: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, dim), zeros after the end of a recording, and a mask (B, L) of the valid ones.

        Without `seconds`, all recordings have the length of x.
        """
        if seconds is None:
            longest = x.shape[-1] // self.second
            pieces = x[..., : longest * self.second].unflatten(-1, (longest, self.second)).transpose(1, 2)
            pieces = pieces.clone(memory_format=torch.contiguous_format)
            whole: Tensor = self.stem(pieces.flatten(0, 1)).unflatten(0, (x.shape[0], longest))
            return whole, torch.ones(x.shape[0], longest, dtype=torch.bool, device=x.device)
        longest = int(seconds.max())
        pieces = x[..., : longest * self.second].unflatten(-1, (longest, self.second)).transpose(1, 2)
        live = torch.arange(longest) < seconds.unsqueeze(1)
        # found on the CPU, since the number of seconds is a size, for which another device would have to be waited for
        place = tuple(index.to(x.device, non_blocking=True) for index in live.nonzero(as_tuple=True))
        found: Tensor = self.stem(pieces[place])
        tokens = found.new_zeros(*live.shape, found.shape[-1]).index_put(place, found)
        return tokens, live.to(x.device, non_blocking=True)

    def _scored(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        values = self.norm(tokens)
        return self.score(values).squeeze(-1), values

    def _decide(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.final_layer(self.drop(pooled))
        return logits

    def _check_shape(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[1] != self.n_chans:
            raise ValueError(f"x must have shape (recordings, {self.n_chans}, samples), got {tuple(x.shape)}")

    def _count_seconds(self, x: Tensor, samples: Tensor | None) -> Tensor | None:
        """The whole seconds of each recording (B,) on the CPU; None if all recordings have the length of x."""
        self._check_shape(x)
        if samples is None:
            shortest = x.shape[-1]
        else:
            if samples.shape != x.shape[:1] or (len(samples) and int(samples.max()) > x.shape[-1]):
                raise ValueError(f"samples must be {len(x)} numbers up to {x.shape[-1]}, got {samples.tolist()}")
            shortest = int(samples.min()) if len(samples) else self.second
        if shortest < self.second:
            raise ValueError(f"a recording must hold a second ({self.second} samples), got {shortest} samples")
        return None if samples is None else samples.cpu() // self.second


class _SpatialStem(nn.Module):
    """Log power of temporally filtered spatial components, as a token of one second."""

    def __init__(self, n_chans: int, second: int, dim: int, filters: int, components: int) -> None:
        super().__init__()
        self.spatial = nn.Linear(n_chans, components, bias=False)
        self.power = _LogPower(second, filters)
        self.project = nn.Linear(components * filters, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, dim) from the signals of seconds, (N, n_chans, samples)."""
        components = self.spatial(x.transpose(1, 2)).transpose(1, 2)
        token: Tensor = self.project(self.power(components).flatten(1))
        return token


class _ElectrodeStem(nn.Module):
    """Mean over electrodes of their log power after temporal filters, where the electrodes attend to each other."""

    def __init__(
        self,
        n_chans: int,
        second: int,
        dim: int,
        heads: int,
        filters: int,
        hops: int,
        channels: Sequence[str] | None,
    ) -> None:
        super().__init__()
        if channels is None or len(channels) != n_chans:
            raise ValueError(f"electrode_hops needs channels, the names of the {n_chans} electrodes, got {channels}")
        if not isinstance(hops, int) or hops < 0:
            raise ValueError(f"electrode_hops must be a whole number that is not negative, got {hops!r}")
        self.power = _LogPower(second, filters)
        self.project = nn.Linear(filters, dim)
        self.electrode = nn.Parameter(0.1 * torch.randn(n_chans, dim))
        self.norm = nn.LayerNorm(dim)
        self.mixing = MixingLayer(dim, heads, _ElectrodeWindow(torch.from_numpy(neighbours(channels)), hops))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, dim) from the signals of seconds, (N, n_chans, samples)."""
        tokens = self.project(self.power(x)) + self.electrode  # (N, n_chans, dim)
        mixed: Tensor = (tokens + self.mixing(self.norm(tokens)).out).mean(1)
        return mixed


class _ElectrodeWindow(nn.Module):
    """Graph-window attention within some hops in training, and over all electrodes in evaluation."""

    patterns = frozenset({NS})
    v_linear = True
    graph: Tensor

    def __init__(self, graph: Tensor, hops: int) -> None:
        super().__init__()
        self.register_buffer("graph", graph, persistent=False)
        self.hops = hops

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Mixed[None, None]:
        return GraphWindowAttention(self.graph, self.hops if self.training else None)(q, k, v, **options)


class _LogPower(nn.Module):
    """Log power of each channel after temporal filters, which are initialised as waves from low to high frequency."""

    def __init__(self, second: int, filters: int) -> None:
        super().__init__()
        kernel = max(2, round(_KERNEL_S * second))
        highest = min(_HIGHEST_HZ, 0.4 * second)
        frequency = torch.logspace(math.log10(_LOWEST_HZ), math.log10(highest), filters)
        time = (torch.arange(kernel) - (kernel - 1) / 2) / second
        phase = torch.rand(filters, 1) * 2 * torch.pi
        waves = torch.hann_window(kernel, periodic=False) * torch.cos(2 * torch.pi * frequency[:, None] * time + phase)
        waves = waves - waves.mean(1, keepdim=True)
        self.filters = nn.Parameter((waves / waves.norm(dim=1, keepdim=True)).unsqueeze(1))
        self.stride = max(1, round(second / _POWER_HZ))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, filters) of seconds (N, channels, second)."""
        filtered = F.conv1d(x.flatten(0, 1).unsqueeze(1), self.filters, stride=self.stride)
        power = (filtered.square().mean(-1) + _LEAST_POWER).log()
        by_channel: Tensor = power.unflatten(0, x.shape[:2])
        return by_channel


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, mixer: Mixer, drop_prob: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixing = MixingLayer(dim, heads, mixer)
        self.feed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.drop = nn.Dropout(drop_prob)
        self.before, self.between, self.after = ResidualPoint(), ResidualPoint(), ResidualPoint()

    def forward(self, x: Tensor, pattern: Pattern, **options: Any) -> tuple[Tensor, object]:
        """Tokens (B, L, dim) and the state of the mixer; `options` are the mixer's."""
        x = self.before(x)
        mixed = self.mixing(self.norm(x), pattern=pattern, **options)
        x = self.between(x + self.drop(mixed.out))
        out: Tensor = self.after(x + self.drop(self.feed(x)))
        return out, mixed.state


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")


def _numbers(state: object) -> int:
    """Count of the numbers in a state."""
    if isinstance(state, Tensor):
        return state.numel()
    return sum(map(_numbers, state)) if isinstance(state, tuple) else 0
