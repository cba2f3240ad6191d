"""How far a figure can be relied on: spread over partitions and subjects, calibration, net benefit, sample size."""

import math

import numpy as np

from ...runs.auc import auc_variance
from . import statistics
from .evidence_records import (
    CalibrationLine,
    DecisionPoint,
    SampleSize,
    SpreadOf,
    Stability,
)
from .statistics import Scores

_THRESHOLDS = np.arange(0.05, 0.951, 0.05)
_CLIP = 1e-6  # probabilities of 0 and 1 have no log odds
_LARGEST = 50.0  # a slope or intercept beyond this is that of separable scores
_RESAMPLES = 500
_WANTED = 0.05  # half of the width of an interval of the AUC that many studies ask for


def stability(scores: Scores, weights: np.ndarray) -> Stability:
    """The stability of a model; `weights` are those of the bootstrap, (resamples, n)."""
    return {
        "spread": {name: _spread(scores, weights, name) for name in ("balanced_accuracy", "auc")},
        "calibration": calibration_line(scores, weights[:_RESAMPLES]),
        "decision_curve": decision_curve(scores),
    }


def _spread(scores: Scores, weights: np.ndarray, metric: str) -> SpreadOf:
    rows = zip(scores.score, scores.decision, strict=True)
    found = [float(statistics.metrics(scores.label, *row)[metric][0]) for row in rows]
    return {
        "per_partition": found,
        "sd_partitions": float(np.std(found, ddof=1)) if len(found) > 1 else None,
        "sd_subjects": float(np.std(statistics.pooled(scores, weights)[metric], ddof=1)),
    }


def calibration_line(scores: Scores, weights: np.ndarray) -> CalibrationLine:
    """Slope and intercept of logistic recalibration, means over repeats, with bootstrap intervals over subjects.

    The slope comes from label ~ a + b log odds, the intercept from label ~ a + log odds (Van Calster et al. 2019, BMC
    Medicine 17, 230).
    """
    once = np.ones((1, len(scores.label)))
    slopes, intercepts = [], []
    for score in scores.score:
        odds = np.log(np.clip(score, _CLIP, 1 - _CLIP) / (1 - np.clip(score, _CLIP, 1 - _CLIP)))
        both = np.concatenate([once, weights])
        slopes.append(_logistic(odds, scores.label, both, with_slope=True))
        intercepts.append(_logistic(odds, scores.label, both, with_slope=False))
    slope, slope_interval = _with_interval(np.mean(slopes, axis=0))
    intercept, intercept_interval = _with_interval(np.mean(intercepts, axis=0))
    return {
        "slope": slope,
        "slope_interval": slope_interval,
        "intercept": intercept,
        "intercept_interval": intercept_interval,
    }


def _logistic(odds: np.ndarray, label: np.ndarray, weights: np.ndarray, *, with_slope: bool) -> np.ndarray:
    """(rows,) slope of a logistic regression on the log odds for each row of weights, or intercept at slope 1.

    NaN where the maximum does not exist, because the scores separate the classes or are constant.
    """
    intercept, slope = np.zeros(len(weights)), np.ones(len(weights))
    if with_slope and np.ptp(odds) < 1e-9:
        return np.full(len(weights), np.nan)
    step = np.full(len(weights), np.inf)
    for _ in range(60):
        p = 1 / (1 + np.exp(-np.clip(intercept[:, None] + slope[:, None] * odds, -500, 500)))
        rest, curve = weights * (label - p), weights * p * (1 - p)
        g0, h00 = rest.sum(1), curve.sum(1)
        if with_slope:
            g1, h01, h11 = (rest * odds).sum(1), (curve * odds).sum(1), (curve * odds**2).sum(1)
            determinant = np.maximum(h00 * h11 - h01**2, 1e-12)
            d0, d1 = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        else:
            d0, d1 = g0 / np.maximum(h00, 1e-12), np.zeros(len(weights))
        step = np.maximum(np.abs(d0), np.abs(d1))
        shorter = np.minimum(1, 4 / np.maximum(step, 1e-12))
        intercept, slope = intercept + shorter * d0, slope + shorter * d1
    found = slope if with_slope else intercept
    return np.where((step < 1e-6) & (np.abs(found) < _LARGEST), found, np.nan)


def _with_interval(values: np.ndarray) -> tuple[float | None, list[float] | None]:
    """The first value, and the middle 95 % of the others if at least nine of ten are defined."""
    first, rest = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not math.isfinite(first):
        return None, None
    enough = len(rest) >= 0.9 * (len(values) - 1)
    return first, statistics.percentile_interval(rest) if enough and len(rest) else None


def decision_curve(scores: Scores) -> list[DecisionPoint]:
    """Net benefit over thresholds, mean over repeats (Vickers and Elkin 2006, Medical Decision Making 26, 565)."""
    positive = scores.label == 1
    share = float(positive.mean())
    points: list[DecisionPoint] = []
    for threshold in _THRESHOLDS:
        price = threshold / (1 - threshold)  # of a false positive, in true positives
        said = scores.score >= threshold
        benefit = (said & positive).mean(1) - price * (said & ~positive).mean(1)
        points.append(
            {
                "threshold": round(float(threshold), 3),
                "model": float(benefit.mean()),
                "everyone": float(share - price * (1 - share)),
            }
        )
    return points


def sample_size(area: float, label: np.ndarray, unit: str = "subject") -> SampleSize:
    """The precision that the number of subjects allows for an AUC, and the number for a half-width of 0.05.

    Args:
        area: the AUC; below 0.5 and at 1 the formula is used with 0.5 and with half an error.
        label: (n,) 0 or 1.
        unit: what a subject is called.
    """
    positives, n = int((label == 1).sum()), len(label)
    used = min(max(area, 0.5), 1 - 0.5 / (positives * (n - positives)))
    error = _error(used, n, positives / n)
    share, needed = positives / n, n
    while needed > 4 and 1.96 * _error(used, needed, share) < _WANTED:
        needed //= 2
    while 1.96 * _error(used, needed, share) > _WANTED:
        needed += max(1, needed // 100)
    width = 1.96 * error
    enough = f"about {needed} {unit}s with the same shares of the classes would be needed for ± {_WANTED:g}"
    text = (
        f"{n} {unit}s ({positives} and {n - positives} by class) give an AUC of {area:.2f} a standard error of "
        f"{error:.3f} from the {unit}s alone, which is ± {width:.2f} (95 %, Hanley and McNeil 1982); {enough}."
    )
    return {
        "subjects": n,
        "positives": positives,
        "auc": area,
        "standard_error": error,
        "half_width": width,
        "wanted": _WANTED,
        "needed": needed,
        "text": text,
    }


def _error(area: float, n: int, share: float) -> float:
    return math.sqrt(float(auc_variance(area, max(share * n, 1), max((1 - share) * n, 1))))
