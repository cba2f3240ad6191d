"""The stress tests of an EEG study: alterations of the signal and its length, and labels shuffled within strata."""

from collections.abc import Sequence

import numpy as np

from ...eeg.alterations import LABELS, MAINS, alterations_of, shuffled_within
from ...eeg.windows import Windows
from ..nested_cv.plan import cohort_of
from ..nested_cv.records import EstimatorSpec, Plan
from ..nested_cv.refits import Refit
from ..nested_cv.seeds import derive_seed
from ..nested_cv.stress import StressTest

_QUARTERS = (0.25, 0.5, 0.75)
_ATTEMPTS = 1000  # shuffles tried until each part of each fold has both classes


def stress_tests(plan: Plan, data: Windows, model: str) -> list[StressTest]:
    """All stress tests of a model, those that cannot change its score without a refit.

    Args:
        plan: the plan of the run.
        data: the windows of the run.
        model: name of the model in the plan.
    """
    seed = derive_seed(plan["design"]["seed"], "stress")
    tests = []
    for alteration in alterations_of(data, model):
        name = alteration.name
        spec = _altered_spec(plan, model, {"name": name, "seed": seed})
        tests.append(
            StressTest(
                name,
                "removed",
                alteration.title,
                alteration.removed,
                alteration.leaves,
                refit=None if alteration.why_not else Refit(name, model, spec),
                why_not=alteration.why_not,
                warning=_mains_warning(name),
            )
        )
    return [*tests, _shuffled_labels(plan, data, model)]


def _altered_spec(plan: Plan, model: str, altered: dict[str, object]) -> EstimatorSpec:
    spec = plan["models"][model]
    return {**spec, "arguments": {**spec["arguments"], "altered": altered}}


def _mains_warning(name: str) -> str:
    if name not in MAINS:
        return ""
    low, high = MAINS[name]
    return (
        f"There lies the mains frequency of {(low + high) / 2:g} Hz: the score may rest on equipment or the room and "
        "not on the brain."
    )


def _shuffled_labels(plan: Plan, data: Windows, model: str) -> StressTest:
    cohort = cohort_of(plan)
    within, strata = _strata(cohort.sites, data.seconds)
    title = f"labels shuffled within {within}" if within else "labels shuffled over all subjects"
    said = f"the {within.rstrip('s')}" if within == "sites" else "the length" if within else "the shares of the classes"
    leaves = f"It leaves only what {said} says about the class. One shuffle: another one gives another score."
    labels = _shuffle(plan, strata, cohort.persons)
    if labels is None:
        why = f"within {within or 'the study'}, no shuffle of the labels leaves both classes in each part of each fold"
        return StressTest(LABELS, "shuffled", title, said, leaves, why_not=why)
    spec = _altered_spec(plan, model, {"labels": labels})
    return StressTest(LABELS, "shuffled", title, said, leaves, Refit(LABELS, model, spec), labels=tuple(labels))


def _strata(sites: Sequence[str], seconds: np.ndarray) -> tuple[str, list[str]]:
    """Sites, or quarters of the recording lengths, with the word for them; "" if there are neither."""
    if sites:
        return "sites", list(sites)
    if np.ptp(seconds) <= 0.01 * seconds.max():
        return "", ["all"] * len(seconds)
    edges = np.quantile(seconds, _QUARTERS)
    return "quarters of the recording length", [str(k) for k in np.searchsorted(edges, seconds)]


def _shuffle(plan: Plan, strata: Sequence[str], persons: Sequence[str]) -> list[int] | None:
    """Shuffled labels with both classes in each part of each outer fold; None if there seem to be none."""
    before = plan["cohort"]["labels"]
    parts = [part for split in plan["splits"] for part in (split["train"], split["test"])]
    for attempt in range(_ATTEMPTS):
        seed = derive_seed(plan["design"]["seed"], "shuffle", attempt)
        labels: list[int] = shuffled_within(before, strata, persons, seed).tolist()
        if labels != before and all(len({labels[i] for i in part}) == 2 for part in parts):
            return labels
    return None
