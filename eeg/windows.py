"""Windows of a study, cut from recordings without bad spans and scaled; and a scaler fitted on training windows."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..runs.files import atomic_path
from .note import Note
from .recording import FrequencySpan, Recording, read_recording
from .signal_checks import Unit
from .study import Study, study_digest

Scaling = Literal["window", "recording", "fold", "none"]

_CACHE_FORMAT = 3
_LEAST_SD = 1e-6  # relative to the channel's largest value, so that a flat channel becomes zeros and not rounding noise


@dataclass(frozen=True)
class WindowOptions:
    """How recordings are read and cut.

    Args:
        seconds: length of a window.
        overlap: fraction of a window that the next window repeats, at least 0 and below 1.
        sfreq: sampling rate of the windows, Hz; None keeps that of the files.
        band: (low, high) edges of a band-pass filter, Hz.
        reference: "average", channel names, or None for the reference of the file.
        channels: names in the desired order, or "Cz=A1" for the channel A1 of a cap without 10-20 names; None takes the
            channels of the first recording, which all others must then have.
        scaling: "window" (each channel of each window to mean 0, sd 1), "recording" (the same over the recording),
            "fold" (unscaled here; the estimator fits a `Scaler` on its training windows) or "none".
        unit: the unit of the numbers in the files, overriding their headers.
        mat_order: order of the columns of a .mat file.
        mat_sfreq: sampling rate of a .mat file, Hz.
    """

    seconds: float = 4.0
    overlap: float = 0.0
    sfreq: float | None = 128.0
    band: tuple[float | None, float | None] | None = None
    reference: str | tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    scaling: Scaling = "window"
    unit: Unit | None = None
    mat_order: str | tuple[str, ...] = "ced"
    mat_sfreq: float = 128.0

    def __post_init__(self) -> None:
        if self.scaling not in ("window", "recording", "fold", "none"):
            raise ValueError(f'scaling must be "window", "recording", "fold" or "none", got {self.scaling!r}')
        for name in ("seconds", "sfreq", "mat_sfreq"):
            value = getattr(self, name)
            if not (name == "sfreq" and value is None) and not 0 < value < np.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value:g}")
        if self.sfreq is not None and self.seconds * self.sfreq < 2:
            raise ValueError(f"a window must hold two samples or more, got {self.seconds:g} s at {self.sfreq:g} Hz")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, got {self.overlap:g}")
        if self.band is not None and len(self.band) != 2:
            raise ValueError(f"band must have two edges in Hz, of which either may be None, got {list(self.band)}")
        if any(edge is not None and not np.isfinite(edge) for edge in self.band or ()):
            raise ValueError(f"band must have finite edges, got {list(self.band or ())}")
        if self.channels is not None and not len(self.channels):
            raise ValueError("channels must name one channel or more, got an empty list")
        for name in ("band", "reference", "channels", "mat_order"):  # JSON and YAML have lists
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def of(cls, given: dict[str, Any] | None) -> "WindowOptions":
        """Options from a configuration that a user wrote.

        Raises:
            ValueError: an option is unknown, or a word is given in place of a number.
        """
        given = given or {}
        known = [field.name for field in fields(cls)]
        unknown = [str(name) for name in given if name not in known]
        if unknown:
            raise ValueError(f"windows must be among {', '.join(known)}; got {', '.join(unknown)}")
        for name in ("seconds", "overlap", "sfreq", "mat_sfreq"):
            value = given.get(name, 0)
            if not isinstance(value, int | float) and not (name == "sfreq" and value is None):
                raise ValueError(f"windows: {name} must be a number, got {value!r}")
        return cls(**given)

    def read(
        self, path: Path, span: tuple[float, float] | None = None, *, remove: Sequence[FrequencySpan] = ()
    ) -> Recording:
        """One recording, or its part `span` in seconds, read with these options; see `read_recording` for `remove`."""
        return read_recording(
            path,
            sfreq=self.sfreq,
            channels=self.channels,
            band=self.band,
            reference=self.reference,
            unit=self.unit,
            mat_order=self.mat_order,
            mat_sfreq=self.mat_sfreq,
            span=span,
            remove=remove,
        )


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a study.

    Args:
        x: (n, channels, times) float32, scaled according to the options.
        subject: (n,) index into `subjects`, ascending.
        start: (n,) first sample in the recording; the samples of a subject's runs are numbered consecutively.
        log_variance: (n, channels) float32, natural logarithm of the variance before any scaling.
        subjects: names of the subjects with at least one window.
        labels: (subjects,) 1 for the positive class.
        classes: (negative, positive).
        sfreq: sampling rate in Hz.
        channels: names of the channels in the order of `x`.
        seconds: (subjects,) length of the recordings.
        unit: unit of `x` before scaling: "uV" or "unknown".
        options: the options with which the windows were cut.
        excluded: (subject, reason) of the subjects without a window.
        notes: findings while reading, with the names of the subjects.
        digests: (subjects,) SHA-256 of the signal as read; equal for duplicates.
        defects: the notes about a defect of a signal or a subject without a window.
    """

    x: np.ndarray
    subject: np.ndarray
    start: np.ndarray
    log_variance: np.ndarray
    subjects: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, str]
    sfreq: float
    channels: tuple[str, ...]
    seconds: np.ndarray
    unit: str
    options: WindowOptions
    excluded: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    digests: tuple[str, ...]
    defects: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over the signals of all subjects, in their order."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def rows(self, subjects: Sequence[int]) -> np.ndarray:
        """Indices of the windows of these subjects, in the order of `x`."""
        return np.flatnonzero(np.isin(self.subject, np.asarray(subjects, dtype=np.int64)))


