"""The choice of an intervention on a calibration part, and one report on a held-out part.

The model is kept as it is unless an intervention helps on the calibration part beyond what the number of attempts
explains.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .divergence import dependence, hide_keys, reinforce
from .edits import Edit, WeightEdit, intervene, remove_heads
from .emphasis import emphasise
from .importance import Interval, bootstrap
from .lever import lever_edits
from .redistribution import redistribute
from .sinks import attention_sinks, calibration_edit
from .trace import Head, attention_layers, record_run

Losses = Callable[[], Tensor]  # runs the model: the loss of each unit, such as a subject or a layout (n)
KEPT = "the model as it is"


class Attempt(NamedTuple):
    """One intervention on the calibration part."""

    name: str
    gain: Interval  # loss of the model as it is - loss with the intervention; the level is corrected for the attempts


class Tuned(NamedTuple):
    """The choice.

    `held_out` is the gain of the chosen intervention on the held-out part, with a 95 % interval over units; it was
    looked at once. It is None if no intervention was chosen.
    """

    chosen: str  # name of the intervention, or `KEPT`
    attempts: list[Attempt]  # best first
    held_out: Interval | None
    loss: float = float("nan")  # mean on the calibration part, of the model as it is

    @property
    def helps(self) -> bool:
        """Whether the chosen intervention also helps on the held-out part, beyond chance."""
        return self.held_out is not None and self.held_out.low > 0


@torch.no_grad()
def tune(
    model: nn.Module,
    candidates: Mapping[str, Sequence[Edit]],
    calibration: Losses,
    held_out: Losses,
    *,
    level: float = 0.95,
) -> Tuned:
    """Try interventions on one part, choose at most one, and measure it on the other part.

    An intervention can be chosen if its gain on the calibration part is above 0 at the level that is corrected for the
    number of attempts (Bonferroni); of these, the one with the largest mean gain is taken.

    Args:
        model: the model.
        candidates: name -> edits.
        calibration: the losses on the calibration part, with the model as it then is.
        held_out: the losses on the held-out part, which has no unit in common with it.
        level: of the intervals.

    Raises:
        ValueError: there is no candidate, or a part has fewer than two units.
    """
    if not candidates:
        raise ValueError("tuning needs at least one intervention to try")
    plain = calibration()
    if len(plain) < 2:
        raise ValueError(f"the calibration part needs at least 2 units, got {len(plain)}")
    corrected = 1 - (1 - level) / len(candidates)
    samples = max(1000, round(20 / (1 - corrected)))
    attempts = []
    for name, edits in candidates.items():
        with intervene(model, edits):
            gain = plain - calibration()
        attempts.append(Attempt(name, bootstrap(gain, level=corrected, samples=samples)))
    attempts.sort(key=lambda attempt: -attempt.gain.mean)
    best = next((attempt for attempt in attempts if attempt.gain.low > 0), None)
    if best is None:
        return Tuned(KEPT, attempts, None, float(plain.mean()))
    before = held_out()
    if len(before) < 2:
        raise ValueError(f"the held-out part needs at least 2 units, got {len(before)}")
    with intervene(model, candidates[best.name]):
        after = held_out()
    return Tuned(best.name, attempts, bootstrap(before - after, level=level), float(plain.mean()))


class TokenGroup:
    """A named group of tokens that differs from input to input.

    Whoever runs the model sets `mask`, bool (Lk), before each input.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.mask: Tensor | None = None

    def __call__(self, keys: int) -> Tensor | None:
        """The mask for a layer with this number of keys; None for a layer whose keys are other tokens."""
        return self.mask if self.mask is not None and len(self.mask) == keys else None


@torch.no_grad()
def dependent_on(model: nn.Module, group: TokenGroup, losses: Losses) -> list[Head]:
    """The heads whose output changes more than the median of their layer if the group is hidden, on these inputs."""

    def none(keys: int) -> Tensor | None:
        mask = group(keys)
        return None if mask is None else torch.zeros_like(mask)

    records = []
    for hidden in (none, group):  # nothing is hidden first, so that both take the same way through the kernels
        with intervene(model, hide_keys(model, hidden)):
            records.append(record_run(model, losses, weights=False))
    found = dependence(*records)
    chosen = []
    for layer in sorted({head.layer for head in found}):
        own = {head: value for head, value in found.items() if head.layer == layer}
        chosen += [head for head, value in own.items() if value > median(own.values())]
    return chosen


def interventions(
    model: nn.Module,
    *,
    causal: Mapping[int, bool],
    levers: Mapping[int, int] | None = None,
    single_heads: bool = True,
    groups: Mapping[TokenGroup, Collection[Head]] | None = None,
) -> dict[str, list[Edit]]:
    """Candidates for any model: removal of single heads and, by layer, changes of sinks, of one token, and of groups.

    Args:
        model: the model.
        causal: number of a layer -> whether its maps are causal, for the layers whose weights may be changed.
        levers: number of a layer -> the key whose weight is the lever; the first token if not given.
        single_heads: whether to try the removal of each head.
        groups: groups of tokens, each with the heads that depend on it: the weight on sinks is given back to the group,
            the group is emphasised or weakened, and the heads are reinforced.
    """
    found: dict[str, list[Edit]] = {}
    layers = list(attention_layers(model).values())
    for number, layer in enumerate(layers):
        heads = [Head(number, h) for h in range(layer.heads)]
        if single_heads:
            for head in heads:
                found[f"head {head.head} of layer {number} removed"] = list(remove_heads(model, [head]))
        if number not in causal:
            continue
        found[f"sinks of layer {number} calibrated"] = [calibration_edit(head, causal=causal[number]) for head in heads]
        form: Literal["bias", "weight"] = "bias" if layer.takes_bias else "weight"
        key = (levers or {}).get(number, 0)
        token = "first" if key == 0 else "last" if key == -1 else f"{key}."
        for gamma in (0.6, 1.5):
            found[f"{token} token of layer {number} times {gamma:g}"] = lever_edits(
                model, heads, gamma, key=key, form=form
            )
        for group in groups or {}:
            found |= _group_edits(number, group, causal=causal[number])
    for group, dependent in (groups or {}).items():
        if dependent:
            for alpha in (1.5, 2.0):
                found[f"heads that depend on {group.name} times {alpha:g}"] = reinforce(model, dependent, alpha)
    return found


def _group_edits(layer: int, group: TokenGroup, *, causal: bool) -> dict[str, list[Edit]]:
    """Redistribution to a group and emphasis of it, in all heads and rows of a layer."""

    def given_back(a: Tensor) -> Tensor:
        mask = group(a.shape[-1])
        return a if mask is None else redistribute(a, mask, attention_sinks(a, causal=causal))

    def emphasised(alpha: float) -> Callable[[Tensor], Tensor]:
        def change(a: Tensor) -> Tensor:
            mask = group(a.shape[-1])
            return a if mask is None else emphasise(a, mask, alpha=alpha, rows=slice(None))

        return change

    return {
        f"sinks of layer {layer} given back to {group.name}": [WeightEdit(layer, given_back)],
        f"{group.name} emphasised in layer {layer}": [WeightEdit(layer, emphasised(0.7))],
        f"{group.name} weakened in layer {layer}": [WeightEdit(layer, emphasised(-0.7))],
    }
