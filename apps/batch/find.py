"""Find the cases in a folder: DICOM series in any nesting, NIfTI, pictures and EEG recordings.

| found | outcome |
| --- | --- |
| DICOM images of one patient, study and series with one size, orientation and spacing, in any folders | one case |
| a series of several sizes, orientations or spacings (a localizer) | one case per stack |
| DICOMDIR, reports, dose, segmentations, screenshots without a position in space | left out, counted |
| images listed in DICOMDIR but missing | their series is a broken case; a note if the whole series is missing |
| a DICOM file that cannot be read, in a folder of one series | its series is a broken case |
| the same in a folder of several series | a broken case; the other series get a warning |
| an old DICOM file without a file header | a broken case |
| other files | left out, counted |
| a folder or file without permission to read | a broken case |
| links to folders | followed, each folder once |

Names of patients, dates and free text never become part of the name of a case, see `is_harmless`.
"""

import fnmatch
import os
import re
import stat
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...runs.words import one_line
from .case import DICOM_KIND, VOLUMES, Case, Kind, file_name, file_size, with_unique_names
from .names import (
    BIDS_NAME,
    MODALITY_OF_SUFFIX,
    bids_entities,
    is_harmless,
    name_stem,
    printable,
    relative,
    short_hash,
    shown_path,
)

_SAME_DIRECTION = 2e-3  # as the DICOM reader
_SAME_SPACING = 1e-3
_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("Modality", "SeriesDescription", "SeriesNumber", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing"),
    *("NumberOfFrames", "SamplesPerPixel", "ImagePositionPatient"),
)


@dataclass
class Found:
    """The content of a folder: cases in the order of their names, and the number of skipped files by kind."""

    cases: list[Case]
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def notes(self) -> list[str]:
        """A line for each kind of file that was skipped."""
        return [f"{count} left out: {what}" for what, count in sorted(self.left_out.items())]


@dataclass(frozen=True)
class _Slice:
    """The header fields of one DICOM image that are needed to group images."""

    path: Path
    group: tuple[str, ...]  # patient, study, series; the folder where a header has no series
    size: tuple[int, int, int]  # columns, rows, samples per pixel
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    frame_of_reference: str
    frames: int
    modality: str | None
    series: str
    series_number: str
    patient: str
    uid: str


@dataclass(frozen=True)
class _Listed:
    """An image that a DICOMDIR lists, which may have been moved or renamed."""

    series: str
    uid: str


