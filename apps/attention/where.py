"""Where a trained network looks and what it needs: what the pages of all fields have in common."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...attention_analysis.divergence import hide_keys
from ...attention_analysis.edits import intervene
from ...attention_analysis.importance import Interval
from ...attention_analysis.trace import Head, LayerCall, record_run
from .subject import Case, Subject

SHOWN = 3  # inputs that are drawn


class Reliance(NamedTuple):
    """What hiding or replacing a part of the input changes."""

    part: str
    effect: Interval  # in the unit of the subject's effect, mean over units
    changed: Interval  # share of decisions that change


class Where(NamedTuple):
    """The section of the page."""

    sentences: Sequence[str] = ()
    pictures: Sequence[tuple[str, str]] = ()  # SVG, caption
    reliance: Sequence[Reliance] = ()
    warnings: Sequence[str] = ()  # what a user must know before anything else
    dependence: dict[Head, float] = {}  # noqa: RUF012 - never changed; by divergence, see attention_analysis
    dependence_on: str = ""  # the part of the input


def compared(subject: Subject, most: Reliance, other: Reliance) -> list[str]:
    """Sentences about two parts of the input that were hidden."""
    words = [
        f"Hiding {most.part} from all heads changes {100 * most.changed.mean:.0f} % of the {subject.decisions}; hiding "
        f"{other.part} changes {100 * other.changed.mean:.0f} %."
    ]
    if most.effect.mean < 0.01:
        words.append(f"The network hardly uses {most.part}.")
    elif not subject.several:
        words.append(f"From a single {subject.unit_noun}, nothing more can be concluded.")
    elif most.effect.low > other.effect.high:
        words.append(f"So the network uses {most.part} more than {other.part}.")
    else:
        words.append("The intervals overlap, so there is no clear difference between the two.")
    return words


def reliance(subject: Subject, part: str, found: Sequence[tuple[float, float]]) -> Reliance:
    """A row from (effect, share of changed decisions) of each input."""
    effects, changed = zip(*found, strict=True)
    return Reliance(part, subject.over(effects), subject.over(changed))


def last_map(subject: Subject, case: Case) -> Tensor:
    """The map (H, Lq, Lk) of the last attention layer."""
    call: LayerCall = record_run(subject.model, case.run).calls[-1]
    return call.map()[0].double()


def without(subject: Subject, case: Case, keys: Sequence[int]) -> tuple[float, float]:
    """Effect and share of changed decisions if no layer with the keys of the last layer sees these keys."""
    length = record_run(subject.model, case.run).calls[-1].map().shape[-1]
    group = torch.zeros(length, dtype=torch.bool)
    with intervene(subject.model, hide_keys(subject.model, group)):
        full = case.run()
    group[list(keys)] = True
    with intervene(subject.model, hide_keys(subject.model, group)):
        lacking = case.run()
    return subject.effect.size(full, lacking), 1 - subject.effect.unchanged(full, lacking)


def mean_dependence(found: Sequence[dict[Head, float]]) -> dict[Head, float]:
    """The mean over inputs of each head's dependence."""
    return {head: sum(one[head] for one in found) / len(found) for head in found[0]} if found else {}
