"""Work in a folder: DICOM series in any nesting, NIfTI, pictures, EEG recordings and pairs of scans become cases.

| found | outcome |
| --- | --- |
| DICOM images of one patient, study and series with one size, orientation and spacing, wherever they lie | one case |
| a series of several sizes, orientations or spacings (a localizer) | one case per stack |
| DICOMDIR, reports, dose, segmentations, screenshots without a place in space | left out, counted |
| images that DICOMDIR lists and that are not there | their series is a broken case, or noted if none is there |
| a DICOM file that cannot be read, in a folder of one series | its series is a broken case |
| the same in a folder of several series | a broken case; the series beside it carry a warning |
| an old DICOM file without a file header | a broken case |
| other files | left out, counted |
| a folder or file that must not be read | a broken case |
| links to folders | followed, each folder once |

Names of patients, dates and free text stay out of the names of cases: see `is_harmless`.
"""

import fnmatch
import hashlib
import os
import re
import stat
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["dicom", "nifti", "image", "eeg", "pair"]

NIFTI = (".nii", ".nii.gz", ".mgz", ".mgh")
_DICOM = (".dcm", ".ima", ".dicom")
_SAME_DIRECTION = 2e-3  # as the DICOM reader
_SAME_SPACING = 1e-3
_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("Modality", "SeriesDescription", "SeriesNumber", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing"),
    *("NumberOfFrames", "SamplesPerPixel", "ImagePositionPatient"),
)
_BIDS = re.compile(r"sub-[0-9A-Za-z]+(_[a-z]+-[0-9A-Za-z+]+)*_[0-9A-Za-z]+")
_BIDS_FOLDER = re.compile(r"(sub|ses)-[0-9A-Za-z]+|anat|func|dwi|fmap|perf|pet|eeg|meg|derivatives")
_MODALITY_OF_SUFFIX = {"eeg": "EEG", "meg": "MEG", "pet": "PT", "ct": "CT"}  # of a BIDS name; the others are MR
_IMAGING = """
    acq adc adni anat asl atlas ax axial bold brain brainmask bravo case cine contrast cor coronal ct dcm dicom
    diffusion dir dixon dti dwi echo ed eeg enhanced ep epi es export fa fast fat fatsat field fieldmap file fixed fl
    flair fmap fmri frame fs fse func gad gd gre haste head im ima image images img in ir iso kernel left loc localizer
    ls mag map mask mean mgz mni moving mp mpr mprage mr mra mri ms native nifti no norm out pat patient pd perf pet
    phantom phase pt raw rawdata rec right rt run sag sagittal scan scans scout se ser series ses session slab slice
    slices smooth space spgr spine st stack std stir study sub subject swi tag task te test thick thin ti tirm tof tr
    tra trace tse vibe vol volume wip
"""
_WORDS = frozenset(_IMAGING.split())
_IMAGE_FILES = """
    .nii .mgz .mgh .dcm .ima .dicom .png .tif .tiff .bmp .jpg .jpeg .webp .pgm .ppm .edf .bdf .gdf .vhdr .set .fif .mat
    .txt .csv .tsv .json
"""
_ENDINGS = frozenset(["", *_IMAGE_FILES.split()])


