"""A study: its subjects, their recordings and their labels."""

import csv
import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from ..runs.files import is_hidden
from ..runs.words import note_of_alike, tidy_name
from .companion_files import companion_files
from .file_people import ClassFile, people_of_class, without_later_parts
from .readers import SUFFIXES

TABLE = "subjects.tsv"
PERSON = "person"
BIDS_LABELS = ("group", "diagnosis", "label")
_PART = re.compile(r"[_-]?part[_-]?\d+$", re.IGNORECASE)
# names of a healthy control group, which must match completely; HCM or "Normal pressure hydrocephalus" do not
_CONTROL = r"controls?|healthy|normals?|hcs?|ctrls?"
_BESIDE_CONTROL = (
    r"group|class|set|data|eegs?|subjects?|participants?|persons?|people|individuals?|volunteers?|child(?:ren)?|adults?"
    r"|young|old|elderly|boys?|girls?|men|women|male|female"
)


class LabelError(ValueError):
    """Raised if a subject has two labels."""


@dataclass(frozen=True)
class Subject:
    """One subject.

    Args:
        subject: name of the subject in the study.
        files: the recordings, one or several runs.
        label: class of the subject.
        extra: further columns of the table, such as site, age, sex.
        person: the subject's own name, or the name in the person column if several subjects are one person.
    """

    subject: str
    files: tuple[Path, ...]
    label: str
    extra: dict[str, str] = field(default_factory=dict)
    person: str = ""

    def __post_init__(self) -> None:
        if not self.person:
            object.__setattr__(self, "person", self.subject)

    @property
    def file(self) -> Path:
        """The first recording."""
        return self.files[0]


@dataclass(frozen=True)
class Study:
    """Subjects in the order of the table.

    Args:
        subjects: the subjects, each listed once.
        classes: (negative, positive).
        folder: the folder to which file names are relative.
        notes: remarks on the list of subjects for readers of the results.
    """

    subjects: tuple[Subject, ...]
    classes: tuple[str, str]
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def persons(self) -> dict[str, str]:
        """Subject -> the person behind it."""
        return {subject.subject: subject.person for subject in self.subjects}

    @property
    def labels(self) -> list[int]:
        """1 for the positive class, 0 for the negative, in the order of `subjects`."""
        return [self.classes.index(subject.label) for subject in self.subjects]


def read_study(
    path: str | Path,
    positive: str | None = None,
    *,
    label_column: str | None = None,
    person_column: str | None = None,
) -> Study:
    """The subjects of a study.

    Args:
        path: a table (.tsv, .csv) with columns subject, file, label and any others; a folder that holds subjects.tsv;
            a BIDS folder, whose participants.tsv gives the labels; or a folder with one sub-folder or .zip of
            recordings per class, whose name is the label ("ADHD_part1" and "ADHD_part2" are both "ADHD"). Several rows
            with the same subject are several runs of it; so are files of a class folder whose names mark them as runs.
        positive: the class that is diagnosed. By default the class that is not called control, healthy or normal.
        label_column: the column of the label, if it is not "label" (BIDS: "group", "diagnosis" or "label").
        person_column: the column of the person, if several subjects may be one person; by default "person", if present.

    Raises:
        FileNotFoundError: there is no study.
        LabelError: rows of one subject have different labels.
        ValueError: the table lacks columns or cells, the person cannot be determined from file names, or the number of
            classes is not two.
    """
    path = Path(path)
    notes: list[str] = []
    if not path.exists():
        raise FileNotFoundError(f"no study at {path}")
    if path.is_file():
        folder, rows = path.parent, _table_rows(path, path.parent, label_column)
    elif (path / TABLE).is_file():
        folder, rows = path, _table_rows(path / TABLE, path, label_column)
    elif (path / "participants.tsv").is_file():
        folder, rows = path, _bids_rows(path, label_column)
        notes = _bids_notes(path, rows)
    else:
        folder, rows = path, _folder_rows(path, label_column or person_column)
    subjects, person_notes = _with_persons(_subjects(rows), person_column)
    notes += [*person_notes, *note_of_alike(subject.person for subject in subjects)]
    return Study(subjects, _classes([s.label for s in subjects], positive, path), folder, tuple(notes))


