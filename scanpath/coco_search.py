"""COCO boxes with fixations in the format of COCO-Search18 (Chen et al., Scientific Reports 11, 2021)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..runs.json_files import read_json
from .measured import MeasuredPath, Reading, label, listed, numbers, person_name, take, whole
from .scene import Box, Scene, SceneObject

Padding = Literal["centre", "corner"]
_MOSTLY = 0.5  # with a larger share of fixations outside the screen, the size of the screen must be wrong
_SAME_BOX = 0.5  # intersection over union from which two boxes count as one that is listed twice


def read_coco(folder: Path, files: list[Path], display: tuple[int, int], padding: Padding) -> Reading:
    """Read a scene for each picture and searched category; boxes and fixations are in pixels of the screen."""
    boxes, records = _boxes_and_trials(folder, files)
    objects, sizes, places = _coco_objects(boxes, display, padding)
    scenes: dict[str, Scene] = {}
    paths: list[MeasuredPath] = []
    notes: list[str] = []
    without: set[str] = set()
    outside = 0
    for file, record in records:
        picture, task = label(record, "name", file), label(record, "task", file)
        if picture not in objects:
            raise ValueError(f"{file} has a trial on {picture}, but no file of boxes lists this picture")
        if not objects[picture]:
            without.add(picture)
            continue
        identifier = f"{picture}/{task}"
        if identifier not in scenes:
            target = _coco_target(record, objects[picture], task, file)
            image = (
                places[picture] if sizes[picture] == display else None
            )  # otherwise its pixels are not those of the screen
            scenes[identifier] = Scene(
                identifier, display, tuple(objects[picture]), target, image=image, layout=picture, sought=task
            )
        xy, duration = _coco_fixations(record, f"{picture}, {task}", file)
        trial = MeasuredPath(identifier, person_name(record, "subject", file), xy, duration=duration)
        seen = np.asarray(((xy >= 0) & (xy < display)).all(axis=1))
        outside += int((~seen).sum())
        paths.append(trial.rows(seen))
    if outside > _MOSTLY * sum(len(np.atleast_1d(record["X"])) for _, record in records):
        raise ValueError(
            f"{folder}: {outside} fixations, most of them, lie beside the screen of {display[0]} x {display[1]} px: "
            "check display, and that X and Y are pixels of the screen"
        )
    if outside:
        notes.append(f"{outside} fixations left out, beside the screen of {display[0]} x {display[1]} px")
    if without:
        notes.append(f"{len(without)} pictures left out, without a box: {', '.join(sorted(without)[:3])}")
    return list(scenes.values()), paths, notes


def _boxes_and_trials(
    folder: Path, files: list[Path]
) -> tuple[list[tuple[Path, dict[str, Any]]], list[tuple[Path, dict[str, Any]]]]:
    """The contents of the files of boxes, and the records of all files of fixations, each with the path of its file."""
    boxes: list[tuple[Path, dict[str, Any]]] = []
    records: list[tuple[Path, dict[str, Any]]] = []
    for file in files:
        content = read_json(file)
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            boxes.append((file, content))
        elif isinstance(content, list) and content and isinstance(content[0], dict) and "task" in content[0]:
            records += [(file, record) for record in content]
    if not boxes or not records:
        raise ValueError(
            f"{folder} must hold one .json file of our own, our three tables, or .json files with COCO boxes (images,"
            " annotations, categories) and with fixations (name, subject, task, X, Y);"
            f" got {len(files)} .json files, {len(boxes)} of them with boxes, and {len(records)} trials"
        )
    return boxes, records


def _coco_fixations(record: dict[str, Any], name: str, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions (n, 2) in pixels, and durations (n,) in seconds if the record has them."""
    where = f"{file}: {name}, subject {record.get('subject')}"
    x, y = (numbers(take(record, key, file), where, 1) for key in "XY")
    if len(x) != len(y):
        raise ValueError(f"{where} must have as many X as Y, got {len(x)} and {len(y)}")
    duration = numbers(record["T"], where, 1) / 1000 if "T" in record else None
    if duration is not None and len(duration) != len(x):
        raise ValueError(f"{where} must have as many T as X, got {len(duration)} and {len(x)}")
    return np.stack([x, y], 1), duration


def _coco_objects(
    files: list[tuple[Path, dict[str, Any]]], display: tuple[int, int], padding: Padding
) -> tuple[dict[str, list[SceneObject]], dict[str, tuple[int, int]], dict[str, Path | None]]:
    """For each picture: its objects in pixels of the screen, its own size, and its file if it exists."""
    objects: dict[str, list[SceneObject]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    places: dict[str, Path | None] = {}
    for file, content in files:
        names = {label(c, "id", file): label(c, "name", file) for c in listed(content, "categories", file)}
        pictures = {}
        for image in listed(content, "images", file):
            name = label(image, "file_name", file)
            pictures[label(image, "id", file)] = name
            sizes[name] = whole(image, "width", file), whole(image, "height", file)
            if min(sizes[name]) < 1:
                raise ValueError(f"{file}: {name} must have a width and height above 0, got {sizes[name]}")
            places[name] = file.parent / name if (file.parent / name).is_file() else None
            objects.setdefault(name, [])
        for annotation in listed(content, "annotations", file):
            picture, category = label(annotation, "image_id", file), label(annotation, "category_id", file)
            if picture not in pictures or category not in names:
                raise ValueError(
                    f"{file} has a box of picture {picture} and category {category}, which it does not list"
                )
            box = numbers(take(annotation, "bbox", file), f"{file}: bbox", 1)
            if annotation.get("iscrowd") or len(box) != 4 or min(box[2:]) <= 0:
                continue
            name = pictures[picture]
            objects[name].append(SceneObject(names[category], _on_screen(box, sizes[name], display, padding)))
    return objects, sizes, places


def _on_screen(box: np.ndarray, size: tuple[int, int], display: tuple[int, int], padding: Padding) -> Box:
    """A box of a picture in pixels of the screen, to whose size the picture was enlarged with its aspect ratio kept."""
    scale = min(display[0] / size[0], display[1] / size[1])
    left, top = ((display[k] - size[k] * scale) / 2 if padding == "centre" else 0.0 for k in (0, 1))
    x, y, width, height = (float(v) * scale for v in box)
    return x + left, y + top, width, height


def _coco_target(record: dict[str, Any], objects: list[SceneObject], task: str, file: Path) -> int | None:
    if record.get("condition", "present") == "absent":
        return None
    told = numbers(take(record, "bbox", file), f"{file}: bbox", 1)
    overlap = [_overlap(o.box, told) if o.name == task else 0.0 for o in objects]
    if max(overlap) < _SAME_BOX:
        raise ValueError(
            f"{file}: no {task} of {record['name']} is at the position that the trial of subject"
            f" {record.get('subject')} gives for its target, {told.tolist()}: check display and padding"
        )
    return int(np.argmax(overlap))


def _overlap(a: Iterable[float], b: Iterable[float]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    ax, ay, aw, ah = a
    bx, by, bw, bh = b
    both = max(min(ax + aw, bx + bw) - max(ax, bx), 0) * max(min(ay + ah, by + bh) - max(ay, by), 0)
    return float(both / (aw * ah + bw * bh - both))
