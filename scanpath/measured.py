"""The common result of all readers (paths as measured), and checks of file contents."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..runs.words import tidy_name
from .scene import Scene


@dataclass(frozen=True)
class MeasuredPath:
    """A trial as recorded in a file: positions, objects, or both.

    Args:
        scene: identifier of the scene.
        person: name of the person who looked.
        xy: (n, 2) positions in pixels.
        objects: (n,) int64, indices of the fixated objects.
        onset: (n,) seconds.
        duration: (n,) seconds.
    """

    scene: str
    person: str
    xy: np.ndarray | None  # (n, 2)
    objects: np.ndarray | None = None
    onset: np.ndarray | None = None
    duration: np.ndarray | None = None

    def rows(self, kept: np.ndarray) -> "MeasuredPath":
        """The path with only the fixations in `kept`."""
        parts = {k: getattr(self, k) for k in ("xy", "objects", "onset", "duration")}
        return replace(self, **{k: v[kept] for k, v in parts.items() if v is not None})


Reading = tuple[list[Scene], list[MeasuredPath], list[str]]  # scenes, paths, notes


def take(record: Any, key: str, where: object) -> Any:
    """The value of a required key of a record."""
    if not isinstance(record, dict) or key not in record:
        came = ", ".join(map(str, record)) if isinstance(record, dict) else str(record)[:60]
        raise ValueError(f"{where}: {key} must be given, got {came or 'nothing'}")
    return record[key]


def listed(record: Any, key: str, where: object) -> list[Any]:
    """The value of a required key that must be a list."""
    value = take(record, key, where)
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key} must be a list, got {str(value)[:60]}")
    return value


def whole(record: Any, key: str, where: object) -> int:
    """The value of a required key that must be an integer."""
    value = take(record, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise ValueError(f"{where}: {key} must be a whole number, got {str(value)[:60]}")
    return int(value)


def label(record: Any, key: str, where: object) -> str:
    """The value of a required key that must be text, or a number that serves as a name."""
    value = take(record, key, where)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: {key} must be text or a number, got {str(value)[:60]}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def person_name(record: Any, key: str, where: object) -> str:
    """The name of the person who looked: 1, 1.0, "1" and "1 " are the same person."""
    name = tidy_name(label(record, key, where))
    if not name:
        raise ValueError(f"{where}: {key} must name a person, got an empty text")
    return name


def numbers(values: Any, where: object, axes: int) -> np.ndarray:
    """Convert a list (1 axis) or a list of lists (2 axes) to finite float64 numbers."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected numbers, got {str(values)[:60]}") from None
    if array.ndim != axes or not np.isfinite(array).all():
        raise ValueError(f"{where}: expected a list of finite numbers, got {str(values)[:60]}")
    return array
