"""Names of EEG channels: one spelling in the 10-20 system and its extensions, whatever the amplifier wrote."""

import re
from collections.abc import Sequence
from functools import cache

import mne
import numpy as np

# The 19 electrodes of the 10-20 system in the order of the .ced file that comes with the ADHD recordings (T7 T8 P7 P8
# were T3 T4 T5 T6), and in the order that the prose of that data set lists.
_CED = "Fp1 Fp2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T7 T8 P7 P8 Fz Cz Pz"
_TEXT = "Fz Cz Pz C3 T7 C4 T8 Fp1 Fp2 F3 F4 F7 F8 P3 P4 P7 P8 O1 O2"
CED_ORDER = tuple(_CED.split())
TEXT_ORDER = tuple(_TEXT.split())

_RENAMED = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}  # American Clinical Neurophysiology Society, 1991
_EARS = frozenset(("A1", "A2", "M1", "M2"))
_PREFIX = re.compile(r"^(EEG|POL)[\s_:-]+", re.IGNORECASE)
_REFERENCE = re.compile(r"[\s_-]+(REF|LE|RE|AR|AVG|AVE|A1A2|A1\+A2|M1M2|A1|A2|M1|M2|CZREF|VREF)$", re.IGNORECASE)


def standard_name(name: str) -> str:
    """The channel's name in the 10-20 system and its extensions; a name that is not in it comes back stripped.

    Prefixes ("EEG "), named references ("-REF", "-LE", "-A2"), padding dots and capitals are taken off, and the old
    T3 T4 T5 T6 become T7 T8 P7 P8. A bipolar derivation ("Fp1-F7") is no electrode and stays as it is.

    Example:
        >>> [standard_name(n) for n in ("EEG FP1-REF", "t3", "Fc5.", "CZ", "Fp1-F7", "ECG")]
        ['Fp1', 'T7', 'FC5', 'Cz', 'Fp1-F7', 'ECG']
    """
    stripped = name.strip()
    bare = _REFERENCE.sub("", _PREFIX.sub("", stripped)).strip(" .")
    known = _known_names().get(bare.lower())
    return stripped if known is None else _RENAMED.get(known, known)


def named_reference(name: str) -> str | None:
    """The reference that a channel's name carries, such as "REF" in "EEG Fp1-REF"."""
    found = _REFERENCE.search(_PREFIX.sub("", name.strip()))
    return found.group(1).upper() if found else None


def is_scalp_name(name: str) -> bool:
    """Whether a standard name is an electrode on the scalp; the ears and mastoids A1 A2 M1 M2 are not."""
    return name.lower() in _known_names() and name not in _EARS


def standard_names(names: Sequence[str]) -> tuple[str, ...]:
    """Standard names of all channels of a file.

    Raises:
        ValueError: if two channels are the same electrode.
    """
    found = [standard_name(name) for name in names]
    for name in set(found):
        same = [n for n, f in zip(names, found, strict=True) if f == name]
        if len(same) > 1:
            raise ValueError(f"channels must be different electrodes, got {' and '.join(same)}, which are both {name}")
    return tuple(found)


@cache
def positions() -> dict[str, np.ndarray]:
    """Where the electrodes of the 10-05 system lie on an average head: name -> (3,) in metres."""
    found: dict[str, np.ndarray] = mne.channels.make_standard_montage("colin27_1005").get_positions()["ch_pos"]
    return found


@cache
def _known_names() -> dict[str, str]:
    return {name.lower(): name for name in positions()}
