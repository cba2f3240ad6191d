"""The table of people: the person and, if known, the label of each diagnosed recording."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...eeg.study import BIDS_LABELS, PERSON, read_rows
from ...runs.words import first_few, tidy_name
from .options import Diagnose

_NAMES = ("subject", "participant_id")


@dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Args:
        subject: the table's name of the recording, or the BIDS name of the person.
        file: the recording, if the table lists files.
        person: the person's name.
        label: the class; empty if the table has no such column.
    """

    subject: str
    file: Path | None
    person: str
    label: str


@dataclass(frozen=True)
class PeopleTable:
    """The rows of a table of people, and the file from which it was read."""

    source: Path
    rows: tuple[TableRow, ...]

    def row_of(self, file: Path) -> TableRow | None:
        """The row of a recording, found by its path, its name, or the sub-... at the start of its name."""
        path = file.resolve()
        names = {file.stem, file.stem.removesuffix("_raw"), file.stem.split("_")[0]}
        by_file = (row for row in self.rows if row.file == path)
        by_name = (row for row in self.rows if row.file is None and row.subject in names)
        return next(by_file, next(by_name, None))

    def notes(self, files: Iterable[Path]) -> list[str]:
        """Notes that name the recordings without a row, and the rows without a recording."""
        found = {file: self.row_of(file) for file in files}
        without = [file.name for file, row in found.items() if row is None]
        seen = {row for row in found.values() if row is not None}
        missing = [row.subject for row in self.rows if row not in seen]
        notes = [f"{first_few(without)}: no row in {self.source.name}"] if without else []
        return notes + ([f"{first_few(missing)} of {self.source.name}: no recording"] if missing else [])


def read_people(options: Diagnose) -> PeopleTable | None:
    """Read the table that the options name, if any.

    Raises:
        ValueError: the table lacks a column.
    """
    if options.table is None:
        return None
    path = options.table
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    name = next((c for c in _NAMES if c in columns), None)
    wanted = [c for c in (options.label_column, options.person_column) if c is not None and c not in columns]
    if name is None or wanted:
        needed = wanted or ["subject or participant_id"]
        raise ValueError(f"{path} must have the column {' and '.join(needed)}, got {', '.join(columns) or 'no rows'}")
    label = options.label_column or next((c for c in ("label", *BIDS_LABELS) if c in columns), None)
    person = options.person_column or (PERSON if PERSON in columns else name)
    found = [
        TableRow(
            subject=tidy_name(row[name]),
            file=(path.parent / row["file"]).resolve() if row.get("file") else None,
            person=tidy_name(row[person]) or tidy_name(row[name]),
            label="" if label is None else row[label],
        )
        for row in rows
    ]
    return PeopleTable(path, tuple(found))


@dataclass(frozen=True)
class RecordingOf:
    """The part of a recording's result that people.csv uses.

    Args:
        person, label: person and label from the table; the label may be empty.
        windows: number of windows.
        probability: mean probability over the windows.
    """

    person: str
    label: str
    windows: int
    probability: float


@dataclass(frozen=True)
class PersonMean:
    """The result for one person; a row of people.csv.

    Args:
        person: the person's name.
        label: the labels of the person's recordings.
        recordings, windows: number of recordings and of windows.
        probability: mean probability over all windows.
    """

    person: str
    label: str
    recordings: int
    windows: int
    probability: float


def means_of_people(recordings: Sequence[RecordingOf]) -> list[PersonMean]:
    """The mean over all windows of each person's recordings, in the order in which the people first occur."""
    by_person: dict[str, list[RecordingOf]] = defaultdict(list)
    for recording in recordings:
        by_person[recording.person].append(recording)
    return [
        PersonMean(
            person=person,
            label=" and ".join(dict.fromkeys(r.label for r in own)),
            recordings=len(own),
            windows=sum(r.windows for r in own),
            probability=sum(r.windows * r.probability for r in own) / sum(r.windows for r in own),
        )
        for person, own in by_person.items()
    ]