@dataclass(frozen=True)
class Case:
    """One unit of work.

    Args:
        identifier: a name for a folder, unique, without anything about the patient.
        inputs: the files.
        kind: what they are together.
        description: what it is, without free text, for people.
        reason: why it cannot be run, if that is known already.
        roles: of the inputs of a pair: "moving", "fixed", "moving_labels", "fixed_labels".
        modality: DICOM's code, such as "MR"; None where it is unknown.
        label: series description and place of the files; may identify a person.
        size: bytes of the inputs.
        warnings: what was noticed while looking for it.
        contrast: of a pair: what is taken of a fixed diffusion series.
    """

    identifier: str
    inputs: tuple[Path, ...]
    kind: Kind
    description: str
    reason: str | None = None
    roles: tuple[str, ...] = ()
    modality: str | None = None
    label: str = ""
    size: int = 0
    warnings: tuple[str, ...] = ()
    contrast: str = "image"

    def with_size(self) -> "Case":
        """The same with the bytes of its inputs."""
        return replace(self, size=_size(self.inputs))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes it again."""
        return {**asdict(self), "inputs": [str(path) for path in self.inputs]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Case":
        """The case of plain values."""
        lists = {name: tuple(content[name]) for name in ("roles", "warnings")}
        return cls(**{**content, **lists, "inputs": tuple(Path(path) for path in content["inputs"])})


@dataclass
class Found:
    """What a folder holds: cases in the order of their names, and how many other things by kind."""

    cases: list[Case]
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def notes(self) -> list[str]:
        """Lines about what is no work."""
        return [f"{count} left out: {what}" for what, count in sorted(self.left_out.items())]


@dataclass(frozen=True)
class _Slice:
    """What is needed of the header of one DICOM image."""

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


def find_cases(
    folder: Path,
    kinds: Iterable[Kind],
    *,
    output: Path | None = None,
    suffixes: dict[str, Sequence[str]] | None = None,
    keep_identifiers: bool = False,
) -> Found:
    """All the work below a folder.

    Args:
        folder: where to look.
        kinds: what counts as work: "dicom", "nifti", "image", "eeg".
        output: a folder to leave out, since it holds results.
        suffixes: kind -> endings of file names, for "image" and "eeg".
        keep_identifiers: name cases by patient, series and file.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    wanted, endings = set(kinds), {"nifti": NIFTI, **(suffixes or {})}
    found = Found([])
    slices: list[_Slice] = []
    damaged: list[tuple[Path, str]] = []
    missing: Counter[str] = Counter()
    by_kind: dict[Kind, list[Path]] = defaultdict(list)
    for path, problem in _files(folder, output):
        if problem is not None:
            damaged.append((path, problem))
            continue
        kind = _kind_by_name(path, endings, wanted)
        if kind is not None:
            by_kind[kind].append(path)
        elif "dicom" in wanted:
            _look_at(path, slices, damaged, missing, found.left_out)
        else:
            found.left_out["other files"] += 1
    cases = _series_cases(folder, slices, damaged, missing, keep_identifiers)
    there = {one.group[2] for one in slices}
    if gone := sum(count for series, count in missing.items() if series not in there):
        found.left_out["images of whole series that DICOMDIR lists and that are not there"] = gone
    for kind, paths in by_kind.items():
        cases += [_file_case(folder, path, kind, keep_identifiers) for path in paths]
    found.cases = with_unique_names(cases)
    return found


def choose(
    cases: Sequence[Case], *, include: str | None = None, modality: str | None = None, series: str | None = None
) -> list[Case]:
    """The cases that pass all filters; upper and lower case are alike, several patterns stand between commas.

    Args:
        cases: to choose from.
        include: globs such as "T1*,*FLAIR*": of the series description, the file name or the path in the folder.
        modality: codes such as "MR" or "MR,CT".
        series: globs of the series description only.
    """

    def fits(case: Case) -> bool:
        description, _, place = case.label.partition("\t")
        names = [description, place, *(path.name for path in case.inputs[:1]), _stem(place)]
        return (
            (include is None or any(_glob(name, include) for name in names if name))
            and (series is None or _glob(description, series))
            and (modality is None or (case.modality or "").upper() in modality.upper().replace(" ", "").split(","))
        )

    return [case for case in cases if fits(case)]


