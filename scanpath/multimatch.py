"""MultiMatch: the similarity of two scanpaths in shape, direction, length, position and duration."""

import numpy as np

from .alignment import cheapest_walk

DIMENSIONS = ("vector", "direction", "length", "position", "duration")


def multimatch(
    a: np.ndarray,
    b: np.ndarray,
    size: tuple[int, int],
    *,
    duration_a: np.ndarray | None = None,
    duration_b: np.ndarray | None = None,
    pad: bool = False,
) -> dict[str, float]:
    """Similarity of two paths in five dimensions, each 0 to 1 (Jarodzka et al., ETRA 2010; Dewhurst et al., 2012).

    Saccades u_i of one path and v_j of the other are aligned by the cheapest path through the matrix of costs
    |u_i - v_j|; the scanpaths are not simplified first. Each similarity is 1 minus the median, over the aligned pairs,
    of
        vector     |u - v| / (2 diagonal)
        direction  angle between u and v / pi
        length     ||u| - |v|| / diagonal
        position   |start of u - start of v| / diagonal
        duration   |d - e| / max(d, e), of the fixations at which u and v start

    Args:
        a: (n, 2) positions in pixels.
        b: (m, 2) positions of the other path.
        size: width and height of the picture in pixels.
        duration_a: (n,) any unit, if known.
        duration_b: (m,).
        pad: pad paths of fewer than three fixations with points at pixel (1, 1), as the published evaluation of OAT
            does. Otherwise the similarity of a path without a saccade is NaN.

    Returns:
        "vector", "direction", "length", "position" and "duration"; "duration" is NaN if durations are not known.

    Example:
        >>> square = np.array([[0, 0], [30, 0], [30, 40]])
        >>> multimatch(square, square + [0, 10], (30, 40))
        {'vector': 1.0, 'direction': 1.0, 'length': 1.0, 'position': 0.8, 'duration': nan}
    """
    a, b = _points(a), _points(b)
    for points, duration in ((a, duration_a), (b, duration_b)):
        if duration is not None and len(duration) != len(points):
            raise ValueError(
                f"a path of {len(points)} positions must have {len(points)} durations, got {len(duration)}"
            )
    if pad:
        a, b = (np.vstack([p, np.ones((max(3 - len(p), 0), 2))]) for p in (a, b))
    if len(a) < 2 or len(b) < 2:
        return dict.fromkeys(DIMENSIONS, np.nan)
    u, v = np.diff(a, axis=0), np.diff(b, axis=0)
    i, j = cheapest_walk(np.linalg.norm(u[:, None] - v, axis=-1)).T
    diagonal = float(np.hypot(*size))
    turn = np.abs(np.arctan2(u[i, 1], u[i, 0]) - np.arctan2(v[j, 1], v[j, 0]))
    differences = [
        np.linalg.norm(u[i] - v[j], axis=1) / (2 * diagonal),
        np.minimum(turn, 2 * np.pi - turn) / np.pi,
        np.abs(np.linalg.norm(u, axis=1)[i] - np.linalg.norm(v, axis=1)[j]) / diagonal,
        np.linalg.norm(a[i] - b[j], axis=1) / diagonal,
    ]
    if duration_a is None or duration_b is None or len(duration_a) < len(a) or len(duration_b) < len(b):  # filled up
        differences.append(np.full(1, np.nan))
    else:
        d, e = np.asarray(duration_a, dtype=float)[i], np.asarray(duration_b, dtype=float)[j]
        differences.append(np.abs(d - e) / np.maximum(np.maximum(d, e), np.finfo(float).tiny))
    return {name: float(1 - np.median(part)) for name, part in zip(DIMENSIONS, differences, strict=True)}


def mean_similarity(similarity: dict[str, float]) -> float:
    """The mean of the four dimensions that need no durations, as published for OAT."""
    return float(np.mean([similarity[name] for name in DIMENSIONS[:4]]))


def _points(positions: np.ndarray) -> np.ndarray:
    points = np.asarray(positions, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"positions must be (n, 2) pixels, got {points.shape}")
    return points
