"""Search for duplicated EEG: windows that are nearly equal, and recordings that share a stretch at any offset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.optimize import linear_sum_assignment
from scipy.signal import butter, sosfiltfilt

_PROJECTION = 128  # number of dimensions; the error of a correlation is then about 0.09
_SLACK = 0.3  # candidates may be below the threshold by this much, so that the projection's error loses no pair
_BLOCK = 1024
_CHUNK = 256
# Hz; a filtered copy still agrees in the bands that the filter passed
_BANDS = ((1.0, 12.0), (2.0, 8.0), (8.0, 14.0), (14.0, 28.0))
_LIMITED_DB = 20.0  # a recording was filtered if a part of its spectrum is this far below its highest level
_PASSED_DB = 4.0  # the filter passed the frequencies that are at most this far below the highest level
_ALIKE = 0.7  # fraction that two passbands must share to count as one
_WIDE = 4.5  # Hz; a narrower band has less information, so that stretches in it are longer,
_LONGER = 4.0  # by at most this factor
_MOST_BANDS = 24  # of filtered recordings
_COARSE = 16.0  # Hz, rate of the envelopes in which copies are sought
_CANDIDATE = 0.7  # correlation of envelopes from which all channels are compared
_LEAST_POWER = 1e-3  # share of the recording's power; a band with less contains only residues of a filter


def near_duplicate_windows(x: np.ndarray, *, threshold: float = 0.95, seed: int = 0) -> list[tuple[int, int, float]]:
    """Pairs of windows whose signals correlate.

    Candidates come from a random projection (Johnson and Lindenstrauss, 1984); each is then checked in full. Sign and
    scale of a window do not matter.

    Args:
        x: (n, channels, times), each channel of each window of mean 0 and standard deviation 1.
        threshold: least absolute correlation over all channels.
        seed: seed of the projection.

    Returns:
        (i, j, correlation) with i < j.
    """
    flat = x.reshape(len(x), -1)
    norm = np.sqrt(np.einsum("ij,ij->i", flat, flat, dtype=np.float64))
    alive = np.flatnonzero(norm > 0)
    if len(alive) < 2:
        return []
    draw = np.random.default_rng(seed).standard_normal((flat.shape[1], _PROJECTION), dtype=np.float32)
    sketch = np.concatenate([flat[alive[i : i + _BLOCK]] @ draw for i in range(0, len(alive), _BLOCK)])
    sketch /= np.linalg.norm(sketch, axis=1, keepdims=True)
    found = []
    for begin in range(0, len(alive), _BLOCK):
        close = np.abs(sketch[begin : begin + _BLOCK] @ sketch[begin:].T) > threshold - _SLACK
        rows, columns = np.nonzero(np.triu(close, k=1))
        for i, j in zip(alive[begin + rows], alive[begin + columns], strict=True):
            correlation = abs(float(flat[i] @ flat[j]) / (norm[i] * norm[j]))
            if correlation >= threshold:
                found.append((int(i), int(j), correlation))
    return found


@dataclass(frozen=True, eq=False)
class _Band:
    """All recordings in one frequency band.

    Args:
        signals: (channels, samples) of each recording, minus the mean over channels, so independent of the reference.
        envelopes: (samples at the coarse rate,) of each recording, logarithm of the power over the channels.
    """

    signals: list[np.ndarray]
    envelopes: list[np.ndarray]


@dataclass(frozen=True)
class _Stretch:
    """A part of a recording's envelope, forwards or backwards."""

    recording: int
    span: slice
    backwards: bool


def shared_stretches(
    signals: Sequence[np.ndarray], sfreq: float, *, seconds: float = 8.0, threshold: float = 0.95
) -> list[tuple[int, int, float]]:
    """Pairs of recordings that share a stretch of signal, at any position in either.

    Three stretches of every recording are searched for in all others, forwards and backwards, by normalised
    cross-correlation (FFT) of the power over all channels. A match is aligned to a fraction of a sample, and each
    channel is compared with the channel that fits it best. A copy is therefore found even with another reference, order
    or gain of the channels, a filter, a shift by a fraction of a sample, another sampling rate or reversed time.
    Recordings whose spectrum shows that a filter left a narrow band are also compared with all others in that band.

    Args:
        signals: (channels, samples) of each recording, with the same channels, high-pass filtered at 0.5 Hz.
        sfreq: sampling rate in Hz, at least 32.
        seconds: length of a stretch; shorter recordings are compared as a whole.
        threshold: least absolute correlation, mean over channels.

    Returns:
        (i, j, correlation) with i < j, for the best match of each pair.
    """
    best: dict[tuple[int, int], float] = {}
    searches = [(_Passband(low, high, range(len(signals))), 2) for low, high in _BANDS if high <= 0.45 * sfreq]
    searches += [(passband, 4) for passband in _passbands(signals, sfreq)]
    for passband, order in searches:
        band = _in_band(signals, sfreq, passband.low, passband.high, order)
        least = seconds * (1.0 if order == 2 else max(1.0, min(_LONGER, _WIDE / (passband.high - passband.low))))
        stretches = [s for s in _stretches(band.envelopes, least) if s.recording in passband.recordings]
        for stretch, j, begin in _hits(band.envelopes, stretches):
            pair = (min(stretch.recording, j), max(stretch.recording, j))
            if best.get(pair, 0.0) < 0.999:
                found = _agreement(band, stretch, j, begin, sfreq)
                if found >= threshold:
                    best[pair] = max(best.get(pair, 0.0), found)
    return [(i, j, r) for (i, j), r in sorted(best.items())]


