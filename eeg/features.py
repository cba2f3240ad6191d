"""Features for simple models: band powers, log variance, and the length of the recording."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.signal import welch

from .windows import Windows

BANDS: dict[str, tuple[float, float]] = {  # Hz, the upper edge not included
    "delta": (1.0, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 13.0),
    "beta": (13.0, 30.0),
    "gamma": (30.0, 64.0),
}


@dataclass(frozen=True, eq=False)
class Features:
    """A table of features.

    Args:
        values: (rows, features) float64; a row is a window or a subject.
        names: names of the columns.
    """

    values: np.ndarray
    names: tuple[str, ...]


def band_power(windows: Windows, bands: Mapping[str, tuple[float, float]] = BANDS) -> Features:
    """Logarithms of absolute and relative band power and of the theta/beta ratio, per window and channel.

    Power is integrated from Welch's spectrum (Hann segments of 2 s, or of the window if it is shorter, with half
    overlap). Relative power is the share of a band in the sum of all bands. The absolute power of scaled windows is
    relative to their scale.

    Args:
        windows: the windows, scaled or not.
        bands: name -> (low, high) in Hz; frequencies above half the sampling rate are cut off.

    Returns:
        (windows, features), named "theta absolute Fz", "theta relative Fz", "theta/beta Fz".
    """
    power = welch_band_power(windows.x, windows.sfreq, bands)
    kept = [name for name in bands if bands[name][0] < windows.sfreq / 2]
    floor = np.finfo(np.float32).tiny
    logarithm = np.log(np.maximum(power, floor))  # (n, bands, channels)
    relative = np.log(np.maximum(power / np.maximum(power.sum(axis=1, keepdims=True), floor), floor))
    columns, names = [logarithm, relative], []
    for kind in ("absolute", "relative"):
        names += [f"{band} {kind} {channel}" for band in kept for channel in windows.channels]
    if {"theta", "beta"} <= set(kept):
        ratio = logarithm[:, kept.index("theta")] - logarithm[:, kept.index("beta")]
        columns.append(ratio[:, None])
        names += [f"theta/beta {channel}" for channel in windows.channels]
    return Features(np.concatenate([c.reshape(len(c), -1) for c in columns], axis=1), tuple(names))


def welch_band_power(x: np.ndarray, sfreq: float, bands: Mapping[str, tuple[float, float]] = BANDS) -> np.ndarray:
    """Power in each band, (n, bands, channels), in the square of the unit of `x` (n, channels, times).

    Raises:
        ValueError: a band contains no frequency of the spectrum.
    """
    frequencies, density = welch(x, sfreq, nperseg=min(x.shape[-1], round(2 * sfreq)), axis=-1)
    step = frequencies[1] - frequencies[0]
    found = []
    for name, (low, high) in bands.items():
        if low >= sfreq / 2:
            continue
        inside = (frequencies >= low) & (frequencies < high)
        if not inside.any():
            raise ValueError(f"{name} ({low:g} to {high:g} Hz) must hold a frequency: the windows are too short for it")
        found.append(density[..., inside].sum(axis=-1, dtype=np.float64) * step)
    return np.stack(found, axis=1)


def log_variance(windows: Windows) -> Features:
    """Natural logarithm of each channel's variance before scaling, per window: a measure of amplitude only."""
    return Features(windows.log_variance.astype(np.float64), tuple(f"log variance {c}" for c in windows.channels))


def recording_length(windows: Windows) -> Features:
    """Length of each subject's recording in seconds, (subjects, 1)."""
    return Features(windows.seconds[:, None].astype(np.float64), ("recording length (s)",))
