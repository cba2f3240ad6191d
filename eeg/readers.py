"""Open recordings with MNE's readers, after checks for faults of each format that MNE does not report."""

import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mne
import numpy as np

from ..runs.memory import check_inflated, check_memory
from ..runs.words import one_line
from .companion_files import BESIDE, check_brainvision, check_opened
from .edf_header import annotation_encoding, annotations_on_data_clock, check_edf_header, read_edf_header
from .fif_tags import check_fif
from .mat_file import channels_without_label
from .matlab_elements import check_matlab
from .note import Note, first_names, warnings_as_notes
from .raw_file import RawFile

READERS = {
    ".edf": "read_raw_edf",
    ".bdf": "read_raw_bdf",
    ".gdf": "read_raw_gdf",
    ".vhdr": "read_raw_brainvision",
    ".set": "read_raw_eeglab",
    ".fif": "read_raw_fif",
}
SUFFIXES = (*READERS, ".mat")

_MICROVOLT = ("ÂµV", "Î¼V")  # UTF-8 of µV and of μV with a Greek mu, read as the Latin-1 of an EDF header
_VOLTS = {"V": 1.0, "mV": 1e-3, "µV": 1e-6, "uV": 1e-6, "nV": 1e-9}


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """The file itself, or a copy of the member of a .zip with its companions, for the duration of the block."""
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
        for name in [member, *_companions_in(packed, member)]:
            claimed = packed.getinfo(name)
            check_inflated(path, claimed.file_size, claimed.compress_size)
            check_memory(path, 3 * claimed.file_size)
            packed.extract(name, folder)
        yield Path(folder, member)


def _companions_in(packed: zipfile.ZipFile, member: str) -> list[str]:
    """Members of an archive that may belong to a recording: samples, markers and parts beside it with its name."""
    header = Path(member)
    names = {header.with_suffix(suffix) for suffix in BESIDE.get(header.suffix.lower(), ())}
    part = re.compile(rf"{re.escape(header.stem)}-\d+\.fif") if header.suffix.lower() == ".fif" else None
    siblings = [name for name in packed.namelist() if Path(name).parent == header.parent and name != member]
    return [name for name in siblings if Path(name) in names or (part and part.fullmatch(Path(name).name))]


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is not a .zip file, or is cut off: {error}") from error


def load_samples(path: Path, file: RawFile) -> None:
    """Load the samples, which MNE's readers do not read on opening."""
    raw = file.raw
    check_memory(path, 3 * 8 * raw.n_times * len(raw.ch_names))
    try:
        raw.load_data(verbose="ERROR")
        for name in file.unscaled:
            raw.apply_function(lambda x, factor=file.volts[name]: x * factor, picks=[name], verbose="ERROR")
    except OSError:
        raise
    except Exception as error:  # as in open_with_mne
        raise ValueError(f"{path} has damaged samples: {one_line(error)[:300]}; get the file again") from error


def open_with_mne(path: Path, include: Sequence[str] | None = None) -> RawFile:
    """A recording without its samples, opened by the reader for its suffix.

    Args:
        path: the file.
        include: for EDF and BDF, the only channels to open.

    Raises:
        FileNotFoundError: a file that the recording refers to is missing.
        ValueError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"{path.name} must be one of {' '.join(SUFFIXES)}, got {suffix or 'no suffix'}")
    with warnings_as_notes() as notes:
        try:
            raw = _mne_raw(path, include, notes)
            raw.get_channel_types()  # a damaged FIF gives types that do not exist
            places = _places(raw)
        except Exception as error:  # each reader raises its own errors for a file that does not match its name
            if isinstance(error, OSError) and error.filename is not None:
                raise  # it names the file
            if isinstance(error, ValueError | OSError) and str(error).startswith(str(path)):
                raise  # ours
            if suffix == ".set" and (empty := channels_without_label(path)):
                raise ValueError(
                    f"{path} must name all channels; channels without a label: number {', '.join(map(str, empty))}"
                ) from error
            raise ValueError(f"{path} could not be read as {suffix[1:].upper()}: {one_line(error)[:300]}") from error
    if raw.n_times == 0:
        raise ValueError(f"{path} holds no samples")
    if suffix in (".set", ".fif"):
        notes += check_opened(path, [Path(name) for name in raw.filenames if name is not None])
    notes += missing_end(path, raw)
    if suffix == ".set":
        notes.append(Note("EEGLAB files carry no unit; µV is their convention"))
    volts, unscaled = _volts(raw, suffix), _microvolts_unknown_to_mne(path, raw)
    if unscaled:
        raw.set_channel_types({n: "eeg" for n in unscaled if raw.get_channel_types([n]) == ["misc"]}, verbose="ERROR")
        notes.append(Note(f"the unit of {first_names(unscaled)} is an unusual spelling of microvolt: taken as µV"))
    volts |= dict.fromkeys(unscaled, 1e-6)
    return RawFile(raw, volts, _rates(raw), _sample_type(raw, suffix), tuple(notes), places, frozenset(unscaled))


def _mne_raw(path: Path, include: Sequence[str] | None, notes: list[Note]) -> Any:
    """MNE's raw object, without samples; damaged or malicious headers are refused first."""
    suffix = path.suffix.lower()
    options: dict[str, Any] = {}
    encoding: dict[str, Any] = {}
    if suffix in (".edf", ".bdf"):
        check_edf_header(path)
        if annotation_encoding(path) == "latin1":
            encoding = {"encoding": "latin1"}
            notes.append(Note("the annotations are not UTF-8, as EDF+ asks: they are read as Latin-1"))
        options = {"infer_types": True} | ({"include": list(include)} if include else {})
    elif suffix == ".set":
        check_matlab(path)
    elif suffix == ".fif":
        check_fif(path)
    elif suffix == ".vhdr":
        notes += check_brainvision(path)
    raw = None if include else _read_bids(path, encoding, notes)
    if raw is None:
        raw = getattr(mne.io, READERS[suffix])(path, verbose="WARNING", **options, **encoding)
    if suffix in (".edf", ".bdf"):
        annotations, gap_notes = annotations_on_data_clock(path, float(raw.info["sfreq"]))
        if annotations is not None:
            raw.set_annotations(annotations)
        notes += gap_notes
    return raw


