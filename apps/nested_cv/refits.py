"""Refits: the model of a nested run fitted and tested again in its outer folds, on altered data or fewer subjects.

Settings, number of epochs and threshold are those that the nested run chose in the same outer fold; nothing is searched
again. A refit therefore shows what the data give, not what a new search on other data might find.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...runs.drive import Group
from .plan import NESTED, REFIT, cohort_of
from .records import EstimatorSpec, FitCell, Plan, Split
from .search import Outcome, fit_results, make_cell
from .seeds import derive_seed
from .splits import Cohort


@dataclass(frozen=True)
class Refit:
    """One refit of a model in every outer fold.

    Args:
        name: its name, part of the names of its cells.
        model: name of the model in the plan.
        estimator: how a worker builds the model on the altered data.
        share: share of the people of the outer training part that are used, above 0 and at most 1; smaller shares are
            parts of larger ones, and a network then runs for as many more epochs as it has fewer people.
    """

    name: str
    model: str
    estimator: EstimatorSpec
    share: float = 1.0

    @property
    def protocol(self) -> str:
        """The protocol of its outcomes."""
        return f"{REFIT}-{self.name}"


def refits_after(plan: Plan, refits: Sequence[Refit]) -> Callable[[list[Outcome]], list[Group[list[Outcome]]]]:
    """From the outcomes of a run to the groups of cells of all refits."""
    return lambda outcomes: [_refit(plan, refit, outcomes) for refit in refits]


def count_refits(plan: Plan, refits: Sequence[Refit]) -> int:
    """The number of cells of the refits."""
    return len(plan["splits"]) * len(refits)


def without_refits(outcomes: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes of the run itself, and those of the refits."""
    again = [outcome for outcome in outcomes if outcome.protocol.startswith(f"{REFIT}-")]
    return [outcome for outcome in outcomes if outcome not in again], again


def _refit(plan: Plan, refit: Refit, outcomes: list[Outcome]) -> Group[list[Outcome]]:
    """One fit in each outer fold; no outcome if a fit diverged."""
    nested = {(o.repeat, o.fold): o for o in outcomes if (o.protocol, o.model) == (NESTED, refit.model)}
    cohort = cohort_of(plan)
    cells: list[FitCell] = []
    for split in plan["splits"]:
        chosen = nested[split["repeat"], split["fold"]]
        cell = make_cell(
            plan,
            refit.model,
            split,
            refit.protocol,
            chosen.settings,
            train=_part_of(cohort, split, refit.share, plan["design"]["seed"]),
            predict=split["test"],
            epochs=math.ceil(chosen.epochs / refit.share),
        )
        cells.append({**cell, "function": "refit", "estimator": refit.estimator})
    results = fit_results((yield cells))
    if any("failed" in result for result in results):
        return []
    found = []
    for cell, split in zip(cells, plan["splits"], strict=True):
        chosen = nested[split["repeat"], split["fold"]]
        epochs = cell["epochs"] or chosen.epochs
        place = split["repeat"], split["fold"], cell["id"]
        found.append(Outcome(refit.protocol, refit.model, *place, chosen.settings, epochs, chosen.threshold))
    return found


def _part_of(cohort: Cohort, split: Split, share: float, seed: int) -> list[int]:
    """The training subjects of a share of the people of each class, at least one of each, in ascending order."""
    if share == 1:
        return split["train"]
    generator = np.random.default_rng(derive_seed(seed, "share", split["repeat"], split["fold"]))
    chosen: set[str] = set()
    for label in (0, 1):
        people = sorted({cohort.persons[i] for i in split["train"] if cohort.labels[i] == label})
        order = generator.permutation(len(people))
        chosen |= {people[k] for k in order[: max(1, round(share * len(people)))]}
    return [i for i in split["train"] if cohort.persons[i] in chosen]
