"""Formatting of text for messages of one line."""

import re
import unicodedata
from collections.abc import Iterable, Sequence


def one_line(message: object) -> str:
    """Convert an error or a text to one line; an error without a message becomes the name of its type.

    Example:
        >>> one_line(ValueError("no such\\n   file"))
        'no such file'
    """
    text = " ".join(str(message).split())
    if isinstance(message, MemoryError):
        return f"not enough memory: {text or 'the image is too large for this machine'}"
    return text or type(message).__name__


def why_no_text(error: Exception) -> str:
    """Why a file cannot be read as text in UTF-8 or as a table."""
    return f"it holds other bytes at position {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)


def plural(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> plural(1, "picture"), plural(2, "picture")
        ('1 picture', '2 pictures')
    """
    return f"{count} {noun}{'s' if count != 1 else ''}"


def first_few(names: Sequence[str]) -> str:
    """The first four names of a list, and the number of the others.

    Example:
        >>> first_few(["a", "b", "c", "d", "e", "f"])
        'a, b, c, d and 2 more'
    """
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def tidy_name(name: str) -> str:
    """The name of a person without outer spaces and without the ".0" that tables add to whole numbers.

    Example:
        >>> [tidy_name(name) for name in ("p1 ", "1.0", "01", "1.5")]
        ['p1', '1', '01', '1.5']
    """
    name = unicodedata.normalize("NFC", name).strip().strip("\ufeff\u200b").strip()
    return re.sub(r"^([+-]?\d+)\.0*$", r"\1", name)


def alike_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in case or in leading zeros of numbers, so that they may be of one person.

    Example:
        >>> alike_names(["p1", "P01", "p2", "anna"])
        [('P01', 'p1')]
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        key = re.sub(r"\d+", lambda number: number[0].lstrip("0") or "0", name.casefold())
        groups.setdefault(key, set()).add(name)
    return [tuple(sorted(group)) for group in groups.values() if len(group) > 1]


def note_of_alike(names: Iterable[str]) -> list[str]:
    """A note about people with similar names (see `alike_names`); an empty list if there are none."""
    groups = [" and ".join(group) for group in alike_names(names)]
    if not groups:
        return []
    return [f"people whose names differ only in case or leading zeros count as different people: {first_few(groups)}"]
