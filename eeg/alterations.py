"""Altered windows for stress tests: what is left of a score when the data lose something shows what it rests on."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .study import Study
from .windows import WindowOptions, Windows, load_windows, standardize

LABELS = "labels"
BAND = "band-1-40"
MAINS = {"without-45-55": (45.0, 55.0), "without-55-65": (55.0, 65.0)}  # Hz, around the two mains frequencies
UNIT_CHANNELS, UNIT_WINDOWS, EQUAL_LENGTHS, PHASES = "unit-channels", "unit-windows", "equal-lengths", "phases"
_LOW, _HIGH = 1.0, 40.0
_GROUPS = {  # prefixes of the names in the 10-20 system and its extensions
    "frontal": ("Fp", "AF", "F"),
    "central": ("FC", "C", "CP"),
    "temporal": ("FT", "T", "TP"),
    "parietal": ("P",),
    "occipital": ("PO", "O", "I"),
}
_WITHOUT = "without-"
_NAME = re.compile(r"([A-Za-z]+?)(?:z|\d+)")
WITHOUT_SIGNAL = ("length", "majority")  # models that no alteration of the signal can affect


@dataclass(frozen=True)
class Alteration:
    """One alteration of the data.

    Args:
        name: its name, also in the names of cells.
        title: the altered data in a few words.
        removed: what the data lose, to follow "without".
        leaves: what the data keep, a sentence.
        why_not: the reason if it would not change what the model reads; empty otherwise.
    """

    name: str
    title: str
    removed: str
    leaves: str
    why_not: str = ""


def alterations_of(windows: Windows, model: str) -> list[Alteration]:
    """All alterations of the signal and its length, in the order of the report.

    Args:
        windows: the windows of the study.
        model: name of the model that is fitted again.
    """
    fixed = (_of_band(windows), *_of_mains(windows), *_of_amplitude(windows, model), _of_lengths(windows, model))
    found = [*fixed, *_of_electrodes(windows), _of_phases(model)]
    if model not in WITHOUT_SIGNAL:
        return found
    none = "the model does not read the signal"
    return [a if a.name == EQUAL_LENGTHS else replace(a, why_not=none) for a in found]


def load_altered(
    study: Study, options: WindowOptions, cache: str | Path | None, name: str, *, seed: int = 0
) -> Windows:
    """The windows of a study under the alteration of that name.

    Frequencies are removed from the recordings before these are cut and scaled; the other alterations change windows.

    Args:
        study, options, cache: see `load_windows`.
        name: the name of one of `alterations_of`.
        seed: seed of the random phases.

    Raises:
        ValueError: there is no such alteration.
    """
    if name == BAND:
        return load_windows(study, options, cache, remove=((0.0, _LOW), (_HIGH, None)))
    if name in MAINS:
        return load_windows(study, options, cache, remove=(MAINS[name],))
    windows = load_windows(study, options, cache)
    change = _CHANGES.get(name)
    if change is not None:
        return change(windows)
    if name == PHASES:
        return _with_random_phases(windows, seed)
    group = name.removeprefix(_WITHOUT)
    if group not in _GROUPS:
        raise ValueError(f"no alteration is called {name!r}")
    return _without_electrodes(windows, group)


def phase_randomised(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Surrogates of windows with the same spectra and other waveforms (Prichard and Theiler 1994, equation 6).

    One random phase is added per window and frequency, in all channels alike, so the power spectrum of each channel and
    the cross-spectra between channels stay as they are.

    Args:
        x: (n, channels, times).
        generator: generator of the phases.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1, 2, 16))
        >>> y = phase_randomised(x, np.random.default_rng(1))
        >>> bool(np.allclose(np.abs(np.fft.rfft(x)), np.abs(np.fft.rfft(y))) and not np.allclose(x, y))
        True
    """
    spectrum = np.fft.rfft(x, axis=-1)
    phases = generator.uniform(0, 2 * np.pi, (len(x), 1, spectrum.shape[-1]))
    phases[..., 0] = 0  # the mean
    if x.shape[-1] % 2 == 0:
        phases[..., -1] = 0  # half of the sampling rate
    result: np.ndarray = np.fft.irfft(spectrum * np.exp(1j * phases), x.shape[-1], axis=-1).astype(x.dtype)
    return result


def shuffled_within(labels: Sequence[int], strata: Sequence[str], persons: Sequence[str], seed: int) -> np.ndarray:
    """Labels shuffled over the persons of each stratum; all subjects of a person get the same label.

    Args:
        labels: (n,) 0 or 1.
        strata: (n,) such as the site of each subject; a person belongs to the stratum of its first subject.
        persons: (n,) the person of each subject.
        seed: seed of the shuffle.

    Example:
        >>> shuffled_within([0, 0, 1, 1], ["a", "a", "b", "b"], ["p", "q", "r", "s"], 0).tolist()
        [0, 0, 1, 1]
    """
    first = {person: k for k, person in reversed(list(enumerate(persons)))}
    generator = np.random.default_rng(seed)
    given: dict[str, int] = {}
    for stratum in dict.fromkeys(strata):
        members = sorted(k for k in first.values() if strata[k] == stratum)
        order = generator.permutation(len(members))
        given |= {persons[k]: labels[members[j]] for k, j in zip(members, order, strict=True)}
    return np.array([given[person] for person in persons], np.int64)


def _of_band(windows: Windows) -> Alteration:
    low, high = windows.options.band or (None, None)
    top = min(windows.sfreq / 2, high or np.inf)
    inside = low is not None and low >= _LOW and top <= _HIGH
    return Alteration(
        BAND,
        f"{_LOW:g} to {_HIGH:g} Hz only",
        f"what lies below {_LOW:g} Hz and above {_HIGH:g} Hz",
        "It leaves the usual bands of the EEG, from delta to beta. Most mains hum and much muscle activity are gone, "
        "but muscles are also active below 40 Hz.",
        "the windows hold nothing outside this band" if inside else "",
    )


