"""Networks for windows of EEG under one signature, their predictions, and their weights on disk."""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..runs.catalogue import find_weights
from ..runs.files import atomic_path
from ..runs.finite import check_finite
from ..runs.weight_file import read_weights, write_weights
from .adhdeepnet import ADHDeepNet
from .windows import Scaler, WindowOptions

WEIGHTS, CARD = "model.safetensors", "model.json"
FORMAT = "voxelwave-eeg-1"
_AT_ONCE = 128  # windows per pass


def eegnet(
    n_chans: int, n_times: int, n_outputs: int, sfreq: float, *, F1: int = 8, D: int = 2, drop_prob: float = 0.25
) -> nn.Module:
    """EEGNet (Lawhern et al. 2018) by braindecode; the temporal filters last half a second, as in the paper."""
    network: nn.Module = _braindecode().EEGNet(
        n_chans=n_chans,
        n_times=n_times,
        n_outputs=n_outputs,
        sfreq=sfreq,
        F1=F1,
        D=D,
        kernel_length=round(sfreq / 2),
        drop_prob=drop_prob,
        final_layer_with_constraint=True,
    )
    return network


def shallow(
    n_chans: int, n_times: int, n_outputs: int, sfreq: float, *, filters: int = 40, drop_prob: float = 0.5
) -> nn.Module:
    """ShallowConvNet (Schirrmeister et al. 2017) by braindecode; its lengths, published for 250 Hz, follow `sfreq`."""
    network: nn.Module = _braindecode().ShallowFBCSPNet(
        n_chans=n_chans,
        n_times=n_times,
        n_outputs=n_outputs,
        sfreq=sfreq,
        n_filters_time=filters,
        n_filters_spat=filters,
        filter_time_length=max(1, round(25 * sfreq / 250)),
        pool_time_length=max(1, round(75 * sfreq / 250)),
        pool_time_stride=max(1, round(15 * sfreq / 250)),
        drop_prob=drop_prob,
    )
    return network


NETWORKS: dict[str, Callable[..., nn.Module]] = {"adhdeepnet": ADHDeepNet, "eegnet": eegnet, "shallow": shallow}


def build_network(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of `NETWORKS` with random weights from torch's generator.

    Args:
        name: of the network.
        arguments: n_chans, n_times, n_outputs, sfreq, and the network's own.

    Raises:
        ValueError: an unknown name or argument, or windows that are too short for the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    try:
        return NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from None


def _braindecode() -> Any:
    """`braindecode.models`, imported only for the networks that need it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _import_torchaudio()
            from braindecode import models  # optional, and slow to import
    except ImportError as error:
        raise ImportError(f"EEGNet and ShallowConvNet need braindecode: pip install braindecode ({error})") from None
    return models


def _import_torchaudio() -> None:
    """Import torchaudio, which braindecode imports.

    torchaudio refuses to load beside a torch that was built for another CUDA major version. Nothing of it runs here, so
    in that case, and only while it is imported, torch is presented to it as a build without CUDA.
    """
    try:
        import torchaudio
    except RuntimeError:
        built_for = torch.version.cuda
        torch.version.cuda = None
        try:
            import torchaudio  # noqa: F401
        finally:
            torch.version.cuda = built_for


@torch.inference_mode()
def predict_windows(network: nn.Module, x: np.ndarray | Tensor) -> np.ndarray:
    """Probability of the positive class of each window, (n,) float64.

    Args:
        network: gives logits (n, 2).
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
    """Describes a file of weights: the network, its input, and how its output is read.

    Args:
        network: a name of `NETWORKS`.
        arguments: of its constructor.
        classes: (negative, positive); output 1 is the positive class.
        channels: names in the order of the input.
        sfreq: Hz.
        windows: the options by which recordings became windows.
        unit: of the windows before scaling, "uV" or "unknown".
        scaler: "mean" and "sd" of each channel where windows are scaled by the training windows; else None.
        threshold: probability from which a subject counts as positive.
        subjects: names of the subjects of the training and of the validation part that chose the epoch.
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
        """How to cut a recording for these weights; its channels are those of the training.

        Channels that were given as "Cz=A1" are kept so: a file of the same cap is read as in the training.
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


def save_network(folder: Path, network: nn.Module, card: ModelCard) -> None:
    """Write model.safetensors and, last, model.json beside it."""
    write_weights(folder / WEIGHTS, network.state_dict(), {"format": FORMAT})
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **asdict(card)}, indent=1) + "\n")


def load_network(path: str | os.PathLike[str]) -> tuple[nn.Module, ModelCard]:
    """A network in evaluation mode on the CPU, and its card; nothing in the files is executed.

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
            raise FileNotFoundError(f"weights are {WEIGHTS} with {CARD} beside it; there is no {file}")
    card = _read_card(card_file)
    state, _ = read_weights(weights)
    network = build_network(card.network, card.arguments)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {card_file.name}: {str(error).splitlines()[-1].strip()}") from None
    return network.eval(), card


def _read_card(path: Path) -> ModelCard:
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        for name in ("classes", "channels", "subjects"):
            content[name] = tuple(content[name])
        return ModelCard(**content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a model card of an EEG network: {error}") from None
