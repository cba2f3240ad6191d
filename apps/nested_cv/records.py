"""Types of the JSON files of a nested run; `runs.json_types.check_record` compares a file with its type.

`Plan` is plan.json, `FitCell` and `FitResult` are the cell.json and result.json of a fit, `Results` is results.json and
`Explanation` is explain/explanation.json. Each type has the keys of its file, in the order of the file.
"""

from typing import Any, Literal, NotRequired, TypedDict

from ...runs.cells import Cell
from .evidence_records import Interval, LearningCurve, SampleSize, Stability, Stress

Settings = dict[str, int | float | str | bool | None]
CurveRow = dict[str, float]  # "epoch" and the figures that the model records in each epoch
MetricName = Literal["balanced_accuracy", "sensitivity", "specificity", "accuracy", "f1", "mcc", "auc", "brier"]


class EstimatorSpec(TypedDict):
    """How a worker builds an estimator: the name of a function (see `runs.functions`) and its keyword arguments."""

    factory: str
    arguments: dict[str, Any]


# plan.json


class InnerSplit(TypedDict):
    """One inner fold, as indices of subjects."""

    train: list[int]
    validation: list[int]


class Split(TypedDict):
    """One outer fold, as indices of subjects."""

    repeat: int
    fold: int
    train: list[int]
    test: list[int]
    inner: list[InnerSplit]


class PlannedDesign(TypedDict):
    """The fields of a `Design`."""

    outer: int
    inner: int
    repeats: int
    trials: int
    batch: int
    objective: Literal["auc", "balanced_accuracy", "brier", "likelihood", "score"]
    protocol: Literal["nested", "published", "both"]
    published: list[str]
    seed: int
    threads: int
    startup: NotRequired[int]  # missing in runs of earlier versions, which may try the same settings twice


class PlannedCohort(TypedDict):
    """The fields of a `Cohort`."""

    subjects: list[str]
    labels: list[int]
    classes: list[str]
    groups: list[str]
    sites: list[str]


class PlannedWindows(TypedDict):
    """The fields of a `WindowUnits`."""

    subject: list[int]
    estimators: dict[str, EstimatorSpec]


class Plan(TypedDict):
    """All decisions that are made before the first fit; `make_plan` describes the parts."""

    design: PlannedDesign
    cohort: PlannedCohort
    models: dict[str, EstimatorSpec]
    splits: list[Split]
    seeds: list[int]
    windows: PlannedWindows | None
    published_models: dict[str, EstimatorSpec]
    options: dict[str, Any]
    data: str
    versions: dict[str, str]


# cells


class FitCell(Cell):
    """One fit: with early stopping on `validation`, or run for `epochs`; `keep` keeps the weights."""

    estimator: EstimatorSpec
    model: str
    repeat: int
    fold: int
    trial: int | None
    train: list[int]
    validation: list[int] | None
    predict: list[int]
    settings: Settings
    seed: int
    epochs: int | None
    keep: bool


class PredictedSubject(TypedDict):
    """One subject: index, mean probability, number of windows, number of windows at or above 0.5."""

    subject: int
    probability: float
    windows: int
    above: int


class FitResult(TypedDict):
    """Result of a fit: "subjects", or "nats" and "tokens" of a likelihood, or "failed" with the reason."""

    epochs: int
    subjects: NotRequired[list[PredictedSubject]]
    nats: NotRequired[float]
    tokens: NotRequired[int]
    failed: NotRequired[str]


class TrialRow(TypedDict):
    """One trial of a search; a failed trial has no score."""

    settings: Settings
    score: float | None
    epochs: list[int]


# results.json


class ClassFlow(TypedDict):
    """The analysed subjects of one class."""

    subjects: int
    windows: int
    seconds_median: float
    seconds_range: Interval


class Excluded(TypedDict):
    """A subject without windows."""

    subject: str
    reason: str


class Flow(TypedDict):
    """Numbers of subjects and windows."""

    listed: int
    read: int
    excluded: list[Excluded]
    analysed: int
    windows: int
    per_class: dict[str, ClassFlow]


class FoldOfNames(TypedDict):
    """One outer fold, as names of subjects."""

    repeat: int
    fold: int
    train: list[str]
    test: list[str]
    test_per_class: dict[str, int]


class SplitSummary(TypedDict):
    """The partitions."""

    outer: int
    inner: int
    repeats: int
    seeds: list[int]
    folds: list[FoldOfNames]


class Headline(TypedDict):
    """The figure at the top of the report."""

    model: str
    protocol: str
    metric: str
    mean: float
    interval: Interval
    method: str
    n_folds: int


class Metric(TypedDict):
    """One metric of one model."""

    mean: float
    sd_folds: float
    interval_nb: Interval
    pooled: float
    interval_bootstrap: Interval


