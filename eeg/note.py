"""Notes: findings and decisions made while reading a recording."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """A finding or a decision made while reading a recording.

    Args:
        text: text for people; no code depends on its wording.
        kind: "defect" if the signal itself may be wrong, otherwise "remark".
    """

    text: str
    kind: Literal["remark", "defect"] = "remark"

    def __str__(self) -> str:
        return self.text


@contextmanager
def warnings_as_notes() -> Iterator[list[Note]]:
    """The warnings that are raised in the block, as notes."""
    notes: list[Note] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    notes += [
        Note(f"MNE: {' '.join(str(w.message).split())}") for w in caught if issubclass(w.category, RuntimeWarning)
    ]


def first_names(names: Sequence[str]) -> str:
    """The first six names, separated by commas, and the number of the others.

    Example:
        >>> first_names(["Fz", ""]), first_names(list("abcdefgh"))
        ('Fz, (no name)', 'a, b, c, d, e, f and 2 more')
    """
    shown = ", ".join(name or "(no name)" for name in names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