def pairs_of_table(table: Path, folder: Path | None = None, *, keep_identifiers: bool = False) -> list[Case]:
    """A case per row of a list of pairs (see `voxelwave.registration.data.read_pairs`); a missing file is a reason.

    Args:
        table: .csv, .tsv or .json with columns moving, fixed and, where known, moving_labels, fixed_labels, contrast.
        folder: where relative paths start; by default the list's own folder.
        keep_identifiers: name cases by the files.
    """
    from ..registration.data import read_pairs

    root = folder or table.parent
    cases = []
    for pair in read_pairs(table, folder=folder, must_exist=False):
        files = {name: getattr(pair, name) for name in ("moving", "fixed", "moving_labels", "fixed_labels")}
        stems = [_stem(path.name) for path in (pair.moving, pair.fixed)]
        if all(keep_identifiers or is_harmless(stem) for stem in stems):
            identifier = "-to-".join(stems)
        else:
            identifier = f"pair-{_short_hash(*(relative(path, root) for path in (pair.moving, pair.fixed)))}"
        cases.append(_pair_case(root, identifier, files, contrast=pair.contrast))
    return with_unique_names(cases)


def pairs_of_bids(folder: Path, moving: str, fixed: str) -> list[Case]:
    """A case per session of a BIDS folder that has the two images.

    Args:
        folder: holds the folders sub-*.
        moving: the BIDS name to move: a suffix such as "T1w", or with entities such as "acq-highres_T1w"; with "ses-1"
            in it, that session's image is taken for every session of the subject.
        fixed: the same for the image that stays.

    Raises:
        ValueError: for a folder in which neither is to be found.
    """
    images = [
        path
        for path, problem in _files(folder, None)
        if problem is None
        and path.name.lower().endswith(NIFTI)
        and _BIDS.fullmatch(_stem(path.name))
        and not {"derivatives", "sourcedata"} & set(path.relative_to(folder).parts)
    ]
    sessions: dict[tuple[str, str], dict[str, list[Path]]] = defaultdict(lambda: {"moving": [], "fixed": []})
    whole: dict[str, dict[str, list[Path]]] = defaultdict(lambda: {"moving": [], "fixed": []})
    fits = {"moving": bids_entities(moving), "fixed": bids_entities(fixed)}
    for path in images:
        entities = bids_entities(_stem(path.name))
        for role, wanted in fits.items():
            if wanted.items() <= entities.items():
                across = "ses" in wanted
                place = whole[entities["sub"]] if across else sessions[entities["sub"], entities.get("ses", "")]
                place[role].append(path)
    if not sessions and not whole:
        raise ValueError(f"{folder} must hold BIDS images named {moving} and {fixed}, got neither in {len(images)}")
    for subject in whole:
        if not any(key[0] == subject for key in sessions):
            sessions[subject, ""]  # both names say their session
    cases = []
    for (subject, session), place in sorted(sessions.items()):
        own = {role: place[role] + whole[subject][role] for role in fits}
        prefix = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        identifier = f"{prefix}_{moving}-to-{fixed}"
        problem = next(
            (
                f"{len(own[role])} images are named {name}: say more of the name, such as run-1_{name}"
                if own[role]
                else f"there is no image named {name}"
                for role, name in (("moving", moving), ("fixed", fixed))
                if len(own[role]) != 1
            ),
            None,
        )
        files = {role: paths[0] for role, paths in own.items() if paths}
        case = _pair_case(folder, identifier, files)
        cases.append(replace(case, reason=problem or case.reason))
    return with_unique_names(cases)


def bids_entities(name: str) -> dict[str, str]:
    """The entities of a BIDS name, with its last part as "suffix".

    Example:
        >>> bids_entities("sub-01_acq-highres_T1w")
        {'sub': '01', 'acq': 'highres', 'suffix': 'T1w'}
    """
    *pairs, suffix = name.split("_")
    entities = dict(part.split("-", 1) for part in pairs if "-" in part)
    return {**entities, "suffix": suffix}


def is_harmless(name: str) -> bool:
    """Whether a name says nothing about a person: a BIDS name, or made of words of imaging, single letters and digits.

    Example:
        >>> [is_harmless(name) for name in ("sub-01_T1w", "scan_12", "Doe_John", "19570204")]
        [True, True, False, False]
    """
    if _BIDS.fullmatch(name) or _BIDS_FOLDER.fullmatch(name):
        return True
    words = re.findall(r"[A-Za-z]+|[^\x20-\x7e]", name)
    digits = sum(character.isdigit() for character in name)
    return digits <= 5 and all((len(w) == 1 and w.isascii()) or w.lower() in _WORDS for w in words)


