"""Checks of EDF, EDF+, BDF and BDF+ files that MNE lacks: impossible headers, and the time of each record.


In EDF+ (Kemp and Olivan 2003), the first annotation channel of each record begins with the onset of the record:
`+onset 0x14 0x14 0x00`. In a file of the kind "EDF+D" or "BDF+D", there may be a gap between two records; MNE reads
such a file as if there were no gaps.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np

from .channels import is_scalp_name, standard_name
from .note import Note, first_names

_ONSET = re.compile(rb"^([+-]\d+(?:\.\d*)?)\x14")
_MARK = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14([^\x00]*)\x14\x00")
_ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
_ORIGIN = 256  # bytes of the header before the fields of the channels, and bytes of these fields per channel


@dataclass(frozen=True)
class EdfHeader:
    """Fields of the header of an EDF or BDF file.

    Args:
        kind: the reserved field, such as "EDF+C" or "BDF+D".
        record_s: duration of a record, seconds.
        labels: labels of all channels, including annotation channels.
        units: units of all channels, decoded as Latin-1, as by MNE.
        ranges: (physical minimum, physical maximum) of each channel.
        samples: samples of each channel in a record.
        sample_bytes: bytes of a sample: 2, or 3 for BDF.
    """

    kind: str
    record_s: float
    labels: tuple[str, ...]
    units: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    samples: tuple[int, ...]
    sample_bytes: int

    @property
    def is_interrupted(self) -> bool:
        """Whether the header declares the file discontinuous, so that there may be gaps between records."""
        return self.kind.startswith(("EDF+D", "BDF+D"))


def read_edf_header(path: Path) -> EdfHeader | None:
    """The header of an EDF or BDF file; None if its numbers cannot be parsed, a fault that MNE reports or repairs."""
    with path.open("rb") as stream:
        head = stream.read(_ORIGIN)
        try:
            record_s, count = float(head[244:252]), int(head[252:256])
            labels = tuple(stream.read(16).decode("latin-1").strip() for _ in range(count))
            stream.seek(_ORIGIN + count * 96)
            units = tuple(stream.read(8).decode("latin-1").strip() for _ in range(count))
            low, high = ([float(stream.read(8)) for _ in range(count)] for _ in range(2))
            stream.seek(_ORIGIN + count * 216)
            samples = tuple(int(stream.read(8)) for _ in range(count))
        except ValueError:
            return None
    kind = head[192:236].decode("latin-1").strip()
    ranges = tuple(zip(low, high, strict=True))
    return EdfHeader(kind, record_s, labels, units, ranges, samples, 3 if head[:1] == b"\xff" else 2)


def check_edf_header(path: Path) -> None:
    """Refuse a header of EDF or BDF for which MNE would invent a rate or a scale, and a file without signals.

    Raises:
        ValueError: a field is impossible; the message names it.
    """
    header = read_edf_header(path)
    if header is None:
        return
    if header.labels and all(label in _ANNOTATIONS for label in header.labels):
        raise ValueError(f"{path} holds annotations only, no signal: give the file with the EEG")
    if not 0 < header.record_s < np.inf:
        raise ValueError(f"{path}: a record must last more than 0 s, its header gives {header.record_s:g} s")
    flat = [
        label
        for label, (low, high) in zip(header.labels, header.ranges, strict=True)
        if low == high and is_scalp_name(standard_name(label))
    ]
    if flat:
        raise ValueError(f"{path}: the physical range must be above 0, the header gives 0 for {first_names(flat)}")


def annotations_on_data_clock(path: Path, sfreq: float) -> tuple[mne.Annotations | None, list[Note]]:
    """Annotations of a file with gaps between records, on a clock that counts only the stored samples, in seconds.

    Args:
        path: an EDF or BDF file.
        sfreq: the highest sampling rate of the file, Hz; between records less than a sample apart there is no gap.

    Returns:
        The annotations with an "EDGE boundary" at each gap, or None if there is no gap; and notes.

    Raises:
        ValueError: the file declares that it is interrupted, but does not give the onsets.
    """
    header = read_edf_header(path)
    if header is None or header.kind[:5] not in ("EDF+C", "EDF+D", "BDF+C", "BDF+D"):
        return None, []
    marks = _annotation_bytes(path, header)
    onsets = _record_onsets(marks)
    if onsets is None:
        if header.is_interrupted:
            raise ValueError(
                f"{path} is interrupted ({header.kind[:5]}) but lacks the onset of a record: export it again"
            )
        return None, []
    steps = np.diff(onsets) - header.record_s
    if (steps < -1 / sfreq).any():
        if header.is_interrupted:
            raise ValueError(f"{path}: the onsets of its records must rise by {header.record_s:g} s or more each")
        return None, [Note("the onsets of records overlap; they are read as consecutive", "defect")]
    gaps = np.flatnonzero(steps > 1 / sfreq)
    if len(gaps) == 0:
        return None, []
    # on the file's clock a record fills [onset, onset + record_s]; the samples hold one record after the other
    starts = np.arange(len(onsets)) * header.record_s
    clock = np.maximum.accumulate(np.column_stack([onsets, onsets + header.record_s]).ravel())
    samples = np.column_stack([starts, starts + header.record_s]).ravel()
    cuts = starts[gaps + 1]
    found = [(float(cut), 0.0, "EDGE boundary") for cut in cuts]
    for onset, duration, text in _marks(marks):
        start, stop = np.interp([onset, onset + duration], clock, samples)
        found.append((float(start), float(stop - start), text))
    note = Note(
        f"{len(gaps)} gap{'s' if len(gaps) > 1 else ''} between records ({steps[gaps].sum():.6g} s in all): "
        "no window spans one, and annotations lie at the samples that they mark"
    )
    return mne.Annotations(*(list(column) for column in zip(*found, strict=True))), [note]


def annotation_encoding(path: Path) -> str:
    """The encoding of a file's annotations: "utf8", as EDF+ requires, or "latin1" if they are not UTF-8."""
    header = read_edf_header(path)
    if header is None:
        return "utf8"
    try:
        for record in (record for channel in _annotation_bytes(path, header) for record in channel):
            record.decode("utf-8")
    except UnicodeDecodeError:
        return "latin1"
    return "utf8"


def _annotation_bytes(path: Path, header: EdfHeader) -> list[list[bytes]]:
    """The bytes of each annotation channel, record by record."""
    widths = np.array(header.samples) * header.sample_bytes
    ends = np.cumsum(widths)
    places = [i for i, label in enumerate(header.labels) if label in _ANNOTATIONS]
    start = _ORIGIN * (1 + len(header.labels))
    if not places or widths.min() < 0 or ends[-1] == 0 or path.stat().st_size <= start:
        return []
    content = np.memmap(path, np.uint8, "r", offset=start)
    records = content[: len(content) // ends[-1] * ends[-1]].reshape(-1, ends[-1])
    return [[row.tobytes() for row in records[:, ends[i] - widths[i] : ends[i]]] for i in places]


def _record_onsets(marks: list[list[bytes]]) -> np.ndarray | None:
    found = [_ONSET.match(record) for record in marks[0]] if marks else []
    if not found or None in found:
        return None
    return np.array([float(match.group(1)) for match in found if match])


def _marks(marks: list[list[bytes]]) -> list[tuple[float, float, str]]:
    """(onset, duration, text) of all annotations, on the clock of the file."""
    found = []
    for channel in marks:
        for onset, duration, texts in (match for record in channel for match in _MARK.findall(record)):
            found += [(float(onset), float(duration or 0), _decoded(text)) for text in texts.split(b"\x14") if text]
    return found


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")
