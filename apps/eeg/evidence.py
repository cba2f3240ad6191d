"""The refits of an EEG run that show what its score rests on, and the parts of the results that come from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...eeg.windows import Windows
from ..nested_cv.learning import SHARES, learning_curve
from ..nested_cv.plan import NESTED
from ..nested_cv.records import Evidence, Plan
from ..nested_cv.refits import Refit
from ..nested_cv.results import Table, read_tables, subject_scores
from ..nested_cv.search import Outcome
from ..nested_cv.stress import StressTest, stress_results
from .stress import stress_tests


@dataclass(frozen=True)
class Wanted:
    """The refits of one model.

    Args:
        model: name of the model.
        tests: the stress tests, run or not.
        parts: the refits on a share of the subjects.
    """

    model: str
    tests: Sequence[StressTest]
    parts: Sequence[Refit]

    @property
    def refits(self) -> list[Refit]:
        """All refits."""
        return [*(test.refit for test in self.tests if test.refit is not None), *self.parts]


def wanted_refits(plan: Plan, data: Windows, model: str, *, stress: bool, learning_curve: bool) -> Wanted:
    """The refits that the options ask for."""
    tests = stress_tests(plan, data, model) if stress else []
    shares = SHARES if learning_curve else ()
    parts = [Refit(f"subjects-{100 * share:.0f}", model, plan["models"][model], share) for share in shares]
    return Wanted(model, tests, parts)


def evidence_of(
    output: Path, plan: Plan, tables: dict[tuple[str, str], Table], outcomes: list[Outcome], wanted: Wanted
) -> Evidence:
    """The parts of results.json that come from refits.

    Args:
        output: the folder of the run.
        plan: its plan.
        tables: the predictions of the run itself.
        outcomes: the outcomes of the refits.
        wanted: the refits.
    """
    found: Evidence = {}
    if not wanted.refits and not wanted.tests:
        return found
    labels, model = np.array(plan["cohort"]["labels"]), wanted.model
    again = read_tables(output, plan, outcomes)
    unaltered, test_share = subject_scores(tables[NESTED, model], labels), 1 / (plan["design"]["outer"] - 1)
    if wanted.tests:
        scores = {
            test.name: subject_scores(again[test.refit.protocol, model], np.array(test.labels or labels))
            for test in wanted.tests
            if test.refit is not None and (test.refit.protocol, model) in again
        }
        found["stress"] = stress_results(model, wanted.tests, unaltered, scores, test_share)
    shares = {part.share: again.get((part.protocol, model)) for part in wanted.parts}
    parts = {share: subject_scores(table, labels) for share, table in shares.items() if table is not None}
    if parts:
        trained = float(np.mean([len(split["train"]) for split in plan["splits"]]))
        found["learning"] = learning_curve(model, unaltered, parts, trained, test_share)
    return found
