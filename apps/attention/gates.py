"""The gates of ADHDeepNet: the factors of its squeeze-and-excitation blocks, channel by channel.

The network has no attention heads. Its two blocks multiply each of 256 channels of a window by a factor from 0 to 1,
the gate. A channel matters if the decisions change when its gate is set to 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from ...attention_analysis.importance import Interval, jensen_shannon, over_units
from ...attention_analysis.pictures import as_svg
from ...eeg.adhdeepnet import ADHDeepNet
from ...eeg.networks import ModelCard
from ...runs.words import one_line, plural
from .recordings import files_of, is_study, prepared
from .subject import plain

_WINDOWS = 4  # of each recording, spread evenly
_LISTED = 12
_LEVEL = 0.05


class GateCase(NamedTuple):
    """One recording."""

    name: str
    unit: str
    windows: Tensor  # (n, channels, times)
    label: int | None


@dataclass(frozen=True, eq=False)
class GateSubject:
    """The network and recordings.

    Args:
        title: of the page.
        network: in evaluation mode.
        classes: (negative, positive).
        cases: the recordings.
        failed: name and reason of each recording that could not be used.
        trained_on: names of the subjects of the training.
    """

    title: str
    network: ADHDeepNet
    classes: tuple[str, str]
    cases: list[GateCase]
    failed: list[tuple[str, str]]
    trained_on: tuple[str, ...]
    kind: str = "recording"


class Gate(NamedTuple):
    """One gate; figures are means over subjects."""

    block: int  # 1 or 2
    channel: int
    mean: float
    spread: float  # standard deviation over all windows
    effect: Interval  # bits, if the gate is 0
    difference: Interval | None  # mean of the positive minus that of the negative class
    p: float | None  # of a rank test between the classes


def gate_subject(network: ADHDeepNet, card: ModelCard, place: Path, most: int) -> GateSubject:
    """ADHDeepNet and recordings, or a study."""
    cases: list[GateCase] = []
    failed: list[tuple[str, str]] = []
    for one in files_of(place, card.classes, most):
        if not is_study(place) and len(cases) == most:
            break
        try:
            x, _ = prepared(card, one.file)
        except (ValueError, OSError) as error:
            failed.append((one.file.name, one_line(error)))
            continue
        rows = np.unique(np.linspace(0, len(x) - 1, min(_WINDOWS, len(x))).round().astype(int))
        cases.append(GateCase(one.file.name, one.unit, torch.from_numpy(x[rows]), one.label))
    title = f"Which channels the network for {card.classes[1]} lets through"
    return GateSubject(title, network, card.classes, cases, failed, card.subjects)


@torch.no_grad()
def describe_gates(subject: GateSubject) -> list[Gate]:
    """Measure every gate of both blocks."""
    network = subject.network
    x = torch.cat([case.windows for case in subject.cases])
    owner = torch.repeat_interleave(
        torch.arange(len(subject.cases)), torch.tensor([len(case.windows) for case in subject.cases])
    )
    units = [case.unit for case in subject.cases]
    first = network.first_block(x)
    factors: dict[nn.Module, Tensor] = {}
    kept = [
        module.register_forward_hook(lambda module, given, gate: factors.__setitem__(module, gate))
        for module in (network.excite1, network.excite2)
    ]
    features = network.after_first_block(first)
    for handle in kept:
        handle.remove()
    full = network.classify(features).softmax(1)
    found = []
    for block, module in enumerate((network.excite1, network.excite2), 1):
        gates = factors[module]
        for channel in range(gates.shape[1]):
            if block == 1:
                without = network.classify(_closed(network, module, first, channel)).softmax(1)
            else:  # the last layer is linear in the gated features
                closed = features.clone()
                closed[:, channel] = 0
                without = network.classify(closed).softmax(1)
            bits = _by_case(jensen_shannon(full.double(), without.double()), owner, len(units))
            own = _by_case(gates[:, channel].double(), owner, len(units))
            difference, p = _between_classes(subject, own)
            mean, spread = float(own.mean()), float(gates[:, channel].double().std(correction=0))
            found.append(Gate(block, channel, mean, spread, over_units(bits, units), difference, p))
    return found


def _closed(network: ADHDeepNet, module: nn.Module, first: Tensor, channel: int) -> Tensor:
    """The last features with one gate of a block set to 0."""

    def close(module: nn.Module, given: Any, gate: Tensor) -> Tensor:
        gate = gate.clone()
        gate[:, channel] = 0
        return gate

    handle = module.register_forward_hook(close)
    try:
        return network.after_first_block(first)
    finally:
        handle.remove()


def _by_case(values: Tensor, owner: Tensor, count: int) -> Tensor:
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, values.double())
    return sums / torch.bincount(owner, minlength=count)


def _between_classes(subject: GateSubject, own: Tensor) -> tuple[Interval | None, float | None]:
    """Difference of the class means over subjects with a bootstrap interval, and the p of a rank test."""
    means: dict[str, list[float]] = {}
    labels: dict[str, int] = {}
    for case, value in zip(subject.cases, own.tolist(), strict=True):
        if case.label is None:
            return None, None
        means.setdefault(case.unit, []).append(value)
        labels[case.unit] = case.label
    sides = [torch.tensor([sum(v) / len(v) for u, v in means.items() if labels[u] == c]).double() for c in (0, 1)]
    if min(len(side) for side in sides) < 2:
        return None, None
    generator = torch.Generator().manual_seed(0)
    drawn = [side[torch.randint(len(side), (1000, len(side)), generator=generator)].mean(1) for side in sides]
    low, high = (drawn[1] - drawn[0]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    p = 1.0
    if float(torch.cat(sides).std()) > 0:
        p = float(mannwhitneyu(sides[1].numpy(), sides[0].numpy()).pvalue)
    return Interval(float(sides[1].mean() - sides[0].mean()), low, high), p


def gate_page(subject: GateSubject) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Sentences, what the template needs, and the record."""
    gates = describe_gates(subject)
    ranked = sorted(gates, key=lambda gate: -gate.effect.mean)
    shown = {"gates": ranked[:_LISTED], "picture": _picture(gates), "windows": _WINDOWS}
    record = {
        "inputs": [case.name for case in subject.cases],
        "gates": [
            {
                **gate._asdict(),
                "effect": plain(gate.effect),
                "difference": None if gate.difference is None else plain(gate.difference),
            }
            for gate in gates
        ],
    }
    return gates_in_words(subject, gates), shown, record


