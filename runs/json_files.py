"""JSON files, written whole or not at all and without NaN or infinity, which are no JSON and never a result."""

import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from .files import atomic_path


def write_json(
    path: str | os.PathLike[str], content: Any, *, indent: int | None = 1, default: Callable[[Any], Any] | None = None
) -> None:
    """Write plain values as JSON.

    Args:
        path: the file; missing parent folders are made.
        content: dictionaries, lists, strings, numbers, None. A figure that is undefined is None.
        indent: spaces per level.
        default: turns other objects into plain values, as in `json.dumps`.

    Raises:
        ValueError: a number is NaN or infinite; the message names its place.
    """
    text = json_text(content, indent=indent, default=default)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def json_text(content: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """Plain values as JSON text, see `write_json`.

    Example:
        >>> json_text({"dice": 0.9})
        '{"dice": 0.9}'
        >>> json_text({"dice": [0.9, float("nan")]})
        Traceback (most recent call last):
        ValueError: dice.1 is nan: a number that is not finite is no result
    """
    try:
        return json.dumps(content, indent=indent, default=default, allow_nan=False)
    except ValueError as error:
        place, value = next(_not_finite(content, ()), ((), None))
        if not place:
            raise
        raise ValueError(f"{'.'.join(map(str, place))} is {value}: a number that is not finite is no result") from error


def finite_or_none(value: float) -> float | None:
    """A figure, or None if it is undefined, as the AUC of one class.

    Example:
        >>> finite_or_none(float("nan")) is None
        True
    """
    return float(value) if math.isfinite(value) else None


def _not_finite(content: Any, place: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], float]]:
    """The places of NaN and infinity."""
    if isinstance(content, float) and not math.isfinite(content):
        yield place, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _not_finite(value, (*place, key))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _not_finite(value, (*place, number))
