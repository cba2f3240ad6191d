"""Reading of EEG recordings with MNE, with a note on each decision that MNE makes silently: units, rates, names."""

import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mne
import numpy as np
import scipy.io

from ..runs.memory import check_inflated, check_memory, inflate_within_memory
from ..runs.words import one_line
from .channels import CED_ORDER, TEXT_ORDER, is_scalp_name, named_reference, positions, standard_name, standard_names

Unit = Literal["uV", "mV", "V"]

READERS = {
    ".edf": "read_raw_edf",
    ".bdf": "read_raw_bdf",
    ".gdf": "read_raw_gdf",
    ".vhdr": "read_raw_brainvision",
    ".set": "read_raw_eeglab",
    ".fif": "read_raw_fif",
}
SUFFIXES = (*READERS, ".mat")

_MICROVOLTS = {"uV": 1.0, "mV": 1e3, "V": 1e6}
_VOLTS = {"V": 1.0, "mV": 1e-3, "µV": 1e-6, "uV": 1e-6, "nV": 1e-9}
_PLAUSIBLE_UV = (0.5, 1000.0)  # robust standard deviation of scalp EEG, with room for infants and bad electrodes
_COMPRESSED = 15  # an element of a MATLAB file
_OUTLIER_SD = 50.0
_SATURATED_SHARE = 1e-3
_PAUSE_S = 1.0
_STEPS = ("edge boundary", "bad boundary", "boundary", "new segment")  # marks of a cut between two samples


@dataclass(frozen=True)
class Note:
    """A finding or a decision made while reading a recording.

    Args:
        text: for people; no code depends on its wording.
        kind: "defect" if the signal itself may be wrong, else "remark".
    """

    text: str
    kind: Literal["remark", "defect"] = "remark"

    def __str__(self) -> str:
        return self.text


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


@dataclass(frozen=True, eq=False)
class _File:
    """A file as opened by a reader: MNE's raw object, and for each channel how the file's numbers become volts."""

    raw: Any
    volts: dict[str, float | None]  # factor that MNE applied; None: the file names no voltage and MNE applied none
    rates: dict[str, float]  # Hz
    sample_type: str
    notes: tuple[Note, ...] = ()


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
    with _on_disk(path) as file:
        found = _read_mat(file, mat_order, mat_sfreq) if file.suffix.lower() == ".mat" else _read_with_mne(file)
        names = standard_names(found.raw.ch_names)
        notes = [*found.notes, *_name_notes(found.raw.ch_names, names)]
        file_names = dict(zip(names, found.raw.ch_names, strict=True))
        kept, left_out = _choose(found, file_names, channels)
        notes += left_out
        found, rate_notes = _at_own_rate(file, found, [file_names[n] for n in kept])
        notes += rate_notes
        raw = found.raw
        notes += _montage_notes(raw, file_names)
        _load(file, raw)
    raw = _referenced(raw, reference, file_names).pick([file_names[n] for n in kept], verbose="ERROR")
    scale, unit_found, unit_notes = _scale(raw, found, kept, unit)
    notes += unit_notes
    missing = _fill_missing(raw)
    if file.suffix.lower() == ".mat":
        raw.apply_function(lambda x: x - x.mean(), channel_wise=True, verbose="ERROR")
        notes.append(Note("the mean of each channel was taken off: the converter adds a constant"))
    notes += _quality_notes(raw.get_data(), kept)
    if missing:
        notes.append(Note(f"{sum(b - a for a, b in missing):.1f} s without numbers (NaN) are marked bad"))
    pauses = _pauses(raw.get_data(), raw.info["sfreq"])
    if pauses:
        notes.append(Note(f"{sum(b - a for a, b in pauses):.1f} s in which no channel moves are marked bad"))
    bad_spans = sorted([*_bad_annotations(raw), *missing, *pauses])
    if raw.info["bads"]:
        bads = ", ".join(standard_name(n) for n in raw.info["bads"])
        notes.append(Note(f"marked as bad channels in the file and kept: {bads}"))
    file_sfreq = float(raw.info["sfreq"])
    raw, filter_notes = _filtered(raw, band, sfreq)
    notes += filter_notes
    signal = (raw.get_data() * scale).astype(np.float32)
    if unit_found == "uV":
        amplitude_notes = _amplitude_notes(signal)
        unit_found = "unknown" if amplitude_notes else "uV"
        notes += amplitude_notes
    return Recording(
        signal,
        unit_found,
        float(raw.info["sfreq"]),
        tuple(kept),
        bad_spans,
        tuple(dict.fromkeys(notes)),
        path,
        file_sfreq,
        found.sample_type,
    )


