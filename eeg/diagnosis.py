"""The probability of the diagnosed class for one recording."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from .long_recording import LongRecordingNet
from .networks import ModelCard, load_network, predict_windows
from .recording import Recording
from .whole_recordings import joined, predict_recordings
from .windows import cut, scaled, why_no_window


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result for one recording. It is not a statement about a person's health.

    Args:
        probability: of the positive class, mean over the windows.
        classes: (negative, positive).
        threshold: the probability from which the weights count a recording as positive.
        start_s: (n,), start of each window in seconds; one window for weights that read whole recordings.
        windows: (n,), the probability of each window.
        recording: the recording as it was read, with its notes.
    """

    probability: float
    classes: tuple[str, str]
    threshold: float
    start_s: np.ndarray
    windows: np.ndarray
    recording: Recording

    @property
    def decision(self) -> str:
        """The class at the threshold of the weights."""
        return self.classes[self.probability >= self.threshold]


def diagnose(file: str | os.PathLike[str], weights: str | os.PathLike[str] | tuple[nn.Module, ModelCard]) -> Diagnosis:
    """Estimate the probability of the positive class for a recording, as `voxelwave eeg diagnose` does.

    Args:
        file: the recording.
        weights: model.safetensors with model.json beside it, their folder, a name that `voxelwave weights` lists, or
            what `load_network` returned, for many recordings.

    Raises:
        ValueError, OSError: the recording cannot be read, does not fit the weights, or has no window without bad spans.
    """
    network, card = weights if isinstance(weights, tuple) else load_network(weights)
    options = card.window_options
    recording = options.read(Path(file))
    card.check_recording(recording)
    x, start = cut(recording, options)
    if len(x) == 0:
        raise ValueError(why_no_window([recording], options))
    x = scaled(x, recording, options.scaling)
    x = x if card.fitted_scaler is None else card.fitted_scaler.apply(x)
    if isinstance(network, LongRecordingNet):
        start, probability = start[:1], predict_recordings(network, [joined(x, start)])
    else:
        probability = predict_windows(network, x)
    return Diagnosis(
        float(probability.mean()), card.classes, card.threshold, start / recording.sfreq, probability, recording
    )
