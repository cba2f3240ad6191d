"""Traits of a recording's file other than the EEG: mains frequency, date, reference, filters, resolution, names."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import welch

from .channels import named_reference
from .mat_file import open_mat
from .readers import on_disk, open_with_mne
from .windows import WindowOptions

Trait = float | str  # a number, or a word of a category

_SECONDS = 60.0  # the part of the file that is examined
_QUANTISED = 5e-3  # largest deviation from a whole number of steps


def file_traits(path: Path, options: WindowOptions) -> dict[str, Trait]:
    """Traits of one file by name; a trait that cannot be determined is an empty string.

    Args:
        path: the recording.
        options: options of the study, which give the channel order of .mat files.

    Raises:
        ValueError: the file cannot be read.
    """
    with on_disk(path) as file:
        if file.suffix.lower() == ".mat":
            found = open_mat(file, options.mat_order, options.mat_sfreq)
        else:
            found = open_with_mne(file)
        raw = found.raw
        sfreq = float(raw.info["sfreq"])
        picks = [k for k, kind in enumerate(raw.get_channel_types()) if kind == "eeg"] or list(range(len(raw.ch_names)))
        x = raw.get_data(picks=picks, start=0, stop=min(raw.n_times, round(_SECONDS * sfreq)))
        names = [raw.ch_names[k] for k in picks]
        info = raw.info
    x = x[np.isfinite(x).all(axis=1)]
    volts = [found.volts.get(name) for name in names]
    scale = 1.0 if None in volts else 1e6
    return {
        "date of the header": _days(info["meas_date"]),
        "hour of the header": _hour(info["meas_date"]),
        "low-pass of the header": _filter(info["lowpass"], sfreq / 2),
        "high-pass of the header": _filter(info["highpass"], 0.0),
        "channel names of the file": ",".join(names),
        "reference of the file": _reference(names, x, info),
        "common signal of all channels": _known(_common_share, x),
        "mains frequency": _known(_mains, x, sfreq),
        "highest frequency": _known(_highest_frequency, x, sfreq),
        "resolution": _known(_resolution, x * scale),
        "offset": _known(_offset, x * scale),
    }


def _known(measure: Callable[..., Trait], x: np.ndarray, *rest: float) -> Trait:
    """A measure of the samples, or an empty string if there are too few."""
    return measure(x, *rest) if x.size and x.shape[1] > 64 else ""


def _days(date: datetime | None) -> Trait:
    return "" if date is None else date.timestamp() // 86400


def _hour(date: datetime | None) -> Trait:
    return "" if date is None else date.hour + date.minute / 60


def _filter(edge: float | None, none: float) -> Trait:
    return "none" if edge is None or not np.isfinite(edge) or edge == none else f"{edge:g} Hz"


def _reference(names: list[str], x: np.ndarray, info: Any) -> str:
    """The reference according to names or samples: average, a channel of zeros, or a suffix of the channel names."""
    spread = x.std(axis=1) if x.size else np.zeros(0)
    if len(spread) > 2 and spread.max() > 0:
        if x.mean(axis=0).std() < 1e-3 * spread.max():
            return "average"
        flat = [name for name, value in zip(names, spread, strict=True) if value < 1e-6 * spread.max()]
        if len(flat) == 1:
            return flat[0]
    if info["custom_ref_applied"]:
        return "custom"
    named = sorted({found for name in names if (found := named_reference(name)) is not None})
    return ",".join(named) or "not named"


def _common_share(x: np.ndarray) -> float:
    """Share of the variance that all channels have in common, which depends on the reference."""
    total = float(np.median(x.var(axis=1)))
    return float(x.mean(axis=0).var()) / total if total > 0 and len(x) > 2 else 0.0


def _spectrum(x: np.ndarray, sfreq: float) -> tuple[np.ndarray, np.ndarray]:
    frequency, power = welch(x, sfreq, nperseg=min(x.shape[1], round(4 * sfreq)), axis=1)
    return frequency, np.median(power, axis=0)


def _mains(x: np.ndarray, sfreq: float) -> str:
    """The mains frequency, "50 Hz" or "60 Hz", if it exceeds its neighbours in the spectrum; otherwise "none"."""
    frequency, power = _spectrum(x, sfreq)
    found = {}
    for mains in (50.0, 60.0):
        beside = (np.abs(frequency - mains) > 1.5) & (np.abs(frequency - mains) < 4)
        at = np.abs(frequency - mains) <= 0.5
        if beside.any() and at.any() and frequency[-1] > mains + 1:
            found[f"{mains:g} Hz"] = float(power[at].max() / (np.median(power[beside]) + 1e-300))
    best = max(found, key=lambda name: found[name], default="none")
    return best if found.get(best, 0.0) > 4 else "none"


def _highest_frequency(x: np.ndarray, sfreq: float) -> float:
    """The frequency in Hz above which the spectrum stays below a thousandth of its value at 8 to 20 Hz."""
    frequency, power = _spectrum(x, sfreq)
    usual = float(np.median(power[(frequency >= 8) & (frequency <= min(20.0, 0.4 * sfreq))]))
    there = np.flatnonzero(power > 1e-3 * usual)
    return float(frequency[there[-1]]) if len(there) else 0.0


def _resolution(x: np.ndarray) -> float:
    """The step between neighbouring values, median over channels; 0 for numbers without a step."""
    steps = []
    for channel in x:
        gaps = np.diff(np.unique(channel))
        gaps = gaps[gaps > 1e-9 * np.abs(channel).max(initial=0)]
        if len(gaps) < 8:
            continue
        step = float(gaps.min())
        whole = gaps / step
        steps.append(step if (np.abs(whole - np.rint(whole)) < _QUANTISED * np.maximum(whole, 1)).all() else 0.0)
    return float(f"{np.median(steps):.3g}") if steps else 0.0


def _offset(x: np.ndarray) -> float:
    """The median of the samples, median over channels."""
    return float(f"{np.median(np.median(x, axis=1)):.4g}")