def _of_mains(windows: Windows) -> list[Alteration]:
    top = min(windows.sfreq / 2, (windows.options.band or (None, None))[1] or np.inf)
    found = []
    for name, (low, high) in MAINS.items():
        nothing = "" if low < top else f"the windows hold nothing above {top:g} Hz"
        where = f"{low:g} to {high:g} Hz"
        leaves = (
            f"It leaves all other frequencies; {(low + high) / 2:g} Hz is a mains frequency, whose harmonics stay "
            "if the recordings hold them."
        )
        found.append(Alteration(name, f"without {where}", f"what lies from {where}", leaves, nothing))
    return found


def _of_amplitude(windows: Windows, model: str) -> list[Alteration]:
    scaled = "each channel of each window is scaled to unit variance in this run already"
    why = scaled if windows.options.scaling == "window" and model != "amplitude" else ""
    return [
        Alteration(
            UNIT_CHANNELS,
            "each channel of each window at unit variance",
            "the amplitude of each channel",
            "It leaves the shape of the spectrum and of the waveform in each channel, and the correlation of channels.",
            why,
        ),
        Alteration(
            UNIT_WINDOWS,
            "each window at unit variance over all channels",
            "the overall amplitude of each window",
            "It leaves the relative amplitude of the channels, the shape of the spectrum and the waveform.",
            why,
        ),
    ]


def _of_lengths(windows: Windows, model: str) -> Alteration:
    counts = np.bincount(windows.subject, minlength=len(windows.subjects))
    equal = len(set(counts.tolist())) == 1 and not (model == "length" and len(set(windows.seconds.tolist())) > 1)
    return Alteration(
        EQUAL_LENGTHS,
        f"the first {counts.min()} windows of each subject",
        "differences of recording length",
        "It leaves the first part of each recording, as long as the shortest one; longer recordings lose data.",
        "all subjects have the same number of windows" if equal else "",
    )


def _of_electrodes(windows: Windows) -> list[Alteration]:
    found = []
    for group in _GROUPS:
        names = _electrodes(windows.channels, group)
        why = "the recordings have no such electrode" if not names else ""
        if len(names) == len(windows.channels):
            why = "the recordings have no other electrode"
        title = f"without {group} electrodes" + (f" ({', '.join(names)})" if names else "")
        leaves = (
            "It leaves the other electrodes, which also pick up part of the same sources, and the common reference."
        )
        found.append(Alteration(_WITHOUT + group, title, f"the {group} electrodes", leaves, why))
    return found


def _of_phases(model: str) -> Alteration:
    return Alteration(
        PHASES,
        "phase-randomised surrogates",
        "the waveform",
        "It leaves the power spectrum of each channel and window and the cross-spectra between channels; peaks, shapes "
        "and the order of events within a window are gone.",
        "the model reads amplitudes only, which stay" if model == "amplitude" else "",
    )


def _electrodes(channels: Sequence[str], group: str) -> list[str]:
    matches = {name: _NAME.fullmatch(name) for name in channels}
    return [name for name, match in matches.items() if match and match[1] in _GROUPS[group]]


def _without_electrodes(windows: Windows, group: str) -> Windows:
    dropped = _electrodes(windows.channels, group)
    kept = [k for k, name in enumerate(windows.channels) if name not in dropped]
    return replace(
        windows,
        x=np.ascontiguousarray(windows.x[:, kept]),
        log_variance=windows.log_variance[:, kept],
        channels=tuple(windows.channels[k] for k in kept),
    )


def _with_unit_channels(windows: Windows) -> Windows:
    return replace(windows, x=standardize(windows.x), log_variance=np.zeros_like(windows.log_variance))


def _with_unit_windows(windows: Windows) -> Windows:
    """Each window divided by one number, so that the mean variance of its channels is 1; its means become 0."""
    centred = windows.x - windows.x.mean(axis=-1, keepdims=True)
    sd = np.sqrt((centred**2).mean(axis=(1, 2), keepdims=True))
    overall = np.log(np.exp(windows.log_variance.astype(np.float64)).mean(axis=1, keepdims=True))
    return replace(
        windows,
        x=(centred / np.where(sd > 0, sd, 1)).astype(np.float32),
        log_variance=(windows.log_variance - overall).astype(np.float32),
    )


def _with_equal_lengths(windows: Windows) -> Windows:
    counts = np.bincount(windows.subject, minlength=len(windows.subjects))
    first = np.cumsum(counts) - counts
    rows = np.flatnonzero(np.arange(len(windows.x)) - first[windows.subject] < counts.min())
    times = windows.x.shape[2]
    seconds = float(windows.start[rows[: counts.min()]].max() - windows.start[0] + times) / windows.sfreq
    return replace(
        windows,
        x=windows.x[rows],
        subject=windows.subject[rows],
        start=windows.start[rows],
        log_variance=windows.log_variance[rows],
        seconds=np.full_like(windows.seconds, seconds),
    )


def _with_random_phases(windows: Windows, seed: int, at_once: int = 512) -> Windows:
    generator = np.random.default_rng([seed, len(windows.x)])
    parts = (windows.x[k : k + at_once] for k in range(0, len(windows.x), at_once))
    return replace(windows, x=np.concatenate([phase_randomised(part, generator) for part in parts]))


_CHANGES: dict[str, Callable[[Windows], Windows]] = {
    UNIT_CHANNELS: _with_unit_channels,
    UNIT_WINDOWS: _with_unit_windows,
    EQUAL_LENGTHS: _with_equal_lengths,
}
