"""Recordings and LongRecordingNet: the inputs of a page, and where the network looks in them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...attention_analysis.indicators import is_causal
from ...attention_analysis.pictures import Curve, curves, points_on_head
from ...attention_analysis.sinks import relative_columns
from ...attention_analysis.trace import attention_layers, record_run
from ...eeg.channels import positions
from ...eeg.long_recording import LongRecordingNet
from ...eeg.networks import ModelCard
from ...eeg.readers import SUFFIXES
from ...eeg.study import TABLE, read_study
from ...eeg.whole_recordings import filled_up, joined
from ...eeg.windows import cut, scaled, why_no_window
from ...runs.files import is_hidden
from ...runs.words import one_line
from .subject import Case, Subject
from .where import SHOWN, Where, compared, last_map, reliance, without

_BINS = 20  # parts of a recording in the curve of a study
_FEW = 4  # with more recordings, their curves are averaged


class Recorded(NamedTuple):
    """A file of a study or of a folder."""

    file: Path
    unit: str  # the person
    label: int | None


def files_of(place: Path, classes: tuple[str, str], most: int) -> list[Recorded]:
    """The recordings to explain: of a study, at most `most` subjects spread evenly over its table, with labels.

    Args:
        place: a recording, a folder of recordings, or a study: a table, or a folder with subjects.tsv or
            participants.tsv.
        classes: of the network.
        most: largest number of subjects; of a folder, several times as many files are offered.
    """
    if not is_study(place):
        files = [place]
        if place.is_dir():
            files = [
                file
                for file in sorted(place.rglob("*"))
                if file.suffix.lower() in SUFFIXES and not is_hidden(file.relative_to(place))
            ]
        return [Recorded(file, file.stem.split("_")[0], None) for file in islice(files, 4 * most)]
    study = read_study(place)
    if unknown := sorted(set(study.classes) - set(classes)):
        raise ValueError(
            f"the study must have the classes of the weights, {classes[0]} and {classes[1]}, got {', '.join(unknown)}"
        )
    count = len(study.subjects)
    rows = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    chosen = [study.subjects[row] for row in rows]
    return [Recorded(file, one.person, classes.index(one.label)) for one in chosen for file in one.files]


def is_study(place: Path) -> bool:
    """Whether a path is a table of subjects, or a folder with one."""
    if place.is_dir():
        return any((place / name).is_file() for name in (TABLE, "participants.tsv"))
    return place.suffix.lower() in (".tsv", ".csv")


def prepared(card: ModelCard, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The windows (n, channels, times) of a recording, scaled as in the training, and their first samples.

    Raises:
        ValueError: the recording does not fit the weights.
    """
    options = card.window_options
    recording = options.read(file)
    card.check_recording(recording)
    x, start = cut(recording, options)
    if len(x) == 0:
        raise ValueError(why_no_window([recording], options))
    x = scaled(x, recording, options.scaling)
    return (x if card.fitted_scaler is None else card.fitted_scaler.apply(x)), start


def recording_subject(network: LongRecordingNet, card: ModelCard, place: Path, most: int) -> Subject:
    """LongRecordingNet and recordings."""
    found = files_of(place, card.classes, most)
    study = is_study(place)
    cases: list[Case] = []
    failed: list[tuple[str, str]] = []
    for one in found:
        if not study and len(cases) == most:
            break
        try:
            cases.append(_recording_case(network, card, one))
        except (ValueError, OSError) as error:
            failed.append((one.file.name, one_line(error)))
    return Subject(
        f"What the network for {card.classes[1]} looks at",
        "recording",
        "class",
        network,
        layers_in_words(network),
        cases,
        failed,
        card.subjects,
        unit="subject",
        classes=card.classes if study else (),
        channels=card.channels,
    )


def layers_in_words(network: LongRecordingNet) -> list[str]:
    """A readable name for each attention layer."""
    return [f"among the {'electrodes' if name.startswith('stem') else 'seconds'}" for name in attention_layers(network)]


def _recording_case(network: LongRecordingNet, card: ModelCard, one: Recorded) -> Case:
    samples, lengths = filled_up([joined(*prepared(card, one.file))])

    def run() -> Tensor:
        found: Tensor = network(samples, lengths).softmax(1)
        return found

    return Case(one.file.name, run, unit=one.unit, label=one.label)