@contextmanager
def _on_disk(path: Path) -> Iterator[Path]:
    """The file itself, or a copy of a member of a .zip."""
    archive = next((p for p in path.parents if p.suffix.lower() == ".zip" and p.is_file()), None)
    if archive is None:
        if not path.is_file():
            raise FileNotFoundError(f"no recording at {path}")
        yield path
        return
    member = path.relative_to(archive).as_posix()
    with tempfile.TemporaryDirectory() as folder, _opened(archive) as packed:
        if member not in packed.namelist():
            raise FileNotFoundError(f"no {member} in {archive}")
        claimed = packed.getinfo(member)
        check_inflated(path, claimed.file_size, claimed.compress_size)
        check_memory(path, 3 * claimed.file_size)
        yield Path(packed.extract(member, folder))


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is not a .zip file, or is cut off: {error}") from error


def _load(path: Path, raw: Any) -> None:
    """Read the samples, which MNE's readers put off."""
    check_memory(path, 3 * 8 * raw.n_times * len(raw.ch_names))
    try:
        raw.load_data(verbose="ERROR")
    except OSError:
        raise
    except Exception as error:  # as in _read_with_mne
        raise ValueError(f"{path} has damaged samples: {one_line(error)[:300]}; get the file again") from error


def _check_edf(path: Path) -> None:
    """Refuse a header of EDF or BDF for which MNE would make up a rate or a scale."""
    with path.open("rb") as stream:
        head = stream.read(256)
        try:
            duration, count = float(head[244:252]), int(head[252:256])
            names = [stream.read(16).decode("latin-1").strip() for _ in range(count)]
            stream.seek(256 + count * 104)
            low, high = ([float(stream.read(8)) for _ in range(count)] for _ in range(2))
        except ValueError:  # numbers as only MNE understands them, or nonsense
            return
    if not 0 < duration < np.inf:
        raise ValueError(f"{path}: a record must last more than 0 s, its header gives {duration:g} s")
    without = [n for n, a, b in zip(names, low, high, strict=True) if a == b and is_scalp_name(standard_name(n))]
    if without:
        raise ValueError(f"{path}: the physical range must be above 0, the header gives 0 for {_some(without)}")


def _missing_end(path: Path, raw: Any) -> list[Note]:
    """A note about samples that a data file of BrainVision does not hold whole."""
    width = {"short": 2, "int": 4, "single": 4}.get(raw.orig_format)
    if path.suffix.lower() != ".vhdr" or width is None:
        return []
    left = Path(raw.filenames[0]).stat().st_size % (width * len(raw.ch_names))
    return [Note(f"the data file ends within a sample ({left} bytes): it may be cut off")] if left else []


def _check_matlab(path: Path) -> None:
    """Refuse a MATLAB file whose compressed arrays would fill the memory; each is inflated whole."""
    with path.open("rb") as stream:
        order = {b"IM": "<", b"MI": ">"}.get(stream.read(128)[126:])
        while order and len(tag := stream.read(8)) == 8:
            kind, length = struct.unpack(f"{order}II", tag)
            after = stream.tell() + length
            if kind == _COMPRESSED:
                try:
                    inflate_within_memory(path, stream, length)
                except zlib.error as error:
                    raise ValueError(f"{path} is damaged or cut off: {error}; get the file again") from error
            stream.seek(after)


def _read_with_mne(path: Path, include: Sequence[str] | None = None) -> _File:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"{path.name} must be one of {' '.join(SUFFIXES)}, got {suffix or 'no suffix'}")
    with _heard() as notes:
        try:
            raw = _open_with_mne(path, include, notes)
        except Exception as error:  # each reader raises its own errors for a file that does not match its name
            if isinstance(error, OSError) and error.filename is not None:
                raise  # it names the file
            if isinstance(error, ValueError) and str(error).startswith(str(path)):
                raise  # ours
            raise ValueError(f"{path} could not be read as {suffix[1:].upper()}: {one_line(error)[:300]}") from error
    if raw.n_times == 0:
        raise ValueError(f"{path} holds no samples")
    notes += _missing_end(path, raw)
    if suffix == ".set":
        notes.append(Note("EEGLAB files carry no unit; µV is their convention"))
    return _File(raw, _volts(raw, suffix), _rates(raw), _sample_type(raw, suffix), tuple(notes))