class Figures(TypedDict):
    """The metrics of `MetricName` of one set of predictions."""

    balanced_accuracy: float
    sensitivity: float
    specificity: float
    accuracy: float
    f1: float
    mcc: float
    auc: float
    brier: float


class SecondaryFigures(Figures):
    """Metrics of the same predictions, scored in another way; `unit` is "subject" or "window"."""

    unit: str


class FoldFigures(Figures):
    """Metrics of one outer fold."""

    repeat: int
    fold: int
    threshold: float


class FoldRow(FoldFigures):
    """One outer fold: metrics, chosen settings, learning curve of the final fit, and trials of the search."""

    settings: Settings
    epochs: int
    curve: list[CurveRow]
    trials: list[TrialRow]


class RocCurve(TypedDict):
    """A ROC curve with a 95 % band around its true positive rates."""

    fpr: list[float]
    tpr: list[float]
    low: list[float]
    high: list[float]


class CalibrationBin(TypedDict):
    """One bin of a calibration curve."""

    predicted: float
    observed: float
    low: float
    high: float
    n: float


class Permutation(TypedDict):
    """A permutation test of balanced accuracy."""

    p: float
    n: int
    null_mean: float
    null_interval: Interval
    how: str


class ModelTexts(TypedDict):
    """Title and description of a model in the report."""

    title: str
    description: str


class ModelFigures(TypedDict):
    """All figures of one model under one protocol."""

    name: str
    protocol: str
    metrics: dict[str, Metric]
    secondary: dict[str, SecondaryFigures]
    per_fold: list[FoldRow]
    roc: RocCurve
    calibration: list[CalibrationBin]
    confusion: list[list[float]]
    permutation: Permutation
    stability: NotRequired[Stability]


class ModelResults(ModelFigures, ModelTexts):
    """All figures of one model under one protocol, with its title."""


class Difference(TypedDict):
    """The test of a difference between two models."""

    metric: str
    difference: float
    interval: Interval
    p: float
    how: str


class Comparison(Difference):
    """The difference between models `a` and `b`, with p after Holm's correction."""

    a: str
    b: str
    p_holm: float


class OptimismRow(TypedDict):
    """One protocol of the optimism table."""

    protocol: str
    model: str
    what: str
    balanced_accuracy: float
    auc: float
    interval: Interval
    unit: str


class SubjectRow(TypedDict):
    """One subject; `score` holds the mean probability under each nested model, `extra` the further columns."""

    subject: str
    label: str
    windows: int
    seconds: float
    score: dict[str, float]
    extra: dict[str, Any]


class AuditRow(TypedDict):
    """One check of the audit."""

    check: str
    outcome: str
    detail: str


class TripodItem(TypedDict):
    """One item of the TRIPOD+AI checklist."""

    number: str
    item: str
    text: str
    answered: bool


class Evidence(TypedDict, total=False):
    """The parts of results.json that come from refits."""

    stress: Stress
    learning: LearningCurve


class Results(TypedDict):
    """results.json."""

    title: str
    created: str
    command: str
    description: list[str]
    seconds: float
    hardware: str
    versions: dict[str, str]
    options: dict[str, Any]
    unit: str
    classes: list[str]
    flow: Flow
    splits: SplitSummary
    headline: Headline
    models: list[ModelResults]
    comparisons: list[Comparison]
    optimism: list[OptimismRow]
    subjects: list[SubjectRow]
    audit: list[AuditRow]
    caveats: list[str]
    limits: list[str]
    tripod: list[TripodItem]
    sample_size: NotRequired[SampleSize]
    stress: NotRequired[Stress]
    learning: NotRequired[LearningCurve]


# explain/explanation.json


class Importance(TypedDict):
    """Share of the attribution, its standard deviation over networks, and the cost of hiding in nats per window."""

    importance: float
    sd: float | None
    hiding_costs: float | None


class BandImportance(Importance):
    """A frequency band; the band "other" has no edges."""

    band: str
    low: float | None
    high: float | None


class ChannelImportance(Importance):
    """A channel."""

    channel: str


class ExplanationFigures(TypedDict):
    """The channels, bands and filters on which the networks rely, over all outer folds."""

    networks: list[str]
    subjects: int
    windows: int
    classes: list[str]
    bands: list[BandImportance]
    channels: list[ChannelImportance]
    completeness_error: float
    silhouette: dict[str, float | None]
    notes: list[str]


class MadeWith(TypedDict):
    """Settings of an explanation, and a hash of the recordings and of the weights of all networks that it explains."""

    most_windows: int
    steps: int
    seed: int
    networks: str


class Explanation(ExplanationFigures):
    """explanation.json."""

    model: str
    made_with: NotRequired[MadeWith]  # missing in runs of earlier versions and in explanations of one file of weights
    images: dict[str, str]
    captions: dict[str, str]
