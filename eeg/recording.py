"""Reading of EEG recordings with MNE, with a note on each decision that MNE makes silently: units, rates, names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mne
import numpy as np

from ..runs.memory import check_memory
from .channel_choice import ChannelNames, choose_channels, montage_notes, name_channels, referenced
from .mat_file import open_mat
from .note import Note, warnings_as_notes
from .raw_file import RawFile
from .readers import at_own_rate, load_samples, on_disk, open_with_mne
from .signal_checks import Unit, amplitude_notes, microvolt_factors, quality_notes
from .time_spans import bad_annotations, cut_samples, fill_missing, pauses

FrequencySpan = tuple[float, float | None]  # (low, high) in Hz; None: up to the highest frequency
_TRANSITION_HZ = 2.0  # width of the edges of a removed span, which lie inside it


@dataclass(frozen=True, eq=False)
class Recording:
    """One EEG recording.

    Args:
        signal: (channels, samples) float32, in `unit`.
        unit: "uV", or "unknown" if the file gives no unit or an implausible one.
        sfreq: sampling rate of `signal`, Hz.
        channels: names in the 10-20 system (T7 T8 P7 P8), in the order of `signal`; electrodes without such a name keep
            the name in the file, prefixed with "file:" if the 10-20 system uses it for another position.
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
    span: tuple[float, float] | None = None,
    remove: Sequence[FrequencySpan] = (),
) -> Recording:
    """Read one recording: EDF, BDF, GDF, BrainVision, EEGLAB, FIF, or a .mat file of the ADHD data set.

    MNE re-references, filters and resamples, in this order; each stretch between two cuts is processed separately. A
    file in a BIDS folder is read by mne-bids if that is installed, so that channels.tsv and events.tsv are used.

    Args:
        path: the file; it may be in a .zip, such as folder.zip/v10p.mat.
        sfreq: resample to this rate, Hz.
        channels: the channels to read, in this order, in any spelling of the 10-20 system, or as "Cz=A1" for the
            channel A1 of a cap with its own names. By default all scalp electrodes in the order of the file, or all EEG
            channels if none has a 10-20 name.
        band: (low, high) edges in Hz of a zero-phase FIR filter; None leaves a side open.
        reference: "average", or the channel(s) to refer to; None keeps the reference of the file.
        unit: the unit of the numbers in the file, overriding the header.
        mat_order: order of the columns of a .mat file: "ced" (the .ced file of the ADHD data set), "text" (its
            description), or names.
        mat_sfreq: sampling rate of a .mat file, which does not contain it, Hz.
        span: (start, stop) in seconds of the part to read; times in the result are relative to its start. Properties of
            the whole recording (pauses, quality, amplitude) are then judged from this part.
        remove: spans of frequencies to remove by a zero-phase FIR filter with edges of at most 2 Hz inside the span,
            such as ((0, 1), (45, 55), (60, None)).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, a channel is missing, or an option does not fit the file.
    """
    path = Path(path)
    _check_options(band, sfreq, mat_sfreq)
    with on_disk(path) as file:
        opened = _open(file, channels, mat_order, mat_sfreq, span)
    notes, raw = opened.notes, opened.file.raw
    kept = list(opened.kept.values())
    missing = fill_missing(raw, kept if reference is None else raw.ch_names)
    largest = float(np.abs(raw.get_data(picks=kept)).max())
    raw, reference_notes = referenced(raw, reference, opened.names)
    notes += reference_notes
    raw = raw.pick(kept, verbose="ERROR")
    scale, unit_found, unit_notes = microvolt_factors(raw, opened.file, list(opened.kept), unit)
    notes += unit_notes
    bad_spans = sorted([*_checked(raw, opened, path, largest), *missing])
    notes += _missing_notes(missing)
    file_sfreq = float(raw.info["sfreq"])
    raw, filter_notes = _filtered(path, raw, band, sfreq, remove)
    notes += filter_notes
    signal = (raw.get_data() * scale).astype(np.float32)
    if (
        unit_found == "uV"
        and signal.any()
        and (implausible := amplitude_notes(_outside(bad_spans, signal, raw.info["sfreq"])))
    ):
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