def _open_with_mne(path: Path, include: Sequence[str] | None, notes: list[Note]) -> Any:
    """MNE's raw object, without samples; a damaged or hostile header is refused first."""
    suffix = path.suffix.lower()
    options: dict[str, Any] = {}
    if suffix in (".edf", ".bdf"):
        _check_edf(path)
        options = {"infer_types": True} | ({"include": list(include)} if include else {})
    elif suffix == ".set":
        _check_matlab(path)
    raw = None if include else _read_bids(path, notes)
    return getattr(mne.io, READERS[suffix])(path, verbose="WARNING", **options) if raw is None else raw


def _read_bids(path: Path, notes: list[Note]) -> Any | None:
    """The file read by mne-bids if it is in a BIDS folder, else None."""
    root = next((p for p in path.parents if (p / "dataset_description.json").is_file()), None)
    if root is None:
        return None
    try:
        import mne_bids  # optional: only for files in a BIDS folder
    except ImportError:
        notes.append(
            Note('mne-bids is missing, so channels.tsv and events.tsv are not read: pip install "voxelwave[bids]"')
        )
        return None
    where = mne_bids.get_bids_path_from_fname(path, verbose="ERROR")
    return mne_bids.read_raw_bids(where, on_ch_mismatch="raise", verbose="ERROR")


def _read_mat(path: Path, order: str | Sequence[str], sfreq: float) -> _File:
    if isinstance(order, str):
        if order not in ("ced", "text"):
            raise ValueError(f'mat_order must be "ced", "text" or a list of names, got {order!r}')
        order = CED_ORDER if order == "ced" else TEXT_ORDER
    _check_matlab(path)
    try:
        found = scipy.io.loadmat(path)
    except Exception as error:  # scipy has many; version 7.3 files are HDF5
        raise ValueError(
            f"{path} could not be read as a MATLAB file of version 4 to 7: {one_line(error)[:300]}"
        ) from error
    arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray) and v.ndim == 2 and v.dtype.kind in "iuf"}
    array = arrays.get(path.stem, next(iter(arrays.values())) if len(arrays) == 1 else None)
    if array is None:
        raise ValueError(f"{path} must hold one array or one named {path.stem}, got {', '.join(arrays) or 'none'}")
    if array.shape[1] != len(order) or array.shape[0] == 0:
        raise ValueError(
            f"{path} must hold (samples, {len(order)}) as {len(order)} channels are named, got {array.shape}"
        )
    with _heard() as notes:
        info = mne.create_info(list(order), sfreq, "eeg", verbose="ERROR")
        raw = mne.io.RawArray(array.T.astype(np.float64), info, verbose="ERROR")
    notes.append(Note(f"a .mat carries no rate and no names: taken as {sfreq:g} Hz, {' '.join(order)}"))
    return _File(raw, dict.fromkeys(order), dict.fromkeys(order, sfreq), str(array.dtype), tuple(notes))


@contextmanager
def _heard() -> Iterator[list[Note]]:
    """The warnings of the block as notes."""
    notes: list[Note] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    notes += [
        Note(f"MNE: {' '.join(str(w.message).split())}") for w in caught if issubclass(w.category, RuntimeWarning)
    ]


def _extras(raw: Any) -> dict[str, Any]:
    """Fields of the file's header that MNE's reader keeps; its public interface does not give them."""
    found = getattr(raw, "_raw_extras", [None])[0]
    return found if isinstance(found, dict) else {}


def _volts(raw: Any, suffix: str) -> dict[str, float | None]:
    """MNE scales unit names that it does not know by one, as if they were volts; those are None here."""
    written = getattr(raw, "_orig_units", {})
    if suffix in (".edf", ".bdf", ".gdf"):
        applied = np.asarray(_extras(raw).get("units", []), float)
        if len(applied) == len(raw.ch_names):
            pairs = zip(raw.ch_names, applied, strict=True)
            return {n: float(a) if a < 1 or written.get(n) == "V" else None for n, a in pairs}
        return dict.fromkeys(raw.ch_names)
    if suffix == ".vhdr":
        return {n: _VOLTS.get(written.get(n, "")) for n in raw.ch_names}
    return dict.fromkeys(raw.ch_names, 1e-6 if suffix == ".set" else 1.0)


