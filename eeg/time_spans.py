"""Spans of time without EEG, in seconds from the first sample: marked as bad, cut, missing, or constant."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_PAUSE_S = 1.0
_ROUNDING = 1e-12  # a generous bound on the relative error of a sum in float64
_LARGEST = 1e10  # volts, or numbers of a file without a unit; larger values are damage and overflow float32 if squared
_STEPS = ("edge boundary", "bad boundary", "boundary", "new segment")  # annotations that mark a cut between two samples


def fill_missing(raw: Any, names: Sequence[str]) -> list[tuple[float, float]]:
    """Interpolate over impossible samples of these channels, and return their spans in seconds."""
    gaps = ~(np.abs(raw.get_data(picks=list(names))) <= _LARGEST)
    if not gaps.any():
        return []
    raw.apply_function(_interpolated, picks=list(names), channel_wise=True, verbose="ERROR")
    return marked_spans(gaps.any(axis=0), raw.info["sfreq"])


def _interpolated(signal: np.ndarray) -> np.ndarray:
    """The signal (samples,) with linear interpolation over impossible samples; zeros if all are impossible."""
    gap, times = ~(np.abs(signal) <= _LARGEST), np.arange(len(signal))
    if gap.all():
        return np.zeros_like(signal)
    return np.where(gap, np.interp(times, times[~gap], signal[~gap]), signal)


def marked_spans(marked: np.ndarray, sfreq: float, least_s: float = 0.0) -> list[tuple[float, float]]:
    """Spans of marked samples (samples,), in seconds; spans shorter than `least_s` are left out."""
    edges = np.flatnonzero(np.diff(np.r_[False, marked, False].astype(np.int8)))
    found = [(float(a / sfreq), float(b / sfreq)) for a, b in edges.reshape(-1, 2)]
    return [(a, b) for a, b in found if b - a >= least_s]


def pauses(data: np.ndarray, sfreq: float, largest: float) -> list[tuple[float, float]]:
    """Spans of a second or more in which all channels are constant, possibly the whole recording.

    Args:
        data: (channels, samples).
        sfreq: sampling rate in Hz.
        largest: the largest absolute sample before a change of reference, which determines the rounding errors.
    """
    moving = data[np.ptp(data, axis=1) > max(0.0, _ROUNDING * largest)]
    if len(moving) == 0:
        return [(0.0, float(data.shape[1] / sfreq))]
    still = (np.diff(moving, axis=1) == 0).all(axis=0)
    return marked_spans(still, sfreq, _PAUSE_S)


def bad_annotations(raw: Any) -> list[tuple[float, float]]:
    """Spans that annotations mark as bad, and cuts (start = stop), in seconds from the first sample."""
    found = []
    for annotation in raw.annotations:
        start = float(annotation["onset"]) - raw.first_time
        text = annotation["description"].lower()
        if text.startswith("bad") and annotation["duration"] > 0:
            found.append((start, start + float(annotation["duration"])))
        elif text.startswith(_STEPS) and start > 0:
            found.append((start, start))
    return found


def cut_samples(raw: Any) -> list[int]:
    """The first sample after each cut that annotations mark, ascending."""
    cuts = {round(start * raw.info["sfreq"]) for start, stop in bad_annotations(raw) if start == stop}
    return sorted(cut for cut in cuts if 0 < cut < raw.n_times)
