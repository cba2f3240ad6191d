"""Small tasks on which attention mechanisms are compared, with at least one for each attention pattern.

    NS  `MaskedPatches`    the hidden patches of an image
    CS  `NextWindow`       the next window of an EEG
        `Recall`           the value that was paired with a key (MQAR, Arora et al. 2023, arXiv 2312.04927)
        `Needle`           the label of the one marked token in noise
    NC  `MovedPatches`     the displacement of each patch of one image in another
    CC  `NextFixation`     the object on which the next fixation lands

After CAB (Zhang et al. 2022, arXiv 2210.07661), which compares mechanisms in these four patterns. Sequences are drawn
anew for each batch. Training and test sequences come from different slices, people and random streams. Coordinates in
training begin at random offsets, so that the coordinates of test sequences four times as long are not new.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.attention.mixer import CC, CS, NC, NS, Pattern

LONGEST = 4  # the longest test sequence, in training lengths
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # of test sequences, in training lengths
_SPLITS = ("train", "test")


class Batch(NamedTuple):
    """Sequences with the expected outputs."""

    tokens: Tensor  # (B, L, features), of the queries
    context: Tensor | None  # (B, Lk, features), the source of keys and values in cross attention
    target: Tensor  # (B, L) class index, or (B, L, outputs)
    scored: Tensor  # bool (B, L), the tokens whose output counts


class TaskData(NamedTuple):
    """The real and simulated recordings from which sequences are cut; each is a pair of a training and a test part."""

    images: tuple[Tensor, Tensor]  # (slices, height, width), intensities near [0, 1]
    signals: tuple[Tensor, Tensor]  # (people, channels, samples), unit variance in each channel
    colours: Tensor  # (n, 3), colours of objects


class Task(ABC):
    """A source of batches, and the measures of an output.

    `length` is the number of tokens of a training sequence. The first measure is the main one. Each measure is at most
    1, the score of a perfect output, and larger is better.
    """

    name: str
    pattern: Pattern
    length: int
    features: int  # of a token
    context_features: int | None
    outputs: int  # of the model for each token
    classes: bool  # whether the outputs are logits of classes
    measures: tuple[str, ...]
    steps: int  # of training
    rate: float  # learning rate

    @abstractmethod
    def batch(self, count: int, length: int, *, test: bool, generator: torch.Generator) -> Batch:
        """Draw `count` sequences of `length` tokens."""

    @abstractmethod
    def score(self, output: Tensor, batch: Batch) -> dict[str, float]:
        """The measures of an output (B, L, outputs)."""

    def grid(self, length: int) -> tuple[int, ...]:
        """The grid on which the tokens of a sequence lie; one axis, unless a task has another one."""
        return (length,)


def coordinates(at: Tensor, octaves: int) -> Tensor:
    """Sines and cosines of coordinates (..., axes): (..., axes * 2 * octaves); periods 4, 8, 16, ... units."""
    angle = at.unsqueeze(-1) * (math.pi / 2 ** torch.arange(1, octaves + 1, dtype=at.dtype))
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def explained(output: Tensor, batch: Batch) -> float:
    """The explained share of the variance of the target at the scored tokens; 0 for the mean, 1 for the target."""
    target, found = batch.target[batch.scored], output[batch.scored]
    spread = (target - target.mean(0)).square().sum()
    return float(1 - (found - target).square().sum() / spread)


def accuracy(output: Tensor, batch: Batch) -> float:
    """The share of scored tokens at which the largest logit is that of the right class."""
    return float((output.argmax(-1) == batch.target)[batch.scored].float().mean())


def grid_of(length: int) -> tuple[int, int]:
    """The sides of the grid with that many places, a square or twice as wide as high.

    Example:
        >>> [grid_of(n) for n in (32, 64, 128)]
        [(4, 8), (8, 8), (8, 16)]
    """
    high = 2 ** (round(math.log2(length)) // 2)
    if length % high or length // high not in (high, 2 * high):
        raise ValueError(f"length must be a power of two, got {length}")
    return high, length // high


def _places(grid: Sequence[int], shift: Tensor) -> Tensor:
    """Coordinates (B, L, axes) of the places of a grid in order, shifted by (B, axes)."""
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in grid)).view(-1, len(grid))
    return places + shift.unsqueeze(1)


def _shift(
    longest: Sequence[int], grid: Sequence[int], count: int, *, test: bool, generator: torch.Generator
) -> Tensor:
    """How far the coordinates of each sequence are shifted, (count, axes).

    In training, up to the sides of the longest grid; in a test, only so far that the sequence ends inside that grid.
    """
    shift = _draw(0, min(longest), (count, len(grid)), generator)
    if test:
        shift = shift % torch.tensor([most - n + 1 for most, n in zip(longest, grid, strict=True)])
    return shift.float()


def _draw(low: int, high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(low, high, tuple(shape), generator=generator)


def _crops(images: Tensor, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random crops (count, height, width) of images; a crop that is mostly black is drawn again, up to ten times."""
    crops = torch.empty(count, *size)
    for i in range(count):
        for _ in range(10):
            which, y, x = (
                int(_draw(0, n, (1,), generator))
                for n in (len(images), images.shape[1] - size[0] + 1, images.shape[2] - size[1] + 1)
            )
            crops[i] = images[which, y : y + size[0], x : x + size[1]]
            if (crops[i] > 0).float().mean() > 0.7:
                break
    return crops


