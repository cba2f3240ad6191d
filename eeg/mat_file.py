"""MATLAB files: the .mat of the ADHD data set, and channels of EEGLAB files without a label."""

from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np
import scipy.io

from ..runs.words import one_line
from .channels import CED_ORDER, TEXT_ORDER
from .matlab_elements import check_matlab
from .note import Note, warnings_as_notes
from .raw_file import RawFile


def channels_without_label(path: Path) -> list[int]:
    """Numbers, from 1, of the channels of an EEGLAB file without a label; empty if the file cannot be read."""
    try:
        found = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)
        places = np.atleast_1d(found["EEG"].chanlocs if "EEG" in found else found["chanlocs"])
        labels = [str(place.labels).strip() if np.size(place.labels) else "" for place in places]
    except Exception:  # scipy raises many types; the reader reports the error
        return []
    return [number for number, label in enumerate(labels, start=1) if not label]


def open_mat(path: Path, order: str | Sequence[str], sfreq: float) -> RawFile:
    """A .mat file of the ADHD data set, with its samples.

    Args:
        path: the file, with one array (samples, channels) or one named like the file.
        order: "ced", "text" or the names of the columns.
        sfreq: Hz.

    Raises:
        ValueError: the file is damaged or does not hold such an array.
    """
    if isinstance(order, str):
        if order not in ("ced", "text"):
            raise ValueError(f'mat_order must be "ced", "text" or a list of names, got {order!r}')
        order = CED_ORDER if order == "ced" else TEXT_ORDER
    check_matlab(path)
    try:
        found = scipy.io.loadmat(path)
    except Exception as error:  # scipy raises many types; version 7.3 files are HDF5
        raise ValueError(
            f"{path} could not be read as a MATLAB file of version 4 to 7: {one_line(error)[:300]}"
        ) from error
    arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray) and v.ndim == 2 and v.dtype.kind in "iuf"}
    array = arrays.get(path.stem, next(iter(arrays.values())) if len(arrays) == 1 else None)
    if array is None:
        raise ValueError(f"{path} must hold one array or one named {path.stem}, got {', '.join(arrays) or 'none'}")
    if array.shape[1] != len(order) or array.shape[0] == 0:
        raise ValueError(
            f"{path} must hold (samples, {len(order)}) as {len(order)} channels are named, got {array.shape}"
        )
    with warnings_as_notes() as notes:
        info = mne.create_info(list(order), sfreq, "eeg", verbose="ERROR")
        raw = mne.io.RawArray(array.T.astype(np.float64), info, verbose="ERROR")
    notes.append(Note(f"a .mat carries no rate and no names: taken as {sfreq:g} Hz, {' '.join(order)}"))
    return RawFile(raw, dict.fromkeys(order), dict.fromkeys(order, sfreq), str(array.dtype), tuple(notes))
