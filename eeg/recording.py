"""Reading of EEG recordings with MNE, with a note on each decision that MNE makes silently: units, rates, names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .channel_choice import choose_channels, montage_notes, name_notes, referenced
from .channels import standard_name, standard_names
from .mat_file import open_mat
from .note import Note, warnings_as_notes
from .raw_file import RawFile
from .readers import at_own_rate, load_samples, on_disk, open_with_mne
from .signal_checks import Unit, amplitude_notes, microvolt_factors, quality_notes
from .time_spans import bad_annotations, fill_missing, pauses


@dataclass(frozen=True, eq=False)
class Recording:
    """One EEG recording.

    Args:
        signal: (channels, samples) float32, in `unit`.
        unit: "uV", or "unknown" where the file gives no unit or one that cannot be right.
        sfreq: sampling rate of `signal`, Hz.
        channels: names in the 10-20 system (T7 T8 P7 P8), in the order of `signal`.
        bad_spans: (start, stop) in seconds without EEG: marked bad, cut (start = stop), missing, or constant.
        notes: findings and decisions made while reading.
        source: the file.
        file_sfreq: sampling rate in the file, Hz.
        sample_type: how the file stores a sample, e.g. "int16".
    """

    signal: np.ndarray
    unit: Literal["uV", "unknown"]
    sfreq: float
    channels: tuple[str, ...]
    bad_spans: list[tuple[float, float]]
    notes: tuple[Note, ...]
    source: Path
    file_sfreq: float
    sample_type: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return float(self.signal.shape[1] / self.sfreq)


def read_recording(
    path: str | Path,
    *,
    sfreq: float | None = None,
    channels: Sequence[str] | None = None,
    band: tuple[float | None, float | None] | None = None,
    reference: str | Sequence[str] | None = None,
    unit: Unit | None = None,
    mat_order: Literal["ced", "text"] | Sequence[str] = "ced",
    mat_sfreq: float = 128.0,
) -> Recording:
    """Read one recording: EDF, BDF, GDF, BrainVision, EEGLAB, FIF, or a .mat of the ADHD data set.

    Re-referencing, filtering and resampling are MNE's, in this order. A file of a BIDS folder goes through mne-bids
    where that is installed, so that channels.tsv and events.tsv count.

    Args:
        path: the file; it may lie in a .zip, as folder.zip/v10p.mat.
        sfreq: resample to this rate, Hz.
        channels: the channels wanted, in this order, in any spelling of the 10-20 system. By default all scalp
            electrodes in the order of the file, or all EEG channels if none has a 10-20 name.
        band: (low, high) edges in Hz of a zero-phase FIR filter; None leaves a side open.
        reference: "average", or the channel(s) to refer to; None keeps the reference of the file.
        unit: the unit of the numbers in the file, overriding the header.
        mat_order: the columns of a .mat: "ced" (the .ced file of the ADHD data set), "text" (its prose), or names.
        mat_sfreq: the sampling rate of a .mat, which carries none, Hz.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that cannot be read, channels that are not there, or options that do not fit it.
    """
    path = Path(path)
    with on_disk(path) as file:
        opened = _open(file, channels, mat_order, mat_sfreq)
    notes = opened.notes
    raw = referenced(opened.file.raw, reference, opened.file_names)
    raw = raw.pick([opened.file_names[n] for n in opened.kept], verbose="ERROR")
    scale, unit_found, unit_notes = microvolt_factors(raw, opened.file, opened.kept, unit)
    notes += unit_notes
    bad_spans = _checked(raw, opened, path)
    file_sfreq = float(raw.info["sfreq"])
    raw, filter_notes = _filtered(raw, band, sfreq)
    notes += filter_notes
    signal = (raw.get_data() * scale).astype(np.float32)
    if unit_found == "uV" and (implausible := amplitude_notes(signal)):
        unit_found = "unknown"
        notes += implausible
    return Recording(
        signal,
        unit_found,
        float(raw.info["sfreq"]),
        tuple(opened.kept),
        bad_spans,
        tuple(dict.fromkeys(notes)),
        path,
        file_sfreq,
        opened.file.sample_type,
    )


@dataclass(frozen=True, eq=False)
class _Opened:
    """A file with its samples in memory, the channels to keep, and the notes so far."""

    file: RawFile
    file_names: dict[str, str]  # standard name -> name in the file, of all channels
    kept: list[str]  # standard names in the order wanted
    notes: list[Note]


def _open(
    file: Path, channels: Sequence[str] | None, mat_order: Literal["ced", "text"] | Sequence[str], mat_sfreq: float
) -> _Opened:
    found = open_mat(file, mat_order, mat_sfreq) if file.suffix.lower() == ".mat" else open_with_mne(file)
    names = standard_names(found.raw.ch_names)
    notes = [*found.notes, *name_notes(found.raw.ch_names, names)]
    file_names = dict(zip(names, found.raw.ch_names, strict=True))
    kept, left_out = choose_channels(found, file_names, channels)
    found, rate_notes = at_own_rate(file, found, [file_names[n] for n in kept])
    notes += [*left_out, *rate_notes, *montage_notes(found.raw, file_names)]
    load_samples(file, found.raw)
    return _Opened(found, file_names, kept, notes)


def _checked(raw: Any, opened: _Opened, path: Path) -> list[tuple[float, float]]:
    """Spans without EEG, in seconds; missing samples are bridged, and what is found is added to the notes."""
    notes = opened.notes
    missing = fill_missing(raw)
    if path.suffix.lower() == ".mat":
        raw.apply_function(lambda x: x - x.mean(), channel_wise=True, verbose="ERROR")
        notes.append(Note("the mean of each channel was taken off: the converter adds a constant"))
    notes += quality_notes(raw.get_data(), opened.kept)
    if missing:
        notes.append(Note(f"{sum(b - a for a, b in missing):.1f} s without numbers (NaN) are marked bad"))
    still = pauses(raw.get_data(), raw.info["sfreq"])
    if still:
        notes.append(Note(f"{sum(b - a for a, b in still):.1f} s in which no channel moves are marked bad"))
    if raw.info["bads"]:
        bads = ", ".join(standard_name(n) for n in raw.info["bads"])
        notes.append(Note(f"marked as bad channels in the file and kept: {bads}"))
    return sorted([*bad_annotations(raw), *missing, *still])


def _filtered(raw: Any, band: Any, sfreq: float | None) -> tuple[Any, list[Note]]:
    own = float(raw.info["sfreq"])
    if sfreq is not None and not sfreq > 0:
        raise ValueError(f"sfreq must be above 0 Hz, got {sfreq:g}")
    with warnings_as_notes() as notes:
        if band is not None and any(edge is not None for edge in band):
            low, high = band
            top = min(own, sfreq or own) / 2
            if (high is not None and not 0 < high < top) or (low is not None and not 0 <= low < (high or top)):
                raise ValueError(
                    f"band must lie between 0 and {top:g} Hz, half of the rate, and rise, got {low} to {high}"
                )
            raw.filter(low, high, verbose="WARNING")
        if sfreq is not None and sfreq != own:
            raw.resample(sfreq, verbose="WARNING")
            if sfreq > own:
                notes.append(Note(f"raised from {own:g} to {sfreq:g} Hz: nothing above {own / 2:g} Hz was measured"))
            else:
                notes.append(Note(f"resampled from {own:g} to {sfreq:g} Hz"))
    return raw, notes
