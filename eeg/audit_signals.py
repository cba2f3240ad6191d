"""Summary of a subject's recordings for the audit: the signal at a low rate, its amplitude, and traits of the file."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import butter, resample, sosfiltfilt

from .file_traits import Trait, file_traits
from .recording import Recording
from .study import Subject
from .windows import WindowOptions

_RATE = 64.0  # Hz: enough to recognise a recording
_LOWEST = 0.5  # Hz


@dataclass(frozen=True, eq=False)
class SubjectSignal:
    """Summary of one subject's recordings.

    Args:
        low: (channels, samples) at a low rate.
        low_sfreq: that rate, Hz.
        amplitude: natural logarithm of the median absolute value.
        unit: unit of the amplitude, "uV" or "unknown".
        traits: traits of the first file.
    """

    low: np.ndarray
    low_sfreq: float
    amplitude: float
    unit: str
    traits: dict[str, Trait]

    @classmethod
    def of(
        cls, subject: Subject, options: WindowOptions, channels: tuple[str, ...], *, traits: bool = True
    ) -> "SubjectSignal":
        """Read the recordings of a subject and, if `traits` is set, the traits of the first file."""
        recordings = [replace(options, channels=channels).read(file) for file in subject.files]
        first = recordings[0]
        centred = [np.abs(r.signal - np.median(r.signal, axis=1, keepdims=True)) for r in recordings]
        amplitude = float(np.log(max(float(np.median(np.concatenate(centred, axis=1))), 1e-12)))
        found: dict[str, Trait] = {
            "sampling rate of the file": f"{first.file_sfreq:g} Hz",
            "number type of the file": first.sample_type,
            "file format": first.source.suffix.lower(),
            "unit of the file": first.unit,
        }
        if traits:
            found |= file_traits(subject.file, options)
        rate = min(_RATE, first.sfreq)
        low = np.concatenate([_low_rate(r, rate) for r in recordings], axis=1)
        return cls(low, rate, amplitude, first.unit, found)


def _low_rate(recording: Recording, rate: float) -> np.ndarray:
    sos = butter(2, _LOWEST, "highpass", fs=recording.sfreq, output="sos")
    filtered = sosfiltfilt(sos, recording.signal, axis=1, padlen=min(60, recording.signal.shape[1] - 1))
    return np.asarray(resample(filtered, max(1, round(recording.seconds * rate)), axis=1), np.float32)
