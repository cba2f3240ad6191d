"""Conversion of the names of EEG channels to one spelling of the 10-20 system and its extensions."""

import re
from collections.abc import Sequence
from functools import cache

import mne
import numpy as np

# The 19 electrodes of the 10-20 system in the order of the .ced file that comes with the ADHD recordings (T7 T8 P7 P8
# were T3 T4 T5 T6), and in the order of the text that describes that data set.
_CED = "Fp1 Fp2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T7 T8 P7 P8 Fz Cz Pz"
_TEXT = "Fz Cz Pz C3 T7 C4 T8 Fp1 Fp2 F3 F4 F7 F8 P3 P4 P7 P8 O1 O2"
CED_ORDER = tuple(_CED.split())
TEXT_ORDER = tuple(_TEXT.split())

_RENAMED = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}  # American Clinical Neurophysiology Society, 1991
_EARS = frozenset(("A1", "A2", "M1", "M2"))
_PREFIX = re.compile(r"^(EEG|POL)[\s_:-]+", re.IGNORECASE)
_REFERENCE = re.compile(r"[\s_-]+(REF|LE|RE|AR|AVG|AVE|A1A2|A1\+A2|M1M2|A1|A2|M1|M2|CZREF|VREF)$", re.IGNORECASE)
_NUMBERED = re.compile(r"^(?P<before>[A-Za-z]*?)[ _.-]*(?P<number>\d{1,3})(?P<after>[A-Za-z]?)$")
_NO_ELECTRODES = re.compile(  # letters before the numbers of inputs without EEG
    "(DC|X|EXG?|AUX|E[MCKO]G|MISC|STI|TRIG|RESP|BIP|ACC|GSR|TEMP|S[PA]O|PULSE)", re.IGNORECASE
)
_FEW = 4  # F11, F12 or CB1, CB2 are additions to a 10-20 cap; four names with the same letters are another system
_MANY = 8  # this number of 10-20 names is no coincidence, regardless of the number of other inputs


def standard_name(name: str) -> str:
    """The channel's name in the 10-20 system and its extensions; other names are returned without outer spaces.

    Prefixes ("EEG "), named references ("-REF", "-LE", "-A2") and padding dots are removed, case is ignored, and the
    old T3 T4 T5 T6 become T7 T8 P7 P8. A bipolar derivation ("Fp1-F7") is not an electrode and stays unchanged.

    Example:
        >>> [standard_name(n) for n in ("EEG FP1-REF", "t3", "Fc5.", "CZ", "Fp1-F7", "ECG")]
        ['Fp1', 'T7', 'FC5', 'Cz', 'Fp1-F7', 'ECG']
    """
    known = _known_names().get(_bare(name).lower())
    return name.strip() if known is None else _RENAMED.get(known, known)


def _bare(name: str) -> str:
    return _REFERENCE.sub("", _PREFIX.sub("", name.strip())).strip(" .")


def named_reference(name: str) -> str | None:
    """The reference given in a channel's name, such as "REF" in "EEG Fp1-REF"."""
    found = _REFERENCE.search(_PREFIX.sub("", name.strip()))
    return found.group(1).upper() if found else None


def is_scalp_name(name: str) -> bool:
    """Whether a standard name denotes an electrode on the scalp; A1 A2 M1 M2 (ears and mastoids) do not."""
    return name.lower() in _known_names() and name not in _EARS


def standard_names(names: Sequence[str]) -> tuple[str, ...]:
    """Standard names of all channels of a file.

    Raises:
        ValueError: two channels are the same electrode.
    """
    found = [standard_name(name) for name in names]
    for name in set(found):
        same = [n for n, f in zip(names, found, strict=True) if f == name]
        if len(same) > 1:
            raise ValueError(f"channels must be different electrodes, got {' and '.join(same)}, which are both {name}")
    return tuple(found)


def is_ten_twenty(names: Sequence[str]) -> bool:
    """Whether the names of a file's EEG channels, taken together, are those of the 10-20 system and its extensions.

    Many caps number their electrodes: A1 to D32 (BioSemi), E1 to E128 (EGI), 1 to 61, 1L to 20L. Some of those names
    (C1, F3, P7) are also 10-20 names, and a Cz may be among them. The names in numbered series are therefore counted
    against the names outside such series.

    Example:
        >>> is_ten_twenty(["Fp1", "Fp2", "C3", "C4", "DC01"]), is_ten_twenty([f"C{i}" for i in range(1, 33)])
        (True, False)
    """
    numbered = numbered_names(names)
    firm = sum(is_scalp_name(standard_name(name)) for name in names if name not in numbered)
    return firm >= min(_MANY, len(numbered))


def numbered_names(names: Sequence[str]) -> set[str]:
    """The names in a file that belong to a numbered series outside the 10-20 system.

    A series counts if at least four of its names are not 10-20 names; if no name outside these series is a 10-20 name,
    one is enough.

    Example:
        >>> sorted(numbered_names(["C1", "C2", "C7", "C8", "C9", "C10", "F11", "Fz", "DC1", "DC2", "DC3", "DC4"]))
        ['C1', 'C10', 'C2', 'C7', 'C8', 'C9']
    """
    series: dict[tuple[str, str], list[str]] = {}
    for name in names:
        found = _NUMBERED.match(_bare(name))
        if found and not _NO_ELECTRODES.fullmatch(found["before"]):
            series.setdefault((found["before"].upper(), found["after"].upper()), []).append(name)
    unknown = {key: sum(_bare(name).lower() not in _known_names() for name in own) for key, own in series.items()}
    mixed = {name for key, own in series.items() if unknown[key] for name in own}
    few = _FEW if any(is_scalp_name(standard_name(name)) for name in names if name not in mixed) else 1
    return {name for key, own in series.items() if unknown[key] >= few for name in own}


@cache
def positions() -> dict[str, np.ndarray]:
    """Positions of the electrodes of the 10-05 system on an average head: name -> (3,) in metres."""
    found: dict[str, np.ndarray] = mne.channels.make_standard_montage("colin27_1005").get_positions()["ch_pos"]
    return found


@cache
def _known_names() -> dict[str, str]:
    return {name.lower(): name for name in positions()}
