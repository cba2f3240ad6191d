"""Units and quality of a signal: factors to microvolts, and notes on amplitudes, flat and saturated channels."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from .note import Note, first_names
from .raw_file import RawFile

Unit = Literal["uV", "mV", "V"]

_MICROVOLTS = {"uV": 1.0, "mV": 1e3, "V": 1e6}
_PLAUSIBLE_UV = (0.5, 1000.0)  # robust standard deviation of scalp EEG, with room for infants and bad electrodes
_OUTLIER_SD = 50.0
_SATURATED_SHARE = 1e-3


def microvolt_factors(raw: Any, found: RawFile, kept: Sequence[str], unit: Unit | None) -> tuple[Any, Any, list[Note]]:
    """Factors from MNE's numbers to microvolts (channels, 1), the unit of the result, and notes.

    Raises:
        ValueError: the unit is unknown, or the file gives a unit only for some channels.
    """
    if unit is not None and unit not in _MICROVOLTS:
        raise ValueError(f'unit must be "uV", "mV" or "V", got {unit!r}')
    volts = [found.volts[name] for name in raw.ch_names]
    if unit is not None:
        factors = [_MICROVOLTS[unit] / (1.0 if v is None else v) for v in volts]
        return np.array(factors)[:, None], "uV", [Note(f"the numbers of the file are taken as {unit}, as requested")]
    unknown = [name for name, v in zip(kept, volts, strict=True) if v is None]
    if not unknown:
        return 1e6, "uV", []
    if len(unknown) < len(kept):
        raise ValueError(
            f"the file gives no voltage unit for {first_names(unknown)} but does for the others: "
            "leave them out with the option channels, or set the option unit"
        )
    text = "the file gives no voltage unit: its numbers are kept unchanged; set the option unit to name their unit"
    return 1.0, "unknown", [Note(text)]


def amplitude_notes(signal: np.ndarray) -> list[Note]:
    """A note if the amplitude of a signal (channels, samples) in microvolts is implausible for scalp EEG."""
    centred = signal - np.median(signal, axis=1, keepdims=True)
    sd = float(np.median(1.4826 * np.median(np.abs(centred), axis=1)))
    low, high = _PLAUSIBLE_UV
    if low <= sd <= high:
        return []
    guess = '; the numbers look like µV that the file calls V: try unit "uV"' if low <= sd / 1e6 <= high else ""
    text = f"an amplitude of {sd:.3g} µV is not that of scalp EEG, so the unit is taken as unknown{guess}"
    return [Note(text, "defect")]


def quality_notes(data: np.ndarray, names: Sequence[str]) -> list[Note]:
    """Notes on flat channels, saturated channels and outliers of data (channels, samples)."""
    centred = np.abs(data - np.median(data, axis=1, keepdims=True))
    sd = 1.4826 * np.median(centred, axis=1)
    spread = data.std(axis=1)
    flat = spread <= 1e-3 * np.median(spread)
    notes = []
    if flat.any():
        notes.append(Note(f"flat channels: {', '.join(n for n, f in zip(names, flat, strict=True) if f)}", "defect"))
    saturated = [n for n, x, f in zip(names, data, flat, strict=True) if not f and _plateau_share(x) > _SATURATED_SHARE]
    if saturated:
        notes.append(
            Note(f"saturated channels (plateaus at the largest or smallest value): {', '.join(saturated)}", "defect")
        )
    outliers = int((centred[sd > 0] > _OUTLIER_SD * sd[sd > 0, None]).any(axis=0).sum())
    if outliers:
        notes.append(Note(f"samples more than {_OUTLIER_SD:g} robust standard deviations off: {outliers}"))
    return notes


def _plateau_share(x: np.ndarray) -> float:
    """Share of samples in runs of at least three at the channel's largest or smallest value."""
    share = 0.0
    for extreme in (x.max(), x.min()):
        edges = np.flatnonzero(np.diff(np.r_[False, x == extreme, False].astype(np.int8))).reshape(-1, 2)
        runs = edges[:, 1] - edges[:, 0]
        share += runs[runs >= 3].sum() / len(x)
    return float(share)
