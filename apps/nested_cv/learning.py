"""The learning curve over the number of subjects, with a fit of what more subjects would bring."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from . import statistics
from .evidence_records import Extrapolation, LearningCurve, LearningPoint
from .report_text import span
from .statistics import Scores

SHARES = (0.25, 0.5, 0.75)  # besides all subjects


def learning_curve(
    model: str, full: Scores, parts: Mapping[float, Scores], trained: float, test_share: float
) -> LearningCurve:
    """The learning curve over the number of training subjects, with a fit of what more would bring.

    AUC = limit - loss / sqrt(subjects) is fitted by least squares to each fold; its values for more subjects are means
    over folds, with intervals of Nadeau and Bengio. They extrapolate, and assume that further subjects are like these.

    Args:
        model: name of the model.
        full: scores after training with all subjects.
        parts: share of the subjects -> scores, for shares below 1.
        trained: mean number of training subjects at share 1.
        test_share: n_test / n_train.
    """
    points = _points({**parts, 1.0: full}, trained, test_share)
    design = np.array([[1.0, -1 / math.sqrt(point["subjects"])] for point in points])
    fits = np.linalg.lstsq(design, np.array([point["per_fold"] for point in points]), rcond=None)[0]  # (2, folds)
    limit, loss = (float(v) for v in fits.mean(1))
    more: list[Extrapolation] = []
    for factor in (1.5, 2.0, 4.0):
        values = fits[0] - fits[1] / math.sqrt(factor * trained)
        low, high = (min(max(v, 0.0), 1.0) for v in statistics.nadeau_bengio(values.tolist(), test_share))
        value = min(max(float(values.mean()), 0.0), 1.0)
        more.append({"subjects": factor * trained, "auc": value, "interval": [low, high]})
    text = _text(points, more, fits[1] / math.sqrt(trained) * (1 - 1 / math.sqrt(2)), test_share)
    return {"model": model, "points": points, "limit": limit, "loss": loss, "more": more, "text": text}


def _points(scores: Mapping[float, Scores], trained: float, test_share: float) -> list[LearningPoint]:
    points: list[LearningPoint] = []
    for share, found in sorted(scores.items()):
        folds = [row["auc"] for row in statistics.per_fold(found)]
        low, high = statistics.nadeau_bengio(folds, test_share)
        points.append(
            {
                "share": share,
                "subjects": share * trained,
                "auc": float(np.mean(folds)),
                "interval": [max(low, 0.0), min(high, 1.0)],
                "per_fold": folds,
            }
        )
    return points


def _text(points: Sequence[LearningPoint], more: Sequence[Extrapolation], gains: np.ndarray, test_share: float) -> str:
    """What twice as many subjects would bring; `gains` are those of the folds."""
    if gains.mean() <= 0:
        return "The score does not rise with the number of subjects: this curve gives no sign that more would help."
    double, last = more[1], points[-1]
    sure = "" if statistics.nadeau_bengio(gains.tolist(), test_share)[0] > 0 else "; this gain may be due to chance"
    return (
        f"Twice as many training subjects ({double['subjects']:.0f}) would give an AUC of {double['auc']:.2f} "
        f"({span(double['interval'], 2)}) by this fit, after {last['auc']:.2f} "
        f"with {last['subjects']:.0f}{sure}."
    )