def _places(raw: Any) -> dict[str, np.ndarray]:
    """Positions of electrodes in the file: name in the file -> (3,)."""
    found = raw.get_montage()
    return {} if found is None else dict(found.get_positions()["ch_pos"] or {})


def _read_bids(path: Path, options: dict[str, Any], notes: list[Note]) -> Any | None:
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
    return mne_bids.read_raw_bids(where, options or None, on_ch_mismatch="raise", verbose="ERROR")


def missing_end(path: Path, raw: Any) -> list[Note]:
    """A note if the data file of a BrainVision recording ends within a sample."""
    width = {"short": 2, "int": 4, "single": 4}.get(raw.orig_format)
    if path.suffix.lower() != ".vhdr" or width is None:
        return []
    left = Path(raw.filenames[0]).stat().st_size % (width * len(raw.ch_names))
    return [Note(f"the data file ends within a sample ({left} bytes): it may be cut off")] if left else []


def _extras(raw: Any) -> dict[str, Any]:
    """Header fields that MNE's reader keeps but does not expose in its public interface."""
    found = getattr(raw, "_raw_extras", [None])[0]
    return found if isinstance(found, dict) else {}


def _volts(raw: Any, suffix: str) -> dict[str, float | None]:
    """Factor to volts of each channel; None where MNE does not know the unit and takes the numbers as volts."""
    written = _units(raw)
    if suffix in (".edf", ".bdf", ".gdf"):
        applied = np.asarray(_extras(raw).get("units", []), float)
        if len(applied) == len(raw.ch_names):
            pairs = zip(raw.ch_names, applied, strict=True)
            return {n: float(a) if a < 1 or written.get(n) == "V" else None for n, a in pairs}
        return dict.fromkeys(raw.ch_names)
    if suffix == ".vhdr":
        return {n: _VOLTS.get(written.get(n, "")) for n in raw.ch_names}
    return dict.fromkeys(raw.ch_names, 1e-6 if suffix == ".set" else 1.0)


def _units(raw: Any) -> dict[str, str]:
    """Units as written in the file: channel -> unit."""
    return getattr(raw, "_orig_units", None) or {}


def _microvolts_unknown_to_mne(path: Path, raw: Any) -> list[str]:
    """Channels in µV that MNE did not scale, because an EDF spells the unit with a Greek mu or in UTF-8."""
    suffix = path.suffix.lower()
    if suffix == ".vhdr":  # MNE reports the unit in its usual spelling, but does not scale the channel
        kinds = zip(raw.ch_names, raw.get_channel_types(), strict=True)
        return [name for name, kind in kinds if kind == "misc" and _units(raw).get(name) == "µV"]
    header = read_edf_header(path) if suffix in (".edf", ".bdf") else None
    places = np.asarray(_extras(raw).get("sel", []), int)
    if header is None or len(places) != len(raw.ch_names):
        return []
    return [name for name, place in zip(raw.ch_names, places, strict=True) if header.units[place] in _MICROVOLT]


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


def at_own_rate(path: Path, found: RawFile, wanted: Sequence[str]) -> tuple[RawFile, list[Note]]:
    """The file opened at the rate of its EEG channels, and notes; MNE would resample all to the fastest channel."""
    rates = {found.rates[name] for name in wanted}
    notes = []
    if len(rates) > 1:
        slow = [n for n in wanted if found.rates[n] < max(rates)]
        notes.append(
            Note(
                f"sampled at {', '.join(f'{r:g}' for r in sorted(rates))} Hz in one file; "
                f"MNE interpolates {first_names(slow)} to {max(rates):g} Hz",
                "defect",
            )
        )
    own = path.suffix.lower() in (".edf", ".bdf") and max(rates) < found.raw.info["sfreq"]
    if not own:
        return found, notes
    again = open_with_mne(path, include=wanted)
    notes.append(Note(f"read at {max(rates):g} Hz, the rate of the EEG; other channels have a higher rate"))
    return replace(again, notes=found.notes), notes
