"""A trained network with inputs, in the form that the page of `voxelwave attention explain` needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...attention_analysis.importance import Interval, jensen_shannon, over_units
from ...scanpath.scene import Scene

MOST_KEYS = 2048  # layers with more keys are recorded without a whole map


class Effect(NamedTuple):
    """How two results of a network on one input are compared."""

    unit: str
    size: Callable[[Tensor, Tensor], float]
    unchanged: Callable[[Tensor, Tensor], float]  # share, 0 to 1
    explained: str  # a sentence for the page


def _mean_bits(full: Tensor, other: Tensor) -> float:
    return float(jensen_shannon(full, other).mean())


def _same_decisions(full: Tensor, other: Tensor) -> float:
    return float((full.argmax(1) == other.argmax(1)).double().mean())


BITS = Effect(
    "bits",
    _mean_bits,
    _same_decisions,
    "An effect is the Jensen-Shannon divergence, in bits, between the probabilities before and after a change of the "
    "network or of its input: 0 is no effect, 1 the largest possible.",
)


class PairInput(NamedTuple):
    """A pair of scans on the input grid of the network."""

    moving: Tensor  # (1, 1, D, H, W) in [0, 1], moved by the affine
    fixed: Tensor  # the same shape
    content: Tensor  # bool (D, H, W), where the fixed image is not background
    label: Tensor | None  # bool (D, H, W), the labelled part of the moving image
    spacing_mm: Tensor  # (3,)
    planes: tuple[str, str, str]  # the plane across each axis


class Case(NamedTuple):
    """One input of the network."""

    name: str
    run: Callable[[], Tensor]  # the network's probabilities (decisions, classes), or displacements (voxels, 3) in mm
    scene: Scene | None = None
    pair: PairInput | None = None
    unit: str = ""  # subject or layout, if several inputs may share one
    label: int | None = None  # the true class, if known


@dataclass(frozen=True, eq=False)
class Subject:
    """What is explained.

    Args:
        title: of the page.
        kind: the noun for one input.
        decision: the noun for what the network decides.
        model: the network in evaluation mode.
        layers: a readable name for each attention layer.
        cases: the inputs.
        failed: name and reason of each input that could not be used.
        trained_on: names of the inputs with which the network was trained, as far as they are known.
        unit: the noun for what intervals are taken over, if it is not the input.
        effect: the comparison of two results.
        decisions: the noun for the parts of a result of which a share can change.
        random_orders: number of random orders in which heads are removed.
        classes: names of the classes, if the true ones are known.
        channels: names of the electrodes, if there are any.
    """

    title: str
    kind: str
    decision: str
    model: nn.Module
    layers: list[str]
    cases: list[Case]
    failed: list[tuple[str, str]]
    trained_on: tuple[str, ...]
    unit: str = ""
    effect: Effect = BITS
    decisions: str = "decisions"
    random_orders: int = 5
    classes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    @property
    def units(self) -> list[str]:
        """The unit of each input."""
        return [case.unit or case.name for case in self.cases]

    @property
    def unit_noun(self) -> str:
        """What intervals are taken over."""
        return self.unit or self.kind

    @property
    def several(self) -> bool:
        """Whether there are two or more units, so that an interval exists."""
        return len(set(self.units)) > 1

    def over(self, values: Sequence[float]) -> Interval:
        """The mean of a value for each input, with an interval over units."""
        return over_units(torch.tensor(values, dtype=torch.float64), self.units)


def plain(value: Interval) -> dict[str, float | None]:
    """An interval for a JSON file; limits that do not exist are None."""
    return {name: None if part != part else part for name, part in value._asdict().items()}