def _rates(raw: Any) -> dict[str, float]:
    extras = _extras(raw)
    samples = np.atleast_1d(extras.get("n_samps", []))
    if len(samples) != len(raw.ch_names) and "sel" in extras:
        samples = samples[np.asarray(extras["sel"], int)]
    if len(samples) != len(raw.ch_names):
        return dict.fromkeys(raw.ch_names, float(raw.info["sfreq"]))
    fastest = extras.get("max_samp", samples.max())
    return {n: float(raw.info["sfreq"] * s / fastest) for n, s in zip(raw.ch_names, samples, strict=True)}


def _sample_type(raw: Any, suffix: str) -> str:
    stored = {".edf": "int16", ".bdf": "int24"}.get(suffix)
    return stored or str(getattr(raw, "orig_format", "unknown"))


def _name_notes(written: Sequence[str], names: Sequence[str]) -> list[Note]:
    notes = []
    changed = [f"{w} → {n}" for w, n in zip(written, names, strict=True) if w != n]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        notes.append(Note(f"channels renamed: {', '.join(changed[:3])}{more}"))
    references = sorted({r for w in written if (r := named_reference(w)) and is_scalp_name(standard_name(w))})
    if references:
        notes.append(Note(f"the channel names carry the reference {', '.join(references)}"))
    return notes


def _choose(found: _File, file_names: dict[str, str], wanted: Sequence[str] | None) -> tuple[list[str], list[Note]]:
    """Standard names of the channels to keep, and notes about those left out."""
    if wanted is not None:
        lower = {name.lower(): name for name in file_names}
        kept = [lower.get(standard_name(w).lower(), "") for w in wanted]
        missing = [w for w, k in zip(wanted, kept, strict=True) if not k]
        if missing:
            has = ", ".join(file_names)
            raise ValueError(f"the recording must have the channels {', '.join(missing)}, it has {has}")
        if len(set(kept)) < len(kept):
            raise ValueError(f"channels must differ, got {', '.join(wanted)}")
        in_file = [n for n in file_names if n in set(kept)]
        return kept, [] if in_file == kept else [Note(f"channels reordered from the file's order {' '.join(in_file)}")]
    kinds = dict(zip(found.raw.ch_names, found.raw.get_channel_types(), strict=True))
    eeg = [name for name, written in file_names.items() if kinds[written] == "eeg"]
    if not eeg:
        raise ValueError(f"no EEG channel found; the file has {', '.join(file_names)}")
    scalp = [name for name in eeg if is_scalp_name(name)]
    notes = []
    if not scalp:
        notes.append(Note(f"no channel has a 10-20 name, so none has a place on the head: {_some(eeg)}"))
    kept = scalp or eeg
    with_unit = [n for n in kept if found.volts[file_names[n]] is not None]
    if with_unit and not scalp:
        kept = with_unit
    left_out = [n for n in file_names if n not in set(kept)]
    if left_out:
        notes.append(Note(f"left out, no scalp EEG: {_some(left_out)}"))
    return kept, notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _at_own_rate(path: Path, found: _File, wanted: Sequence[str]) -> tuple[_File, list[Note]]:
    """The file read at the rate of its EEG channels; MNE raises all channels to the fastest of the file."""
    rates = {found.rates[name] for name in wanted}
    notes = []
    if len(rates) > 1:
        slow = [n for n in wanted if found.rates[n] < max(rates)]
        notes.append(
            Note(
                f"sampled at {', '.join(f'{r:g}' for r in sorted(rates))} Hz in one file; "
                f"MNE interpolates {_some(slow)} to {max(rates):g} Hz",
                "defect",
            )
        )
    own = path.suffix.lower() in (".edf", ".bdf") and max(rates) < found.raw.info["sfreq"]
    if not own:
        return found, notes
    again = _read_with_mne(path, include=wanted)
    notes.append(Note(f"read at {max(rates):g} Hz, the rate of the EEG; other channels are faster"))
    return replace(again, notes=found.notes), notes


def _montage_notes(raw: Any, file_names: dict[str, str]) -> list[Note]:
    """Whether positions in the file, if any, lie where the names say."""
    found = raw.get_montage()
    in_file = {} if found is None else (found.get_positions()["ch_pos"] or {})
    standard = positions()
    pairs = [
        (in_file[w], standard[n])
        for n, w in file_names.items()
        if w in in_file and n in standard and np.isfinite(in_file[w]).all()
    ]
    if len(pairs) < 4:
        return []
    here, there = (np.array(side) - np.mean(side, axis=0) for side in zip(*pairs, strict=True))
    agreement = float((here * there).sum() / (np.linalg.norm(here) * np.linalg.norm(there) + 1e-30))
    if agreement > 0.8:
        return []
    text = f"the electrode positions in the file do not fit their names (agreement {agreement:.2f}, expected about 1)"
    return [Note(text, "defect")]


