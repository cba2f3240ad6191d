"""Scenes and OAT: the inputs of a page, and where the network looks in them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...attention_analysis.divergence import dependence, hide_keys
from ...attention_analysis.edits import intervene
from ...attention_analysis.pictures import boxes_over_image, curves
from ...attention_analysis.trace import Head, attention_layers, record_run
from ...runs.words import one_line
from ...scanpath.oat import BEGIN, OAT, log_probabilities
from ...scanpath.scene import Scene
from ...scanpath.weights import NetworkModel
from ..scanpath.predict import read_scenes
from .subject import Case, Subject
from .where import SHOWN, Where, compared, last_map, mean_dependence, reliance, without

_REACH = 8  # largest distance from the target, in places, in the curve of a study
_PARTS = "the target (the object and the token that names it)", "another object"


def scene_subject(model: NetworkModel, place: Path, most: int) -> Subject:
    """OAT and scenes, with the path that the network itself finds most likely at each step.

    If there are more scenes than `most`, one scene of each layout comes first.
    """
    cases: list[Case] = []
    failed: list[tuple[str, str]] = []
    for name, scene in _one_of_each_layout_first(read_scenes(place)):
        if len(cases) == most:
            break
        try:
            if isinstance(scene, str):
                raise ValueError(scene)
            cases.append(_scene_case(model, name, scene))
        except ValueError as error:
            failed.append((name, one_line(error)))
    layers = layers_in_words(model.network)
    title = "What the scanpath network looks at"
    known = model.info.trained_on
    return Subject(title, "scene", "next fixation", model.network, layers, cases, failed, known, unit="layout")


def layers_in_words(network: OAT) -> list[str]:
    """A readable name for each attention layer."""
    names = {"self_attn": "attention to the past", "multihead_attn": "attention to the scene"}
    found = []
    for name in attention_layers(network):
        _, _, number, kind = name.split(".")
        decoder = name.startswith("transformer_decoder")
        found.append(f"decoder {number}, {names[kind]}" if decoder else f"encoder {number}, among the objects")
    return found


def _one_of_each_layout_first(found: Iterable[tuple[str, Scene | str]]) -> Iterator[tuple[str, Scene | str]]:
    later: list[tuple[str, Scene | str]] = []
    seen: set[str] = set()
    for name, scene in found:
        layout = name if isinstance(scene, str) else scene.layout
        if layout in seen:
            later.append((name, scene))
            continue
        seen.add(layout)
        yield name, scene
    yield from later


def _scene_case(model: NetworkModel, name: str, scene: Scene) -> Case:
    path = model.decode([scene], "greedy")[0][0]
    batch = model.batch([scene])
    previous = torch.tensor([[BEGIN, *path]])

    def run() -> Tensor:
        scores = model.network(batch, torch.tensor([0]), previous)
        first = torch.arange(scores.shape[1]).unsqueeze(0) == 0
        return log_probabilities(scores, first=first)[0].exp()

    return Case(name, run, scene, unit=scene.layout)


@torch.no_grad()
def look_at_scenes(subject: Subject) -> Where:
    """The decoder's attention to the objects, its share on the target, and what hiding the target changes."""
    pictures: list[tuple[str, str]] = []
    with_target = [case for case in subject.cases if case.scene is not None and case.scene.target is not None]
    ratios, shares, hidden, other, rings = [], [], [], [], []
    heads: list[dict[Head, float]] = []
    for case in subject.cases:
        scene = case.scene
        assert scene is not None
        weights = last_map(subject, case).mean(0).mean(0)  # mean over heads and steps, (N + 1)
        objects = weights[:-1]
        if len(pictures) < SHOWN:
            caption = f"{case.name}: attention to each object, mean over the steps."
            caption += " Blue outline: the target." if scene.target is not None else ""
            pictures.append((_drawn(scene, objects), caption))
        if scene.target is None:
            continue
        share = float(objects[scene.target] / objects.sum())
        shares.append(share)
        ratios.append(share * len(scene))
        hidden.append(without(subject, case, [scene.target, len(scene)]))
        nearest = (scene.target + len(scene) // 2) % len(scene)
        other.append(without(subject, case, [nearest]))
        rings.append(_by_distance(scene, objects))
        heads.append(_dependence_on_target(subject, case, scene))
    if not with_target:
        return _without_targets(subject, pictures)
    known = replace(subject, cases=with_target)
    found = known.over(ratios)
    words = (
        f"The target gets {100 * sum(shares) / len(shares):.1f} % of the attention to the objects in the last decoder "
        f"layer, {found.mean:.2f} times its part among the objects"
    )
    if known.several:
        words += f" (95 % interval {found.low:.2f} to {found.high:.2f} over {len(set(known.units))} layouts)"
        pictures.append(_distance_picture(known, rings))
    rows = [reliance(known, _PARTS[0], hidden), reliance(known, _PARTS[1], other)]
    return Where(
        [f"{words}.", *compared(known, *rows)],
        pictures,
        rows,
        dependence=mean_dependence(heads),
        dependence_on="the target (its object and the token that names it)",
    )


def _without_targets(subject: Subject, pictures: list[tuple[str, str]]) -> Where:
    """The same for scenes in which nothing is searched for: the object with most attention takes the target's place."""
    most, other = [], []
    for case in subject.cases:
        objects = last_map(subject, case).mean((0, 1))[:-1]
        order = objects.argsort(descending=True).tolist()
        most.append(without(subject, case, order[:1]))
        other.append(without(subject, case, order[len(order) // 2 :][:1]))
    rows = [reliance(subject, "the object with most attention", most), reliance(subject, _PARTS[1], other)]
    return Where(compared(subject, *rows), pictures, rows)


def _dependence_on_target(subject: Subject, case: Case, scene: Scene) -> dict[Head, float]:
    group = torch.zeros(len(scene) + 1, dtype=torch.bool)
    records = []
    for keys in ([], [scene.target, len(scene)]):
        group = group.clone()
        group[keys] = True
        with intervene(subject.model, hide_keys(subject.model, group)):
            records.append(record_run(subject.model, case.run, weights=False))
    return dependence(*records)


def _by_distance(scene: Scene, objects: Tensor) -> list[float]:
    """The attention of an object, 1 = uniform, by its distance from the target in places; NaN if there is none."""
    places = torch.from_numpy(scene.places).double()
    distance = (places - places[scene.target]).norm(dim=1).round().long()
    relative = objects / objects.sum() * len(scene)
    return [float(relative[distance == step].mean()) for step in range(_REACH + 1)]


def _distance_picture(subject: Subject, rings: list[list[float]]) -> tuple[str, str]:
    found = [subject.over([ring[step] for ring in rings]) for step in range(_REACH + 1)]
    kept = [(step, one) for step, one in enumerate(found) if one.mean == one.mean]
    name = "mean over layouts"
    steps, means = [step for step, _ in kept], [one.mean for _, one in kept]
    picture = curves(
        {name: (steps, means)},
        x="distance from the target, in places",
        y="attention to an object, 1 = uniform",
        level=("uniform", 1.0),
        bands={name: ([one.low for _, one in kept], [one.high for _, one in kept])},
    )
    return picture, "Attention to objects by their distance from the target, with 95 % intervals over the layouts."


def _drawn(scene: Scene, weights: Tensor) -> str:
    boxes = [(float(x), float(y), float(width), float(height)) for x, y, width, height in scene.boxes]
    return boxes_over_image(None, boxes, weights.tolist(), marked=scene.target, size=scene.size)
