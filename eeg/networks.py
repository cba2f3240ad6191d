"""Networks for EEG with one signature, their predictions, and their weight files."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..runs.catalogue import find_weights
from ..runs.finite import check_finite
from ..runs.json_files import read_json, write_json
from ..runs.json_types import check_record
from ..runs.weight_file import check_claims, check_number_kinds, read_weights, write_weights
from .adhdeepnet import ADHDeepNet
from .eegnet import EEGNet
from .long_recording import LongRecordingNet
from .recording import Recording
from .shallowconvnet import ShallowConvNet
from .windows import Scaler, WindowOptions

WEIGHTS, CARD = "model.safetensors", "model.json"
FORMAT = "voxelwave-eeg-1"
_AT_ONCE = 128  # windows per pass


LONG_RECORDING = "long_recording"  # reads whole recordings; all others read windows
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "adhdeepnet": ADHDeepNet,
    "eegnet": EEGNet,
    "shallow": ShallowConvNet,
    LONG_RECORDING: LongRecordingNet,
}
WINDOW_NETWORKS = tuple(name for name in NETWORKS if name != LONG_RECORDING)


def build_network(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of `NETWORKS` with random weights drawn from torch's generator.

    Args:
        name: name of the network.
        arguments: n_chans, n_outputs, sfreq, n_times for a network of windows, and the network's own arguments.

    Raises:
        ValueError: the name or an argument is unknown, or the windows are too short for the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    try:
        return NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from None


@torch.inference_mode()
def predict_windows(network: nn.Module, x: np.ndarray | Tensor) -> np.ndarray:
    """Probability of the positive class of each window, (n,) float64.

    Args:
        network: a network that returns logits (n, 2).
        x: (n, channels, times), scaled as in training.
    """
    network.eval()
    windows = torch.as_tensor(x)
    check_finite(windows, "samples of the recording, filtered and scaled,")
    found = torch.cat([network(part).double().softmax(1)[:, 1] for part in windows.split(_AT_ONCE)])
    check_finite(found, "probabilities")
    return found.numpy()


@dataclass(frozen=True)
class ModelCard:
    """Describes a weight file: the network, its input, and the meaning of its output.

    Args:
        network: a name of `NETWORKS`.
        arguments: arguments of its constructor.
        classes: (negative, positive); output 1 is the positive class.
        channels: names of the channels in the order of the input.
        sfreq: sampling rate in Hz.
        windows: the options by which recordings were cut into windows.
        unit: unit of the windows before scaling, "uV" or "unknown".
        scaler: "mean" and "sd" of each channel if windows are scaled by the training windows; otherwise None.
        threshold: probability from which a subject counts as positive.
        subjects: names of the training subjects and of the validation subjects, on whom the epoch was chosen.
        notes: settings, seed, epochs and the like.
    """

    network: str
    arguments: dict[str, Any]
    classes: tuple[str, str]
    channels: tuple[str, ...]
    sfreq: float
    windows: dict[str, Any]
    unit: str = "unknown"
    scaler: dict[str, list[float]] | None = None
    threshold: float = 0.5
    subjects: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def window_options(self) -> WindowOptions:
        """Options by which a recording is cut for these weights, with the channels of the training.

        Channels given as "Cz=A1" are kept in this form, so that a file of the same cap is read as in the training.
        """
        given = tuple(self.windows.get("channels") or ())
        channels = given if any("=" in name for name in given) else self.channels
        return WindowOptions(**{**self.windows, "channels": channels, "sfreq": self.sfreq})

    @property
    def fitted_scaler(self) -> Scaler | None:
        """The scaler of the training windows."""
        if self.scaler is None:
            return None
        return Scaler(np.asarray(self.scaler["mean"]), np.asarray(self.scaler["sd"]))

    def check_recording(self, recording: Recording) -> None:
        """Check that a recording has the rate and the unit of the training.

        Raises:
            ValueError: rate or unit differ; the message names both values.
        """
        if recording.file_sfreq < self.sfreq:
            raise ValueError(
                f"the weights need at least {self.sfreq:g} Hz, got {recording.file_sfreq:g} Hz, which lacks fast EEG"
            )
        if self.window_options.scaling in ("none", "fold") and recording.unit != self.unit:
            raise ValueError(f"the weights need recordings in {self.unit} as in the training, got {recording.unit}")


def save_network(folder: Path, network: nn.Module, card: ModelCard) -> None:
    """Write model.safetensors and then model.json to a folder."""
    write_weights(folder / WEIGHTS, network.state_dict(), {"format": FORMAT})
    write_json(folder / CARD, {"format": FORMAT, **asdict(card)})


def load_network(path: str | os.PathLike[str]) -> tuple[nn.Module, ModelCard]:
    """A network in evaluation mode on the CPU, and its card; no code in the files is executed.

    Args:
        path: model.safetensors with model.json beside it, their folder, or a name that `voxelwave weights` lists.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or was not written by `save_network`.
    """
    path = find_weights(path, "eeg")
    weights = path / WEIGHTS if path.is_dir() else path
    card_file = weights.with_suffix(".json")
    for file in (weights, card_file):
        if not file.is_file():
            raise FileNotFoundError(f"weights must be {WEIGHTS} and {CARD} in one folder; there is no {file}")
    card = _read_card(card_file)
    state, _ = read_weights(weights)
    network = build_network(card.network, card.arguments)
    check_number_kinds(weights, state, network.state_dict())
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {card_file.name}: {str(error).splitlines()[-1].strip()}") from None
    return network.eval(), card


def _read_card(path: Path) -> ModelCard:
    try:
        content = read_json(path)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError("another format")
        check_record(content, ModelCard, path.name)
        check_claims(path, content["arguments"])
        lists = {name: tuple(content[name]) for name in ("classes", "channels", "subjects") if name in content}
        return ModelCard(**{**content, **lists})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a model card of an EEG network: {error}") from None
