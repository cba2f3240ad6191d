"""Selection, naming, ordering and re-referencing of the channels of a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .channels import (
    CED_ORDER,
    is_scalp_name,
    is_ten_twenty,
    named_reference,
    numbered_names,
    positions,
    standard_name,
    standard_names,
)
from .electrode_positions import names_by_position
from .note import Note, first_names
from .raw_file import RawFile

_OF_FILE = "file:"  # prefix of a name that the 10-20 system uses for another position


@dataclass(frozen=True)
class ChannelNames:
    """Names of the channels of a file.

    Args:
        in_file: our name -> name in the file, for all channels in the order of the file. Our name is the one in the
            10-20 system and its extensions if the channel has one, otherwise the file's.
        cap: our names of the electrodes of a cap that does not use 10-20 names; empty for a 10-20 cap.
        notes: decisions made while naming.
        unplaced: names in the file of electrodes that have neither 10-20 names nor positions.
    """

    in_file: dict[str, str]
    cap: frozenset[str] = frozenset()
    notes: tuple[Note, ...] = ()
    unplaced: tuple[str, ...] = ()
    _lower: dict[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._lower.update({name.lower(): name for name in self.in_file})
        for name, written in self.in_file.items():
            self._lower.setdefault(f"{_OF_FILE}{written.strip()}".lower(), name)

    def find(self, wanted: str) -> tuple[str, str] | None:
        """(requested name, our name) of a channel, or None if the file has no such channel.

        Args:
            wanted: a name in any spelling of the 10-20 system, or a name in the file; "Cz=A1" means Cz if the file
                has a channel of that name, otherwise its channel A1 under the name Cz.
        """
        name, _, written = (part.strip() for part in wanted.partition("="))
        found = self._lower.get(standard_name(name).lower()) or self._lower.get(name.lower())
        if found is None and written:
            found = self._lower.get(f"{_OF_FILE}{written}".lower())
            return None if found is None else (standard_name(name), found)
        return None if found is None else (found, found)


def name_channels(file: RawFile) -> ChannelNames:
    """Name the channels of a file, judging all names together; use the positions if the names are not 10-20 names.

    Raises:
        ValueError: a channel without a name, or two channels that are the same electrode.
    """
    raw, written = file.raw, list(file.raw.ch_names)
    eeg = [name for name, kind in zip(written, raw.get_channel_types(), strict=True) if kind == "eeg"]
    named = any(is_scalp_name(standard_name(name)) for name in eeg)
    if not (named and is_ten_twenty(eeg)):
        places = {name: place for name, place in file.places.items() if name in eeg}
        if found := names_by_position(places):
            return _by_position(written, places, found)
    return _by_standard_name(written, numbered_names(eeg)) if is_ten_twenty(eeg) else _by_own_name(written, eeg)


def _by_standard_name(written: Sequence[str], numbered: set[str]) -> ChannelNames:
    # in a series such as C1 to C32 next to a complete 10-20 cap, C3 and C4 may be 10-20 electrodes, but not C1 and C5
    foreign = {name for name in numbered if standard_name(name) not in CED_ORDER}
    names = standard_names([_own_name(name) if name in foreign else name for name in written])
    return ChannelNames(dict(zip(names, written, strict=True)), notes=tuple(_name_notes(written, names)))


def _by_position(written: Sequence[str], places: Mapping[str, np.ndarray], found: Mapping[str, str]) -> ChannelNames:
    names = standard_names([found.get(name) or _own_name(name) for name in written])
    shown = first_names([f"{w} → {n}" for w, n in found.items()])
    note = Note(f"the cap has names of its own; channels are named by the positions in the file: {shown}")
    cap = frozenset(n for n, w in zip(names, written, strict=True) if w in places)
    return ChannelNames(dict(zip(names, written, strict=True)), cap, (note,))


def _by_own_name(written: Sequence[str], eeg: Sequence[str]) -> ChannelNames:
    numbered = numbered_names(eeg)
    names = standard_names([_own_name(name) if name in numbered else name for name in written])
    pairs = list(zip(names, written, strict=True))
    cap = frozenset(n for n, w in pairs if w in eeg and (w in numbered or is_scalp_name(n)))
    return ChannelNames(dict(pairs), cap, unplaced=tuple(name for name in written if name in numbered))


def _own_name(written: str) -> str:
    """The name in the file, marked if the 10-20 system uses it too."""
    bare = standard_name(written)
    return f"{_OF_FILE}{written.strip()}" if is_scalp_name(bare) or bare in positions() else written.strip()


def _name_notes(written: Sequence[str], names: Sequence[str]) -> list[Note]:
    notes = []
    changed = [f"{w} → {n}" for w, n in zip(written, names, strict=True) if w != n]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        notes.append(Note(f"channels renamed: {', '.join(changed[:3])}{more}"))
    references = sorted({r for w in written if (r := named_reference(w)) and is_scalp_name(standard_name(w))})
    if references:
        notes.append(Note(f"the channel names carry the reference {', '.join(references)}"))
    return notes


def choose_channels(
    file: RawFile, names: ChannelNames, wanted: Sequence[str] | None
) -> tuple[dict[str, str], list[Note]]:
    """The channels to keep, as name in the result -> name in the file, and notes about those left out.

    Raises:
        ValueError: a requested channel is missing, or the file has no EEG.
    """
    if wanted is not None:
        return _wanted_channels(names, wanted)
    kinds = dict(zip(file.raw.ch_names, file.raw.get_channel_types(), strict=True))
    eeg = [name for name, written in names.in_file.items() if kinds[written] == "eeg"]
    if not eeg:
        raise ValueError(f"no EEG channel found; the file has {', '.join(names.in_file)}")
    scalp = [name for name in eeg if name in names.cap] or [name for name in eeg if is_scalp_name(name)]
    notes = []
    if names.unplaced:
        text = (
            f"the cap has names of its own ({first_names(names.unplaced)}) and the file has no positions, so the "
            "place of each channel on the head is unknown; name them with the option channels, for instance Cz=A1"
        )
        notes.append(Note(text))
    elif not scalp:
        notes.append(Note(f"no channel has a 10-20 name, so their places on the head are unknown: {first_names(eeg)}"))
    kept = scalp or eeg
    with_unit = [n for n in kept if file.volts[names.in_file[n]] is not None]
    if with_unit and (not scalp or names.cap):
        kept = with_unit
    left_out = [n for n in names.in_file if n not in set(kept)]
    if left_out:
        notes.append(Note(f"left out because they are not scalp EEG: {first_names(left_out)}"))
    return {name: names.in_file[name] for name in kept}, notes


def _wanted_channels(names: ChannelNames, wanted: Sequence[str]) -> tuple[dict[str, str], list[Note]]:
    found = [names.find(each) for each in wanted]
    missing = [each for each, pair in zip(wanted, found, strict=True) if pair is None]
    if missing:
        hint = ""
        if names.unplaced:
            hint = "; its cap has its own names: write each as 10-20 name = name in the file, for instance Cz=A1"
        has = ", ".join(names.in_file)
        raise ValueError(f"the recording must have the channels {', '.join(missing)}, but it has {has}{hint}")
    pairs = [pair for pair in found if pair is not None]
    kept = {name: names.in_file[own] for name, own in pairs}
    if len(set(kept.values())) < len(pairs) or len(kept) < len(pairs):
        raise ValueError(f"channels must differ, got {', '.join(wanted)}")
    order = list(kept.values())
    in_file = [name for name in names.in_file.values() if name in set(order)]
    back = {written: name for name, written in kept.items()}
    text = f"channels reordered from the file's order {' '.join(back[written] for written in in_file)}"
    return kept, [] if in_file == order else [Note(text)]


def montage_notes(file: RawFile, names: ChannelNames) -> list[Note]:
    """A note if positions in the file do not fit the names of their channels."""
    in_file, standard = file.places, positions()
    pairs = [
        (in_file[w], standard[n])
        for n, w in names.in_file.items()
        if w in in_file and n in standard and np.isfinite(in_file[w]).all()
    ]
    if len(pairs) < 4:
        return []
    here, there = (np.array(side) - np.mean(side, axis=0) for side in zip(*pairs, strict=True))
    agreement = float((here * there).sum() / (np.linalg.norm(here) * np.linalg.norm(there) + 1e-30))
    if agreement > 0.8:
        return []
    text = f"the electrode positions in the file do not fit their names (agreement {agreement:.2f}, expected about 1)"
    return [Note(text, "defect")]


def referenced(raw: Any, reference: str | Sequence[str] | None, names: ChannelNames) -> tuple[Any, list[Note]]:
    """The raw object with another reference, and notes.

    The reference is either "average", the mean of all scalp channels that are not marked as bad, or names of channels.

    Raises:
        ValueError: a channel of the reference is missing, or the average has only bad channels.
    """
    if reference is None:
        return raw, []
    bads = set(raw.info["bads"])
    kept_as_it_is = [name for name, written in names.in_file.items() if written in bads]
    notes = []
    if kept_as_it_is:
        notes.append(Note(f"bad channels keep the reference of the file: {', '.join(kept_as_it_is)}"))  # as in MNE
    if reference == "average":
        cap = [w for n, w in names.in_file.items() if (n in names.cap or is_scalp_name(n)) and w in raw.ch_names]
        good = [written for written in cap if written not in bads]
        if cap and not good:
            raise ValueError("an average reference needs at least one good channel, but the file marks all as bad")
        return raw.set_eeg_reference(good or "average", verbose="ERROR"), notes
    asked = [reference] if isinstance(reference, str) else list(reference)
    written = [names.in_file[pair[1]] if (pair := names.find(name)) else "" for name in asked]
    missing = [name for name, each in zip(asked, written, strict=True) if each not in raw.ch_names or not each]
    if missing:
        raise ValueError(f"reference must name channels of the recording; {', '.join(missing)} is not in it")
    bad = [name for name, each in zip(asked, written, strict=True) if each in bads]
    if bad:
        notes.append(Note(f"the reference {', '.join(bad)} is marked as bad in the file", "defect"))
    return raw.set_eeg_reference(written, verbose="ERROR"), notes
