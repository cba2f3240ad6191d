"""Split files as a user or a nested run writes them: who is trained on, validated on and tested on, fold by fold."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .study import read_rows
from .windows import WindowOptions

Unit = tuple[str, int]  # (subject, first sample of the window), or (subject, WHOLE)
Part = frozenset[Unit]

WHOLE = -1
PLAN = "plan.json"
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
    """One division of the study.

    Args:
        repeat: number of the repetition.
        fold: its name.
        parts: "train", "test" and perhaps "validation".
        inner: divisions of the training part, each with "train" and "validation".
    """

    repeat: int
    fold: str
    parts: dict[str, Part]
    inner: tuple[dict[str, Part], ...] = ()

    @property
    def place(self) -> str:
        """Where a reader finds it."""
        return f"repeat {self.repeat}, fold {self.fold}"


@dataclass(frozen=True)
class SplitFile:
    """The content of a split file.

    Args:
        source: the file.
        folds: all of them.
        by_window: whether windows are listed rather than subjects.
        declared: "scaling" (window, recording, fold, none, all) and "selected_on" (train, validation, test, none),
            if the file gives them.
        persons: subject -> the person behind it, where several subjects are one person.
        windows: how a run of ours cuts windows.
        protocols: that a run of ours follows.
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
        FileNotFoundError: if it is not there.
        ValueError: if it is none of these.
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
    except (KeyError, TypeError, IndexError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be a plan or hold folds with train and test: {error!r}") from error


def _read_table(path: Path) -> SplitFile:
    rows = read_rows(path)
    columns = set(rows[0]) if rows else set()
    if "subject" not in columns or not columns & {"fold", "set"}:
        raise ValueError(f"{path} must have the columns subject and fold or set, got {', '.join(sorted(columns))}")
    by_window = "start" in columns
    table: dict[tuple[int, str], dict[str, set[Unit]]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            unit = (row["subject"], int(row["start"]) if by_window else WHOLE)
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
    units = [u for fold in content["folds"] for name in ("train", "test") for u in fold[name]]
    by_window = any(not isinstance(u, str) for u in units)
    folds = tuple(
        Fold(
            int(fold.get("repeat", 0)),
            str(fold.get("fold", number)),
            {name: _part(fold[name]) for name in ("train", "validation", "test") if name in fold},
            tuple({name: _part(p[name]) for name in ("train", "validation")} for p in fold.get("inner", [])),
        )
        for number, fold in enumerate(content["folds"])
    )
    declared: dict[str, str] = {name: str(content[name]) for name in ("scaling", "selected_on") if name in content}
    return SplitFile(path, folds, by_window, declared)


def _part(units: Iterable[Any]) -> Part:
    return frozenset((u, WHOLE) if isinstance(u, str) else (str(u[0]), int(u[1])) for u in units)


def _from_plan(path: Path, plan: dict[str, Any]) -> SplitFile:
    """A plan of `voxelwave eeg nested-cv`: indices into the names of its cohort."""
    cohort = plan["cohort"]
    names: Sequence[str] = cohort["subjects"]

    def part(indices: Iterable[int]) -> Part:
        return frozenset((names[i], WHOLE) for i in indices)

    folds = tuple(
        Fold(
            split["repeat"],
            str(split["fold"]),
            {"train": part(split["train"]), "test": part(split["test"])},
            tuple({name: part(inner[name]) for name in ("train", "validation")} for inner in split["inner"]),
        )
        for split in plan["splits"]
    )
    protocol = plan.get("design", {}).get("protocol", "nested")
    windows = _window_options(plan)
    declared: dict[str, str] = {"selected_on": "test" if protocol == "published" else "validation"}
    if windows is not None:
        declared["scaling"] = windows.scaling
    persons = dict(zip(names, cohort.get("groups") or names, strict=True))
    protocols = ("nested", "published") if protocol == "both" else (protocol,)
    return SplitFile(path, folds, False, declared, persons, windows, protocols)


def _window_options(plan: dict[str, Any]) -> WindowOptions | None:
    """The window options that all models of a plan are built with."""
    given = [spec.get("arguments", {}).get("windows") for spec in plan.get("models", {}).values()]
    found = [g for g in given if isinstance(g, dict)]
    return WindowOptions(**found[0]) if found else None
