"""Where a trained network looks: at the objects of a scene, or at the seconds of a recording."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...attention_analysis.divergence import hide_keys
from ...attention_analysis.edits import intervene
from ...attention_analysis.importance import Interval, bootstrap, jensen_shannon
from ...attention_analysis.pictures import Curve, boxes_over_image, curves
from ...attention_analysis.trace import LayerCall, record_run
from ...scanpath.scene import Scene
from .subject import Case, Subject

_SHOWN = 3  # inputs that are drawn


class Reliance(NamedTuple):
    """What hiding a part of the input from all heads changes."""

    part: str
    bits: Interval  # divergence of the decisions, mean over inputs
    changed: Interval  # share of decisions that change


class Where(NamedTuple):
    """The section of the page."""

    sentences: list[str]
    pictures: list[tuple[str, str]]  # SVG, caption
    reliance: list[Reliance]


@torch.no_grad()
def look_at_scenes(subject: Subject) -> Where:
    """The decoder's attention to the objects, its share on the target, and what hiding the target changes."""
    pictures: list[tuple[str, str]] = []
    shares, ratios, hidden, other = [], [], [], []
    for case in subject.cases:
        scene = _scene(case)
        weights = _last_map(subject, case).mean(0).mean(0)  # mean over heads and steps, (N + 1)
        objects = weights[:-1]
        if len(pictures) < _SHOWN:
            pictures.append((_drawn(scene, objects), f"{case.name}: attention to each object, mean over the steps."))
        if scene.target is not None:
            share = float(objects[scene.target] / objects.sum())
            shares.append(share)
            ratios.append(share * len(scene))
            hidden.append(_without(subject, case, [scene.target, len(scene)]))
            nearest = (scene.target + len(scene) // 2) % len(scene)
            other.append(_without(subject, case, [nearest]))
    sentences = []
    if ratios:
        found = bootstrap(torch.tensor(ratios))
        sentences.append(
            f"The target gets {100 * sum(shares) / len(shares):.1f} % of the attention to the objects in the last "
            f"decoder layer, {found.mean:.2f} times its part among the objects (95 % interval {found.low:.2f} to "
            f"{found.high:.2f} over {len(ratios)} scenes)."
        )
    reliance = (
        [_reliance("the target (the object and the token that names it)", hidden), _reliance("another object", other)]
        if hidden
        else []
    )
    return Where(sentences, pictures, reliance)


@torch.no_grad()
def look_at_recordings(subject: Subject) -> Where:
    """The attention that each second receives, and what hiding the most and other seconds changes."""
    received: dict[str, Curve] = {}
    most, random = [], []
    generator = torch.Generator().manual_seed(0)
    for case in subject.cases:
        weights = _last_map(subject, case)  # (H, L, L)
        seconds = weights.mean((0, 1))
        count = max(1, len(seconds) // 10)
        if len(received) < _SHOWN:
            received[case.name] = (list(range(len(seconds))), (seconds * len(seconds)).tolist())
        most.append(_without(subject, case, seconds.argsort(descending=True)[:count].tolist()))
        random.append(_without(subject, case, torch.randperm(len(seconds), generator=generator)[:count].tolist()))
    picture = curves(received, x="second", y="attention received, 1 = uniform", level=("uniform", 1.0))
    caption = "Attention that each second receives in the last layer, mean over heads and queries."
    reliance = [
        _reliance("the tenth of the seconds with most attention", most),
        _reliance("a random tenth of the seconds", random),
    ]
    return Where([], [(picture, caption)], reliance)


def _last_map(subject: Subject, case: Case) -> Tensor:
    """The map (H, Lq, Lk) of the last attention layer; zeros if it has none."""
    call: LayerCall = record_run(subject.model, case.run).calls[-1]
    return call.map()[0].double()


def _without(subject: Subject, case: Case, keys: list[int]) -> tuple[float, float]:
    """Divergence in bits and share of changed decisions if no layer of that length sees these keys."""
    length = record_run(subject.model, case.run).calls[-1].map().shape[-1]
    group = torch.zeros(length, dtype=torch.bool)
    with intervene(subject.model, hide_keys(subject.model, group)):
        full = case.run()
    group[keys] = True
    with intervene(subject.model, hide_keys(subject.model, group)):
        lacking = case.run()
    changed = (full.argmax(1) != lacking.argmax(1)).double().mean()
    return float(jensen_shannon(full, lacking).mean()), float(changed)


def _reliance(part: str, found: list[tuple[float, float]]) -> Reliance:
    bits, changed = torch.tensor(found, dtype=torch.float64).unbind(1)
    return Reliance(part, bootstrap(bits), bootstrap(changed))


def _scene(case: Case) -> Scene:
    assert case.scene is not None
    return case.scene


def _drawn(scene: Scene, weights: Tensor) -> str:
    boxes = [(float(x), float(y), float(width), float(height)) for x, y, width, height in scene.boxes]
    return boxes_over_image(None, boxes, weights.tolist(), marked=scene.target, size=scene.size)


def as_values(rows: int, columns: int, found: dict[tuple[int, int], float]) -> np.ndarray:
    """A matrix with NaN where there is no value."""
    values = np.full((rows, columns), np.nan)
    for (row, column), value in found.items():
        values[row, column] = value
    return values
