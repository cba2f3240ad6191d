"""Read scanpaths from files: our own JSON and CSV, Search Target Inference, COCO boxes with COCO-Search18 fixations.

Each reader returns scenes and measured paths. This module then maps the fixations to objects by one rule and finds
paths that are copies of each other, since such copies have leaked from training to test sets before.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from ..runs.files import is_hidden
from ..runs.json_files import read_json
from ..runs.words import note_of_alike
from .coco_search import Padding, read_coco
from .collages import is_collage, read_collages
from .measured import MeasuredPath
from .own_files import FORMAT, TABLES, read_own, read_tables
from .people_search import is_people_search, read_people_search
from .scene import Box, Dataset, Scene, Trial
from .units import check_units

Mapping = Literal["nearest", "inside"]
Duplicates = Literal["error", "drop"]
_TELLING = 3  # with this number of fixations or more, equal positions of two people are no coincidence


def read_scanpaths(
    path: str | os.PathLike[str],
    *,
    mapping: Mapping = "nearest",
    margin: float = 0.0,
    duplicates: Duplicates = "error",
    rows: int | None = None,
    columns: int | None = None,
    display: tuple[int, int] = (1680, 1050),
    padding: Padding = "centre",
) -> Dataset:
    """Read scenes and the paths on them. docs/scanpath_format.md describes the files.

    Args:
        path: a .json file of our own, of Search Target Inference or of people's searches, a folder with our own three
            .csv tables, or one with COCO boxes and COCO-Search18 fixations (.json files, distinguished by their
            content).
        mapping: a fixation belongs to the smallest box that contains it. A fixation outside all boxes belongs to the
            nearest box ("nearest") or is left out ("inside"). Objects that the file gives are not changed.
        margin: distance from a box in pixels that still counts as inside, for "inside".
        duplicates: "error" refuses equal paths of three or more fixations on one scene; "drop" keeps the first.
        rows: rows of the grid of Search Target Inference, if there are too few target boxes to find the grid, or of the
            cells of pictures in people's searches.
        columns: columns of that grid.
        display: width and height in pixels of the screen of COCO-Search18 fixations.
        padding: position of the picture on the screen, if it did not fill the screen.

    Raises:
        OSError: a file cannot be read.
        ValueError: the file has none of these formats, or contains an impossible value.
    """
    path = Path(path)
    for name, value, kinds in (
        ("mapping", mapping, get_args(Mapping)),
        ("duplicates", duplicates, get_args(Duplicates)),
        ("padding", padding, get_args(Padding)),
    ):
        if value not in kinds:
            raise ValueError(f"{name} must be {' or '.join(kinds)}, got {value!r}")
    if margin < 0:
        raise ValueError(f"margin must be 0 px or more, got {margin}")
    if path.is_dir() and all((path / name).is_file() for name in TABLES):
        scenes, paths, notes = read_tables(path)
    elif path.is_dir():
        files = sorted(p for p in path.glob("*.json") if not is_hidden(p.relative_to(path)))
        if len(files) == 1:
            return read_scanpaths(
                files[0], mapping=mapping, margin=margin, duplicates=duplicates, rows=rows, columns=columns
            )
        scenes, paths, notes = read_coco(path, files, display, padding)
    else:
        content = read_json(path)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            scenes, paths, notes = read_own(content, path)
        elif isinstance(content, dict) and content and all(is_collage(v) for v in content.values()):
            scenes, paths, notes = read_collages(content, path, rows, columns)
        elif is_people_search(content):
            scenes, paths, notes = read_people_search(content, path, rows, columns)
        else:
            raise ValueError(
                f'{path} must be scanpaths: a dictionary with "format": "{FORMAT}", one of pictures with fixations,'
                " ground_truth, size and target, or one with image_size and people; COCO boxes and fixations are read"
                " from the folder that holds both"
            )
    return _dataset(scenes, paths, notes, mapping, margin, duplicates)


def map_fixations(scene: Scene, xy: np.ndarray, *, mapping: Mapping = "nearest", margin: float = 0.0) -> np.ndarray:
    """The index of the object of each fixation, (n,) int64; -1 if it has none.

    Args:
        scene: the scene with the boxes.
        xy: (n, 2) positions of the fixations in pixels.
        mapping: see `read_scanpaths`.
        margin: see `read_scanpaths`.
    """
    xy = np.asarray(xy, dtype=np.float64).reshape(-1, 1, 2)
    low, side = scene.boxes[None, :, :2].astype(np.float64), scene.boxes[None, :, 2:].astype(np.float64)
    outside = np.maximum(np.maximum(low - xy, xy - low - side), 0)
    distance = np.hypot(outside[..., 0], outside[..., 1])  # (n, objects)
    area = np.broadcast_to(side.prod(-1), distance.shape)
    from_centre = np.linalg.norm(xy - low - side / 2, axis=-1)
    inside = distance == 0
    smallest = np.where(inside, area, np.inf).argmin(1)
    # of equally near boxes, the one with the nearest centre
    nearest = np.where(distance == distance.min(1, keepdims=True), from_centre, np.inf).argmin(1)
    found = np.where(inside.any(1), smallest, nearest)
    if mapping == "inside":
        found[distance.min(1) > margin] = -1
    return found.astype(np.int64)


def with_crops(scene: Scene) -> Scene:
    """The scene with a crop of each object, cut out of the scene's image."""

    if scene.image is None:
        raise ValueError(f"scene {scene.identifier} must name an image from which objects can be cut, got none")
    with Image.open(scene.image) as file:
        if file.size != tuple(scene.size):
            raise ValueError(
                f"{scene.image} must have {scene.size[0]} x {scene.size[1]} pixels like scene {scene.identifier},"
                f" got {file.size[0]} x {file.size[1]}"
            )
        pixels = np.asarray(file.convert("RGB"))

    def cut(box: Box) -> np.ndarray:
        left, top = (max(int(np.floor(v)), 0) for v in box[:2])
        crop = pixels[top : int(np.ceil(box[1] + box[3])), left : int(np.ceil(box[0] + box[2]))]
        if not crop.size:
            raise ValueError(f"box {box} of scene {scene.identifier} is outside its image {scene.image}")
        return crop.copy()

    return replace(scene, objects=tuple(replace(o, crop=cut(o.box)) for o in scene.objects))


