"""Stress tests: the model of the headline refitted on altered data, with a sentence on what the difference means.

All sentences are about the AUC, which needs no threshold; its advantage over chance is AUC - 0.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import statistics
from .evidence_records import Retested, Stress, StressRow
from .refits import Refit
from .statistics import Scores

_LITTLE = 0.1  # a share of the advantage below this counts as nothing
_SOME = 0.2  # the largest loss is named in the conclusion if it is above this share
_MUCH = 0.4  # every loss of this share is
_LEAST_ADVANTAGE = 0.02
_PERMUTATIONS = 2000
_WORDS = (  # upper end of the share -> words
    (0.21, "A small part"),
    (0.29, "About a quarter"),
    (0.42, "About a third"),
    (0.58, "About half"),
    (0.71, "About two thirds"),
    (0.85, "About three quarters"),
    (0.97, "Nearly all"),
)


@dataclass(frozen=True)
class StressTest:
    """One stress test.

    Args:
        name: its name.
        kind: "removed" if the data lose something; "shuffled" if the labels are shuffled within strata.
        title: the altered data in a few words.
        removed: what the data lose, to follow "without"; or the strata within which labels are shuffled.
        leaves: what the data keep, a sentence.
        refit: the refit; None if it is not run.
        why_not: the reason why it is not run.
        labels: the labels of the subjects, if the test changes them.
        warning: a sentence to add if much of the advantage is gone.
    """

    name: str
    kind: Literal["removed", "shuffled"]
    title: str
    removed: str
    leaves: str
    refit: Refit | None = None
    why_not: str = ""
    labels: tuple[int, ...] = ()
    warning: str = ""


def stress_results(
    model: str, tests: Sequence[StressTest], unaltered: Scores, refits: Mapping[str, Scores], test_share: float
) -> Stress:
    """The section of stress tests in results.json.

    Args:
        model: name of the model.
        tests: all stress tests, run or not.
        unaltered: the nested scores of the model.
        refits: name of a test -> scores of its refit, on its labels.
        test_share: n_test / n_train.
    """
    folds = [row["auc"] for row in statistics.per_fold(unaltered)]
    auc, interval = float(np.mean(folds)), list(statistics.nadeau_bengio(folds, test_share))
    known = interval[0] > 0.5 and auc - 0.5 >= _LEAST_ADVANTAGE
    rows: list[StressRow] = []
    conclusion = []
    for test in tests:
        found = refits.get(test.name)
        figures = None if found is None else retested(unaltered, found, test_share)
        if figures is None:
            sentence = f"Not run: {test.why_not or 'a fit gave a probability that is not finite'}."
        elif test.kind == "shuffled":
            sentence = _about_strata(test.removed, figures)
        else:
            sentence = _about_loss(test.removed, figures, auc - 0.5, known)
        if figures is not None and known and _depends(test, figures, auc - 0.5):
            conclusion.append(f"{sentence} {test.warning}".strip())
        title, leaves = test.title, test.leaves
        rows.append(
            {
                "name": test.name,
                "kind": test.kind,
                "title": title,
                "leaves": leaves,
                "figures": figures,
                "sentence": sentence,
            }
        )
    if not known:
        conclusion = ["The unaltered score is not clearly above chance: the tests cannot show what it rests on."]
    elif not conclusion and any(row["figures"] for row in rows):
        conclusion = ["No alteration took much of the advantage over chance away.", *_largest_loss(rows, auc - 0.5)]
    return {"model": model, "auc": auc, "interval": interval, "rows": rows, "conclusion": conclusion}


def _largest_loss(rows: Sequence[StressRow], advantage: float) -> list[str]:
    """The sentence on the largest loss, if it is worth a line."""
    losses = [
        (_lost(row["figures"], advantage), row["sentence"])
        for row in rows
        if row["kind"] == "removed" and row["figures"] is not None
    ]
    lost, sentence = max(losses, default=(0.0, ""))
    return [f"The largest loss: {sentence[0].lower()}{sentence[1:]}"] if lost > _SOME else []


def retested(unaltered: Scores, refit: Scores, test_share: float) -> Retested:
    """The figures of a refit, and its difference to the unaltered model in the same folds."""
    before, after = ([row["auc"] for row in statistics.per_fold(scores)] for scores in (unaltered, refit))
    difference = [b - a for a, b in zip(before, after, strict=True)]
    low, high = statistics.nadeau_bengio(after, test_share)
    return {
        "auc": float(np.mean(after)),
        "interval": [max(low, 0.0), min(high, 1.0)],
        "balanced_accuracy": float(np.mean([row["balanced_accuracy"] for row in statistics.per_fold(refit)])),
        "difference": float(np.mean(difference)),
        "difference_interval": list(statistics.nadeau_bengio(difference, test_share)),
        "p": _p_value(unaltered, refit),
        "per_fold": after,
    }


def _p_value(unaltered: Scores, refit: Scores) -> float | None:
    """p of the difference of the AUCs if the two predictions of a subject are swapped at random."""
    if not np.array_equal(unaltered.label, refit.label):
        return None
    weights = np.ones((2, len(refit.label)))  # an interval is not needed
    return statistics.compare(refit, unaltered, "auc", _PERMUTATIONS, weights, seed=0)["p"]


def _depends(test: StressTest, figures: Retested, advantage: float) -> bool:
    """Whether much of the advantage is gone, perhaps by chance; or whether the strata give a score clearly."""
    if test.kind == "shuffled":
        return figures["interval"][0] > 0.5
    return -figures["difference"] >= _MUCH * advantage


def _about_loss(removed: str, figures: Retested, advantage: float, known: bool) -> str:
    if not known:
        return "A loss cannot be measured."
    low, high = figures["difference_interval"]
    lost = _lost(figures, advantage)
    if lost > _LITTLE:
        chance = "" if high < 0 else ", but this difference may be due to chance"
        return f"{_share(lost)} of the advantage over chance is gone without {removed}{chance}."
    if lost < -_LITTLE:
        chance = "" if low > 0 else ", but this difference may be due to chance"
        return f"The score is higher without {removed}{chance}."
    most = -low / advantage
    bound = f" A loss of up to {100 * min(most, 1):.0f} % is compatible with the data." if most > 2 * _LITTLE else ""
    return f"Almost nothing of the advantage over chance is gone without {removed}.{bound}"


def _about_strata(strata: str, figures: Retested) -> str:
    low, high = figures["interval"]
    score = f"With labels that say nothing beyond {strata}, the AUC is {figures['auc']:.2f}"
    if low > 0.5:
        return f"{score}, above chance: {strata} alone gives part of the score."
    if high < 0.5:
        return f"{score}, below chance, as can happen in a single shuffle."
    return f"{score} and its interval includes 0.5: no sign that {strata} alone gives the score."


def _lost(figures: Retested, advantage: float) -> float:
    """The share of the advantage over chance that is gone."""
    return -figures["difference"] / advantage


def _share(lost: float) -> str:
    return next((words for end, words in _WORDS if lost < end), "All")
