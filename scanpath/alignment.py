"""Alignment of two sequences: the best alignment with gaps, and the cheapest path through a cost matrix."""

import numpy as np


def needleman_wunsch(similarity: np.ndarray, gap: float = 0.0) -> float:
    """The score of the best global alignment of two sequences (Needleman and Wunsch, 1970).

    Args:
        similarity: (n, m), gain of aligning element i of one sequence with element j of the other.
        gap: gain, 0 or less, of aligning an element with a gap.

    Example:
        >>> kitten, sitting = (np.array(list(word)) for word in ("kitten", "sitting"))
        >>> needleman_wunsch(kitten[:, None] == sitting)  # i, t, t, n occur in both in this order
        4.0
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    if similarity.ndim != 2 or gap > 0:
        raise ValueError(f"similarity must be (n, m) and gap 0 or less, got {similarity.shape} and {gap}")
    gaps = float(gap) * np.arange(similarity.shape[1] + 1)
    best = gaps
    for row in similarity:
        here = best + gap
        np.maximum(here[1:], best[:-1] + row, out=here[1:])
        best = np.maximum.accumulate(here - gaps) + gaps  # any number of gaps in this row
    return float(best[-1])


def cheapest_walk(cost: np.ndarray) -> np.ndarray:
    """The cheapest path from the first to the last element of a cost matrix, by steps right, down, or diagonally.

    A step costs the value of the element that it enters; the first element is free. If several paths are equally
    cheap, the last step into each element is diagonal if possible, otherwise down.

    Args:
        cost: (n, m), not negative.

    Returns:
        (steps, 2) int64: rows and columns of the elements on the path, from (0, 0) to (n - 1, m - 1).

    Example:
        >>> cheapest_walk(np.array([[9, 1, 5], [5, 5, 1]])).tolist()
        [[0, 0], [0, 1], [1, 2]]
    """
    cost = np.asarray(cost, dtype=np.float64)
    if cost.ndim != 2 or not cost.size:
        raise ValueError(f"cost must be (n, m), both at least 1, got {cost.shape}")
    n, m = cost.shape
    rows = cost.tolist()
    rows[0][0] = 0.0
    total = [0.0, *[np.inf] * m]  # of the row above, after a column from which only the first element can be entered
    came = []
    for row in rows:
        diagonal, left = total[0], np.inf
        total[0] = np.inf
        for j, enter in enumerate(row, start=1):
            up = total[j]
            if diagonal <= up and diagonal <= left:
                least, step = diagonal, (1, 1)
            elif up <= left:
                least, step = up, (1, 0)
            else:
                least, step = left, (0, 1)
            came.append(step)
            diagonal = up
            total[j] = left = least + enter
    walk = [(n - 1, m - 1)]
    while walk[-1] != (0, 0):
        i, j = walk[-1]
        down, right = came[i * m + j]
        walk.append((i - down, j - right))
    return np.array(walk[::-1], dtype=np.int64)
