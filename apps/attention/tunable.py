"""Data on which the attention of a network is tuned: its losses on two halves, and groups of its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...attention_analysis.trace import attention_layers
from ...attention_analysis.tuning import Losses, TokenGroup
from ...eeg.long_recording import LongRecordingNet
from ...eeg.networks import ModelCard
from ...eeg.study import Study, read_study
from ...eeg.whole_recordings import filled_up, joined
from ...kernels.attention.mixer import CS
from ...runs.words import one_line
from ...scanpath.oat import BEGIN, SceneBatch, log_probabilities
from ...scanpath.readers import read_scanpaths
from ...scanpath.scene import Dataset
from ...scanpath.weights import NetworkModel
from . import scenes
from .recordings import layers_in_words, prepared

_LONGEST = 20  # fixations of a trial that count; later ones are few and slow
_LOUD = 0.1  # share of the seconds that are the loudest


@dataclass(frozen=True, eq=False)
class Tunable:
    """A network and two halves of the data.

    Args:
        model: the network in evaluation mode.
        noun: for the units of the halves.
        loss_unit: of the losses.
        halves: names of the units on which a change is chosen, and on which it is measured.
        calibration, held_out: the losses on them.
        causal: number of a layer whose weights may be changed -> whether its maps are causal.
        levers: number of a layer -> the key whose weight is scaled.
        groups: groups of tokens, which the losses set for each input.
        layers: a readable name for each attention layer.
        failed: name and reason of each input that could not be used.
    """

    model: nn.Module
    noun: str
    loss_unit: str
    halves: tuple[list[str], list[str]]
    calibration: Losses
    held_out: Losses
    causal: dict[int, bool]
    levers: dict[int, int]
    groups: tuple[TokenGroup, ...]
    layers: list[str]
    failed: tuple[tuple[str, str], ...] = ()


def scanpath_tunable(model: NetworkModel, place: Path, *, most: int, seed: int) -> Tunable:
    """OAT and people's scanpaths, halved by layout.

    Raises:
        ValueError: there are too few layouts that the weights were not trained on.
    """
    data = read_scanpaths(place, duplicates="drop")
    known = set(model.info.trained_on)
    layouts = sorted({data.scenes[trial.scene].layout for trial in data.trials} - known)
    if len(layouts) < 4:
        raise ValueError(
            f"tuning needs people's scanpaths on at least 4 layouts that the weights were not trained on, got "
            f"{len(layouts)} in {place}"
        )
    order = np.random.default_rng(seed).permutation(len(layouts))[:most]
    first, second = ([layouts[i] for i in order[start::2]] for start in (0, 1))
    groups = TokenGroup("the objects"), TokenGroup("the token of the target")
    causal, levers = {}, {}
    for number, name in enumerate(attention_layers(model.network)):
        past = name.startswith("transformer_decoder") and name.endswith("self_attn")
        causal[number], levers[number] = past, 0 if past else -1  # the last token of a scene is the target's
    calibration, held_out = (layout_losses(model, data, half, groups) for half in (first, second))
    return Tunable(
        model=model.network,
        noun="layout",
        loss_unit="nats per fixation, mean over the trials of a layout",
        halves=(first, second),
        calibration=calibration,
        held_out=held_out,
        causal=causal,
        levers=levers,
        groups=groups,
        layers=scenes.layers_in_words(model.network),
    )


def layout_losses(
    model: NetworkModel, data: Dataset, layouts: Sequence[str], groups: tuple[TokenGroup, TokenGroup]
) -> Losses:
    """A function that runs the network: the mean negative log-probability of a fixation on each layout, in nats."""
    prepared_trials: dict[str, list[tuple[SceneBatch, Tensor, Tensor]]] = {layout: [] for layout in layouts}
    batches: dict[str, SceneBatch] = {}
    for trial in data.trials:
        scene = data.scenes[trial.scene]
        if scene.layout not in prepared_trials:
            continue
        if trial.scene not in batches:
            batches[trial.scene] = model.batch([scene])
        path = torch.from_numpy(trial.objects[:_LONGEST])
        previous = torch.cat([torch.tensor([BEGIN]), path[:-1]]).unsqueeze(0)
        prepared_trials[scene.layout].append((batches[trial.scene], previous, path))

    def losses() -> Tensor:
        found = []
        for trials in prepared_trials.values():
            values = []
            for batch, previous, path in trials:
                last = torch.arange(batch.present.shape[1] + 1) == batch.present.shape[1]
                groups[0].mask, groups[1].mask = ~last, last
                scores = model.network(batch, torch.tensor([0]), previous)
                first = torch.arange(len(path)).unsqueeze(0) == 0
                likely = log_probabilities(scores.double(), first=first)[0]
                values.append(-likely[torch.arange(len(path)), path].mean())
            found.append(torch.stack(values).mean())
        return torch.stack(found)

    return losses


def recording_tunable(network: LongRecordingNet, card: ModelCard, place: Path, *, most: int, seed: int) -> Tunable:
    """LongRecordingNet and a study, halved by person, each half with the same share of each class.

    Raises:
        ValueError: there are too few people whose recordings the weights were not trained on.
    """
    study = read_study(place)
    if set(study.classes) != set(card.classes):
        raise ValueError(
            f"the study must have the classes of the weights, {' and '.join(card.classes)}, got "
            f"{' and '.join(study.classes)}"
        )
    people: list[list[str]] = [[], []]
    for number, name in enumerate(card.classes):
        own = {subject.person for subject in study.subjects if subject.label == name}
        own -= {subject.person for subject in study.subjects if subject.subject in card.subjects}
        if len(own) < 2:
            raise ValueError(
                f"tuning needs at least 2 people of each class that the weights were not trained on, got {len(own)} "
                f"of {name} in {place}"
            )
        order = np.random.default_rng([seed, number]).permutation(len(own))[: most // 2]
        names = sorted(own)
        for half in (0, 1):
            people[half] += [names[i] for i in order[half::2]]
    groups = TokenGroup("the loudest seconds"), TokenGroup("the other seconds")
    failed: list[tuple[str, str]] = []
    recordings = _recordings(card, study, {person for half in people for person in half}, failed)
    halves = tuple([person for person in half if person in recordings] for half in people)
    if min(map(len, halves)) < 2:
        reason = f": {failed[0][0]}: {failed[0][1]}" if failed else ""
        raise ValueError(
            f"tuning needs at least 2 people in each half, got {len(halves[0])} and {len(halves[1])}{reason}"
        )
    calibration, held_out = (
        subject_losses(network, {person: recordings[person] for person in half}, groups) for half in halves
    )
    causal = {
        number: network.pattern is CS
        for number, name in enumerate(attention_layers(network))
        if not name.startswith("stem")
    }
    return Tunable(
        model=network,
        noun="subject",
        loss_unit="nats, mean over the recordings of a subject",
        halves=(halves[0], halves[1]),
        calibration=calibration,
        held_out=held_out,
        causal=causal,
        levers={},
        groups=groups,
        layers=layers_in_words(network),
        failed=tuple(failed),
    )


Recording = tuple[Tensor, Tensor, int]  # samples (1, channels, n), their number (1), class


def _recordings(
    card: ModelCard, study: Study, people: set[str], failed: list[tuple[str, str]]
) -> dict[str, list[Recording]]:
    found: dict[str, list[Recording]] = {}
    for subject in study.subjects:
        if subject.person not in people:
            continue
        for file in subject.files:
            try:
                x, lengths = filled_up([joined(*prepared(card, file))])
            except (ValueError, OSError) as error:
                failed.append((file.name, one_line(error)))
                continue
            found.setdefault(subject.person, []).append((x, lengths, card.classes.index(subject.label)))
    return found


def subject_losses(
    network: LongRecordingNet, recordings: dict[str, list[Recording]], groups: tuple[TokenGroup, TokenGroup]
) -> Losses:
    """A function that runs the network: the mean cross-entropy of each subject's recordings, in nats."""
    loud = {id(x): _loudest(network, x, int(n)) for own in recordings.values() for x, n, _ in own}

    def losses() -> Tensor:
        found = []
        for own in recordings.values():
            values = []
            for x, lengths, label in own:
                groups[0].mask, groups[1].mask = loud[id(x)], ~loud[id(x)]
                values.append(-network(x, lengths).double().log_softmax(1)[0, label])
            found.append(torch.stack(values).mean())
        return torch.stack(found)

    return losses


def _loudest(network: LongRecordingNet, x: Tensor, samples: int) -> Tensor:
    """Bool (seconds): the tenth of the seconds with the largest mean amplitude."""
    seconds = samples // network.second
    size = x[0, :, : seconds * network.second].abs().mean(0).view(seconds, network.second).mean(1)
    chosen = torch.zeros(seconds, dtype=torch.bool)
    chosen[size.argsort(descending=True)[: max(1, round(_LOUD * seconds))]] = True
    return chosen
