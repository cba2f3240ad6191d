"""ScanMatch: comparison of scanpaths by alignment of strings, in which each letter represents a place."""

import numpy as np

from .alignment import needleman_wunsch


def scanmatch(
    a: np.ndarray,
    b: np.ndarray,
    size: tuple[int, int],
    *,
    bins: tuple[int, int] = (12, 8),
    threshold: float = 3.5,
    gap: float = 0.0,
    duration_a: np.ndarray | None = None,
    duration_b: np.ndarray | None = None,
    duration_bin: float = 0.05,
) -> float:
    """Similarity of two paths, 1 for equal ones (Cristino, Mathot, Theeuwes and Gilchrist, Behav. Res. Methods 2010).

    The picture is divided into bins, each with its own letter. Aligning two letters gains the threshold minus the
    distance between their bins, counted in bins, so bins farther apart than the threshold are rather aligned with a
    gap. The Needleman-Wunsch score of the two words is divided by the score of the longer word with itself. With gap 0
    the score is never below 0.

    Args:
        a: (n, 2) positions in pixels.
        b: (m, 2) positions of the other path.
        size: width and height of the picture in pixels; positions outside it belong to the nearest bin.
        bins: number of bins across and down.
        threshold: distance in bins. Cristino et al. use twice the standard deviation of saccade lengths.
        gap: gain of aligning a letter with a gap, 0 or less.
        duration_a: (n,) seconds. With durations, a letter is repeated for every `duration_bin` of its fixation.
        duration_b: (m,) seconds.
        duration_bin: seconds.

    Example:
        >>> path = np.array([[50, 50], [350, 50], [350, 350]])
        >>> scanmatch(path, path, (400, 400)), scanmatch(path, path[:2], (400, 400))
        (1.0, 0.6666666666666666)
    """
    if min(bins) < 1 or not threshold > 0 or not duration_bin > 0:
        raise ValueError(
            f"bins must be at least 1 and threshold and duration_bin above 0, got {bins}, {threshold}, {duration_bin}"
        )
    if (duration_a is None) != (duration_b is None):
        raise ValueError("durations must be given for both paths or for none")
    first = _word(a, size, bins, duration_a, duration_bin)
    second = _word(b, size, bins, duration_b, duration_bin)
    if not len(first) or not len(second):
        return float(len(first) == len(second))
    worth = threshold - np.linalg.norm(first[:, None] - second, axis=-1)
    return needleman_wunsch(worth, gap) / (threshold * max(len(first), len(second)))


def _word(
    positions: np.ndarray, size: tuple[int, int], bins: tuple[int, int], duration: np.ndarray | None, step: float
) -> np.ndarray:
    """(letters, 2) column and row of the bin of each letter."""
    share = np.asarray(positions, dtype=np.float64).reshape(-1, 2) / size
    letters = np.clip(np.floor(share * bins), 0, np.array(bins) - 1)
    return letters if duration is None else np.repeat(letters, np.rint(np.asarray(duration) / step).astype(int), axis=0)