def _scale(raw: Any, found: _File, kept: Sequence[str], unit: Unit | None) -> tuple[Any, Any, list[Note]]:
    """Factors from MNE's numbers to microvolts (channels, 1), the unit that results, and notes."""
    if unit is not None and unit not in _MICROVOLTS:
        raise ValueError(f'unit must be "uV", "mV" or "V", got {unit!r}')
    volts = [found.volts[name] for name in raw.ch_names]
    if unit is not None:
        factors = [_MICROVOLTS[unit] / (1.0 if v is None else v) for v in volts]
        return np.array(factors)[:, None], "uV", [Note(f"the numbers of the file are taken as {unit}, as asked")]
    unknown = [name for name, v in zip(kept, volts, strict=True) if v is None]
    if not unknown:
        return 1e6, "uV", []
    if len(unknown) < len(kept):
        raise ValueError(
            f"the file gives no voltage unit for {_some(unknown)} but does for the others: "
            "leave them out with channels, or say what the numbers are with unit"
        )
    text = "the file gives no voltage unit: its numbers are kept unchanged; set the option unit to name their unit"
    return 1.0, "unknown", [Note(text)]


def _amplitude_notes(signal: np.ndarray) -> list[Note]:
    centred = signal - np.median(signal, axis=1, keepdims=True)
    sd = float(np.median(1.4826 * np.median(np.abs(centred), axis=1)))
    low, high = _PLAUSIBLE_UV
    if low <= sd <= high:
        return []
    guess = '; the numbers look like µV that the file calls V: try unit "uV"' if low <= sd / 1e6 <= high else ""
    text = f"an amplitude of {sd:.3g} µV is not that of scalp EEG, so the unit is taken as unknown{guess}"
    return [Note(text, "defect")]


def _fill_missing(raw: Any) -> list[tuple[float, float]]:
    """Interpolate over samples that are not finite, and give their spans in seconds."""
    gaps = ~np.isfinite(raw.get_data())
    if not gaps.any():
        return []
    raw.apply_function(_interpolated, channel_wise=True, verbose="ERROR")
    return _spans(gaps.any(axis=0), raw.info["sfreq"])


def _interpolated(signal: np.ndarray) -> np.ndarray:
    """The signal (samples,) with linear interpolation where it is not finite; zeros if it never is."""
    gap, times = ~np.isfinite(signal), np.arange(len(signal))
    if gap.all():
        return np.zeros_like(signal)
    return np.where(gap, np.interp(times, times[~gap], signal[~gap]), signal)


def _spans(marked: np.ndarray, sfreq: float, least_s: float = 0.0) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.r_[False, marked, False].astype(np.int8)))
    found = [(float(a / sfreq), float(b / sfreq)) for a, b in edges.reshape(-1, 2)]
    return [(a, b) for a, b in found if b - a >= least_s]


def _pauses(data: np.ndarray, sfreq: float) -> list[tuple[float, float]]:
    moving = data[np.ptp(data, axis=1) > 0]
    if len(moving) == 0:
        return []
    still = (np.diff(moving, axis=1) == 0).all(axis=0)
    return _spans(still, sfreq, _PAUSE_S)


def _bad_annotations(raw: Any) -> list[tuple[float, float]]:
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


def _quality_notes(data: np.ndarray, names: Sequence[str]) -> list[Note]:
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


def _referenced(raw: Any, reference: str | Sequence[str] | None, file_names: dict[str, str]) -> Any:
    if reference is None:
        return raw
    if reference == "average":
        eeg = [written for name, written in file_names.items() if is_scalp_name(name) and written in raw.ch_names]
        wanted: Any = eeg or "average"
    else:
        asked = [reference] if isinstance(reference, str) else list(reference)
        wanted = [file_names.get(standard_name(name), name) for name in asked]
        missing = [name for name in wanted if name not in raw.ch_names]
        if missing:
            raise ValueError(f"reference must be channels of the recording, {', '.join(missing)} is not in it")
    return raw.set_eeg_reference(wanted, verbose="ERROR")


def _filtered(raw: Any, band: Any, sfreq: float | None) -> tuple[Any, list[Note]]:
    own = float(raw.info["sfreq"])
    if sfreq is not None and not sfreq > 0:
        raise ValueError(f"sfreq must be above 0 Hz, got {sfreq:g}")
    with _heard() as notes:
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