def _patches(images: Tensor, patch: int) -> Tensor:
    """(B, rows patch, columns patch) -> (B, rows columns, patch^2)."""
    return F.unfold(images.unsqueeze(1), patch, stride=patch).mT


class MaskedPatches(Task):
    """Predict the hidden patches of a slice from the others, in self attention without causality."""

    name, pattern, length, classes = "masked patches", NS, 64, False
    steps, rate = 400, 1e-2
    context_features = None
    measures = ("explained variance",)
    _PATCH, _HIDDEN, _OCTAVES = 4, 0.4, 4

    def __init__(self, data: TaskData) -> None:
        self._images = data.images
        self.features = self._PATCH**2 + 1 + 4 * self._OCTAVES
        self.outputs = self._PATCH**2

    def grid(self, length: int) -> tuple[int, ...]:
        return grid_of(length)

    def batch(self, count: int, length: int, *, test: bool, generator: torch.Generator) -> Batch:
        grid = grid_of(length)
        size = (grid[0] * self._PATCH, grid[1] * self._PATCH)
        patches = _patches(_crops(self._images[test], count, size, generator), self._PATCH)
        hidden = torch.rand(count, length, generator=generator) < self._HIDDEN
        hidden[:, 0] |= ~hidden.any(1)
        shift = _shift(grid_of(LONGEST * self.length), grid, count, test=test, generator=generator)
        where = coordinates(_places(grid, shift), self._OCTAVES)
        seen = patches.masked_fill(hidden.unsqueeze(-1), 0)
        return Batch(torch.cat([seen, hidden.unsqueeze(-1).float(), where], -1), None, patches, hidden)

    def score(self, output: Tensor, batch: Batch) -> dict[str, float]:
        return {"explained variance": explained(output, batch)}


class NextWindow(Task):
    """Predict the next window of an EEG from all windows so far, in causal self attention."""

    name, pattern, length, classes = "next window", CS, 64, False
    steps, rate = 200, 1e-2
    context_features = None
    measures = ("explained variance",)
    samples = 4  # in a window
    _OCTAVES = 8

    def __init__(self, data: TaskData) -> None:
        self._signals = data.signals
        self.outputs = data.signals[0].shape[1] * self.samples
        self.features = self.outputs + 2 * self._OCTAVES

    def batch(self, count: int, length: int, *, test: bool, generator: torch.Generator) -> Batch:
        signals = self._signals[test]
        needed = (length + 1) * self.samples
        who = _draw(0, len(signals), (count,), generator)
        start = _draw(0, signals.shape[2] - needed + 1, (count,), generator)
        pieces = torch.stack([signals[p, :, s : s + needed] for p, s in zip(who, start, strict=True)])
        windows = pieces.unflatten(2, (-1, self.samples)).transpose(1, 2).flatten(2)  # (B, L + 1, channels samples)
        shift = _shift((LONGEST * self.length,), (length,), count, test=test, generator=generator)
        where = coordinates(_places((length,), shift), self._OCTAVES)
        scored = torch.ones(count, length, dtype=torch.bool)
        return Batch(torch.cat([windows[:, :-1], where], -1), None, windows[:, 1:], scored)

    def score(self, output: Tensor, batch: Batch) -> dict[str, float]:
        return {"explained variance": explained(output, batch)}