def _outside(spans: Sequence[tuple[float, float]], signal: np.ndarray, sfreq: float) -> np.ndarray:
    """The signal outside bad spans, since pauses do not show the amplitude; the whole signal if nothing is left."""
    kept = np.ones(signal.shape[1], dtype=bool)
    for start, stop in spans:
        kept[round(start * sfreq) : round(stop * sfreq)] = False
    if kept.all() or not kept.any():
        return signal
    outside: np.ndarray = signal[:, kept]
    return outside


@dataclass(frozen=True, eq=False)
class _Opened:
    """A file with its samples in memory, the channels to keep, and the notes so far."""

    file: RawFile
    names: ChannelNames
    kept: dict[str, str]  # name in the result -> name in the file, in the requested order
    notes: list[Note]


def seconds_of(
    path: str | Path, mat_order: Literal["ced", "text"] | Sequence[str] = "ced", mat_sfreq: float = 128.0
) -> float:
    """Length of a recording in seconds, without reading its samples (except those of a .mat)."""
    with on_disk(Path(path)) as file:
        raw = _opened_file(file, mat_order, mat_sfreq).raw
        return float(raw.n_times / raw.info["sfreq"])


def _opened_file(file: Path, mat_order: Literal["ced", "text"] | Sequence[str], mat_sfreq: float) -> RawFile:
    return open_mat(file, mat_order, mat_sfreq) if file.suffix.lower() == ".mat" else open_with_mne(file)


def _open(
    file: Path,
    channels: Sequence[str] | None,
    mat_order: Literal["ced", "text"] | Sequence[str],
    mat_sfreq: float,
    span: tuple[float, float] | None,
) -> _Opened:
    found = _opened_file(file, mat_order, mat_sfreq)
    names = name_channels(found)
    kept, left_out = choose_channels(found, names, channels)
    notes = [*found.notes, *names.notes, *left_out]
    found, rate_notes = at_own_rate(file, found, list(kept.values()))
    notes += [*rate_notes, *montage_notes(found, names)]
    if span is not None:
        _crop(found.raw, *span)
    load_samples(file, found)
    return _Opened(found, names, kept, notes)


def _crop(raw: Any, start: float, stop: float) -> None:
    """Keep the samples from `start` (included) to `stop` (excluded), in seconds."""
    sfreq = float(raw.info["sfreq"])
    first, last = round(start * sfreq), min(round(stop * sfreq), raw.n_times) - 1
    if not 0 <= first <= last:
        raise ValueError(f"span must lie in the recording of {raw.n_times / sfreq:g} s, got {start:g} to {stop:g} s")
    raw.crop(first / sfreq, last / sfreq, verbose="ERROR")


def _checked(raw: Any, opened: _Opened, path: Path, largest: float) -> list[tuple[float, float]]:
    """Spans that are marked as bad, cut or constant, in seconds; findings are added to the notes."""
    notes = opened.notes
    if path.suffix.lower() == ".mat":
        raw.apply_function(lambda x: x - x.mean(), channel_wise=True, verbose="ERROR")
        notes.append(Note("the mean of each channel was subtracted, because the converter adds a constant"))
    notes += quality_notes(raw.get_data(), list(opened.kept))
    still = pauses(raw.get_data(), raw.info["sfreq"], largest)
    seconds = sum(stop - start for start, stop in still)
    if seconds >= raw.n_times / raw.info["sfreq"]:
        notes.append(Note("all channels are constant in the whole recording", "defect"))
    elif still:
        notes.append(Note(f"{seconds:.1f} s in which all channels are constant are marked bad"))
    if raw.info["bads"]:
        bads = ", ".join(name for name, written in opened.kept.items() if written in raw.info["bads"])
        notes.append(Note(f"marked as bad channels in the file and kept: {bads}"))
    return [*bad_annotations(raw), *still]


def _missing_notes(missing: list[tuple[float, float]]) -> list[Note]:
    if not missing:
        return []
    seconds = sum(stop - start for start, stop in missing)
    return [Note(f"{seconds:.1f} s without numbers (NaN) are marked bad")]