def find_cases(
    folder: Path,
    kinds: Iterable[Kind],
    *,
    output: Path | None = None,
    suffixes: dict[str, Sequence[str]] | None = None,
    keep_identifiers: bool = False,
) -> Found:
    """Find all cases below a folder.

    Args:
        folder: the folder to search.
        kinds: the kinds of input to find: "dicom", "nifti", "image", "eeg".
        output: a folder of results, which is left out.
        suffixes: kind -> suffixes of file names, for "image" and "eeg".
        keep_identifiers: name cases by patient, series and file.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    wanted, endings = set(kinds), {"nifti": VOLUMES, **(suffixes or {})}
    found = Found([])
    slices: list[_Slice] = []
    damaged: list[tuple[Path, str]] = []
    listed: list[_Listed] = []
    by_kind: dict[Kind, list[Path]] = defaultdict(list)
    for path, problem in find_files(folder, output):
        if problem is not None:
            damaged.append((path, problem))
            continue
        kind = _kind_by_name(path, endings, wanted)
        if kind is not None:
            by_kind[kind].append(path)
        elif "dicom" in wanted:
            _look_at(path, slices, damaged, listed, found.left_out)
        else:
            found.left_out["other files"] += 1
    images = {one.uid for one in slices}
    missing = Counter(one.series for one in listed if not one.uid or one.uid not in images)
    cases = _series_cases(folder, slices, damaged, missing, keep_identifiers)
    there = {one.group[2] for one in slices}
    if gone := sum(count for series, count in missing.items() if series not in there):
        found.left_out["images of whole series that are listed in DICOMDIR but missing"] = gone
    for kind, paths in by_kind.items():
        cases += [_file_case(folder, path, kind, keep_identifiers) for path in paths]
    found.cases = with_unique_names(cases)
    return found


def choose(
    cases: Sequence[Case], *, include: str | None = None, modality: str | None = None, series: str | None = None
) -> list[Case]:
    """The cases that pass all filters, which ignore case; several patterns are separated by commas.

    Args:
        cases: the cases to choose from.
        include: patterns such as "T1*,*FLAIR*" for the series description, the file name or the path in the folder.
        modality: codes such as "MR" or "MR,CT".
        series: patterns for the series description only.

    Raises:
        ValueError: there are cases, but none passes.
    """

    def fits(case: Case) -> bool:
        description, _, place = case.label.partition("\t")
        names = [description, place, *(path.name for path in case.inputs[:1]), name_stem(place)]
        return (
            (include is None or any(_glob(name, include) for name in names if name))
            and (series is None or _glob(description, series))
            and (modality is None or (case.modality or "").upper() in modality.upper().replace(" ", "").split(","))
        )

    chosen = [case for case in cases if fits(case)]
    if cases and not chosen:
        filters = {"include": include, "modality": modality, "series": series}
        given = ", ".join(f"--{name} {value}" for name, value in filters.items() if value is not None)
        raise ValueError(f"nothing to do: no case fits {given}; --dry-run without that option lists the cases")
    return chosen


def find_files(folder: Path, output: Path | None) -> Iterator[tuple[Path, str | None]]:
    """All regular files below a folder in order of name, each with its problem or None; no folder is read twice."""
    seen: set[tuple[int, int]] = set()  # by device and number
    if output is not None and output.is_dir():
        seen.add(_place_of(output.stat()))
    open_folders = [_entries(folder, seen)]
    while open_folders:
        following = next(open_folders[-1], None)
        if following is None:
            open_folders.pop()
            continue
        path, entry = following
        if isinstance(entry, OSError):
            yield path, _cannot_be_read(entry)
            continue
        if path.name.startswith("."):
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            if not entry.is_symlink():  # a dangling link is skipped
                yield path, _cannot_be_read(error)
            continue
        if stat.S_ISDIR(mode):
            open_folders.append(_entries(path, seen))
        elif stat.S_ISREG(mode):
            yield path, None


def _entries(place: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, os.DirEntry[str] | OSError]]:
    """The entries of a folder in order of name, or the error in reading it; nothing if the folder was read before."""
    try:
        if (here := _place_of(place.stat())) in seen:
            return
        seen.add(here)
        found = sorted(os.scandir(place), key=lambda entry: entry.name)
    except OSError as error:
        yield place, error
        return
    for entry in found:
        yield place / entry.name, entry


def _place_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind_by_name(path: Path, endings: dict[str, Sequence[str]], wanted: set[Kind]) -> Kind | None:
    name = path.name.lower()
    kinds: tuple[Kind, ...] = ("nifti", "image", "eeg")
    return next((kind for kind in kinds if kind in wanted and name.endswith(tuple(endings.get(kind, ())))), None)


def _look_at(
    path: Path,
    slices: list[_Slice],
    damaged: list[tuple[Path, str]],
    listed: list[_Listed],
    left_out: Counter[str],
) -> None:
    """Sort one file into images, damaged files, images that a DICOMDIR lists elsewhere, and skipped files."""

    named = path.suffix.lower() in DICOM_KIND
    try:
        with path.open("rb") as stream:
            start = stream.read(140)
        if start[128:132] != b"DICM":
            if named and not start:
                damaged.append((path, "is empty (0 bytes); get the file again"))
            elif re.match(rb"[\x02\x08]\x00[\x00-\x20]\x00(UL|UI|CS|..\x00\x00)", start, re.DOTALL):
                damaged.append((path, "has no DICOM file header; write it anew with dcmconv +F of DCMTK"))
            elif named:
                damaged.append((path, "is not a DICOM file, or its start is damaged"))
            else:
                left_out["other files"] += 1
            return
        import pydicom  # takes half a second to load: only for DICOM files

        from ...volumes.dicom_headers import open_dicom

        with warnings.catch_warnings(), open_dicom(path) as file:
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
            kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
            if kind == _DICOMDIR_CLASS:
                left_out["DICOMDIR"] += 1
                listed += _not_in_place(path)
                return
            if not _is_image(header, kind):
                left_out[f"DICOM objects that are not scans ({kind.name if kind else 'of unknown kind'})"] += 1
                return
            slices.append(_slice(path, header))
    except OSError as error:
        damaged.append((path, _cannot_be_read(error)))
    except Exception as error:  # pydicom raises errors of any type for a damaged header
        damaged.append((path, f"has a damaged DICOM header ({one_line(error)[:200]}); get the file again"))


def _is_image(header: Any, kind: Any) -> bool:
    from ...volumes.dicom_headers import is_other_object

    name = kind.name if kind is not None else ""
    if "Rows" not in header or "Columns" not in header:
        if not is_other_object(header):
            raise ValueError("it may be an image, but has no Rows and Columns")
        return False
    placed = header.get("ImagePositionPatient") is not None
    return kind is None or ("Image Storage" in name and (placed or "Secondary Capture" not in name))


def _slice(path: Path, header: Any) -> _Slice:
    frames = int(header.get("NumberOfFrames") or 1)
    patient, series = str(header.get("PatientID", "")), str(header.get("SeriesInstanceUID", ""))
    group = (patient, str(header.get("StudyInstanceUID", "")), series or f"in {path.parent}")
    orientation = header.get("ImageOrientationPatient") or ()
    return _Slice(
        path=path,
        group=group,
        size=(int(header.Columns), int(header.Rows), int(header.get("SamplesPerPixel") or 1)),
        orientation=tuple(float(value) for value in orientation),
        spacing=tuple(float(value) for value in header.get("PixelSpacing") or ()),
        frame_of_reference=str(header.get("FrameOfReferenceUID", "")),
        frames=frames,
        modality=str(header.get("Modality") or "") or None,
        series=str(header.get("SeriesDescription") or ""),
        series_number=str(header.get("SeriesNumber") or ""),
        patient=patient,
        uid=str(header.get("SOPInstanceUID", "")),
    )


def _not_in_place(dicomdir: Path) -> list[_Listed]:
    """The images that are not at the path that a DICOMDIR lists for them."""
    import pydicom

    found, series = [], ""
    for record in pydicom.dcmread(dicomdir).get("DirectoryRecordSequence") or []:
        if record.get("DirectoryRecordType") == "SERIES":
            series = str(record.get("SeriesInstanceUID", ""))
        name = record.get("ReferencedFileID")
        if record.get("DirectoryRecordType") != "IMAGE" or not name:
            continue
        parts = [name] if isinstance(name, str) else list(name)
        places = [dicomdir.parent.joinpath(*parts), dicomdir.parent.joinpath(*(part.lower() for part in parts))]
        if not any(place.is_file() for place in places):
            found.append(_Listed(series, str(record.get("ReferencedSOPInstanceUIDInFile", ""))))
    return found


def _series_cases(
    root: Path,
    slices: list[_Slice],
    damaged: list[tuple[Path, str]],
    missing: Counter[str],
    keep_identifiers: bool,
) -> list[Case]:
    groups: dict[tuple[str, ...], list[_Slice]] = defaultdict(list)
    in_folder: dict[Path, set[tuple[str, ...]]] = defaultdict(set)
    for one in slices:
        groups[one.group].append(one)
        in_folder[one.path.parent].add(one.group)
    reasons: dict[tuple[str, ...], str] = {}
    beside: dict[tuple[str, ...], list[str]] = defaultdict(list)
    cases = []
    for path, problem in damaged:
        owners = in_folder.get(path.parent, set()) if path.is_file() or not path.is_dir() else set()
        if len(owners) == 1:
            reasons.setdefault(next(iter(owners)), f"{shown_path(path, root)} {problem}")
            continue
        for owner in owners:
            beside[owner].append(
                "there is a damaged file in its folder: an image at the end of the series may be missing"
            )
        identifier = f"damaged-{short_hash(relative(path, root))}"
        cases.append(Case(identifier, (path,), "dicom", "damaged", problem, label=f"\t{relative(path, root)}"))
    for group, members in groups.items():
        if missing[group[2]]:
            reasons.setdefault(group, f"DICOMDIR lists {missing[group[2]]} more images, which are missing")
        stacks = _stacks(members)
        for number, stack in enumerate(stacks, start=1):
            case = _series_case(root, group, stack, keep_identifiers)
            name = case.identifier + (f"-{number}" if len(stacks) > 1 else "")
            notes = tuple(dict.fromkeys(beside[group]))
            cases.append(replace(case, identifier=name, reason=reasons.get(group), warnings=notes))
    return cases


def _stacks(members: list[_Slice]) -> list[list[_Slice]]:
    """Divide the images of a series by size, orientation, spacing and frame of reference."""
    stacks: list[list[_Slice]] = []
    for one in sorted(members, key=lambda s: (s.size, s.orientation, s.spacing, str(s.path))):
        for stack in stacks:
            first = stack[0]
            if (
                (first.size, first.frame_of_reference) == (one.size, one.frame_of_reference)
                and _near(first.orientation, one.orientation, _SAME_DIRECTION)
                and _near(first.spacing, one.spacing, _SAME_SPACING * min(first.spacing, default=1.0))
            ):
                stack.append(one)
                break
        else:
            stacks.append([one])
    return [sorted(stack, key=lambda s: str(s.path)) for stack in stacks]


def _near(a: tuple[float, ...], b: tuple[float, ...], tolerance: float) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def _series_case(root: Path, group: tuple[str, ...], stack: list[_Slice], keep_identifiers: bool) -> Case:
    first = stack[0]
    modality = first.modality if first.modality and re.fullmatch(r"[A-Z0-9]{2,4}", first.modality) else "OT"
    identifier = f"{modality}-{short_hash(*(_group_part(root, part) for part in group))}"
    if keep_identifiers:
        words = (first.patient, first.series_number, first.series, short_hash(*group, length=4))
        identifier = file_name("_".join(word for word in words if word))
    count = sum(one.frames for one in stack)
    spacing = f", {first.spacing[0]:.3g} mm" if first.spacing else ""
    shown = f' "{first.series}"' if first.series and (keep_identifiers or is_harmless(first.series)) else ""
    return Case(
        identifier=identifier,
        inputs=tuple(one.path for one in stack),
        kind="dicom",
        description=printable(f"{modality}, {count} images of {first.size[0]} x {first.size[1]}{spacing}{shown}"),
        modality=first.modality,
        label=f"{first.series}\t{relative(first.path, root)}",
        size=file_size(one.path for one in stack),
    )


def _group_part(root: Path, part: str) -> str:
    """A part of a series' name; a folder is given relative to `root`."""
    return f"in {relative(Path(part.removeprefix('in ')), root)}" if part.startswith("in ") else part


def _file_case(root: Path, path: Path, kind: Kind, keep_identifiers: bool) -> Case:
    place, stem = relative(path, root), name_stem(path.name)
    identifier = f"{kind}-{short_hash(place)}"
    if keep_identifiers or is_harmless(stem):
        identifier = file_name(stem)
    modality = None
    if BIDS_NAME.fullmatch(stem):
        modality = MODALITY_OF_SUFFIX.get(bids_entities(stem)["suffix"].lower(), "MR")
    elif kind == "eeg":
        modality = "EEG"
    what = {"nifti": "volume", "image": "picture", "eeg": "recording"}[kind]
    return Case(
        identifier, (path,), kind, f"{what}, {path.name[len(stem) :]}", modality=modality, label=f"\t{place}"
    ).with_size()


def _glob(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.strip().lower()) for pattern in patterns.split(","))


def _cannot_be_read(error: OSError) -> str:
    return f"cannot be read: {error.strerror or one_line(error)}"