class Recall(Task):
    """Multi-query associative recall: pairs of a key and a value, then keys whose value is to be predicted.

    A token also carries its predecessor, as after a filter over two tokens, so that one layer of attention suffices.
    Training draws one of the sizes for each batch.
    """

    name, pattern, length, classes = "recall", CS, 64, True
    steps, rate = 600, 5e-3
    context_features = None
    sizes = ((64, 4), (128, 8), (256, 16), (512, 64))  # (tokens, pairs)
    measures = tuple(f"{pairs} pairs in {tokens}" for tokens, pairs in sizes)
    keys, outputs = 128, 32  # number of different keys and values
    features = 2 * (keys + outputs)

    def batch(self, count: int, length: int, *, test: bool, generator: torch.Generator) -> Batch:
        pairs = dict(self.sizes).get(length, max(1, length // 16))
        key = torch.rand(count, self.keys, generator=generator).argsort(1)[:, :pairs]  # no key twice
        value = _draw(0, self.outputs, (count, pairs), generator)
        asked = _draw(0, pairs, (count, length - 2 * pairs), generator)
        symbols = torch.stack([key, self.keys + value], 2).flatten(1)
        symbols = torch.cat([symbols, key.gather(1, asked)], 1)
        target = torch.cat([torch.zeros(count, 2 * pairs, dtype=torch.long), value.gather(1, asked)], 1)
        scored = torch.arange(length).expand(count, -1) >= 2 * pairs
        one_hot = F.one_hot(symbols, self.keys + self.outputs).float()
        before = F.pad(one_hot, (0, 0, 1, 0))[:, :-1]
        return Batch(torch.cat([one_hot, before], -1), None, target, scored)

    def score(self, output: Tensor, batch: Batch) -> dict[str, float]:
        pairs = dict(self.sizes)[output.shape[1]]
        return {f"{pairs} pairs in {output.shape[1]}": accuracy(output, batch)}


class Needle(Task):
    """One token of a sequence is marked; every later token is to say its label, which all other tokens have too."""

    name, pattern, length, classes = "needle", CS, 64, True
    steps, rate = 250, 1e-2
    context_features = None
    measures = ("accuracy",)
    outputs = 8  # labels
    depths = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the marked token in test sequences
    features = outputs + 1

    def place(self, depth: float, length: int) -> int:
        """The position of the marked token at a depth from 0 (the first) to 1 (the last but one)."""
        return round(depth * (length - 2))

    def batch(
        self, count: int, length: int, *, test: bool, generator: torch.Generator, depth: float | None = None
    ) -> Batch:
        """See `Task`. Of a test sequence, only the last token is scored; its marked token is at one of the depths."""
        label = _draw(0, self.outputs, (count, length), generator)
        if depth is not None:
            at = torch.full((count,), self.place(depth, length))
        elif test:
            at = torch.tensor([self.place(self.depths[i % len(self.depths)], length) for i in range(count)])
        else:
            at = _draw(0, length - 1, (count,), generator)
        marked = F.one_hot(at, length).bool()
        tokens = torch.cat([F.one_hot(label, self.outputs), marked.unsqueeze(-1)], -1).float()
        target = label[marked].unsqueeze(1).expand(-1, length)
        position = torch.arange(length)
        scored = (position == length - 1).expand(count, -1) if test else position > at.unsqueeze(1)
        return Batch(tokens, None, target, scored)

    def score(self, output: Tensor, batch: Batch) -> dict[str, float]:
        return {"accuracy": accuracy(output, batch)}


class MovedPatches(Task):
    """Find by how many patches each patch of a fixed image has moved in a moving image, in cross attention.

    The moving image is another crop of the same slice with noise. Patches that left it are not scored.
    """

    name, pattern, length, classes = "moved patches", NC, 16, False
    steps, rate = 350, 1e-2
    measures = ("found within half a patch", "explained variance")
    outputs = 2
    _PATCH, _FARTHEST, _NOISE, _OCTAVES = 4, 2, 0.2, 4

    def __init__(self, data: TaskData) -> None:
        self._images = data.images
        self.features = self.context_features = self._PATCH**2 + 2 + 4 * self._OCTAVES
        sample = _crops(data.images[0], 64, (32, 32), torch.Generator().manual_seed(0))
        patches = _patches(sample, self._PATCH).flatten(0, 1)
        self._mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - self._mean).mT.cov() + 1e-4 * torch.eye(patches.shape[1]))
        self._whitening = vectors / values.sqrt()

    def _whiten(self, patches: Tensor) -> Tensor:
        """Uncorrelated components of the pixels of each patch, with a mean square of 1 in each patch."""
        found: Tensor = (patches - self._mean) @ self._whitening
        return found / found.square().mean(-1, keepdim=True).sqrt()

    def grid(self, length: int) -> tuple[int, ...]:
        return grid_of(length)

    def batch(self, count: int, length: int, *, test: bool, generator: torch.Generator) -> Batch:
        grid = torch.tensor(grid_of(length))
        margin, patch = self._FARTHEST, self._PATCH
        whole = tuple(((grid + margin) * patch).tolist())
        crops = _crops(self._images[test], count, (whole[0], whole[1]), generator)
        moved = _draw(-margin, margin + 1, (count, 2), generator)
        moved = torch.minimum(torch.maximum(moved, 1 - grid), grid - 1)  # some patches stay inside
        fixed, moving = (self._cut(crops, grid, start) for start in (moved.clamp_min(0), (-moved).clamp_min(0)))
        fixed, moving = (self._whiten(x) for x in (fixed, moving))
        moving = moving + self._NOISE * torch.randn(moving.shape, generator=generator)
        shift = _shift(grid_of(LONGEST * self.length), grid.tolist(), count, test=test, generator=generator)
        places = _places(grid.tolist(), shift)
        where = torch.cat([places / 8, coordinates(places, self._OCTAVES)], -1)
        landed = places - shift.unsqueeze(1) + moved.unsqueeze(1)
        inside = ((landed >= 0) & (landed < grid)).all(-1)
        target = (moved.float() / margin).unsqueeze(1).expand(-1, length, -1)
        tokens, context = (torch.cat([x, where], -1) for x in (fixed, moving))
        return Batch(tokens, context, target, inside)

    def _cut(self, crops: Tensor, grid: Tensor, start: Tensor) -> Tensor:
        high, wide = (grid * self._PATCH).tolist()
        cut = [
            crop[y : y + high, x : x + wide] for crop, (y, x) in zip(crops, (start * self._PATCH).tolist(), strict=True)
        ]
        return _patches(torch.stack(cut), self._PATCH)

    def score(self, output: Tensor, batch: Batch) -> dict[str, float]:
        away = (output - batch.target).abs()[batch.scored] * self._FARTHEST
        found = float((away < 0.5).all(-1).float().mean())
        return dict(zip(self.measures, (found, explained(output, batch)), strict=True))


