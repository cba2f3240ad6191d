"""Files that belong to a recording: samples and markers beside a header, parts of a split file, tables of BIDS."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import mne

from .note import Note

_NAMED = re.compile(r"\s*(DataFile|MarkerFile)\s*=\s*(.+?)\s*$", re.IGNORECASE)
_USUAL = {"datafile": (".eeg", ".dat"), "markerfile": (".vmrk",)}
_PART_OF_BIDS = re.compile(r"_split-(\d+)")
BESIDE = {
    ".vhdr": (".eeg", ".vmrk", ".dat"),
    ".set": (".fdt",),
}  # usual companion files of a header, which have its name


def companion_files(file: Path) -> list[Path]:
    """The existing files from which a recording is read, the recording itself first.

    Args:
        file: a recording on disk, not in an archive.
    """
    suffix = file.suffix.lower()
    found = [file, *(file.with_suffix(each) for each in BESIDE.get(suffix, ()))]
    if file.stem.endswith("_eeg"):
        found += sorted(file.parent.glob(f"{file.stem.removesuffix('_eeg')}_*.tsv"))
        found += sorted([*file.parent.glob("*_electrodes.tsv"), *file.parent.glob("*_coordsystem.json")])
    if suffix == ".vhdr":
        found += [named for _, named in named_in_brainvision(file)]
    elif suffix == ".fif" or (suffix == ".set" and any(file.parent.glob("*.fdt"))):
        found += _opened_by_mne(file)
    return [part for part in dict.fromkeys(found) if part.is_file()]


def named_in_brainvision(header: Path) -> Iterator[tuple[str, Path]]:
    """(key, path) of the data file and the marker file named in a BrainVision header; "$b" is the header's name."""
    if not header.is_file():
        return
    for line in header.read_bytes().decode("utf-8", "replace").splitlines():
        if found := _NAMED.match(line):
            key, name = found.groups()
            yield key, header.parent / name.replace("$b", header.stem)


def check_brainvision(header: Path) -> list[Note]:
    """Notes if a BrainVision header refers to files whose name differs from its own.

    Raises:
        FileNotFoundError: a file that the header names is missing.
        ValueError: the folder also holds a file with the usual name, so either may be meant; or the header lists
            another number of channels than it announces.
    """
    _check_channels(header)
    notes = []
    for key, named in named_in_brainvision(header):
        own = next((f for s in _USUAL[key.lower()] if (f := header.with_suffix(s)).is_file()), None)
        if not named.is_file() and (own or key.lower() == "datafile"):  # MNE notes that there are no markers
            beside = f", but the folder holds {own.name}: correct {key} in the header" if own else ""
            raise FileNotFoundError(f"{header} names {named.name}, which is not in its folder{beside}")
        if named.is_file():
            notes += _differing(header, named, own, f"correct {key} in the header")
    return notes


def _check_channels(header: Path) -> None:
    """Refuse a header whose number of channels differs from the length of its list, which makes the samples unclear."""
    if not header.is_file():
        return
    text = header.read_bytes().decode("utf-8", "replace")
    announced = re.search(r"^\s*NumberOfChannels\s*=\s*(\d+)", text, re.MULTILINE | re.IGNORECASE)
    listed = re.search(r"^\[Channel Infos\](.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    if announced is None or listed is None:
        return  # MNE reports it
    count = len(re.findall(r"^\s*Ch\d+\s*=", listed[1], re.MULTILINE | re.IGNORECASE))
    if count != int(announced[1]):
        raise ValueError(
            f"{header} announces {announced[1]} channels but lists {count}; correct NumberOfChannels in it"
        )


def check_opened(path: Path, opened: list[Path]) -> list[Note]:
    """Notes if MNE opened samples of a .set or parts of a .fif whose name differs from the file's own.

    Args:
        path: the .set or .fif file.
        opened: the files from which MNE reads samples, in their order.

    Raises:
        ValueError: the folder also holds a file with the usual name, so either may be meant.
    """
    notes = []
    for number, part in enumerate(opened):
        if part.resolve() == path.resolve():
            continue
        own = path.with_suffix(".fdt") if path.suffix.lower() == ".set" else _part_name(path, number)
        notes += _differing(path, part, own, "rename the files together, or save the recording again")
    return notes


def _differing(path: Path, named: Path, own: Path | None, remedy: str) -> list[Note]:
    if named.stem == path.stem or (own is not None and named.resolve() == own.resolve()):
        return []
    if own is not None and own.is_file():
        raise ValueError(f"{path} names {named.name}, but the folder also holds {own.name}: {remedy}, or remove one")
    return [Note(f"{path.name} takes its samples or markers from {named.name}, a file of another name")]


def _part_name(path: Path, number: int) -> Path:
    """The usual name of a part of a split .fif: x_raw-1.fif, or sub-1_split-02_eeg.fif in BIDS."""
    found = _PART_OF_BIDS.search(path.name)
    if found is None:
        return path.with_name(f"{path.stem}-{number}{path.suffix}")
    width = len(found.group(1))
    return path.with_name(_PART_OF_BIDS.sub(f"_split-{int(found.group(1)) + number:0{width}d}", path.name))


def _opened_by_mne(file: Path) -> list[Path]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = mne.io.read_raw_eeglab if file.suffix.lower() == ".set" else mne.io.read_raw_fif
            raw = reader(file, preload=False, verbose="ERROR")
    except Exception:  # each reader raises its own type; the error is reported when the recording is read
        return []
    here = file.parent.resolve()  # MNE resolves the names; those of this folder stay as the caller wrote the folder
    opened = [Path(name) for name in raw.filenames if name is not None]
    return [file.parent / part.name if part.parent.resolve() == here else part for part in opened]
