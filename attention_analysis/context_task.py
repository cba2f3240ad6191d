"""C4: classification in context, and the abrupt onset of an induction circuit.

An idea after Reddy (2023, arXiv 2312.03002). A sequence holds N pairs of an item and its label, and a target item whose
label is asked for. A model can find the label in the context (in-context learning), or remember the label of the
target's class (in-weights learning).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.attention.baselines import SoftmaxAttention
from ..kernels.attention.layer import MixingLayer, ResidualPoint
from ..kernels.attention.mixer import CS
from .induction import induction_measures, onset_order
from .small_models import fit, log_steps, seeded
from .trace import record


class Sequences(NamedTuple):
    """A batch."""

    tokens: Tensor  # (B, 2 N + 1, D + 2 N + 1), the item or label and the one-hot place
    labels: Tensor  # (B, N), labels in the context
    target: Tensor  # (B,), the label of the target


@dataclass(frozen=True)
class ContextTask:
    """The world of one task; items are (mean + eps noise) / sqrt(1 + eps^2) with class means N(0, I / D).

    Args:
        pairs: N.
        labels: number of labels.
        features: D.
        eps: noise within a class.
        classes: number of classes K.
        bursts: copies B of each class in a bursty context, which divides N.
        bursty: share of bursty sequences; the other contexts are drawn at random.
        zipf: exponent of the frequency of classes.
        seed: of the class means, labels and label vectors.
    """

    pairs: int = 8
    labels: int = 32
    features: int = 63
    eps: float = 0.1
    classes: int = 256
    bursts: int = 1
    bursty: float = 1.0
    zipf: float = 0.0
    seed: int = 0

    def world(self) -> "World":
        """Draw the class means and the labels."""
        if self.pairs % self.bursts or self.classes < self.pairs:
            raise ValueError(
                f"bursts must divide {self.pairs} pairs and classes must be at least as many, got {self.bursts} "
                f"and {self.classes}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        means = torch.randn(self.classes, self.features, generator=generator) / self.features**0.5
        vectors = torch.randn(self.labels, self.features, generator=generator) / self.features**0.5
        of_class = torch.arange(self.classes) % self.labels
        frequency = torch.arange(1, self.classes + 1, dtype=torch.float64) ** -self.zipf
        return World(self, means, vectors, of_class, (frequency / frequency.sum()).float())


@dataclass(frozen=True, eq=False)
class World:
    """A task with its class means (K, D), label vectors (labels, D), labels of classes (K) and frequencies (K)."""

    task: ContextTask
    means: Tensor
    vectors: Tensor
    of_class: Tensor
    frequency: Tensor

    def training(self, batch: int, generator: torch.Generator) -> Sequences:
        """Sequences as in training."""
        bursty = torch.rand(batch, generator=generator) < self.task.bursty
        context, target = self._bursty(batch, generator)
        random = self.frequency.expand(batch, -1).multinomial(self.task.pairs + 1, generator=generator)
        context = torch.where(bursty[:, None], context, random[:, 1:])
        return self._sequences(context, torch.where(bursty, target, random[:, 0]), self.means, self.of_class, generator)

    def novel(self, batch: int, generator: torch.Generator) -> Sequences:
        """Bursty sequences of new classes, whose labels only the context gives."""
        context, target = self._bursty(batch, generator)
        means = torch.randn(self.means.shape, generator=generator) / self.task.features**0.5
        labels = torch.randint(self.task.labels, (len(means),), generator=generator)
        return self._sequences(context, target, means, labels, generator)

    def swapped(self, batch: int, generator: torch.Generator) -> Sequences:
        """Bursty sequences of known classes with other labels, which contradict the weights."""
        context, target = self._bursty(batch, generator)
        shift = int(torch.randint(1, self.task.labels, (), generator=generator))
        return self._sequences(context, target, self.means, (self.of_class + shift) % self.task.labels, generator)

    def absent(self, batch: int, generator: torch.Generator) -> Sequences:
        """Sequences without the class of the target, which only the weights can answer."""
        chosen = self._different(batch, self.task.pairs + 1, generator)
        return self._sequences(chosen[:, 1:], chosen[:, 0], self.means, self.of_class, generator)

    def _different(self, batch: int, count: int, generator: torch.Generator) -> Tensor:
        """(batch, count) different classes, drawn one after the other by their frequency."""
        edges = self.frequency.cumsum(0)
        found = torch.full((batch, count), -1)
        for place in range(count):
            again = torch.arange(batch)
            while len(again):
                drawn = torch.searchsorted(edges, edges[-1] * torch.rand(len(again), generator=generator))
                repeated = (found[again] == drawn[:, None]).any(1)
                found[again[~repeated], place] = drawn[~repeated]
                again = again[repeated]
        return found

    def _bursty(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = self._different(batch, self.task.pairs // self.task.bursts, generator)
        context = chosen.repeat(1, self.task.bursts)
        order = torch.rand(context.shape, generator=generator).argsort(1)
        context = context.gather(1, order)
        pick = torch.randint(self.task.pairs, (batch, 1), generator=generator)
        return context, context.gather(1, pick)[:, 0]

    def _sequences(
        self, context: Tensor, target: Tensor, means: Tensor, of_class: Tensor, generator: torch.Generator
    ) -> Sequences:
        task, batch = self.task, len(context)
        classes = torch.cat([context, target[:, None]], 1)
        noise = torch.randn(*classes.shape, task.features, generator=generator) / task.features**0.5
        items = (means[classes] + task.eps * noise) / (1 + task.eps**2) ** 0.5
        length = 2 * task.pairs + 1
        x = torch.zeros(batch, length, task.features + length)
        x[:, 0::2, : task.features] = items
        x[:, 1::2, : task.features] = self.vectors[of_class[context]]
        x[..., task.features :] = torch.eye(length)
        return Sequences(x, of_class[context], of_class[target])


class ContextNetwork(nn.Module):
    """Two causal attention layers with one head each, and a feed-forward classifier of the last token."""

    def __init__(self, task: ContextTask, width: int = 128) -> None:
        super().__init__()
        dim = task.features + 2 * task.pairs + 1
        self.layers = nn.ModuleList(MixingLayer(dim, 1, SoftmaxAttention(), bias=False) for _ in range(2))
        self.before, self.between, self.after = ResidualPoint(), ResidualPoint(), ResidualPoint()
        self.head = nn.Sequential(
            nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, task.labels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = self.between(x + self.layers[0](x, pattern=CS).out)
        x = self.after(x + self.layers[1](x, pattern=CS).out)
        out: Tensor = self.head(x[:, -1])
        return out


class Progress(NamedTuple):
    """Accuracies and progress measures after a step."""

    step: int
    loss: float
    novel: float
    swapped: float
    absent: float
    item_label: float  # ILA1
    target_label: float  # TILA2
    target_labels: float  # TLA2
    context_label: float  # CLA
    strength: float  # IH


@dataclass(frozen=True, eq=False)
class ContextRun:
    """A training, and what it shows."""

    task: ContextTask
    seed: int
    progress: list[Progress]

    @property
    def plateau(self) -> float:
        """The largest accuracy on new classes before the onset of the induction circuit."""
        start = dict(self.onsets())["novel"]
        before = [p.novel for p in self.progress if not p.step >= start / 2]
        return max(before, default=float("nan"))

    @property
    def rise(self) -> float:
        """The largest rise of the accuracy on new classes while the number of steps grows by half."""
        points = [(p.step, p.novel) for p in self.progress]
        return max(
            (later - value for step, value in points for after, later in points if step < after <= 1.5 * step),
            default=0.0,
        )

    @property
    def jumps(self) -> bool:
        """Whether the accuracy on new classes rises abruptly, by half, while the number of steps grows by half."""
        return self.rise > 0.5

    def onsets(self) -> list[tuple[str, float]]:
        """The step of the steepest rise of each curve, earliest first."""
        steps = [p.step for p in self.progress]
        names = ("novel", "swapped", "item_label", "target_label", "target_labels", "context_label", "strength")
        return onset_order(steps, {name: [getattr(p, name) for p in self.progress] for name in names})


def train_in_context(
    task: ContextTask, *, steps: int = 4000, batch: int = 128, rate: float = 1e-3, seed: int = 0, test: int = 512
) -> ContextRun:
    """Train one network and measure it at steps evenly spaced on a logarithmic axis."""
    world = task.world()
    with seeded(seed):
        network = ContextNetwork(task)
    generator = torch.Generator().manual_seed(1000 + seed)

    def loss() -> Tensor:
        given = world.training(batch, generator)
        return F.cross_entropy(network(given.tokens), given.target)

    progress = fit(
        network,
        loss,
        steps,
        rate=rate,
        at=set(log_steps(steps, 25)) | set(range(0, steps + 1, -(-steps // 40))),
        look=lambda step: _progress(network, world, step, test),
    )
    return ContextRun(task, seed, progress)


@torch.no_grad()
def _progress(network: ContextNetwork, world: World, step: int, test: int) -> Progress:
    generator = torch.Generator().manual_seed(7)  # the same test sequences at each step
    tests = [make(test, generator) for make in (world.novel, world.swapped, world.absent)]
    right = [float((network(one.tokens).argmax(1) == one.target).double().mean()) for one in tests]
    trace = record(network, tests[0].tokens)
    logits = trace.output
    found = induction_measures(trace[0].map(), trace[1].map(), tests[0].labels, tests[0].target, logits)
    loss = F.cross_entropy(logits, tests[0].target)
    measures = [found.item_label, found.target_label, found.target_labels, found.context_label, found.strength]
    return Progress(step, float(loss), *right, *(float(value.max()) for value in measures))