class NextFixation(Task):
    """Predict where the next fixation lands, in causal cross attention from fixations to objects.

    The rule of the simulated observer: from the present position, the next fixation lands on the nearest other object
    of the colour that is sought. A scene has as many objects as the scanpath has fixations.
    """

    name, pattern, length, classes = "next fixation", CC, 16, False
    steps, rate = 500, 1e-2
    measures = ("right object", "explained variance")
    outputs = 2
    _COLOURS, _OCTAVES = 4, 3

    def __init__(self, data: TaskData) -> None:
        self._palette = different_colours(data.colours, self._COLOURS)
        self.features = self.context_features = 3 + 2 + 4 * self._OCTAVES

    def batch(self, count: int, length: int, *, test: bool, generator: torch.Generator) -> Batch:
        position = torch.rand(count, length, 2, generator=generator) * 2 - 1
        kind = torch.arange(length) % self._COLOURS  # at least two of each
        colour = self._palette[kind] + 0.05 * torch.randn(count, length, 3, generator=generator)
        now = _draw(0, length, (count,), generator)
        sought = _draw(0, self._COLOURS, (count, length), generator)
        away = torch.cdist(position, position) + torch.diag(torch.full((length,), math.inf))
        path = [now]
        rows = torch.arange(count)
        for step in range(length):
            options = away[rows, path[-1]].masked_fill(kind != sought[:, step : step + 1], math.inf)
            path.append(options.argmin(1))
        at = torch.stack(path, 1)  # (B, L + 1)
        places = position[rows.unsqueeze(1), at]
        tokens = torch.cat([self._palette[sought], self._where(places[:, :-1])], -1)
        context = torch.cat([colour, self._where(position)], -1)
        return Batch(tokens, context, places[:, 1:], torch.ones(count, length, dtype=torch.bool))

    def _where(self, position: Tensor) -> Tensor:
        return torch.cat([position, coordinates(8 * position, self._OCTAVES)], -1)

    def score(self, output: Tensor, batch: Batch) -> dict[str, float]:
        assert batch.context is not None
        objects = batch.context[..., 3:5]
        right = (torch.cdist(output, objects).argmin(-1) == torch.cdist(batch.target, objects).argmin(-1))[batch.scored]
        return dict(zip(self.measures, (float(right.float().mean()), explained(output, batch)), strict=True))


def different_colours(colours: Tensor, count: int) -> Tensor:
    """Of some colours (n, 3), those that are farthest apart, chosen one after the other: (count, 3)."""
    chosen = [0]
    for _ in range(count - 1):
        chosen.append(int(torch.cdist(colours, colours[chosen]).amin(1).argmax()))
    return colours[chosen]


def all_tasks(data: TaskData) -> list[Task]:
    """One or more tasks for each pattern."""
    return [
        MaskedPatches(data),
        NextWindow(data),
        Recall(),
        Needle(),
        MovedPatches(data),
        NextFixation(data),
    ]


def generator_of(task: str, seed: int, *, test: bool) -> torch.Generator:
    """The random stream of the training or of the test sequences of a seed; no two streams begin alike."""
    text = f"{task} {_SPLITS[test]} {seed}"
    return torch.Generator().manual_seed(int.from_bytes(text.encode(), "big") % (2**63 - 25))
