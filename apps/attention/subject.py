"""A trained network with inputs, in the form that the page of `voxelwave attention explain` needs."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...attention_analysis.trace import attention_layers
from ...eeg.long_recording import LongRecordingNet
from ...eeg.networks import ModelCard, load_network
from ...eeg.readers import SUFFIXES
from ...eeg.whole_recordings import filled_up, joined
from ...eeg.windows import cut, scaled, why_no_window
from ...runs.files import is_hidden
from ...runs.words import one_line
from ...scanpath.oat import BEGIN, log_probabilities
from ...scanpath.scene import Scene
from ...scanpath.weights import NetworkModel
from ..scanpath.predict import read_scenes


class Case(NamedTuple):
    """One input of the network."""

    name: str
    run: Callable[[], Tensor]  # runs the network: probabilities (decisions, classes)
    scene: Scene | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """What is explained.

    Args:
        title: of the page.
        kind: the noun for one input.
        decision: the noun for what the network decides.
        model: the network in evaluation mode.
        layers: a readable name for each attention layer.
        cases: the inputs.
        failed: name and reason of each input that could not be used.
        trained_on: names of the inputs with which the network was trained, as far as they are known.
    """

    title: str
    kind: str
    decision: str
    model: nn.Module
    layers: list[str]
    cases: list[Case]
    failed: list[tuple[str, str]]
    trained_on: tuple[str, ...]


def scene_subject(model: NetworkModel, place: Path, most: int) -> Subject:
    """OAT and scenes, with the path that the network itself finds most likely at each step."""
    cases: list[Case] = []
    failed: list[tuple[str, str]] = []
    for name, scene in read_scenes(place):
        if len(cases) == most:
            break
        try:
            if isinstance(scene, str):
                raise ValueError(scene)
            cases.append(_scene_case(model, name, scene))
        except ValueError as error:
            failed.append((name, one_line(error)))
    names = {"self_attn": "attention to the past", "multihead_attn": "attention to the scene"}
    layers = []
    for name in attention_layers(model.network):
        _, _, number, kind = name.split(".")
        decoder = name.startswith("transformer_decoder")
        layers.append(f"decoder {number}, {names[kind]}" if decoder else f"encoder {number}, among the objects")
    title = "What the scanpath network looks at"
    return Subject(title, "scene", "next fixation", model.network, layers, cases, failed, model.info.trained_on)


def _scene_case(model: NetworkModel, name: str, scene: Scene) -> Case:
    path = model.decode([scene], "greedy")[0][0]
    batch = model.batch([scene])
    previous = torch.tensor([[BEGIN, *path]])

    def run() -> Tensor:
        scores = model.network(batch, torch.tensor([0]), previous)
        first = torch.arange(scores.shape[1]).unsqueeze(0) == 0
        return log_probabilities(scores, first=first)[0].exp()

    return Case(name, run, scene)


def recording_subject(weights: Path, place: Path, most: int) -> Subject:
    """LongRecordingNet and recordings."""
    network, card = load_network(weights)
    if not isinstance(network, LongRecordingNet):
        raise ValueError(
            f"only weights of long_recording have attention that can be explained, got those of {card.network}; "
            "see voxelwave eeg explain"
        )
    files = [place]
    if place.is_dir():
        files = [
            file
            for file in sorted(place.rglob("*"))
            if file.suffix.lower() in SUFFIXES and not is_hidden(file.relative_to(place))
        ]
    cases: list[Case] = []
    failed: list[tuple[str, str]] = []
    for file in islice(files, 4 * most):
        if len(cases) == most:
            break
        try:
            cases.append(_recording_case(network, card, file))
        except (ValueError, OSError) as error:
            failed.append((file.name, one_line(error)))
    layers = [
        "stem, among the electrodes" if name.startswith("stem") else f"layer {name.split('.')[1]}, among the seconds"
        for name in attention_layers(network)
    ]
    title = f"What the network for {card.classes[1]} looks at"
    return Subject(title, "recording", "class", network, layers, cases, failed, card.subjects)


def _recording_case(network: LongRecordingNet, card: ModelCard, file: Path) -> Case:
    options = card.window_options
    recording = options.read(file)
    card.check_recording(recording)
    x, start = cut(recording, options)
    if len(x) == 0:
        raise ValueError(why_no_window([recording], options))
    x, _ = scaled(x, recording, options.scaling)
    x = x if card.fitted_scaler is None else card.fitted_scaler.apply(x)
    samples, lengths = filled_up([joined(x, start)])

    def run() -> Tensor:
        found: Tensor = network(samples, lengths).softmax(1)
        return found

    return Case(file.name, run)