def shown_name(name: str, *, keep_identifiers: bool = False) -> str:
    """A part of a path as it may be shown: itself, or a short hash of it.

    Example:
        >>> shown_name("Doe_John.nii.gz")
        '~93e05aee.nii.gz'
    """
    if keep_identifiers:
        return printable(name)
    stem = _stem(name)
    ending = name[len(stem) :]
    if ending.lower().removesuffix(".gz") not in _ENDINGS:
        stem, ending = name, ""
    return name if is_harmless(stem) else f"~{_short_hash(name, length=8)}{ending}"


def shown_path(path: Path, root: Path, *, keep_identifiers: bool = False) -> str:
    """A path as it may be shown: relative to `root`, each part as `shown_name`."""
    return "/".join(
        part if part == ".." else shown_name(part, keep_identifiers=keep_identifiers)
        for part in relative(path, root).split("/")
    )


def relative(path: Path, root: Path) -> str:
    """The path from `root`, with "/" between its parts."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def printable(text: str) -> str:
    """Text that a terminal shows in one line and every file can hold.

    Example:
        >>> printable("two" + chr(10) + "lines")
        'two\\\\x0alines'
    """
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text.encode("utf-8", "backslashreplace").decode()


def with_unique_names(cases: Iterable[Case]) -> list[Case]:
    """Cases sorted by name; those with one name get a hash of their place too. Upper and lower case are alike."""
    same: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        same[case.identifier.lower()].append(case)
    named = []
    for some in same.values():
        if len(some) == 1:
            named += some
            continue
        for case in some:
            place = _short_hash(case.label, *(str(path) for path in case.inputs), length=6)
            named.append(replace(case, identifier=f"{case.identifier}-{place}"))
    return sorted(named, key=lambda case: case.identifier)


def file_name(text: str) -> str:
    """Text as a name that every file system takes."""
    slug = re.sub(r"[^\w.+=-]+", "_", printable(text)).strip("._-")[:80]
    return slug or "case"


def _files(folder: Path, output: Path | None) -> Iterator[tuple[Path, str | None]]:
    """All regular files below a folder in order of name, or what is wrong with one; no folder is entered twice."""
    seen: set[tuple[int, int]] = set()  # by device and number
    if output is not None and output.is_dir():
        seen.add(_place_of(output.stat()))

    def entries(place: Path) -> Iterator[tuple[Path, os.DirEntry[str] | OSError]]:
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

    open_folders = [entries(folder)]
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
            if not entry.is_symlink():  # a link to nothing is no work
                yield path, _cannot_be_read(error)
            continue
        if stat.S_ISDIR(mode):
            open_folders.append(entries(path))
        elif stat.S_ISREG(mode):
            yield path, None


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
    missing: Counter[str],
    left_out: Counter[str],
) -> None:
    """Sort one file into images, damaged files, missing images by series, and what is left out."""
    import pydicom

    from ..volumes.dicom import check_deflated

    named = path.suffix.lower() in _DICOM
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
        check_deflated(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
            if kind == _DICOMDIR_CLASS:
                left_out["DICOMDIR"] += 1
                _count_missing(path, missing)
                return
            if not _is_image(header, kind):
                left_out[f"DICOM objects that are no scans ({kind.name if kind else 'of unknown kind'})"] += 1
                return
            slices.append(_slice(path, header))
    except OSError as error:
        damaged.append((path, _cannot_be_read(error)))
    except Exception as error:  # a damaged header can break pydicom anywhere
        damaged.append((path, f"has a damaged DICOM header ({_one_line(error)}); get the file again"))


def _is_image(header: Any, kind: Any) -> bool:
    from ..volumes.dicom import is_other_object

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
    )


def _count_missing(dicomdir: Path, missing: Counter[str]) -> None:
    """Count images, by series, that a DICOMDIR lists and that are not there."""
    import pydicom

    series = ""
    for record in pydicom.dcmread(dicomdir).get("DirectoryRecordSequence") or []:
        if record.get("DirectoryRecordType") == "SERIES":
            series = str(record.get("SeriesInstanceUID", ""))
        name = record.get("ReferencedFileID")
        if record.get("DirectoryRecordType") != "IMAGE" or not name:
            continue
        parts = [name] if isinstance(name, str) else list(name)
        places = [dicomdir.parent.joinpath(*parts), dicomdir.parent.joinpath(*(part.lower() for part in parts))]
        if not any(place.is_file() for place in places):
            missing[series] += 1


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
            beside[owner].append("a damaged file lies in its folder: an image at its end may be missing")
        identifier = f"damaged-{_short_hash(relative(path, root))}"
        cases.append(Case(identifier, (path,), "dicom", "damaged", problem, label=f"\t{relative(path, root)}"))
    for group, members in groups.items():
        if missing[group[2]]:
            reasons.setdefault(group, f"DICOMDIR lists {missing[group[2]]} more images, which are not there")
        stacks = _stacks(members)
        for number, stack in enumerate(stacks, start=1):
            case = _series_case(root, group, stack, keep_identifiers)
            name = case.identifier + (f"-{number}" if len(stacks) > 1 else "")
            notes = tuple(dict.fromkeys(beside[group]))
            cases.append(replace(case, identifier=name, reason=reasons.get(group), warnings=notes))
    return cases


def _stacks(members: list[_Slice]) -> list[list[_Slice]]:
    """Images of one series by size, orientation, spacing and frame of reference."""
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
    identifier = f"{modality}-{_short_hash(*(_group_part(root, part) for part in group))}"
    if keep_identifiers:
        words = (first.patient, first.series_number, first.series, _short_hash(*group, length=4))
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
        size=_size(one.path for one in stack),
    )


def _group_part(root: Path, part: str) -> str:
    """A part of a series' name; where it is a folder, without the place of the whole."""
    return f"in {relative(Path(part.removeprefix('in ')), root)}" if part.startswith("in ") else part