@dataclass(frozen=True, eq=False)
class Scaler:
    """Mean and standard deviation of each channel over the windows on which the scaler was fitted.

    Args:
        mean: (channels,).
        sd: (channels,), 1 for a flat channel.

    Example:
        >>> x = np.array([[[0.0, 2.0, 4.0]]])
        >>> Scaler.fit(x).apply(x).astype(float).round(4).tolist()
        [[[-1.2247, 0.0, 1.2247]]]
    """

    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray) -> "Scaler":
        """The scaler of training windows (n, channels, times)."""
        if len(x) == 0:
            raise ValueError("a scaler needs at least one training window, got none")
        mean = x.mean(axis=(0, 2), dtype=np.float64)
        sd = x.std(axis=(0, 2), dtype=np.float64)
        sd[sd <= _LEAST_SD * np.abs(x).max(axis=(0, 2), initial=0)] = 1.0
        return cls(mean, sd)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The windows (n, channels, times) in units of the training windows, as float32."""
        return np.asarray((x - self.mean[:, None]) / self.sd[:, None], np.float32)


def cut(recording: Recording, options: WindowOptions) -> tuple[np.ndarray, np.ndarray]:
    """The windows of a recording that do not overlap a bad span; a remainder at the end is dropped.

    Returns:
        (n, channels, times) float32 in the recording's unit, unscaled, and the first samples (n,).
    """
    times = round(min(options.seconds * recording.sfreq, 2**31))
    step = max(1, round(times * (1 - options.overlap)))
    starts = np.arange(0, recording.signal.shape[1] - times + 1, step, dtype=np.int64)
    good = np.ones(len(starts), bool)
    for begin, end in recording.bad_spans:
        first, last = starts / recording.sfreq, (starts + times) / recording.sfreq
        good &= (last <= begin) | (first >= end)
    starts = starts[good]
    if len(starts) == 0:
        return np.empty((0, len(recording.channels), times), np.float32), starts
    views = np.lib.stride_tricks.sliding_window_view(recording.signal, times, axis=1)  # (channels, samples, times)
    return np.ascontiguousarray(views[:, starts].transpose(1, 0, 2)), starts


def why_no_window(recordings: Sequence[Recording], options: WindowOptions) -> str:
    """The reason why the recordings of a subject give no window."""
    seconds = sum(recording.seconds for recording in recordings)
    defects = [note.text for recording in recordings for note in recording.notes if note.kind == "defect"]
    more = f": {'; '.join(dict.fromkeys(defects))}" if defects else ""
    return f"no window of {options.seconds:g} s free of bad spans in {seconds:.1f} s{more}"


def standardize(x: np.ndarray) -> np.ndarray:
    """The windows with each channel (last axis: time) at mean 0 and standard deviation 1; a flat channel becomes zeros.

    Example:
        >>> standardize(np.array([[1.0, 3.0], [5.0, 5.0]])).tolist()
        [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    sd = centred.std(axis=-1, keepdims=True)
    flat = sd <= _LEAST_SD * np.abs(x).max(axis=-1, keepdims=True, initial=0)
    return np.where(flat, 0, centred / np.where(flat, 1, sd)).astype(np.float32)


def load_windows(
    study: Study,
    options: WindowOptions | None = None,
    cache: str | Path | None = None,
    *,
    remove: Sequence[FrequencySpan] = (),
) -> Windows:
    """Read, check and cut all recordings of a study.

    Args:
        study: the subjects and their files.
        options: how recordings are read and cut.
        cache: a folder in which windows are stored under a hash of the files and the options, and from which they are
            loaded when the hash agrees.
        remove: spans of frequencies to remove from the recordings, see `read_recording`.

    Raises:
        ValueError: recordings differ in channels or rate, or no subject of a class has a window.
    """
    options = options or WindowOptions()
    if cache is None:
        return _load(study, options, remove)
    path = Path(cache) / f"windows-{_key(study, options, remove)}.npz"
    if not path.is_file():
        with atomic_path(path) as temporary:
            _write(temporary, _load(study, options, remove))
    return _read(path)


@dataclass(frozen=True, eq=False)
class _SubjectWindows:
    """The windows of one subject; fields as in `Windows`."""

    name: str
    label: str
    unit: str
    x: np.ndarray
    start: np.ndarray
    log_variance: np.ndarray
    seconds: float
    digest: str


@dataclass(frozen=True)
class _SubjectNote:
    """A note about some subjects; `subject` is empty if the text names them."""

    subject: str
    note: Note


def _load(study: Study, options: WindowOptions, remove: Sequence[FrequencySpan]) -> Windows:
    kept: list[_SubjectWindows] = []
    first: Recording | None = None
    excluded: list[tuple[str, str]] = []
    notes: list[_SubjectNote] = []
    for subject in study.subjects:
        try:
            recordings = [options.read(file, remove=remove) for file in subject.files]
        except ValueError as error:
            raise ValueError(f"{subject.subject}: {error}") from error
        notes += [_SubjectNote(subject.subject, note) for recording in recordings for note in recording.notes]
        first = first or recordings[0]
        recordings = [_in_order_of(first, recording, subject.subject) for recording in recordings]
        found = _windows_of(subject.subject, subject.label, recordings, options)
        if len(found.x) == 0:
            reason = why_no_window(recordings, options)
            excluded.append((subject.subject, reason))
            notes.append(_SubjectNote(subject.subject, Note(f"left out, {reason}", "defect")))
            continue
        kept.append(found)
    _check_classes(kept, excluded)
    notes += [_SubjectNote("", Note(f"{' and '.join(names)} are the same recording")) for names in _duplicates(kept)]
    units = {found.unit for found in kept}
    if len(units) > 1 and options.scaling in ("none", "fold"):
        raise ValueError('recordings must have one unit for scaling "none" or "fold", got uV and unknown; see notes')
    assert first is not None
    return Windows(
        x=np.concatenate([found.x for found in kept]),
        subject=np.repeat(np.arange(len(kept)), [len(found.start) for found in kept]),
        start=np.concatenate([found.start for found in kept]),
        log_variance=np.concatenate([found.log_variance for found in kept]),
        subjects=tuple(found.name for found in kept),
        labels=np.array([study.classes.index(found.label) for found in kept], np.int64),
        classes=study.classes,
        sfreq=first.sfreq,
        channels=first.channels,
        seconds=np.array([found.seconds for found in kept]),
        unit=units.pop() if len(units) == 1 else "unknown",
        options=options,
        excluded=tuple(excluded),
        notes=_gathered(notes),
        digests=tuple(found.digest for found in kept),
        defects=_gathered([each for each in notes if each.note.kind == "defect"]),
    )


def _check_classes(kept: Sequence[_SubjectWindows], excluded: Sequence[tuple[str, str]]) -> None:
    present = {found.label for found in kept}
    if len(present) < 2:
        lost = "; ".join(f"{name}: {reason}" for name, reason in excluded[:3])
        raise ValueError(f"both classes must have subjects with windows, got {', '.join(present) or 'none'} ({lost})")


def _windows_of(name: str, label: str, recordings: Sequence[Recording], options: WindowOptions) -> _SubjectWindows:
    parts, starts, offset = [], [], 0
    digest = hashlib.sha256()
    for recording in recordings:
        x, start = cut(recording, options)
        parts.append((x, recording))
        starts.append(start + offset)
        offset += recording.signal.shape[1]
        digest.update(np.ascontiguousarray(recording.signal).tobytes())
    x = np.concatenate([x for x, _ in parts])
    variance = x.var(axis=2, dtype=np.float64)
    floor = np.finfo(np.float32).tiny  # the variance of a flat channel is 0, whose logarithm is not finite
    return _SubjectWindows(
        name=name,
        label=label,
        unit=recordings[0].unit,
        x=np.concatenate([scaled(x, recording, options.scaling) for x, recording in parts]),
        start=np.concatenate(starts),
        log_variance=np.log(np.maximum(variance, floor)).astype(np.float32),
        seconds=sum(recording.seconds for recording in recordings),
        digest=digest.hexdigest(),
    )


def scaled(x: np.ndarray, recording: Recording, scaling: Scaling) -> np.ndarray:
    """Windows (n, channels, times) of a recording, scaled according to the option; "fold" and "none" change nothing."""
    if scaling == "window":
        return standardize(x)
    if scaling == "recording":
        return Scaler.fit(recording.signal[None]).apply(x)
    return x


def _in_order_of(first: Recording, recording: Recording, subject: str) -> Recording:
    """The recording with its channels in the order of the first one."""
    if abs(recording.sfreq - first.sfreq) > 1e-6:
        raise ValueError(
            f"recordings must have one sampling rate; {subject} has {recording.sfreq:g} Hz and {first.source.name} "
            f"{first.sfreq:g} Hz; set sfreq"
        )
    if recording.channels == first.channels:
        return recording
    if set(recording.channels) != set(first.channels):
        differ = sorted(set(recording.channels) ^ set(first.channels))
        raise ValueError(
            f"recordings must have the same channels, {subject} and {first.source.name} differ in {', '.join(differ)}; "
            "select common ones with the option channels"
        )
    order = [recording.channels.index(name) for name in first.channels]
    return replace(recording, signal=recording.signal[order], channels=first.channels)


def _duplicates(kept: Sequence[_SubjectWindows]) -> list[list[str]]:
    by_digest: dict[str, list[str]] = {}
    for found in kept:
        by_digest.setdefault(found.digest, []).append(found.name)
    return [names for names in by_digest.values() if len(names) > 1]


def _gathered(notes: Sequence[_SubjectNote]) -> tuple[str, ...]:
    """One line for each note, which names the subjects that share it."""
    by_text: dict[str, list[str]] = {}
    for each in notes:
        by_text.setdefault(each.note.text, []).extend([each.subject] if each.subject else [])
    lines = []
    for text, names in by_text.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"{shown}: {text}" if names else text)
    return tuple(lines)


def _key(study: Study, options: WindowOptions, remove: Sequence[FrequencySpan]) -> str:
    removed = [remove] if remove else []
    content = json.dumps([_CACHE_FORMAT, version("mne"), study.classes, asdict(options), *removed])
    return hashlib.sha256(f"{study_digest(study)}{content}".encode()).hexdigest()[:16]


_ARRAYS = ("x", "subject", "start", "log_variance", "labels", "seconds")


def _write(path: Path, windows: Windows) -> None:
    content = vars(windows)
    rest = {k: v for k, v in content.items() if k not in _ARRAYS} | {"options": asdict(windows.options)}
    np.savez(path, meta=np.array(json.dumps(rest)), **{name: content[name] for name in _ARRAYS})


def _read(path: Path) -> Windows:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in _ARRAYS}
        rest = json.loads(str(stored["meta"]))
    pairs = tuple((name, reason) for name, reason in rest.pop("excluded"))
    options = WindowOptions(**rest.pop("options"))
    named: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()}
    return Windows(**arrays, **named, excluded=pairs, options=options)