@torch.no_grad()
def look_at_recordings(subject: Subject) -> Where:
    """The attention that each second receives, and what hiding the most and other seconds changes."""
    received: list[Tensor] = []
    most, random = [], []
    generator = torch.Generator().manual_seed(0)
    for case in subject.cases:
        weights = last_map(subject, case)
        seconds = relative_columns(weights, causal=is_causal(weights)).mean(0)
        received.append(seconds)
        count = max(1, len(seconds) // 10)
        most.append(without(subject, case, seconds.argsort(descending=True)[:count].tolist()))
        random.append(without(subject, case, torch.randperm(len(seconds), generator=generator)[:count].tolist()))
    pictures = [_over_time(subject, received)]
    if (scalp := _over_scalp(subject)) is not None:
        pictures.append(scalp)
    rows = [
        reliance(subject, "the tenth of the seconds with most attention", most),
        reliance(subject, "a random tenth of the seconds", random),
    ]
    return Where([*_right(subject), *compared(subject, *rows)], pictures, rows)


def _right(subject: Subject) -> list[str]:
    """A sentence on how often the network is right, if the true classes are known."""
    known = [case for case in subject.cases if case.label is not None]
    if not subject.classes or not known:
        return []
    right = [float(case.run().argmax(1)[0] == case.label) for case in known]
    found = replace(subject, cases=known).over(right)
    words = f"The network decides {100 * found.mean:.0f} % of these recordings correctly"
    if found.low == found.low:
        words += f" (95 % interval {100 * found.low:.0f} to {100 * found.high:.0f} % over the subjects)"
    return [f"{words}; what a network that is often wrong looks at says little about the disease."]


def _over_time(subject: Subject, received: Sequence[Tensor]) -> tuple[str, str]:
    level = ("uniform", 1.0)
    if len(received) < _FEW:
        found: dict[str, Curve] = {
            case.name: (list(range(len(one))), one.tolist())
            for case, one in zip(subject.cases[:SHOWN], received, strict=False)
        }
        picture = curves(found, x="second", y="attention received, 1 = uniform", level=level)
        return picture, "Attention that each second receives in the last layer, mean over heads and queries."
    binned = torch.stack([F.interpolate(one[None, None], _BINS, mode="linear")[0, 0] for one in received])
    places = [100 * (i + 0.5) / _BINS for i in range(_BINS)]
    groups: dict[str, list[int]] = {}
    for row, case in enumerate(subject.cases):
        groups.setdefault(subject.classes[case.label] if case.label is not None else "all", []).append(row)
    means: dict[str, Curve] = {}
    bands: dict[str, Curve] = {}
    for name, rows in sorted(groups.items()):
        part = replace(subject, cases=[subject.cases[row] for row in rows])
        found_bins = [part.over(binned[rows, i].tolist()) for i in range(_BINS)]
        shown = f"{name} ({len(set(part.units))} subjects)"
        means[shown] = places, [one.mean for one in found_bins]
        bands[shown] = [one.low for one in found_bins], [one.high for one in found_bins]
    picture = curves(means, x="part of the recording, %", y="attention received, 1 = uniform", level=level, bands=bands)
    return (
        picture,
        "Attention along the recording in the last layer, mean over subjects, heads and queries; bands: 95 % intervals "
        "over the subjects.",
    )


def _over_scalp(subject: Subject) -> tuple[str, str] | None:
    """The attention that each electrode receives, if the electrodes attend to each other."""
    names = list(attention_layers(subject.model))
    stem = next((i for i, name in enumerate(names) if name.startswith("stem")), None)
    if stem is None or any(channel not in positions() for channel in subject.channels):
        return None
    sums = torch.zeros(len(subject.channels), dtype=torch.float64)
    for case in subject.cases:
        calls = record_run(subject.model, case.run, layers=[stem]).calls
        sums += calls[0].column_means().double().mean((0, 1)) * len(subject.channels)
    places = np.array([positions()[channel][:2] for channel in subject.channels])
    picture = points_on_head(
        places, subject.channels, (sums / len(subject.cases)).tolist(), label="attention received, 1 = uniform"
    )
    return picture, "Attention that each electrode receives from the others, seen from above, nose up."
