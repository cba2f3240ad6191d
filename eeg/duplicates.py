"""Finding the same EEG twice: windows that nearly agree, and recordings that share a stretch at any offset."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

_PROJECTION = 128  # dimensions; the error of a correlation is then about 0.09
_SLACK = 0.3  # below the threshold, so that the projection's error loses no pair
_BLOCK = 1024
_CHUNK = 256


def near_duplicate_windows(x: np.ndarray, *, threshold: float = 0.95, seed: int = 0) -> list[tuple[int, int, float]]:
    """Pairs of windows whose signals correlate.

    Candidates come from a random projection (Johnson and Lindenstrauss, 1984); each is then checked in full. Sign and
    scale of a window do not matter.

    Args:
        x: (n, channels, times), each channel of each window of mean 0 and standard deviation 1.
        threshold: least absolute correlation over all channels.
        seed: of the projection.

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


def shared_stretches(
    signals: Sequence[np.ndarray], sfreq: float, *, seconds: float = 8.0, threshold: float = 0.95, seed: int = 0
) -> list[tuple[int, int, float]]:
    """Pairs of recordings that share a stretch of signal, at any position in either.

    Three stretches of every recording are sought in all others by normalised cross-correlation (FFT) of one mixture of
    the channels; a hit is then checked on all channels.

    Args:
        signals: each (channels, samples), one set of channels, at a low rate and without slow drifts.
        sfreq: Hz.
        seconds: length of a stretch; shorter recordings are compared whole.
        threshold: least absolute correlation.
        seed: of the mixture.

    Returns:
        (i, j, correlation) with i < j, the best of each pair.
    """
    mixture = np.random.default_rng(seed).standard_normal(len(signals[0]))
    scaled = [(s - s.mean(axis=1, keepdims=True)) / (s.std(axis=1, keepdims=True) + 1e-12) for s in signals]
    traces = [(mixture @ s).astype(np.float64) for s in scaled]
    stretches = [
        (i, slice(begin, begin + length))
        for i, trace in enumerate(traces)
        for length in [min(len(trace), round(seconds * sfreq))]
        for begin in {round(share * (len(trace) - length)) for share in (0.25, 0.5, 0.75)}
    ]
    best: dict[tuple[int, int], float] = {}
    for first in range(0, len(stretches), _CHUNK):
        chunk = stretches[first : first + _CHUNK]
        for i, span, j, begin in _hits(traces, chunk, threshold):
            there = scaled[j][:, begin : begin + span.stop - span.start]
            correlation = abs(_correlation(scaled[i][:, span], there))
            if correlation >= threshold:
                pair = (min(i, j), max(i, j))
                best[pair] = max(best.get(pair, 0.0), correlation)
    return [(i, j, r) for (i, j), r in sorted(best.items())]


def _hits(
    traces: Sequence[np.ndarray], stretches: Sequence[tuple[int, slice]], threshold: float
) -> Iterator[tuple[int, slice, int, int]]:
    """(recording of the stretch, the stretch, other recording, where in it) of the best place, if it is good."""
    longest = max(span.stop - span.start for _, span in stretches)
    size = next_fast_len(max(len(t) for t in traces) + longest, real=True)
    templates = []
    for i, span in stretches:
        template = traces[i][span] - traces[i][span].mean()
        templates.append(template / (np.linalg.norm(template) + 1e-12))
    spectra = np.conj(rfft(np.array([np.pad(t, (0, size - len(t))) for t in templates], dtype=np.float32)))
    for j, trace in enumerate(traces):
        products = irfft(rfft(trace.astype(np.float32), size) * spectra, size)
        sums = np.r_[0.0, np.cumsum(trace)]
        squares = np.r_[0.0, np.cumsum(trace**2)]
        for (i, span), product in zip(stretches, products, strict=True):
            length = span.stop - span.start
            places = len(trace) - length + 1
            if i == j or places < 1:
                continue
            total = sums[length:] - sums[:-length]
            energy = np.sqrt(np.maximum(squares[length:] - squares[:-length] - total**2 / length, 1e-12))
            agreement = np.abs(product[:places]) / energy
            begin = int(agreement.argmax())
            if agreement[begin] >= threshold - _SLACK / 3:
                yield i, span, j, begin


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-12))