def _check_options(band: tuple[float | None, float | None] | None, sfreq: float | None, mat_sfreq: float) -> None:
    if sfreq is not None and not 0 < sfreq < np.inf:
        raise ValueError(f"sfreq must be above 0 Hz and finite, got {sfreq:g}")
    if not 0 < mat_sfreq < np.inf:
        raise ValueError(f"mat_sfreq must be above 0 Hz and finite, got {mat_sfreq:g}")
    if any(edge is not None and not np.isfinite(edge) for edge in band or ()):
        raise ValueError(f"band must have finite edges in Hz, got {list(band or ())}")


def _filtered(
    path: Path,
    raw: Any,
    band: tuple[float | None, float | None] | None,
    sfreq: float | None,
    remove: Sequence[FrequencySpan] = (),
) -> tuple[Any, list[Note]]:
    """The raw object filtered and resampled, each stretch between two cuts separately; and notes."""
    own, cuts = float(raw.info["sfreq"]), cut_samples(raw)
    with warnings_as_notes() as notes:
        if band is not None and any(edge is not None for edge in band):
            low, high = band
            top = min(own, sfreq or own) / 2
            if (high is not None and not 0 < high < top) or (low is not None and not 0 <= low < (high or top)):
                raise ValueError(
                    f"band must lie between 0 and {top:g} Hz (half of the rate), lower edge first, got {low} to {high}"
                )
            _filter(raw, cuts, low, high)
        for span in remove:
            _remove(raw, cuts, span)
        if sfreq is not None and sfreq != own:
            check_memory(path, round(3 * 8 * raw.n_times * sfreq / own) * len(raw.ch_names))
            raw = _resampled(raw, cuts, sfreq) if cuts else raw.resample(sfreq, verbose="WARNING")
            if sfreq > own:
                notes.append(Note(f"resampled from {own:g} to {sfreq:g} Hz: nothing above {own / 2:g} Hz was recorded"))
            else:
                notes.append(Note(f"resampled from {own:g} to {sfreq:g} Hz"))
    return raw, notes


def _filter(raw: Any, cuts: list[int], low: float | None, high: float | None, **widths: float) -> None:
    """Filter in place, each stretch between two cuts separately; low > high removes what lies between."""
    own, marks = float(raw.info["sfreq"]), raw.annotations
    raw.set_annotations(mne.Annotations([cut / own for cut in cuts], 0.0, "EDGE boundary") if cuts else None)
    raw.filter(low, high, verbose="WARNING", **widths)  # MNE filters between edges
    raw.set_annotations(marks)


def _remove(raw: Any, cuts: list[int], span: FrequencySpan) -> None:
    """Remove a span of frequencies in place; the part of it above half the rate does not exist."""
    low, high = span
    top = float(raw.info["sfreq"]) / 2
    if low >= top - _TRANSITION_HZ:
        return
    if high is None or high >= top:
        _filter(raw, cuts, None, low, h_trans_bandwidth=_TRANSITION_HZ)
    elif low <= 0:
        _filter(raw, cuts, high, None, l_trans_bandwidth=min(_TRANSITION_HZ, high))
    else:
        width = min(_TRANSITION_HZ, (high - low) / 3)
        _filter(raw, cuts, high, low, l_trans_bandwidth=width, h_trans_bandwidth=width)


def _resampled(raw: Any, cuts: list[int], sfreq: float) -> Any:
    """Each stretch between two cuts resampled separately, so that a step at a cut causes no ringing."""
    own = float(raw.info["sfreq"])
    edges = [0, *cuts, raw.n_times]
    places = [round(edge * sfreq / own) for edge in edges]
    pieces = []
    for first, last, start, stop in zip(edges, edges[1:], places, places[1:], strict=False):
        piece = mne.filter.resample(raw.get_data(start=first, stop=last), up=sfreq, down=own, verbose="ERROR")
        missing = stop - start - piece.shape[1]  # at most one sample, by rounding
        pieces.append(np.pad(piece, ((0, 0), (0, max(0, missing))), "edge")[:, : stop - start])
    info = mne.create_info(raw.ch_names, sfreq, raw.get_channel_types(), verbose="ERROR")
    return mne.io.RawArray(np.concatenate(pieces, axis=1), info, verbose="ERROR")
