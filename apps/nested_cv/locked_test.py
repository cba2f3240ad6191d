"""Results and page of a locked test: the final model of a nested run on people whom it never saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypedDict

import numpy as np

from . import statistics
from .evidence_records import Look, SampleSize, Stability, TestFigure
from .records import CalibrationBin, ModelResults, Results, RocCurve
from .report_text import environment
from .seeds import derive_seed
from .stability import sample_size, stability
from .statistics import Scores

_RESAMPLES = 2000
_SHOWN = ("auc", "balanced_accuracy", "sensitivity", "specificity", "brier")


class LockedTestResults(TypedDict):
    """test.json."""

    title: str
    created: str
    command: str
    hardware: str
    versions: dict[str, str]
    run: str
    model: str
    model_title: str
    models: int  # fits whose mean is the final model
    trained: int  # subjects of the run
    subjects: int
    classes: list[str]
    per_class: dict[str, int]
    threshold: float
    look: Look
    looks: list[Look]
    metrics: dict[str, TestFigure]
    roc: RocCurve
    calibration: list[CalibrationBin]
    confusion: list[list[float]]
    stability: Stability
    sample_size: SampleSize
    sentences: list[str]
    notes: list[str]


@dataclass(frozen=True)
class LockedTestFacts:
    """Facts from the command, which test.json holds unchanged; see `LockedTestResults`."""

    title: str
    command: str
    hardware: str
    versions: dict[str, str]
    run: str
    models: int
    trained: int
    notes: list[str]
    classes: tuple[str, str]


def locked_test_results(
    results: Results, model: ModelResults, scores: Scores, look: Look, looks: Sequence[Look], facts: LockedTestFacts
) -> LockedTestResults:
    """The content of test.json.

    Args:
        results: the results of the run.
        model: the nested model of the run.
        scores: the scores of the tested subjects, in one repeat; people are the clusters.
        look: the entry of this look in the seal.
        looks: all looks so far.
        facts: further facts.
    """
    weights = statistics.bootstrap_weights(scores, _RESAMPLES, derive_seed(look["look"], "locked test"))
    metrics = {name: _figure(name, scores, weights, model) for name in _SHOWN}
    counts = {name: int((scores.label == label).sum()) for label, name in enumerate(facts.classes)}
    return {
        "title": facts.title,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": facts.command,
        "hardware": facts.hardware,
        "versions": facts.versions,
        "run": facts.run,
        "model": model["name"],
        "model_title": model["title"],
        "models": facts.models,
        "trained": facts.trained,
        "subjects": len(scores.label),
        "classes": list(facts.classes),
        "per_class": counts,
        "threshold": float(scores.threshold[0, 0]),
        "look": look,
        "looks": list(looks),
        "metrics": metrics,
        "roc": statistics.roc(scores, weights),
        "calibration": statistics.calibration(scores),
        "confusion": statistics.confusion(scores),
        "stability": stability(scores, weights),
        "sample_size": sample_size(metrics["auc"]["value"], scores.label),
        "sentences": _sentences(look, looks, metrics["auc"]),
        "notes": facts.notes,
    }


def _figure(name: str, scores: Scores, weights: np.ndarray, model: ModelResults) -> TestFigure:
    """A metric with its bootstrap interval over people, beside the nested one.

    The fitted model is given here, so resampling the tested people gives a confidence interval. The interval of the
    difference treats both figures as normal and independent.
    """
    value = float(statistics.pooled(scores)[name][0])
    drawn = statistics.pooled(scores, weights)[name]
    nested = model["metrics"][name]
    low, high = nested["interval_nb"]
    half = 1.96 * float(np.hypot(np.std(drawn, ddof=1), (high - low) / 2 / 1.96))
    difference = value - nested["mean"]
    return {
        "value": value,
        "interval": statistics.percentile_interval(drawn),
        "nested": nested["mean"],
        "nested_interval": nested["interval_nb"],
        "difference": difference,
        "difference_interval": [difference - half, difference + half],
    }


def _sentences(look: Look, looks: Sequence[Look], area: TestFigure) -> list[str]:
    low, high = area["difference_interval"]
    value, nested = f"{area['value']:.2f}", f"{area['nested']:.2f}"
    if high < 0:
        compared = f"The AUC of {value} is below the nested figure of {nested}: that was too optimistic for this study."
    elif low > 0:
        compared = f"The AUC of {value} is above the nested figure of {nested}; look for a difference of the studies."
    else:
        compared = f"The AUC of {value} agrees with the nested figure of {nested} within their uncertainty."
    chance = "" if area["interval"][0] > 0.5 else " Its interval includes 0.5, so it may be chance."
    if look["look"] == 1:
        return [compared + chance, "This is the first look at a locked test of this run."]
    earlier = [one for one in looks if one["look"] < look["look"]]
    same = [one for one in earlier if one["study_sha256"] == look["study_sha256"]]
    where = (
        f"; {len(same)} of the earlier ones used the same recordings"
        if same
        else "; the earlier ones used other studies"
    )
    return [
        compared + chance,
        f"This is look number {look['look']} at a locked test of this run{where}. A figure chosen among several looks "
        "is optimistic: report all of them.",
    ]


def write_test_page(found: LockedTestResults, path: Path) -> None:
    """Write test.html, one file that needs no other."""
    page = environment().get_template("test.html.jinja").render(test=found, positive=found["classes"][1])
    path.write_text(page, encoding="utf-8")
