"""Types of cross-validation where nothing is fitted: figures of methods under settings, such as Dice of image pairs."""

from typing import NotRequired, TypedDict

from ...runs.cells import Cell
from .evidence_records import Interval
from .records import AuditRow, EstimatorSpec, Settings

Figures = dict[str, float]


class MeasureCell(Cell):
    """The figures of one method under one choice of settings on one unit."""

    measure: EstimatorSpec
    model: str
    unit: int
    settings: Settings


class MeasureResult(TypedDict):
    """The figures of a cell, or the reason why there are none."""

    figures: NotRequired[Figures]
    failed: NotRequired[str]


class MetricText(TypedDict):
    """How a metric is called, its unit, and whether higher is better."""

    title: str
    unit: str
    higher: bool


class MeasuredFold(TypedDict):
    """One outer fold of a method: the chosen settings, their score on the other folds, and means on the test part."""

    fold: int
    settings: Settings
    training_score: float
    figures: Figures
    tested: int
    failed: int


class MeasuredMetric(TypedDict):
    """A metric of a method: mean over folds with its interval, and mean over units with its standard deviation."""

    mean: float
    sd_folds: float
    interval_nb: Interval
    over_units: float
    sd_units: float


class MeasuredModel(TypedDict):
    """The results of one method."""

    name: str
    title: str
    description: str
    settings_tried: int
    metrics: dict[str, MeasuredMetric]
    per_fold: list[MeasuredFold]


class MeasuredComparison(TypedDict):
    """Method `a` minus method `b` on the same units; p by swapping the two for whole groups, then after Holm."""

    a: str
    b: str
    metric: str
    difference: float
    interval: Interval
    p: float
    p_holm: float


class MeasuredUnit(TypedDict):
    """One unit: its group, fold, and figures by method (missing where it failed)."""

    unit: str
    group: str
    fold: int
    figures: dict[str, Figures]
    failed: dict[str, str]


class MeasuredFlow(TypedDict):
    """Numbers of units."""

    listed: int
    analysed: int
    groups: int
    excluded: list[str]  # sentences


class MeasuredFoldSize(TypedDict):
    """Numbers of one outer fold."""

    fold: int
    train: int
    test: int
    test_groups: int


class MeasuredResults(TypedDict):
    """results.json of a run where nothing is fitted."""

    kind: str  # "measured"
    title: str
    created: str
    command: str
    description: list[str]
    seconds: float
    hardware: str
    versions: dict[str, str]
    options: dict[str, object]
    unit: str
    group: str
    objective: str
    metrics: dict[str, MetricText]
    flow: MeasuredFlow
    folds: list[MeasuredFoldSize]
    models: list[MeasuredModel]
    comparisons: list[MeasuredComparison]
    units: list[MeasuredUnit]
    audit: list[AuditRow]
    limits: list[str]