class _Passband(NamedTuple):
    """A band, in Hz, in which some recordings are compared with all."""

    low: float
    high: float
    recordings: Sequence[int]


def _passbands(signals: Sequence[np.ndarray], sfreq: float) -> list[_Passband]:
    """The passbands of narrow filters, each with the recordings that show it; the most frequent band comes first."""
    frequency, levels = _levels(signals, sfreq)
    groups: list[_Passband] = []
    for i, level in enumerate(levels):
        if level.min() > level.max() - _LIMITED_DB:
            continue
        passed = level > level.max() - _PASSED_DB
        peak = int(level.argmax())
        low = frequency[peak - int(np.argmin(np.r_[passed[peak::-1], False])) + 1]
        high = frequency[peak + int(np.argmin(np.r_[passed[peak:], False])) - 1]
        for n, group in enumerate(groups):
            common = max(low, group.low), min(high, group.high)
            if common[1] - common[0] > _ALIKE * (max(high, group.high) - min(low, group.low)):
                groups[n] = _Passband(*common, [*group.recordings, i])
                break
        else:
            groups.append(_Passband(low, max(high, low + 0.5), [i]))
    return sorted(groups, key=lambda group: -len(group.recordings))[:_MOST_BANDS]


def _levels(signals: Sequence[np.ndarray], sfreq: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies, and the power of each recording relative to its own maximum, in dB below the highest recording."""
    width = round(4 * sfreq)
    frequency = np.fft.rfftfreq(width, 1 / sfreq)
    used = (frequency >= 1) & (frequency <= 0.44 * sfreq)
    slope = np.log10(frequency[used]) * 15  # about that of an EEG
    rows = []
    for signal in signals:
        x = signal - signal.mean(axis=0) if len(signal) > 2 else signal
        parts = x[:, : x.shape[1] // width * width].reshape(len(x), -1, width)
        if not parts.size:
            rows.append(np.zeros(len(slope)))
            continue
        windowed = (parts - parts.mean(axis=2, keepdims=True)) * np.hanning(width)
        power = np.square(np.abs(np.fft.rfft(windowed, axis=2))).mean(axis=(0, 1))[used]
        level = 10 * np.log10(power + 1e-12 * power.max() + 1e-300) + slope
        rows.append(level - level.max())
    levels = np.array(rows)
    return frequency[used], levels - levels.max(axis=0)


def _in_band(signals: Sequence[np.ndarray], sfreq: float, low: float, high: float, order: int) -> _Band:
    sos = butter(order, (low, high), "bandpass", fs=sfreq, output="sos")
    window = np.hanning(max(3, round(0.25 * sfreq)))
    step = max(1, round(sfreq / _COARSE))
    kept, envelopes = [], []
    for signal in signals:
        x = signal - signal.mean(axis=0) if len(signal) > 2 else signal
        padding = min(60, x.shape[1] - 1)
        filtered = sosfiltfilt(sos, x, axis=1, padlen=padding).astype(np.float32)
        power = np.convolve(np.square(filtered).mean(axis=0), window / window.sum(), mode="same")
        enough = power.mean() > _LEAST_POWER * np.square(x - x.mean(axis=1, keepdims=True)).mean()
        envelopes.append(np.log(power + 1e-6 * power.mean() + 1e-30)[::step] if enough else np.zeros(0))
        kept.append(filtered)
    return _Band(kept, envelopes)


def _stretches(envelopes: Sequence[np.ndarray], seconds: float) -> list[_Stretch]:
    return [
        _Stretch(i, slice(begin, begin + length), backwards)
        for i, envelope in enumerate(envelopes)
        for length in [min(len(envelope), round(seconds * _COARSE))]
        if length >= _COARSE
        for begin in sorted({round(share * (len(envelope) - length)) for share in (0.25, 0.5, 0.75)})
        for backwards in (False, True)
    ]


def _hits(envelopes: Sequence[np.ndarray], stretches: Sequence[_Stretch]) -> Iterator[tuple[_Stretch, int, int]]:
    """(stretch, other recording, first coarse sample in it) for the best match of each pair, if it is good enough."""
    for first in range(0, len(stretches), _CHUNK):
        chunk = stretches[first : first + _CHUNK]
        longest = max(each.span.stop - each.span.start for each in chunk)
        size = next_fast_len(max(len(e) for e in envelopes) + longest, real=True)
        templates = np.zeros((len(chunk), size), np.float32)
        for row, each in zip(templates, chunk, strict=True):
            part = envelopes[each.recording][each.span]
            part = (part - part.mean()) / (np.linalg.norm(part - part.mean()) + 1e-12)
            row[: len(part)] = part[::-1] if each.backwards else part
        spectra = np.conj(rfft(templates))
        lengths = np.array([each.span.stop - each.span.start for each in chunk])
        for j, envelope in enumerate(envelopes):
            if len(envelope) < lengths.min():
                continue
            products = irfft(rfft((envelope - envelope.mean()).astype(np.float32), size) * spectra, size)
            for length in np.unique(lengths[lengths <= len(envelope)]):
                rows = np.flatnonzero(lengths == length)
                agreement = products[rows, : len(envelope) - length + 1] / _norms(envelope, int(length))
                begins = agreement.argmax(axis=1)
                good = agreement[np.arange(len(rows)), begins] >= _CANDIDATE
                for row, begin in zip(rows[good], begins[good], strict=True):
                    if chunk[row].recording != j:
                        yield chunk[row], j, int(begin)


def _norms(x: np.ndarray, length: int) -> np.ndarray:
    """Norms of all stretches of a length, without their means."""
    x = x - x.mean()
    sums, squares = np.r_[0.0, np.cumsum(x)], np.r_[0.0, np.cumsum(x**2)]
    total = sums[length:] - sums[:-length]
    norms: np.ndarray = np.sqrt(np.maximum(squares[length:] - squares[:-length] - total**2 / length, 1e-12))
    return norms


def _agreement(band: _Band, stretch: _Stretch, j: int, begin: int, sfreq: float) -> float:
    """Mean correlation of channels at the best offset near `begin`, each with the channel that fits it best."""
    step, margin = max(1, round(sfreq / _COARSE)), max(2, round(0.1 * sfreq))
    part = band.signals[stretch.recording][:, stretch.span.start * step : stretch.span.stop * step]
    part = part[:, ::-1] if stretch.backwards else part
    there = band.signals[j]
    length = part.shape[1]
    first = max(0, begin * step - margin)
    region = there[:, first : begin * step + length + margin]
    if region.shape[1] < length:
        length = region.shape[1]
        part = part[:, :length]
    places = range(region.shape[1] - length + 1)
    fits = [_correlations(part, region[:, k : k + length]) for k in places]
    coarse = [_one_to_one(fit) if fit.max(axis=1).mean() > 0.5 else 0.0 for fit in fits]
    k = int(np.argmax(coarse))
    if coarse[k] < 0.6:
        return coarse[k]
    found = [coarse[k]]
    for shift in np.arange(-1, 1.01, 0.125):
        moved = _shifted(part, float(shift))
        inside = slice(4, length - 4)
        found.append(_one_to_one(_correlations(moved[:, inside], region[:, k + 4 : k + length - 4])))
    return max(found)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(channels, channels) absolute correlations; 0 for a flat channel."""
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    found: np.ndarray = np.abs(a @ b.T) / np.where(norms > 1e-12 * norms.max(initial=0), norms, np.inf)
    return found


def _one_to_one(correlations: np.ndarray) -> float:
    """Mean correlation of the best one-to-one assignment of channels, without the lowest tenth (bad electrodes)."""
    pairs = linear_sum_assignment(-correlations)
    values = np.sort(correlations[pairs])
    return float(values[len(values) // 10 :].mean())


def _shifted(x: np.ndarray, samples: float) -> np.ndarray:
    """The signals, shifted by a fraction of a sample."""
    count = x.shape[1]
    phase = np.exp(-2j * np.pi * rfftfreq(count) * samples)
    moved: np.ndarray = irfft(rfft(x, axis=1) * phase, count, axis=1)
    return moved
