"""The EEG networks as exported programs with dynamic sizes."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runs.onnx_file import Exportable, Size
from .long_recording import LongRecordingNet
from .networks import ModelCard

_PRIVATE = ("subjects", "notes")  # these may name people, so they stay out of a file that is given away


def exportable(network: nn.Module, card: ModelCard, *, weights: Path | None = None) -> Exportable:
    """The network with the description that its export needs.

    Args:
        network: a network of `networks.NETWORKS` in evaluation mode.
        card: the description of its weights.
        weights: the weight file.
    """
    channels = len(card.channels)
    common = {
        "channels": list(card.channels),
        "sfreq": card.sfreq,
        "unit": card.unit,
        "window_options": card.windows,
        "scaler": card.scaler,
        "logits": f"their softmax over the last axis; output 1 is the probability of {card.classes[1]!r}",
        "classes": list(card.classes),
        "threshold": card.threshold,
    }
    if isinstance(network, LongRecordingNet):
        second = network.second
        length: int | str = "samples"
        name, sizes = "recordings", {"samples": Size(2 * second, multiple=second, meaning="samples, whole seconds")}
        words = "whole recordings of equal length, cut to whole seconds, scaled as the windows of the training"
        tried = ({"batch": 2, "samples": 5 * second}, {"batch": 1, "samples": 130 * second})
    else:
        length = int(card.arguments["n_times"])
        name, sizes = "windows", {}
        words = "windows of recordings, read, filtered and scaled with window_options"
        tried = ({"batch": 3}, {"batch": 7})

    def example(given: Mapping[str, int]) -> tuple[Tensor, ...]:
        shape = (given["batch"], channels, given.get("samples", card.arguments.get("n_times", 0)))
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)

    return Exportable(
        network=network,
        inputs={name: ("batch", channels, length)},
        outputs=("logits",),
        sizes={"batch": Size(meaning=name), **sizes},
        example=example,
        tried=tried,
        preprocessing={name: words, **common},
        card={name: value for name, value in asdict(card).items() if name not in _PRIVATE},
        weights=weights,
    )
