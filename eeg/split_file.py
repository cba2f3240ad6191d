"""Read split files of users or nested runs: the training, validation and test subjects of each fold."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from ..runs.words import tidy_name
from .study import read_rows
from .windows import WindowOptions

Unit = tuple[str, int]  # (subject, first sample of the window), or (subject, WHOLE)
Part = frozenset[Unit]

WHOLE = -1
PLAN = "plan.json"
_COLUMNS = ("subject", "fold", "set", "repeat", "start")
_SETS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Fold:
    """One fold of the study.

    Args:
        repeat: number of the repetition.
        fold: name of the fold.
        parts: "train", "test" and optionally "validation".
        inner: folds within the training part, each with "train" and "validation".
    """

    repeat: int
    fold: str
    parts: dict[str, Part]
    inner: tuple[dict[str, Part], ...] = ()

    @property
    def place(self) -> str:
        """Repeat and fold, for messages."""
        return f"repeat {self.repeat}, fold {self.fold}"


@dataclass(frozen=True)
class SplitFile:
    """The content of a split file.

    Args:
        source: the file.
        folds: all folds.
        by_window: whether windows are listed rather than subjects.
        declared: "scaling" (window, recording, fold, none, all) and "selected_on" (train, validation, test, none),
            if the file gives them, in lower case.
        persons: subject -> person, if several subjects are one person.
        windows: the window options of the nested run, if the file is its plan.
        protocols: the protocols of the nested run, if the file is its plan.
    """

    source: Path
    folds: tuple[Fold, ...]
    by_window: bool = False
    declared: dict[str, str] = field(default_factory=dict)
    persons: dict[str, str] = field(default_factory=dict)
    windows: WindowOptions | None = None
    protocols: tuple[str, ...] = ()


def read_splits(path: str | Path) -> SplitFile:
    """Read a split file.

    Args:
        path: the folder of a nested run or its plan.json; a .csv or .tsv with columns subject, fold (in which the row
            is tested) and optionally repeat, start (first sample, for a list of windows) and set (train, validation,
            test; a row for each part that it is in); or a .json {"scaling", "selected_on", "folds": [{"repeat", "fold",
            "train", "test", "validation", "inner": [{"train", "validation"}]}]}, parts being lists of names or of
            [name, start].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has none of these formats.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"no split file at {path}")
    if path.suffix.lower() in (".csv", ".tsv"):
        return _read_table(path)
    if path.suffix.lower() != ".json":
        raise ValueError(f"a split file must be .csv, .tsv or .json, got {path.name}")
    try:
        content = json.loads(path.read_text())
        return _from_plan(path, content) if "splits" in content else _from_json(path, content)
    except (KeyError, TypeError, AttributeError, IndexError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be a plan or hold folds with train and test: {error!r}") from error


def _read_table(path: Path) -> SplitFile:
    rows = [{k.lower() if k.lower() in _COLUMNS else k: v for k, v in row.items()} for row in read_rows(path)]
    columns = set(rows[0]) if rows else set()
    if "subject" not in columns or not columns & {"fold", "set"}:
        raise ValueError(f"{path} must have the columns subject and fold or set, got {', '.join(sorted(columns))}")
    by_window = "start" in columns
    table: dict[tuple[int, str], dict[str, set[Unit]]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            unit = (tidy_name(row["subject"]), int(row["start"]) if by_window else WHOLE)
            key = (int(row.get("repeat") or 0), row.get("fold") or "0")
        except ValueError as error:
            raise ValueError(f"{path} line {number} must have whole numbers for start and repeat: {error}") from error
        name = _SETS.get(row["set"].lower()) if "set" in columns else "test"
        if name is None:
            raise ValueError(f"{path} line {number} must have set train, validation or test, got {row['set']!r}")
        table.setdefault(key, {}).setdefault(name, set()).add(unit)
    if "set" not in columns:
        for (repeat, fold), parts in table.items():
            others = [p["test"] for (r, f), p in table.items() if r == repeat and f != fold]
            parts["train"] = set().union(*others)
    folds = [Fold(r, f, {n: frozenset(units) for n, units in p.items()}) for (r, f), p in table.items()]
    return SplitFile(path, tuple(folds), by_window)


def _from_json(path: Path, content: dict[str, Any]) -> SplitFile:
    written = [_known_parts(fold) for fold in content["folds"]]
    units = [u for fold in written for name in ("train", "test") for u in fold[name]]
    by_window = any(isinstance(u, list) for u in units)
    folds = tuple(
        Fold(
            int(fold.get("repeat", 0)),
            str(fold.get("fold", number)),
            {name: _part(parts[name]) for name in ("train", "validation", "test") if name in parts},
            tuple(
                {name: _part(inner[name]) for name in ("train", "validation")}
                for inner in map(_known_parts, fold.get("inner", []))
            ),
        )
        for number, (fold, parts) in enumerate(zip(content["folds"], written, strict=True))
    )
    declared = {name: _words(content[name]) for name in ("scaling", "selected_on") if content.get(name) is not None}
    return SplitFile(path, folds, by_window, declared)


def _known_parts(fold: dict[str, Any]) -> dict[str, Any]:
    """The parts of a fold under our names; the file may use synonyms in upper or lower case."""
    return {_SETS[key.strip().lower()]: part for key, part in fold.items() if key.strip().lower() in _SETS}


def _words(declared: object) -> str:
    """A declaration as lower-case words; a list of them is joined."""
    given = declared if isinstance(declared, list) else [declared]
    return ", ".join(str(word).strip().casefold() for word in given)


def _part(units: Iterable[Any]) -> Part:
    return frozenset((str(u[0]), int(u[1])) if isinstance(u, list) else (tidy_name(str(u)), WHOLE) for u in units)


class _PlannedInner(TypedDict):
    train: list[int]
    validation: list[int]


class _PlannedSplit(TypedDict):
    repeat: int
    fold: int
    train: list[int]
    test: list[int]
    inner: list[_PlannedInner]


class _PlannedCohort(TypedDict):
    subjects: list[str]
    groups: list[str]


class _PlannedDesign(TypedDict):
    protocol: Literal["nested", "published", "both"]


class _PlannedArguments(TypedDict):
    windows: dict[str, Any]  # fields of `WindowOptions`


class _PlannedModel(TypedDict):
    arguments: _PlannedArguments


class _Plan(TypedDict):
    """The fields that are read from plan.json, which `voxelwave eeg nested-cv` writes."""

    design: _PlannedDesign
    cohort: _PlannedCohort
    models: dict[str, _PlannedModel]
    splits: list[_PlannedSplit]


def _from_plan(path: Path, plan: _Plan) -> SplitFile:
    """A plan of `voxelwave eeg nested-cv`: indices into the names of its cohort."""
    names = plan["cohort"]["subjects"]

    def part(indices: Sequence[int]) -> Part:
        return frozenset((names[i], WHOLE) for i in indices)

    folds = tuple(
        Fold(
            split["repeat"],
            str(split["fold"]),
            {"train": part(split["train"]), "test": part(split["test"])},
            tuple({"train": part(i["train"]), "validation": part(i["validation"])} for i in split["inner"]),
        )
        for split in plan["splits"]
    )
    protocol = plan["design"]["protocol"]
    windows = WindowOptions(**next(iter(plan["models"].values()))["arguments"]["windows"])  # all models have the same
    declared = {"selected_on": "test" if protocol == "published" else "validation", "scaling": windows.scaling}
    persons = dict(zip(names, plan["cohort"]["groups"] or names, strict=True))
    protocols = ("nested", "published") if protocol == "both" else (protocol,)
    return SplitFile(path, folds, False, declared, persons, windows, protocols)
