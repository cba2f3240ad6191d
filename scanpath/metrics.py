"""Metrics of object paths: similarity to a person's path, measures of search, and likelihood under a model.

Paths are sequences of object indices without tokens for begin and end. Metrics that compare positions are in
`multimatch`, `scanmatch` and `saliency`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .alignment import needleman_wunsch

Path = Sequence[int] | np.ndarray
BEHAVIOUR = ("correct", "length", "search", "refix", "revisit")


def sequence_score(a: Path, b: Path) -> float:
    """Length of the longest common subsequence relative to the longer path: 1 for equal paths, 0 if nothing is common.

    It is the Needleman-Wunsch score with match 1, mismatch 0 and gap 0 (Yang et al., CVPR 2020, use it on clusters of
    fixations), here over objects. Two empty paths score 1.

    Example:
        >>> sequence_score([1, 2, 3, 4], [2, 4, 4])
        0.5
    """
    a, b = np.asarray(a), np.asarray(b)
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    return needleman_wunsch(a[:, None] == b) / max(len(a), len(b))


def edit_distance(a: Path, b: Path) -> int:
    """The smallest number of insertions, deletions and substitutions between two paths (Levenshtein, 1966).

    The distance grows with the lengths and so favours short paths; do not rank models by it alone.

    Example:
        >>> edit_distance([1, 2, 3, 4], [2, 4, 4])
        2
    """
    a, b = np.asarray(a), np.asarray(b)
    if not len(a) or not len(b):
        return len(a) + len(b)
    return round(-needleman_wunsch(-1.0 * (a[:, None] != b), gap=-1.0))


def behaviour(path: Path, target: int | None = None) -> dict[str, float]:
    """Measures of the search behaviour of a path, after Fang et al. (ECCV 2024).

    The path is divided into runs on the same object. Each fixation is of one of three kinds: it begins the first run on
    an object (search), continues a run (refix), or begins a later run on an object (revisit).

    Args:
        path: object indices, at least one.
        target: index of the object that is searched for, if there is one.

    Returns:
        "correct", which is 1 if the last fixation is on the target (NaN without a target), "length" in fixations, and
        the fractions "search", "refix" and "revisit" of the fixations, which sum to 1.

    Example:
        >>> behaviour([5, 5, 7, 5], target=7)
        {'correct': 0.0, 'length': 4.0, 'search': 0.5, 'refix': 0.25, 'revisit': 0.25}
    """
    path = np.asarray(path)
    if not len(path):
        raise ValueError("a path must have at least one fixation, got none")
    begins = np.append(True, path[1:] != path[:-1])
    runs, objects = int(begins.sum()), len(np.unique(path))
    n = len(path)
    correct = np.nan if target is None else float(path[-1] == target)
    return dict(zip(BEHAVIOUR, (correct, float(n), objects / n, (n - runs) / n, (runs - objects) / n), strict=True))


def behaviour_delta(model: Mapping[str, float], people: Mapping[str, float]) -> float:
    """The behaviour-based metric of Fang et al. (ECCV 2024): mean of |model - people| / people; lower is better.

    Args:
        model: the statistics of `behaviour` of the model, averaged over trials.
        people: the same statistics of people. A statistic that is 0 or unknown for people is left out.

    Example:
        >>> people = {"correct": 0.8, "length": 10, "search": 0.8, "refix": 0.2, "revisit": 0.0}
        >>> model = {"correct": 0.4, "length": 15, "search": 0.8, "refix": 0.1, "revisit": 0.1}
        >>> round(behaviour_delta(model, people), 6)
        0.375
    """
    relative = [abs(model[k] - people[k]) / people[k] for k in BEHAVIOUR if people[k] > 0]
    return float(np.mean(relative)) if relative else np.nan


def negative_log_likelihood(log_probabilities: np.ndarray, path: Path) -> np.ndarray:
    """Negative log-likelihood of each fixation of a path and of its end, in nats: (steps + 1,); lower is better.

    The mean over all tokens of all paths is the training loss of OAT; the mean without the ends is the figure per
    fixation.

    Args:
        log_probabilities: (steps + 1, objects + 1) of the next object after each prefix of the path, and of the end.
        path: (steps,) object indices.

    Raises:
        ValueError: the probabilities of a row do not sum to 1.
    """
    log_p = np.asarray(log_probabilities, dtype=np.float64)
    tokens = np.append(np.asarray(path, dtype=np.int64), log_p.shape[-1] - 1)
    if log_p.ndim != 2 or len(log_p) != len(tokens):
        raise ValueError(
            f"log-probabilities of {len(tokens) - 1} fixations and an end must have {len(tokens)} rows,"
            f" got {log_p.shape}"
        )
    sums = np.exp(log_p).sum(axis=1)
    if not np.allclose(sums, 1, atol=1e-3):  # the error of a float32 softmax over some hundred objects is smaller
        raise ValueError(f"probabilities must sum to 1 at every step, got sums of {sums.min():.4g} to {sums.max():.4g}")
    result: np.ndarray = np.maximum(-log_p[np.arange(len(tokens)), tokens], 0.0)
    return result
