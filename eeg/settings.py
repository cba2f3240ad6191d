"""Parsing of the settings of a training, and conversion of its data to tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .networks import LONG_RECORDING
from .windows import Scaler, Windows

Settings = dict[str, Any]
_TRAINING = ("lr", "batch", "augmentation")  # settings of the training; all others are the network's


def parse_augmentation(text: str) -> tuple[list[float], list[float]]:
    """Sigmas and magnifications of an augmentation.

    Example:
        >>> parse_augmentation("1,2x0.1,0.01"), parse_augmentation("none")
        (([0.1, 0.01], [1.0, 2.0]), ([], []))
    """
    if text == "none":
        return [], []
    try:
        magnifications, sigmas = (([float(word) for word in part.split(",")]) for part in text.split("x"))
    except ValueError:
        raise ValueError(f'augmentation must be "none" or like "1,2x0.1,0.01", got {text!r}') from None
    return sigmas, magnifications


def network_arguments(windows: Windows, settings: Settings, network: str) -> Settings:
    """Arguments of a network of that name for these windows; settings of the training are left out."""
    length = {} if network == LONG_RECORDING else {"n_times": windows.x.shape[2]}
    names = {} if settings.get("electrode_hops") is None else {"channels": list(windows.channels)}
    return {
        "n_chans": windows.x.shape[1],
        **length,
        "n_outputs": 2,
        "sfreq": windows.sfreq,
        **names,
        **{name: value for name, value in settings.items() if name not in _TRAINING},
    }


def balanced_weights(labels: np.ndarray) -> list[float]:
    """Factors that give both classes the same total weight, 1 on average over the windows.

    Example:
        >>> balanced_weights(np.array([0, 0, 0, 1]))
        [0.6666666666666666, 2.0]
    """
    counts = np.bincount(labels, minlength=2)
    if not counts.all():
        raise ValueError(f"training windows must be of both classes, got {counts.tolist()} windows of each")
    return [float(weight) for weight in len(labels) / (2 * counts)]


def tensors_of(windows: Windows, rows: np.ndarray, scaler: Scaler | None) -> tuple[Tensor, Tensor, Tensor]:
    """Windows (n, channels, times), labels (n,) and subjects (n,) of these rows as tensors."""
    x = windows.x[rows] if scaler is None else scaler.apply(windows.x[rows])
    subject = windows.subject[rows]
    return torch.from_numpy(x), torch.from_numpy(windows.labels[subject]), torch.from_numpy(subject)
