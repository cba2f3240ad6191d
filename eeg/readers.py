"""Opening of recordings with MNE's readers: each format's traps are met before MNE decides in silence."""

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
from .edf_header import check_edf_header
from .mat_file import check_matlab
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

_VOLTS = {"V": 1.0, "mV": 1e-3, "µV": 1e-6, "uV": 1e-6, "nV": 1e-9}


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
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


def load_samples(path: Path, raw: Any) -> None:
    """Read the samples, which MNE's readers put off."""
    check_memory(path, 3 * 8 * raw.n_times * len(raw.ch_names))
    try:
        raw.load_data(verbose="ERROR")
    except OSError:
        raise
    except Exception as error:  # as in open_with_mne
        raise ValueError(f"{path} has damaged samples: {one_line(error)[:300]}; get the file again") from error


def open_with_mne(path: Path, include: Sequence[str] | None = None) -> RawFile:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"{path.name} must be one of {' '.join(SUFFIXES)}, got {suffix or 'no suffix'}")
    with warnings_as_notes() as notes:
        try:
            raw = _mne_raw(path, include, notes)
        except Exception as error:  # each reader raises its own errors for a file that does not match its name
            if isinstance(error, OSError) and error.filename is not None:
                raise  # it names the file
            if isinstance(error, ValueError) and str(error).startswith(str(path)):
                raise  # ours
            raise ValueError(f"{path} could not be read as {suffix[1:].upper()}: {one_line(error)[:300]}") from error
    if raw.n_times == 0:
        raise ValueError(f"{path} holds no samples")
    notes += missing_end(path, raw)
    if suffix == ".set":
        notes.append(Note("EEGLAB files carry no unit; µV is their convention"))
    return RawFile(raw, _volts(raw, suffix), _rates(raw), _sample_type(raw, suffix), tuple(notes))


def _mne_raw(path: Path, include: Sequence[str] | None, notes: list[Note]) -> Any:
    """MNE's raw object, without samples; a damaged or hostile header is refused first."""
    suffix = path.suffix.lower()
    options: dict[str, Any] = {}
    if suffix in (".edf", ".bdf"):
        check_edf_header(path)
        options = {"infer_types": True} | ({"include": list(include)} if include else {})
    elif suffix == ".set":
        check_matlab(path)
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


def missing_end(path: Path, raw: Any) -> list[Note]:
    """A note about samples that a data file of BrainVision does not hold whole."""
    width = {"short": 2, "int": 4, "single": 4}.get(raw.orig_format)
    if path.suffix.lower() != ".vhdr" or width is None:
        return []
    left = Path(raw.filenames[0]).stat().st_size % (width * len(raw.ch_names))
    return [Note(f"the data file ends within a sample ({left} bytes): it may be cut off")] if left else []


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


def at_own_rate(path: Path, found: RawFile, wanted: Sequence[str]) -> tuple[RawFile, list[Note]]:
    """The file read at the rate of its EEG channels; MNE raises all channels to the fastest of the file."""
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
    notes.append(Note(f"read at {max(rates):g} Hz, the rate of the EEG; other channels are faster"))
    return replace(again, notes=found.notes), notes
