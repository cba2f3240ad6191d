"""Types of the parts of results.json that show what a score rests on and how stable it is; see `records`."""

from typing import Literal, TypedDict

Interval = list[float]  # [low, high]


class Retested(TypedDict):
    """The scores of a refit beside those of the unaltered model in the same outer folds.

    Intervals are those of Nadeau and Bengio over folds; `difference` is the AUC of the refit minus that of the model.
    `p` is that of a paired permutation over subjects with both fitted models kept; None if the labels were shuffled.
    """

    auc: float
    interval: Interval
    balanced_accuracy: float
    difference: float
    difference_interval: Interval
    p: float | None
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


class SpreadOf(TypedDict):
    """The spread of one pooled metric: over partitions, and over subjects by bootstrap with the models kept fixed."""

    per_partition: list[float]
    sd_partitions: float | None  # None with one partition
    sd_subjects: float


class CalibrationLine(TypedDict):
    """Logistic recalibration; None where undefined, as for constant or separable scores.

    `slope` is 1 if probabilities are neither too extreme (below 1) nor too timid (above 1). `intercept` is the
    calibration in the large: 0 if the mean probability is right, in log odds, positive if probabilities are too low.
    """

    slope: float | None
    slope_interval: Interval | None
    intercept: float | None
    intercept_interval: Interval | None


class DecisionPoint(TypedDict):
    """Net benefit, in true positives per subject, of decisions at a threshold, and of calling everyone positive."""

    threshold: float
    model: float
    everyone: float


class Stability(TypedDict):
    """How stable one model is, and what its probabilities are worth."""

    spread: dict[str, SpreadOf]
    calibration: CalibrationLine
    decision_curve: list[DecisionPoint]


class SampleSize(TypedDict):
    """The precision of the AUC of the headline, and the number of subjects for an interval of `wanted`."""

    subjects: int
    positives: int
    auc: float
    standard_error: float
    half_width: float
    wanted: float
    needed: int
    text: str


class LearningPoint(TypedDict):
    """The AUC after training with a share of the subjects of each outer training part."""

    share: float
    subjects: float
    auc: float
    interval: Interval
    per_fold: list[float]


class Extrapolation(TypedDict):
    """The AUC that the fitted curve gives for a number of training subjects."""

    subjects: float
    auc: float
    interval: Interval


class LearningCurve(TypedDict):
    """The learning curve of one model over the number of subjects, with the fit AUC = limit - loss / sqrt(subjects)."""

    model: str
    points: list[LearningPoint]
    limit: float
    loss: float
    more: list[Extrapolation]
    text: str


class Look(TypedDict):
    """One look at a locked test; `finished` is None until its result is written."""

    look: int
    opened: str
    finished: str | None
    model: str
    model_sha256: str
    study: str
    study_sha256: str
    output: str
    subjects: int
    auc: float | None
    before_sha256: str  # of the entry before, "" for the first


class Seal(TypedDict):
    """seal.json in the folder of a run: all looks at locked tests of its model."""

    looks: list[Look]


class TestFigure(TypedDict):
    """One metric of a locked test beside the nested one; intervals are 95 %."""

    value: float
    interval: Interval
    nested: float
    nested_interval: Interval
    difference: float
    difference_interval: Interval
