"""Grouping of the files of a class folder by person, from the names of files and folders."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import mne

from ..runs.words import tidy_name

_BIDS = re.compile(r"(?:^|_)(sub-[^_]+)", re.IGNORECASE)
_NUMBERED = (
    "run|ses|session|sess|visit|day|night|part|split|block|trial|rec|recording|record|segment|seg|epoch|chunk|clip|take"
    "|repeat|rep|acq|task"
)
# words that identify one of several recordings of a person: run-1, ses02, task-rest, EC, raw
_RECORDING = (
    rf"(?:(?:{_NUMBERED})[-_. ]?\d+|(?:task|ses|acq|run|desc|space|recording|split)-[a-z0-9]+"
    r"|eyes[-_. ]?(?:open|closed?)|open|closed?|eo|ec|rest|resting|resting[-_. ]?state|baseline|pre|post|task|raw|eeg"
    r"|meg|ieeg|clean|cleaned|filtered|preprocessed|run|session|ses|recording|rec)"
)
_WHOLE_CONVENTIONS = (
    re.compile(r"(s\d+)r\d+", re.IGNORECASE),  # S001R01: person 1, run 1
    re.compile(r"([a-z]+)_s\d{3}_t\d{3}", re.IGNORECASE),  # aaaaaaab_s001_t000: person, session, part
)
_GROUP = re.compile(
    r"(?:site|cent(?:er|re)|hospital|clinic|lab|scanner|device|batch|group|cohort|ward|school|year|age|males?|females?"
    r"|boys?|girls?|data|set|dataset|part|fold|train|training|test|val|validation|raw|edf|eeg|mat|bdf|fif|patients"
    r"|subjects|participants|people|children|adults|recordings|files|old|young)[-_. ]*\w{0,3}",
    re.IGNORECASE,
)
_PERSON = re.compile(
    r"(?:sub|subj|subject|s|p|pat|patient|participant|person|pid|id|child|kid|volunteer|proband|case|control)"
    r"[-_. ]*\d+",
    re.IGNORECASE,
)
_PERSON_WORD = re.compile(
    r"(?:sub|subj|subject|pat|patient|participant|person|pid|child|kid|volunteer)[-_. ]*\d+", re.I
)
_DATE = r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d(?:[-_.T]?\d{4,6})?"
_AMBIGUOUS = re.compile(rf"(.*\d.*?)[-_. ]+(?:\d{{1,3}}|[a-d])|(.+?)[-_. ]+{_DATE}", re.IGNORECASE)
_COPY = re.compile(r"(.+?)[-_ ]*(?:\(\d+\)|\bcopy\b.*|\bkopie\b.*)", re.IGNORECASE)
_NO_NAME = frozenset(
    ("eeg", "data", "patient", "patients", "subject", "control", "controls", "healthy", "case", "file")
)


@dataclass(frozen=True)
class ClassFile:
    """A recording of a class.

    Args:
        file: path of the file.
        place: path relative to the study's folder; its first part is the folder or archive of the class.
    """

    file: Path
    place: PurePath


@dataclass(frozen=True)
class _Owner:
    """The person of a file: a name, and the folder that distinguishes people of the same name."""

    name: str
    folder: str


def without_later_parts(files: Iterable[Path]) -> list[Path]:
    """The files without the second and later parts of split FIF recordings, which MNE reads with the first part."""
    listed = list(files)
    there = {(file.parent, file.name.lower()) for file in listed}
    return [file for file in listed if not _is_later_part(file, there)]


def _is_later_part(file: Path, there: set[tuple[Path, str]]) -> bool:
    if file.suffix.lower() != ".fif":
        return False
    numbered = re.fullmatch(r"(.*)-(\d+)", file.stem)
    if numbered is not None and (file.parent, f"{numbered[1]}.fif".lower()) in there:
        parts = _parts_of(file.with_name(numbered[1] + file.suffix))
        return parts is None or file.resolve() in parts
    split = re.fullmatch(r"(.*_split-)(\d+)(.*)", file.stem, re.IGNORECASE)
    if split is None or int(split[2]) <= 1:
        return False
    return (file.parent, f"{split[1]}{1:0{len(split[2])}d}{split[3]}.fif".lower()) in there


def _parts_of(first: Path) -> set[Path] | None:
    """The files of a split FIF recording, each of which names the next; None if the first cannot be opened."""
    try:
        raw = mne.io.read_raw_fif(first, preload=False, on_split_missing="ignore", verbose="ERROR")
    except Exception:  # if the file is damaged or in an archive, the name decides
        return None
    return {Path(name).resolve() for name in raw.filenames if name is not None}


def people_of_class(files: Sequence[ClassFile], label: str) -> dict[str, list[Path]]:
    """The people of a class and their recordings, in the order of the files.

    Runs, sessions, tasks and parts of a person are recognised by words in the names of files and folders (sub-01_run-2,
    ses-1/03, p01/EC). Files of the same name in folders of groups (site1, ADHD_part2) belong to different people.

    Args:
        files: the recordings of the class.
        label: the class.

    Returns:
        Name -> recordings. A person with one recording gets the name of the file, unless this is a word such as rec1 or
        the name of another person.

    Raises:
        ValueError: it is unclear whether files are recordings of one person or of different people.
    """
    owners = [_owner(each.place) for each in files]
    folders: dict[str, set[str]] = defaultdict(set)
    for owner in owners:
        folders[owner.name].add(owner.folder)
    people: dict[str, list[ClassFile]] = defaultdict(list)
    for each, owner in zip(files, owners, strict=True):
        people[f"{owner.folder}/{owner.name}" if len(folders[owner.name]) > 1 else owner.name].append(each)
    _refuse_unknown_folders(files, owners)
    _refuse_general_names(people, label)
    _refuse_copies(people)
    people = _with_runs_of_people(people)
    stems = {name: own[0].file.stem for name, own in people.items()}
    shown = {
        name: stem if len(people[name]) == 1 and _names_person(name, stem) else name for name, stem in stems.items()
    }
    times = Counter(shown.values())
    return {
        name if times[shown[name]] > 1 else shown[name]: [each.file for each in own] for name, own in people.items()
    }


def _names_person(name: str, stem: str) -> bool:
    """Whether a person is named by the only file of the person, not by the name in the path of the file."""
    return "/" not in name and not _BIDS.search(stem) and bool(_without_recording(stem))


def _owner(place: PurePath) -> _Owner:
    group, *between = place.parts[:-1]
    found = _BIDS.search(place.stem) or next((m for part in reversed(between) if (m := _BIDS.match(part))), None)
    if found is not None:
        return _Owner(found[1], "")
    folders = [part for part in between if not re.fullmatch(_RECORDING, part, re.IGNORECASE)]
    stem = _without_recording(place.stem)
    own = next((k for k in reversed(range(len(folders))) if _PERSON.fullmatch(folders[k])), None)
    if own is None and not stem and folders:
        own = len(folders) - 1
    if own is not None:  # p01/EC is of p01
        stem, folders = folders[own], folders[:own]
    return _Owner(tidy_name(stem or place.stem), "/".join([group, *folders]))


def _without_recording(stem: str) -> str:
    """A file's name without the words for run, session, task and kind of recording; empty if nothing else is left.

    Example:
        >>> [_without_recording(name) for name in ("anna_run-2_eeg", "S001R04", "v10p", "EO")]
        ['anna', 'S001', 'v10p', '']
    """
    for convention in _WHOLE_CONVENTIONS:
        if whole := convention.fullmatch(stem):
            return whole[1]
    while cut := re.fullmatch(rf"(|.*?[^-_ .])(?:^|[-_ .]+){_RECORDING}", stem, re.IGNORECASE | re.DOTALL):
        stem = cut[1]
    return stem


def _refuse_unknown_folders(files: Sequence[ClassFile], owners: Sequence[_Owner]) -> None:
    """Refuse folders with several names that are recognised neither as groups nor as people."""
    inside: dict[str, set[str]] = defaultdict(set)
    for owner in owners:
        inside[owner.folder].add(owner.name)
    for folder, names in inside.items():
        below = folder.split("/")[1:]
        if len(names) > 1 and not all(_GROUP.fullmatch(part) for part in below):
            of_it = [each.place for each, owner in zip(files, owners, strict=True) if owner.folder == folder]
            raise _ambiguous(of_it)


def _refuse_general_names(people: dict[str, list[ClassFile]], label: str) -> None:
    """Refuse a person whose name is only a word for the class, such as ADHD in ADHD_rec1 and ADHD_rec2."""
    for name, own in people.items():
        word = name.rpartition("/")[2].casefold()
        if len(own) > 1 and (word in _NO_NAME or word == label.casefold()):
            raise _ambiguous([each.place for each in own])


def _refuse_copies(people: dict[str, list[ClassFile]]) -> None:
    """Refuse a person whose name is that of another person with the suffix of a copied file, such as anna (1)."""
    for name, own in people.items():
        copied = _COPY.fullmatch(name)
        if copied is not None and copied[1] in people:
            raise _ambiguous([people[copied[1]][0].place, own[0].place])


def _with_runs_of_people(people: dict[str, list[ClassFile]]) -> dict[str, list[ClassFile]]:
    """Merge people whose names differ only in a last number if the rest names a person, as in subject03_1."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in people:
        if (found := _AMBIGUOUS.fullmatch(name)) and not _BIDS.match(name):
            alike[found[1] or found[2]].append(name)
    merged = dict(people)
    for start, names in alike.items():
        if len(names) < 2 or _GROUP.fullmatch(start.rpartition("/")[2]):
            continue
        own = [each for name in names for each in people[name]]
        if not _PERSON_WORD.fullmatch(start.rpartition("/")[2]):
            raise _ambiguous([each.place for each in own])
        merged = {name: files for name, files in merged.items() if name not in names} | {start: own}
    return merged


def _ambiguous(places: Sequence[PurePath]) -> ValueError:
    first, second = sorted(str(place) for place in places)[:2]
    return ValueError(
        f"{first} and {second} may be two recordings of one person or of two people: list the files in a subjects.tsv "
        "with the columns subject, file and label"
    )