def _dataset(
    scenes: list[Scene],
    paths: list[MeasuredPath],
    notes: list[str],
    mapping: Mapping,
    margin: float,
    duplicates: Duplicates,
) -> Dataset:
    by_name = {s.identifier: s for s in scenes}
    if len(by_name) < len(scenes):
        names = [s.identifier for s in scenes]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"each scene must be listed once, {twice} is listed {names.count(twice)} times")
    for path in paths:
        if path.scene not in by_name:
            raise ValueError(f"a trial of {path.person} is on scene {path.scene}, which is not listed")
    notes = [*notes, *check_units(by_name, paths), *note_of_alike(path.person for path in paths)]
    trials: list[Trial] = []
    left_out = empty = 0
    for path in paths:
        scene = by_name[path.scene]
        objects = path.objects
        if objects is None:
            assert path.xy is not None
            objects = map_fixations(scene, path.xy, mapping=mapping, margin=margin)
            kept = objects >= 0
            left_out += int((~kept).sum())
            path, objects = path.rows(kept), objects[kept]
        if not len(objects):
            empty += 1
            continue
        if path.xy is None and (objects.min() < 0 or objects.max() >= len(scene)):
            raise ValueError(
                f"objects of {path.person} on {path.scene} must be 0 to {len(scene) - 1}, got {objects.min()} to"
                f" {objects.max()}"
            )
        xy = scene.centres[objects] if path.xy is None else path.xy
        trials.append(Trial(path.scene, path.person, objects, xy, path.onset, path.duration))
    if left_out:
        notes.append(f"{left_out} fixations left out, farther than {margin:g} px from every object")
    if empty:
        notes.append(f"{empty} trials left out, because they have no fixation on an object")
    trials, copies = _without_copies(trials, by_name, duplicates)
    return Dataset(by_name, tuple(trials), (*notes, *copies))


def _without_copies(
    trials: list[Trial], scenes: dict[str, Scene], duplicates: Duplicates
) -> tuple[list[Trial], list[str]]:
    """Leave out trials with the same measured positions (three or more) as an earlier trial on the same scene."""
    first: dict[tuple[str, bytes], Trial] = {}
    kept: list[Trial] = []
    notes: list[str] = []
    for trial in trials:
        key = trial.scene, trial.xy.tobytes()
        measured = not np.allclose(trial.xy, scenes[trial.scene].centres[trial.objects], atol=1e-2)
        if measured and len(trial) >= _TELLING and key in first:
            text = f"the paths of {first[key].person} and {trial.person} on {trial.scene} are the same"
            if duplicates == "error":
                raise ValueError(
                    f'{text} ({len(trial)} fixations): mend the file, or drop copies with duplicates="drop"'
                )
            notes.append(f"{text}: the second is left out")
            continue
        first[key] = trial
        kept.append(trial)
    return kept, notes