def gates_in_words(subject: GateSubject, gates: Sequence[Gate]) -> list[str]:
    """Sentences that follow from the figures."""
    first = max(gates, key=lambda gate: gate.effect.mean)
    units = len({case.unit for case in subject.cases})
    idle = sum(gate.effect.mean < 0.01 * max(first.effect.mean, 1e-12) for gate in gates)
    spread = float(np.median([gate.spread for gate in gates]))
    words = [
        f"On {plural(len(subject.cases), 'recording')} of {plural(units, 'subject')}, the channel whose gate matters "
        f"most is channel {first.channel} of block {first.block}: with the gate closed, the probabilities change by "
        f"{first.effect.mean:.2g} bits.",
        f"{idle} of {len(gates)} gates have less than a hundredth of this effect.",
        f"A gate varies over the windows by {spread:.2g} in the median (standard deviation; gates go from 0 to 1)"
        + (", so most act as constant factors and choose little." if spread < 0.02 else "."),
    ]
    tested = [gate for gate in gates if gate.p is not None]
    if tested:
        apart = [gate for gate in tested if gate.p is not None and gate.p * len(tested) < _LEVEL]
        words.append(
            f"{len(apart)} of {len(tested)} gates differ between {subject.classes[1]} and {subject.classes[0]} beyond "
            "what so many comparisons explain (rank test over subjects, corrected for their number)."
        )
    if set(subject.trained_on) & {case.unit for case in subject.cases}:
        words.append("Some of these subjects were used in the training, so the figures are optimistic.")
    words.append(
        "A gate shows which learned channels the network lets through. It shows neither that a decision is right nor "
        "a property of the disease."
    )
    return words


def _picture(gates: Sequence[Gate]) -> str:
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    for axis, block in zip(figure.subplots(1, 2, sharey=True), (1, 2), strict=True):
        own = [gate for gate in gates if gate.block == block]
        means, effects, spreads = zip(*((gate.mean, gate.effect.mean, gate.spread) for gate in own), strict=True)
        axis.errorbar(means, effects, xerr=spreads, fmt="o", markersize=3, elinewidth=0.5, alpha=0.6)
        axis.set_title(f"block {block}", fontsize=9)
        axis.set_xlabel("gate, mean and standard deviation over the windows", fontsize=8)
        axis.set_xlim(-0.02, 1.02)
        axis.grid(color="0.92")
    figure.axes[0].set_ylabel("effect of closing it (bits)")
    return as_svg(figure)
