"""JSON files, written completely or not at all, and without NaN and infinity, which JSON does not allow."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .files import atomic_path
from .words import why_no_text


def write_json(
    path: str | os.PathLike[str], content: Any, *, indent: int | None = 1, default: Callable[[Any], Any] | None = None
) -> None:
    """Write plain values as JSON.

    Args:
        path: the file; missing parent folders are created.
        content: dictionaries, lists, strings, numbers, None. An undefined number must be None.
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


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is not JSON in UTF-8, or is nested too deeply.
        OSError: the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be JSON in UTF-8: {why_no_text(error)}") from None
    return parse_json(text, str(path))


def parse_json(text: str, name: str) -> Any:
    """The content of JSON text.

    Args:
        text: the JSON.
        name: name of the file, or of the part of it, for the error.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.

    Example:
        >>> parse_json("[" * 100_000, "a.json")
        Traceback (most recent call last):
        ValueError: a.json must be JSON: it is nested too deeply
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON: line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{name} must be JSON: it is nested too deeply") from None
    except ValueError as error:  # an integer with thousands of digits
        raise ValueError(f"{name} must be JSON: {error}") from None


def finite_or_none(value: float) -> float | None:
    """A number, or None if it is undefined, such as the AUC of a single class.

    Example:
        >>> finite_or_none(float("nan")) is None
        True
    """
    return float(value) if math.isfinite(value) else None


def null_where_undefined(content: Any) -> Any:
    """Plain values with None in place of NaN and infinity, for reports in which numbers may be undefined.

    Example:
        >>> null_where_undefined({"psnr": float("inf"), "counts": [1, 2]})
        {'psnr': None, 'counts': [1, 2]}
    """
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: null_where_undefined(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [null_where_undefined(value) for value in content]
    return content


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