def study_digest(study: Study) -> str:
    """SHA-256 over names, labels and the contents of all files of the study, including companion files of headers."""
    digest = hashlib.sha256()
    for subject in study.subjects:
        digest.update(f"{subject.subject}\t{subject.label}\t{[file.name for file in subject.files]}\n".encode())
    for part in dict.fromkeys(part for subject in study.subjects for file in subject.files for part in _parts(file)):
        digest.update(f"{part.name}\n".encode())
        with part.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _parts(file: Path) -> list[Path]:
    """The file and its companion files, or the archive that contains it."""
    archive = next((p for p in file.parents if p.suffix.lower() == ".zip" and p.is_file()), None)
    if archive is not None:
        return [archive]
    return companion_files(file)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a .csv or .tsv file with a header line; empty and "n/a" cells are empty strings."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        try:
            rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
        except csv.Error as error:
            raise ValueError(f"{path} is not a readable table: {error}") from error
    return [{k.strip(): _cell(v) for k, v in row.items() if k} for row in rows]


def _cell(text: str | None) -> str:
    stripped = (text or "").strip()
    return "" if stripped == "n/a" else stripped


def _table_rows(path: Path, folder: Path, label_column: str | None) -> list[Subject]:
    rows = read_rows(path)
    label = label_column or "label"
    needed = ("subject", "file", label)
    missing = [c for c in needed if not rows or c not in rows[0]]
    if missing:
        found = ", ".join(rows[0]) if rows else "no rows"
        raise ValueError(f"{path} must have the columns subject, file and {label}, got {found}")
    found_subjects = []
    for number, row in enumerate(rows, start=2):
        empty = [c for c in needed if not row[c]]
        if empty:
            raise ValueError(f"{path} line {number} must name {' and '.join(empty)}")
        extra = {k: v for k, v in row.items() if k not in needed}
        found_subjects.append(Subject(tidy_name(row["subject"]), (folder / row["file"],), row[label], extra))
    return found_subjects


def _bids_rows(root: Path, label_column: str | None) -> list[Subject]:
    rows = read_rows(root / "participants.tsv")
    columns = list(rows[0]) if rows else []
    label = label_column or next((c for c in BIDS_LABELS if c in columns), "")
    if label not in columns or "participant_id" not in columns:
        raise ValueError(
            f"{root}/participants.tsv must have participant_id and a label column "
            f"({label_column or ', '.join(BIDS_LABELS)}), got {', '.join(columns) or 'no rows'}"
        )
    files = {row["participant_id"]: _bids_files(root / row["participant_id"]) for row in rows}
    without = [name for name, own in files.items() if not own]
    if without:
        raise FileNotFoundError(f"{root}: participants.tsv lists {_all_names(without)}, but there is no EEG recording")
    unlabelled = [row["participant_id"] for row in rows if not row[label]]
    if unlabelled:
        raise ValueError(f"{root}/participants.tsv must give {label} for {_all_names(unlabelled)}")
    return [
        Subject(
            row["participant_id"],
            tuple(files[row["participant_id"]]),
            row[label],
            {k: v for k, v in row.items() if k not in ("participant_id", label)},
        )
        for row in rows
    ]


def _bids_files(folder: Path) -> list[Path]:
    found = sorted(f for f in folder.rglob("*_eeg.*") if f.suffix.lower() in SUFFIXES)
    return without_later_parts(f for f in found if not is_hidden(f.relative_to(folder)))


def _bids_notes(root: Path, rows: Sequence[Subject]) -> list[str]:
    """A note that names the people who have recordings but are not in the table."""
    listed = {row.subject for row in rows}
    missing = [p.name for p in sorted(root.glob("sub-*")) if p.is_dir() and p.name not in listed and _bids_files(p)]
    if not missing:
        return []
    return [f"{_all_names(missing)} has recordings, but no row in participants.tsv, and is left out"]


