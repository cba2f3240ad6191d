"""Types of the parts of results.json that show what a score rests on and how stable it is; see `records`."""

from typing import Literal, TypedDict

Interval = list[float]  # [low, high]


class Retested(TypedDict):
    """The scores of a refit beside those of the unaltered model in the same outer folds.

    Intervals are those of Nadeau and Bengio over folds; `difference` is the AUC of the refit minus that of the model.
    """

    auc: float
    interval: Interval
    balanced_accuracy: float
    difference: float
    difference_interval: Interval
    per_fold: list[float]  # AUC


class StressRow(TypedDict):
    """One stress test; `figures` is None if it was not run, for the reason in `sentence`."""

    name: str
    kind: Literal["removed", "shuffled"]
    title: str
    leaves: str
    figures: Retested | None
    sentence: str


class Stress(TypedDict):
    """The stress tests of one model."""

    model: str
    auc: float
    interval: Interval
    rows: list[StressRow]
    conclusion: list[str]
