"""Area under the ROC curve."""

import numpy as np


def auc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order; ties count half.

    Args:
        scores: (..., n), higher for the positive class.
        labels: (n,), 1 or True for the positive class; shared by all rows of `scores`.

    Returns:
        (...,) float64; NaN if a class is missing or a score is NaN.

    Example:
        >>> float(auc(np.array([0.1, 0.6, 0.4, 0.9]), np.array([0, 0, 1, 1])))
        0.75
    """
    scores, positive = np.asarray(scores), np.asarray(labels).astype(bool)
    positives, n = int(positive.sum()), positive.size
    if positives in (0, n):
        return np.full(scores.shape[:-1], np.nan)
    order = np.argsort(scores, axis=-1)
    ordered = np.take_along_axis(scores, order, axis=-1)
    step = ordered[..., 1:] != ordered[..., :-1]
    edge = np.ones((*scores.shape[:-1], 1), bool)
    place = np.arange(n)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, step], axis=-1), place, 0), axis=-1)
    last = np.where(np.concatenate([step, edge], axis=-1), place, n - 1)
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    ranks = ((first + last) / 2 + 1) * positive[order]  # the mean rank of equal scores
    area = (ranks.sum(axis=-1) - positives * (positives + 1) / 2) / (positives * (n - positives))
    return np.where(np.isnan(scores).any(axis=-1), np.nan, area)


def auc_variance(area: float | np.ndarray, positives: float, negatives: float) -> float | np.ndarray:
    """The variance of an AUC over studies of these sizes (Hanley and McNeil 1982, Radiology 143, equation 2).

    Args:
        area: AUC, also an array.
        positives, negatives: numbers of cases.

    Example:
        >>> round(auc_variance(0.8, 50, 50) ** 0.5, 3)
        0.045
    """
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    return spread / (positives * negatives)
