"""How well a quantity other than the EEG predicts the label: cross-validated AUC, interval, permutation test."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedKFold

from ..runs.auc import auc


@dataclass(frozen=True)
class Confound:
    """How well one quantity predicts the label.

    Args:
        auc: mean over the test folds.
        interval: 95 %, by bootstrap over subjects with the fitted rules held.
        p: one-sided, by permuting the quantity over subjects and repeating the whole cross-validation.
        n: subjects with a value.
    """

    auc: float
    interval: tuple[float, float]
    p: float
    n: int


def confound_auc(
    values: Sequence[float | str],
    labels: Sequence[int] | np.ndarray,
    *,
    folds: int = 5,
    repeats: int = 10,
    permutations: int = 999,
    bootstraps: int = 2000,
    seed: int = 0,
) -> Confound:
    """Predict the label from one quantity alone, in repeated stratified cross-validation.

    A number predicts by its size, in the direction that holds in the training part; a category by the share of
    positives that it has there (with one subject of each class added).

    Args:
        values: one per subject; numbers, or words for categories.
        labels: 0 or 1 per subject.
        folds: fewer if a class has fewer subjects.
        repeats: with other folds.
        permutations: of the test.
        bootstraps: of the interval.
        seed: of folds, permutations and bootstraps.

    Raises:
        ValueError: if a class has fewer than two subjects.
    """
    y = np.asarray(labels, np.int64)
    smallest = int(np.bincount(y, minlength=2).min())
    if smallest < 2:
        raise ValueError(f"each class must have at least 2 subjects with a value, got {smallest}")
    categorical = isinstance(values[0], str)
    x = np.unique(np.asarray(values), return_inverse=True)[1] if categorical else np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    rows = np.stack([x, *(generator.permutation(x) for _ in range(permutations))])
    weights = _bootstrap_weights(y, bootstraps, generator)
    score = _share_of_positives if categorical else _directed
    aucs, resampled = [], []
    for repeat in range(repeats):
        splitter = StratifiedKFold(min(folds, smallest), shuffle=True, random_state=seed + repeat)
        for train, test in splitter.split(y, y):
            scores = score(rows[:, train], y[train], rows[:, test])
            aucs.append(auc(scores, y[test]))
            resampled.append(_weighted_auc(scores[0], y[test], weights[:, test]))
    found = np.mean(aucs, axis=0)
    low, high = np.percentile(np.nanmean(resampled, axis=0), [2.5, 97.5])
    p = float((1 + (found[1:] >= found[0] - 1e-12).sum()) / (1 + permutations))
    return Confound(float(found[0]), (float(low), float(high)), p, len(y))


def _directed(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    signed: np.ndarray = np.where(auc(train, labels) >= 0.5, 1, -1)[:, None] * test
    return signed


def _share_of_positives(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    scores = np.full(test.shape, 0.5)
    for level in np.unique(test):
        here = train == level
        share = (here @ labels + 1) / (here.sum(axis=1) + 2)
        scores = np.where(test == level, share[:, None], scores)
    return scores


def _weighted_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC of one score under each row of subject weights (rows, n); NaN where a class has no weight."""
    positive, negative = labels == 1, labels == 0
    difference = scores[positive][:, None] - scores[negative]
    wins = (difference > 0) + 0.5 * (difference == 0)
    a, b = weights[:, positive], weights[:, negative]
    total = a.sum(axis=1) * b.sum(axis=1)
    area: np.ndarray = ((a @ wins) * b).sum(axis=1) / np.where(total > 0, total, np.nan)
    return area


def _bootstrap_weights(labels: np.ndarray, rows: int, generator: np.random.Generator) -> np.ndarray:
    """How often each subject is drawn, each class with its own number of draws."""
    weights = np.zeros((rows, len(labels)))
    for value in (0, 1):
        where = np.flatnonzero(labels == value)
        weights[:, where] = generator.multinomial(len(where), np.full(len(where), 1 / len(where)), size=rows)
    return weights
