"""Predictions of a model that a nested run has saved, on windows of another study."""

from pathlib import Path

import numpy as np
from scipy.special import expit

from ..runs.json_files import read_json
from .estimators import LinearEstimator, build
from .mapped import MAPS
from .networks import CARD, LONG_RECORDING, WEIGHTS, load_network, predict_windows
from .recording_data import RecordingData
from .search_spaces import NETWORK_NAMES
from .whole_recordings import predict_recordings
from .windows import Scaler, Windows

SAVED = (*NETWORK_NAMES, "bandpower", "amplitude", "length", *MAPS)  # models that write what they learnt


def model_files(folder: Path) -> list[Path]:
    """The files that hold what the model in the folder of a fit has learnt."""
    return [path for path in (folder / WEIGHTS, folder / CARD) if path.is_file()]


def predict_saved(name: str, folder: Path, windows: Windows) -> np.ndarray:
    """Probability of the positive class of each window, (n,) float64.

    Args:
        name: name of the model, one of `SAVED`.
        folder: the folder of its fit.
        windows: windows cut by the options of the fit, with the same channels in the same order.

    Raises:
        FileNotFoundError, ValueError: the folder holds no such model, or one for other channels.
    """
    if name not in SAVED:
        raise ValueError(f"model must be one that saves what it learns ({', '.join(SAVED)}), got {name!r}")
    if name in NETWORK_NAMES:
        return _predict_network(name, folder, windows)
    numbers = read_json(folder / CARD)
    if name in MAPS:
        x = windows.x
        if numbers["scaler"] is not None:
            x = Scaler(*(np.array(numbers["scaler"][key]) for key in ("mean", "sd"))).apply(x)
        features = MAPS[name].of(numbers["map"]).features(x).astype(np.float32).astype(np.float64)
    else:
        estimator = build(name, windows)
        assert isinstance(estimator, LinearEstimator)
        if list(estimator.features.names) != numbers["features"]:
            raise ValueError(f"{folder} holds a model for other channels or bands than those of the study")
        features = estimator.features.values
    mean, scale, coefficients = (np.array(numbers[key]) for key in ("mean", "scale", "coefficients"))
    result: np.ndarray = expit((features - mean) / scale @ coefficients + numbers["intercept"])
    return result


def _predict_network(name: str, folder: Path, windows: Windows) -> np.ndarray:
    network, card = load_network(folder)
    if card.channels != windows.channels or card.sfreq != windows.sfreq:
        raise ValueError(
            f"the study must have the channels ({', '.join(card.channels)}) and the rate ({card.sfreq:g} Hz) of the "
            f"model, got {', '.join(windows.channels)}; {windows.sfreq:g} Hz"
        )
    scaler = card.fitted_scaler
    if name == LONG_RECORDING:
        data = RecordingData(windows, range(len(windows.subjects)), scaler)
        by_subject: np.ndarray = predict_recordings(network, data.x)[windows.subject]
        return by_subject
    return predict_windows(network, windows.x if scaler is None else scaler.apply(windows.x))
