"""A study: its subjects, their recordings and their labels."""

import csv
import hashlib
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from .companion_files import companion_files
from .readers import SUFFIXES

TABLE = "subjects.tsv"
_BIDS_LABELS = ("group", "diagnosis", "label")
_PART = re.compile(r"[_-]?part[_-]?\d+$", re.IGNORECASE)


class LabelError(ValueError):
    """One subject carries two labels."""


@dataclass(frozen=True)
class Subject:
    """One subject.

    Args:
        subject: the name in the study.
        files: the recordings, one or several runs.
        label: the class.
        extra: further columns of the table, such as site, age, sex.
    """

    subject: str
    files: tuple[Path, ...]
    label: str
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The first recording."""
        return self.files[0]


@dataclass(frozen=True)
class Study:
    """Subjects in the order of the table.

    Args:
        subjects: each once.
        classes: (negative, positive).
        folder: what file names are relative to.
    """

    subjects: tuple[Subject, ...]
    classes: tuple[str, str]
    folder: Path

    @property
    def labels(self) -> list[int]:
        """1 for the positive class, 0 for the negative, in the order of `subjects`."""
        return [self.classes.index(subject.label) for subject in self.subjects]


def read_study(path: str | Path, positive: str | None = None, *, label_column: str | None = None) -> Study:
    """The subjects of a study.

    Args:
        path: a table (.tsv, .csv) with columns subject, file, label and any others; a folder that holds subjects.tsv;
            a BIDS folder, whose participants.tsv gives the labels; or a folder with one sub-folder or .zip of
            recordings per class, whose name is the label ("ADHD_part1" and "ADHD_part2" are both "ADHD"). Several rows
            with one subject are several runs of it.
        positive: the class that is diagnosed. By default the one that is not called control, healthy or normal.
        label_column: the column of the label, where it is not "label" (BIDS: "group", "diagnosis" or "label").

    Raises:
        FileNotFoundError: if there is no study.
        LabelError: if rows of one subject disagree about the label.
        ValueError: for a table with missing columns or not exactly two classes.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no study at {path}")
    if path.is_file():
        folder, rows = path.parent, _table_rows(path, path.parent, label_column)
    elif (path / TABLE).is_file():
        folder, rows = path, _table_rows(path / TABLE, path, label_column)
    elif (path / "participants.tsv").is_file():
        folder, rows = path, _bids_rows(path, label_column)
    else:
        folder, rows = path, _folder_rows(path)
    subjects = _subjects(rows)
    return Study(subjects, _classes([s.label for s in subjects], positive, path), folder)


def study_digest(study: Study) -> str:
    """SHA-256 over names, labels and the contents of all files of the study, including those beside the headers."""
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
    """The file and what belongs to it, or the archive that it lies in."""
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
    missing = [c for c in ("subject", "file", label) if not rows or c not in rows[0]]
    if missing:
        found = ", ".join(rows[0]) if rows else "no rows"
        raise ValueError(f"{path} must have the columns subject, file and {label}, got {found}")
    found_subjects = []
    for number, row in enumerate(rows, start=2):
        empty = [c for c in ("subject", "file", label) if not row[c]]
        if empty:
            raise ValueError(f"{path} line {number} must name {' and '.join(empty)}")
        extra = {k: v for k, v in row.items() if k not in ("subject", "file", label)}
        found_subjects.append(Subject(row["subject"], (folder / row["file"],), row[label], extra))
    return found_subjects


def _bids_rows(root: Path, label_column: str | None) -> list[Subject]:
    rows = read_rows(root / "participants.tsv")
    columns = list(rows[0]) if rows else []
    label = label_column or next((c for c in _BIDS_LABELS if c in columns), "")
    if label not in columns or "participant_id" not in columns:
        raise ValueError(
            f"{root}/participants.tsv must have participant_id and a label column "
            f"({label_column or ', '.join(_BIDS_LABELS)}), got {', '.join(columns) or 'no rows'}"
        )
    found = []
    for row in rows:
        name = row["participant_id"]
        files = sorted(f for f in (root / name).rglob("*_eeg.*") if f.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{root / name} holds no EEG recording, though participants.tsv lists it")
        if not row[label]:
            raise ValueError(f"{root}/participants.tsv must give {label} for {name}")
        extra = {k: v for k, v in row.items() if k not in ("participant_id", label)}
        found.append(Subject(name, tuple(files), row[label], extra))
    return found


def _folder_rows(root: Path) -> list[Subject]:
    found = []
    for group in sorted(root.iterdir()):
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
        found += [Subject(file.stem, (file,), label) for file in files]
    if not found:
        raise FileNotFoundError(f"{root} holds neither {TABLE}, participants.tsv nor a folder of recordings per class")
    return found


def _subjects(rows: list[Subject]) -> tuple[Subject, ...]:
    merged: dict[str, Subject] = {}
    for row in rows:
        known = merged.setdefault(row.subject, row)
        if known is row:
            continue
        if known.label != row.label:
            raise LabelError(f"subject {row.subject} must have one label, got {known.label} and {row.label}")
        files = tuple(dict.fromkeys([*known.files, *row.files]))
        merged[row.subject] = Subject(row.subject, files, row.label, known.extra)
    return tuple(merged.values())


def _classes(labels: list[str], positive: str | None, path: Path) -> tuple[str, str]:
    found = sorted(set(labels))
    if len(found) != 2:
        raise ValueError(f"{path} must have two classes, got {', '.join(found)}")
    if positive is None:
        healthy = [c for c in found if c.lower().startswith(("control", "healthy", "normal", "hc", "ctrl"))]
        if len(healthy) != 1:
            raise ValueError(f"{path} has the classes {found[0]} and {found[1]}: name the positive one")
        return healthy[0], next(c for c in found if c != healthy[0])
    if positive not in found:
        raise ValueError(f"positive must be {found[0]} or {found[1]}, got {positive}")
    return next(c for c in found if c != positive), positive
