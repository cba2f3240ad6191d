"""Stretches of time without EEG: marked bad, cut, missing, or standing still; in seconds from the first sample."""

from typing import Any

import numpy as np

_PAUSE_S = 1.0
_STEPS = ("edge boundary", "bad boundary", "boundary", "new segment")  # marks of a cut between two samples


def fill_missing(raw: Any) -> list[tuple[float, float]]:
    """Interpolate over samples that are not finite, and give their spans in seconds."""
    gaps = ~np.isfinite(raw.get_data())
    if not gaps.any():
        return []
    raw.apply_function(_interpolated, channel_wise=True, verbose="ERROR")
    return marked_spans(gaps.any(axis=0), raw.info["sfreq"])


def _interpolated(signal: np.ndarray) -> np.ndarray:
    """The signal (samples,) with linear interpolation where it is not finite; zeros if it never is."""
    gap, times = ~np.isfinite(signal), np.arange(len(signal))
    if gap.all():
        return np.zeros_like(signal)
    return np.where(gap, np.interp(times, times[~gap], signal[~gap]), signal)


def marked_spans(marked: np.ndarray, sfreq: float, least_s: float = 0.0) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.r_[False, marked, False].astype(np.int8)))
    found = [(float(a / sfreq), float(b / sfreq)) for a, b in edges.reshape(-1, 2)]
    return [(a, b) for a, b in found if b - a >= least_s]


def pauses(data: np.ndarray, sfreq: float) -> list[tuple[float, float]]:
    moving = data[np.ptp(data, axis=1) > 0]
    if len(moving) == 0:
        return []
    still = (np.diff(moving, axis=1) == 0).all(axis=0)
    return marked_spans(still, sfreq, _PAUSE_S)


def bad_annotations(raw: Any) -> list[tuple[float, float]]:
    found = []
    first = raw.first_time if raw.annotations.orig_time is not None else 0.0
    for annotation in raw.annotations:
        start = float(annotation["onset"]) - first
        text = annotation["description"].lower()
        if text.startswith("bad") and annotation["duration"] > 0:
            found.append((start, start + float(annotation["duration"])))
        elif text.startswith(_STEPS) and start > 0:
            found.append((start, start))
    return found