def _file_case(root: Path, path: Path, kind: Kind, keep_identifiers: bool) -> Case:
    place, stem = relative(path, root), _stem(path.name)
    identifier = f"{kind}-{_short_hash(place)}"
    if keep_identifiers or is_harmless(stem):
        identifier = file_name(stem)
    modality = None
    if _BIDS.fullmatch(stem):
        modality = _MODALITY_OF_SUFFIX.get(bids_entities(stem)["suffix"].lower(), "MR")
    elif kind == "eeg":
        modality = "EEG"
    what = {"nifti": "volume", "image": "picture", "eeg": "recording"}[kind]
    return Case(
        identifier, (path,), kind, f"{what}, {path.name[len(stem) :]}", modality=modality, label=f"\t{place}"
    ).with_size()


def _pair_case(root: Path, identifier: str, files: Mapping[str, Path | None], contrast: str = "image") -> Case:
    given = {role: path for role, path in files.items() if path is not None}
    absent = [path for path in given.values() if not path.exists()]
    return Case(
        identifier=file_name(identifier),
        inputs=tuple(given.values()),
        kind="pair",
        description="pair" + (" with labels" if len(given) > 2 else ""),
        reason=f"there is no {shown_path(absent[0], root)}" if absent else None,
        roles=tuple(given),
        label="\t" + " ".join(relative(path, root) for path in given.values()),
        contrast=contrast,
    ).with_size()


def _glob(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.strip().lower()) for pattern in patterns.split(","))


def _stem(name: str) -> str:
    """A name without its ending.

    Example:
        >>> _stem("scan.nii.gz"), _stem("1.2.840.dcm"), _stem("IM0001")
        ('scan', '1.2.840', 'IM0001')
    """
    name = re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)
    return re.sub(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{0,5}$", "", name)


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def _short_hash(*words: str, length: int = 10) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:length]


def _cannot_be_read(error: OSError) -> str:
    return f"cannot be read: {error.strerror or _one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