def _all_names(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _folder_rows(root: Path, column: str | None) -> list[Subject]:
    by_label: dict[str, list[ClassFile]] = defaultdict(list)
    for group in sorted(root.iterdir()):
        if group.name.startswith("."):
            continue
        if group.is_dir():
            files = sorted(f for f in group.rglob("*") if f.suffix.lower() in SUFFIXES)
        elif group.suffix.lower() == ".zip":
            try:
                with zipfile.ZipFile(group) as packed:
                    files = [group / n for n in sorted(packed.namelist()) if Path(n).suffix.lower() in SUFFIXES]
            except zipfile.BadZipFile as error:
                raise ValueError(f"{group} is not a readable zip archive: {error}; get the file again") from error
        else:
            continue
        label = _PART.sub("", group.stem if group.is_file() else group.name)
        files = without_later_parts(f for f in files if not is_hidden(f.relative_to(root)))
        by_label[label] += [ClassFile(f, PurePath(f.relative_to(root))) for f in files]
    by_label = {label: files for label, files in by_label.items() if files}
    if not by_label:
        raise FileNotFoundError(f"{root} holds neither {TABLE}, participants.tsv nor a folder of recordings per class")
    if column is not None:
        raise ValueError(f"column {column!r} must be in a table, and {root} holds neither {TABLE} nor participants.tsv")
    people = [
        (label, name, files) for label, own in by_label.items() for name, files in people_of_class(own, label).items()
    ]
    names = [name for _, name, _ in people]
    return [  # people of one name in two classes are two people
        Subject(f"{label}/{name}" if names.count(name) > 1 else name, tuple(files), label)
        for label, name, files in people
    ]


def _subjects(rows: list[Subject]) -> tuple[Subject, ...]:
    merged: dict[str, Subject] = {}
    for row in rows:
        known = merged.setdefault(row.subject, row)
        if known is row:
            continue
        if known.label != row.label:
            raise LabelError(f"subject {row.subject} must have one label, got {known.label} and {row.label}")
        files = tuple(dict.fromkeys([*known.files, *row.files]))
        merged[row.subject] = replace(known, files=files)
    return tuple(merged.values())


def _with_persons(subjects: tuple[Subject, ...], column: str | None) -> tuple[tuple[Subject, ...], list[str]]:
    """The subjects with their persons, and a note that names the subjects without a value in the person column."""
    if column is None and not any(s.extra.get(PERSON) for s in subjects):
        return subjects, []
    named = column or PERSON
    missing = [s.subject for s in subjects if not s.extra.get(named)]
    if missing and column is not None:
        raise ValueError(
            f"column {column!r} of the study must name a person for each subject; "
            f"it names none for {_all_names(missing)}"
        )
    notes = [f"column {named!r} names no person for {_all_names(missing)}: each counts as a person"] if missing else []
    return tuple(replace(s, person=tidy_name(s.extra.get(named, ""))) for s in subjects), notes


def _classes(labels: list[str], positive: str | None, path: Path) -> tuple[str, str]:
    found = sorted(set(labels))
    if len(found) != 2:
        raise ValueError(f"{path} must have two classes, got {', '.join(found)}")
    if positive is None:
        healthy = [c for c in found if is_control(c)]
        if len(healthy) != 1:
            raise ValueError(f"{path} has the classes {found[0]} and {found[1]}: name the positive one")
        return healthy[0], next(c for c in found if c != healthy[0])
    if positive not in found:
        raise ValueError(f"positive must be {found[0]} or {found[1]}, got {positive}")
    return next(c for c in found if c != positive), positive


def is_control(label: str) -> bool:
    """Whether the name of a class denotes a healthy control group and nothing else.

    Example:
        >>> [is_control(label) for label in ("Healthy controls", "HC", "HCM", "Normal pressure hydrocephalus")]
        [True, True, False, False]
    """
    letters = "".join(re.findall(r"[^\W\d_]+", label.lower()))
    named = re.fullmatch(rf"(?:{_CONTROL}|{_BESIDE_CONTROL})+", letters)
    return named is not None and re.search(_CONTROL, letters) is not None
