"""Check of the content of a JSON file against a type, so that only data of the expected type are used."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from .json_files import read_json


def read_record(path: Path, kind: Any) -> Any:
    """The content of a JSON file of a type, see `read_json` and `check_record`."""
    content = read_json(path)
    check_record(content, kind, path)
    return content


def check_record(content: object, kind: Any, source: object) -> None:
    """Refuse content of a JSON file that lacks a key of its type or has a value of another type; extra keys are
    ignored.

    Args:
        content: the content as returned by `json.loads`.
        kind: a TypedDict or a dataclass of this file; fields of a dataclass that have a default may be missing.
        source: the file, for the message.

    Raises:
        ValueError: the content does not fit; the message names the first place that differs.

    Example:
        >>> from typing import TypedDict
        >>> Split = TypedDict("Split", {"train": list[int], "validation": list[int]})
        >>> check_record({"train": [0], "valid": [1]}, Split, "plan.json")
        Traceback (most recent call last):
        ValueError: plan.json: validation is missing; the file was changed, or another program wrote it
    """
    for problem in _problems(content, kind, ""):
        raise ValueError(f"{source}: {problem}; the file was changed, or another program wrote it")


def _problems(content: object, kind: Any, place: str) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        yield from _problems(content, arguments[0], place)
    elif is_typeddict(kind) or dataclasses.is_dataclass(kind):
        yield from _problems_of_object(content, kind, place)
    elif origin in (UnionType, Union):
        if all(any(True for _ in _problems(content, one, place)) for one in arguments):
            yield _wrong(place, " or ".join(_name(one) for one in arguments), content)
    elif origin is Literal:
        if content not in arguments:
            yield _wrong(place, "one of " + ", ".join(map(str, arguments)), content)
    elif origin in (list, tuple, dict):
        pair = origin is tuple and arguments[-1] is not Ellipsis
        if not isinstance(content, dict if origin is dict else list) or (pair and len(content) != len(arguments)):
            yield _wrong(place, f"a list of {len(arguments)} values" if pair else _name(kind), content)
            return
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from _problems(value, arguments[0 if origin is tuple else -1], _inside(place, key))
    elif kind is not Any and not _is_a(content, kind):
        yield _wrong(place, _name(kind), content)


def _problems_of_object(content: object, kind: Any, place: str) -> Iterator[str]:
    if not isinstance(content, Mapping):
        yield _wrong(place, "an object", content)
        return
    hints = get_type_hints(kind, include_extras=True)
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
    if dataclasses.is_dataclass(kind):
        empty = dataclasses.MISSING
        optional = {f.name for f in dataclasses.fields(kind) if (f.default, f.default_factory) != (empty, empty)}
    for key, hint in hints.items():
        if key in content:
            yield from _problems(content[key], hint, _inside(place, key))
        elif key not in optional:
            yield f"{_inside(place, key)} is missing"


def _is_a(content: object, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(content, (int, kind)) and not isinstance(content, bool) and math.isfinite(content)
    return isinstance(content, kind)


def _inside(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _wrong(place: str, expected: str, content: object) -> str:
    return f"{place or 'the content'} must be {expected}, got {type(content).__name__} {str(content)[:40]!r}"


def _name(kind: Any) -> str:
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return "an object"
    return "list" if get_origin(kind) is tuple else getattr(get_origin(kind) or kind, "__name__", str(kind))
