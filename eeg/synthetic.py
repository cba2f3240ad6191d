"""Synthetic studies with a known difference between two classes, to test whether a method finds it."""

from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np

from ..runs.files import atomic_path
from .channels import CED_ORDER

CLASSES = ("control", "case")


def synthetic_signal(
    generator: np.random.Generator,
    *,
    planted_uv: float,
    seconds: float = 40.0,
    sfreq: float = 128.0,
    channels: Sequence[str] = CED_ORDER,
    planted: Sequence[str] = ("O1", "O2", "Pz"),
    frequency: float = 10.0,
) -> np.ndarray:
    """Synthetic EEG of one person: a background, and an oscillation on some channels.

    The background has a 1/f spectrum. Its amplitude (10 to 30 uV), its slope (0.8 to 1.4) and the mixing of its sources
    into the electrodes are drawn for each person, so windows of one person are similar and people differ. The phase and
    the amplitude of the oscillation drift.

    Args:
        generator: generator of all random numbers.
        planted_uv: standard deviation of the oscillation; 0 for none.
        seconds, sfreq, channels: length, sampling rate and channels of the recording.
        planted: channels with the oscillation.
        frequency: frequency of the oscillation, Hz.

    Returns:
        (channels, samples) in uV.
    """
    unknown = set(planted) - set(channels)
    if unknown:
        raise ValueError(f"planted channels must be among {', '.join(channels)}, got {', '.join(sorted(unknown))}")
    samples = round(seconds * sfreq)
    slope, amplitude = generator.uniform(0.8, 1.4), generator.uniform(10, 30)
    frequencies = np.fft.rfftfreq(samples, 1 / sfreq)
    shape = np.maximum(frequencies, 0.5) ** (-slope / 2) * (frequencies > 0)
    noise = generator.standard_normal((len(channels), len(frequencies), 2)) @ [1, 1j]
    sources = np.fft.irfft(noise * shape, samples)
    mixing = np.eye(len(channels)) + 0.3 * generator.standard_normal((len(channels), len(channels)))
    signal: np.ndarray = mixing @ (sources / sources.std())
    signal *= amplitude / signal.std(axis=1, keepdims=True)
    # Noise in a band of 1 Hz around the frequency
    band = np.exp(-0.5 * ((frequencies - frequency) / 0.5) ** 2) * (
        generator.standard_normal((len(frequencies), 2)) @ [1, 1j]
    )
    oscillation = np.fft.irfft(band, samples)
    rows = [list(channels).index(name) for name in planted]
    signal[rows] += planted_uv * oscillation / oscillation.std()
    return signal


def write_synthetic_study(
    folder: Path,
    *,
    subjects: int = 100,
    seconds: float = 40.0,
    difference_uv: float = 6.0,
    planted: Sequence[str] = ("O1", "O2", "Pz"),
    frequency: float = 10.0,
    seed: int = 0,
) -> Path:
    """Write recordings (.fif) and subjects.tsv; every other subject is a "case", which has the oscillation.

    Args:
        folder: the folder to write to.
        subjects: number of subjects.
        seconds: mean length of a recording; lengths vary by up to a tenth, independently of the class.
        difference_uv: standard deviation of the oscillation in cases; 0 makes the classes equal.
        planted, frequency: see `synthetic_signal`.
        seed: seed of all random numbers.

    Returns:
        The path of the table.
    """
    if subjects < 4:
        raise ValueError(f"subjects must be at least 4, got {subjects}")
    if not seconds >= 1:
        raise ValueError(f"seconds must be at least 1, got {seconds:g}")
    folder.mkdir(parents=True, exist_ok=True)
    info = mne.create_info(list(CED_ORDER), 128.0, "eeg")
    lines = ["subject\tfile\tlabel"]
    for number in range(subjects):
        generator = np.random.default_rng([seed, number])
        name, label = f"s{number + 1:03d}", CLASSES[number % 2]
        signal = synthetic_signal(
            generator,
            planted_uv=difference_uv * (number % 2),
            seconds=seconds * generator.uniform(0.9, 1.1),
            planted=planted,
            frequency=frequency,
        )
        raw = mne.io.RawArray(signal * 1e-6, info, verbose="error")
        file = f"{name}_raw.fif"
        raw.save(folder / file, overwrite=True, verbose="error")
        lines.append(f"{name}\t{file}\t{label}")
    table = folder / "subjects.tsv"
    with atomic_path(table) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return table
