"""A recording as opened by a reader."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .note import Note


@dataclass(frozen=True, eq=False)
class RawFile:
    """A file as opened by a reader: MNE's raw object, and for each channel the factor to volts.

    Args:
        raw: MNE's raw object.
        volts: factor from the numbers of the file to volts; None if the file gives no unit of voltage.
        rates: sampling rates in the file, Hz.
        sample_type: how the file stores a sample, e.g. "int16".
        notes: decisions made while reading.
        places: channel -> (3,) position of the electrode in the file, in metres, in the head frame.
        unscaled: the channels whose factor to volts MNE did not apply.
    """

    raw: Any
    volts: dict[str, float | None]
    rates: dict[str, float]
    sample_type: str
    notes: tuple[Note, ...] = ()
    places: dict[str, np.ndarray] = field(default_factory=dict)
    unscaled: frozenset[str] = field(default_factory=frozenset)
