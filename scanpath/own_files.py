"""Read and write our own format: one .json file, or three .csv tables, as described in docs/scanpath_format.md."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..runs.json_files import write_json
from ..runs.words import tidy_name, why_no_text
from .measured import MeasuredPath, Reading, label, listed, numbers, person_name, take, whole
from .scene import Dataset, Scene, SceneObject, Trial

FORMAT, VERSION = "voxelwave scanpaths", 1
TABLES = ("scenes.csv", "objects.csv", "fixations.csv")


def read_own(content: dict[str, Any], path: Path) -> Reading:
    if content.get("version") != VERSION:
        raise ValueError(f"{path} must have version {VERSION}, got {content.get('version')!r}")
    scenes = [_own_scene(record, path) for record in listed(content, "scenes", path)]
    paths = []
    for record in listed(content, "trials", path) if "trials" in content else []:
        scene, person = label(record, "scene", path), person_name(record, "person", path)
        where = f"{path}: trial of {person} on {scene}"
        columns = {
            key: numbers(record[key], where, 1) for key in ("x", "y", "objects", "onset", "duration") if key in record
        }
        paths.append(_own_path(scene, person, columns, where))
    return scenes, paths, []


def _own_scene(record: Any, path: Path) -> Scene:
    identifier = label(record, "scene", path)
    where = f"{path}: scene {identifier}"
    objects = []
    for o in listed(record, "objects", where):
        box = numbers(take(o, "box", where), where, 1)
        features = numbers(o["features"], where, 1).astype(np.float32) if o.get("features") is not None else None
        name = label(o, "name", where) if o.get("name") is not None else ""
        objects.append(_object(name, box.tolist(), features, where))
    size = whole(record, "width", where), whole(record, "height", where)
    told = {key for key in record if record[key] is not None}
    image = path.parent / label(record, "image", where) if "image" in told else None
    keys: dict[str, Any] = {k: whole(record, k, where) for k in ("target", "rows", "columns") if k in told}
    keys |= {k: label(record, k, where) for k in ("layout", "sought") if k in told}
    return Scene(identifier, size, tuple(objects), image=image, **keys)


def _object(name: str, box: list[float], features: np.ndarray | None, where: str) -> SceneObject:
    try:
        return SceneObject(name, tuple(box), features)  # type: ignore[arg-type]  # it checks that there are four
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _own_path(scene: str, person: str, columns: dict[str, np.ndarray], where: str) -> MeasuredPath:
    lengths = {key: len(v) for key, v in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where} must have equally many values in each list, got {lengths}")
    if ("x" in columns) != ("y" in columns) or not {"x", "objects"} & columns.keys():
        raise ValueError(f"{where} must have x and y, or objects, or all three, got {', '.join(columns) or 'none'}")
    objects = columns.get("objects")
    if objects is not None and (objects != np.rint(objects)).any():
        raise ValueError(f"{where} must have whole numbers from 0 as objects, got {objects.tolist()}")
    xy = np.stack([columns["x"], columns["y"]], 1) if "x" in columns else None
    indices = None if objects is None else objects.astype(np.int64)
    return MeasuredPath(scene, person, xy, indices, columns.get("onset"), columns.get("duration"))


def read_tables(folder: Path) -> Reading:
    """Read scenes.csv, objects.csv and fixations.csv of a folder."""
    objects: dict[str, list[tuple[int, SceneObject]]] = {}
    for where, row in _rows(folder / "objects.csv", ("scene", "object", "x", "y", "width", "height")):
        box = [_number(row, key, where) for key in ("x", "y", "width", "height")]
        values = [_number(row, key, where) for key in row if key.startswith("feature_")]
        features = np.array(values, dtype=np.float32) if values else None
        entry = _object(row.get("name") or "", box, features, where)
        objects.setdefault(tidy_name(row["scene"]), []).append((_whole(row, "object", where), entry))
    scenes = []
    for where, row in _rows(folder / "scenes.csv", ("scene", "width", "height")):
        name = tidy_name(row["scene"])
        in_order = sorted(objects.get(name, []), key=lambda pair: pair[0])
        if [k for k, _ in in_order] != list(range(len(in_order))) or not in_order:
            raise ValueError(f"{where}: objects of {name} must be numbered 0, 1, 2 ..., got {len(in_order)} of them")
        keys: dict[str, Any] = {
            k: _whole(row, k, where) for k in ("target", "rows", "columns") if row.get(k) not in (None, "")
        }
        keys |= {k: row[k] for k in ("layout", "sought") if row.get(k)}
        image = folder / row["image"] if row.get("image") else None
        size = _whole(row, "width", where), _whole(row, "height", where)
        scenes.append(Scene(name, size, tuple(o for _, o in in_order), image=image, **keys))
    trials: dict[tuple[str, str, str], list[tuple[float, dict[str, float]]]] = {}
    for where, row in _rows(folder / "fixations.csv", ("scene", "person", "index")):
        filled = {
            name: _number(row, key, where)
            for key, name in (
                ("x", "x"),
                ("y", "y"),
                ("object", "objects"),
                ("onset", "onset"),
                ("duration", "duration"),
            )
            if row.get(key) not in (None, "")
        }
        key = tidy_name(row["scene"]), person_name(row, "person", where), tidy_name(row.get("trial") or "")
        trials.setdefault(key, []).append((_number(row, "index", where), filled))
    paths = []
    for (scene, person, _), rows in trials.items():
        where = f"{folder / 'fixations.csv'}: trial of {person} on {scene}"
        order = [index for index, _ in rows]
        if len(set(order)) < len(order):
            raise ValueError(
                f"{where} must have each index once: if a person has several trials, number them in a column trial"
            )
        rows.sort(key=lambda pair: pair[0])
        keys_there = [tuple(values) for _, values in rows]
        if len(set(keys_there)) > 1:
            raise ValueError(f"{where} must have the same columns filled in every row")
        columns = {key: np.array([values[key] for _, values in rows]) for key in keys_there[0]}
        paths.append(_own_path(scene, person, columns, where))
    return scenes, paths, []


def _rows(file: Path, needed: tuple[str, ...]) -> Iterable[tuple[str, dict[str, str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            missing = [key for key in needed if key not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{file} must have the columns {', '.join(needed)}; {', '.join(missing)} is missing")
            rows = [(f"{file}, line {reader.line_num}", row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} must be a table in UTF-8: {why_no_text(error)}") from None
    for where, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{where} must have {len(reader.fieldnames or ())} cells, as many as the first line")
    return rows


def _number(row: dict[str, str], key: str, where: str) -> float:
    try:
        return float(row[key])
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {key} must be a number, got {row[key]!r}") from None


def _whole(row: dict[str, str], key: str, where: str) -> int:
    value = _number(row, key, where)
    if not value.is_integer():
        raise ValueError(f"{where}: {key} must be a whole number, got {row[key]!r}")
    return int(value)


def write_scanpaths(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write our own JSON; image paths are relative to the file, and crops are not written."""
    path = Path(path)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "scenes": [_scene_record(s, path.parent) for s in dataset.scenes.values()],
        "trials": [_trial_record(t) for t in dataset.trials],
    }
    write_json(path, content)


def _scene_record(scene: Scene, folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"scene": scene.identifier, "width": scene.size[0], "height": scene.size[1]}
    if scene.image is not None:
        record["image"] = Path(os.path.relpath(scene.image, folder)).as_posix()
    if scene.layout != scene.identifier:
        record["layout"] = scene.layout
    for key in ("rows", "columns", "target", "sought"):
        if getattr(scene, key) is not None:
            record[key] = getattr(scene, key)
    record["objects"] = []
    for o in scene.objects:
        entry: dict[str, Any] = {"name": o.name, "box": [round(float(v), 3) for v in o.box]}
        if o.features is not None:
            entry["features"] = [float(f"{v:.7g}") for v in o.features]
        record["objects"].append(entry)
    return record


def _trial_record(trial: Trial) -> dict[str, Any]:
    record: dict[str, Any] = {"scene": trial.scene, "person": trial.person, "objects": trial.objects.tolist()}
    for k, axis in enumerate("xy"):
        record[axis] = [round(float(v), 3) for v in trial.xy[:, k]]
    for key in ("onset", "duration"):
        if getattr(trial, key) is not None:
            record[key] = [round(float(v), 6) for v in getattr(trial, key)]
    return record
