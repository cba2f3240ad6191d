"""Which channels of a file are kept, under which names, in which order, and to which reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .channels import is_scalp_name, named_reference, positions, standard_name
from .note import Note, first_names
from .raw_file import RawFile


def name_notes(written: Sequence[str], names: Sequence[str]) -> list[Note]:
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
    found: RawFile, file_names: dict[str, str], wanted: Sequence[str] | None
) -> tuple[list[str], list[Note]]:
    """Standard names of the channels to keep, and notes about those left out."""
    if wanted is not None:
        lower = {name.lower(): name for name in file_names}
        kept = [lower.get(standard_name(w).lower(), "") for w in wanted]
        missing = [w for w, k in zip(wanted, kept, strict=True) if not k]
        if missing:
            has = ", ".join(file_names)
            raise ValueError(f"the recording must have the channels {', '.join(missing)}, it has {has}")
        if len(set(kept)) < len(kept):
            raise ValueError(f"channels must differ, got {', '.join(wanted)}")
        in_file = [n for n in file_names if n in set(kept)]
        return kept, [] if in_file == kept else [Note(f"channels reordered from the file's order {' '.join(in_file)}")]
    kinds = dict(zip(found.raw.ch_names, found.raw.get_channel_types(), strict=True))
    eeg = [name for name, written in file_names.items() if kinds[written] == "eeg"]
    if not eeg:
        raise ValueError(f"no EEG channel found; the file has {', '.join(file_names)}")
    scalp = [name for name in eeg if is_scalp_name(name)]
    notes = []
    if not scalp:
        notes.append(Note(f"no channel has a 10-20 name, so none has a place on the head: {first_names(eeg)}"))
    kept = scalp or eeg
    with_unit = [n for n in kept if found.volts[file_names[n]] is not None]
    if with_unit and not scalp:
        kept = with_unit
    left_out = [n for n in file_names if n not in set(kept)]
    if left_out:
        notes.append(Note(f"left out, no scalp EEG: {first_names(left_out)}"))
    return kept, notes


def montage_notes(raw: Any, file_names: dict[str, str]) -> list[Note]:
    """Whether positions in the file, if any, lie where the names say."""
    found = raw.get_montage()
    in_file = {} if found is None else (found.get_positions()["ch_pos"] or {})
    standard = positions()
    pairs = [
        (in_file[w], standard[n])
        for n, w in file_names.items()
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


def referenced(raw: Any, reference: str | Sequence[str] | None, file_names: dict[str, str]) -> Any:
    if reference is None:
        return raw
    if reference == "average":
        eeg = [written for name, written in file_names.items() if is_scalp_name(name) and written in raw.ch_names]
        wanted: Any = eeg or "average"
    else:
        asked = [reference] if isinstance(reference, str) else list(reference)
        wanted = [file_names.get(standard_name(name), name) for name in asked]
        missing = [name for name in wanted if name not in raw.ch_names]
        if missing:
            raise ValueError(f"reference must be channels of the recording, {', '.join(missing)} is not in it")
    return raw.set_eeg_reference(wanted, verbose="ERROR")
