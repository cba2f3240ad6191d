"""A recording as a reader opened it."""

from dataclasses import dataclass
from typing import Any

from .note import Note


@dataclass(frozen=True, eq=False)
class RawFile:
    """A file as opened by a reader: MNE's raw object, and for each channel how the file's numbers become volts."""

    raw: Any
    volts: dict[str, float | None]  # factor that MNE applied; None: the file names no voltage and MNE applied none
    rates: dict[str, float]  # Hz
    sample_type: str
    notes: tuple[Note, ...] = ()
