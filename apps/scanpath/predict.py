"""`voxelwave scanpath predict`: predict the order in which people look at the objects of a scene."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...runs.compute import use_threads
from ...runs.exit import DONE, SOME_FAILED
from ...runs.files import is_hidden, outputs_together
from ...runs.json_files import write_json
from ...runs.outcome import add_outcome
from ...runs.tables import write_table
from ...runs.words import one_line, plural
from ...scanpath.own_files import TABLES
from ...scanpath.picture_scenes import scene_of_picture
from ...scanpath.readers import read_scanpaths
from ...scanpath.scene import Scene
from ...scanpath.suffixes import PICTURE_SUFFIXES
from ...scanpath.weights import NetworkModel, load_model
from ..batch.case import file_name
from .options import Predict
from .picture import draw_prediction

PREDICTION, PICTURE, TABLE = "prediction.json", "scanpath.png", "predictions.csv"
_GRID = 4, 6  # rows and columns of a picture for weights of free layouts


def predict(options: Predict) -> int:
    """Run the command and return its exit code."""
    use_threads(options.threads)
    model = load_model(options.weights)
    found: list[tuple[str, Scene | str]]
    if options.input.is_file() and options.input.suffix.lower() in PICTURE_SUFFIXES:
        found = _scenes_of_pictures(options, [options.input], model)
    else:
        found = list(read_scenes(options.input))
        if not found and options.input.is_dir():
            found = _scenes_of_pictures(options, _pictures(options.input), model)
    if not found:
        raise FileNotFoundError(f"{options.input} holds no scene: no .json file, no tables and no picture")
    several = options.input.is_dir() or len(found) > 1
    rows: list[dict[str, Any]] = []
    with outputs_together(options.output, replaces=options.replaced()) as output:
        for name, scene in found:
            folder = output / _unique(name, rows) if several else output
            try:
                rows.append(_predict_one(options, model, name, scene, folder))
            except (ValueError, OSError) as error:
                if not several:
                    raise
                reason = one_line(error)
                rows.append({"scene": name, "folder": "", "fixations": "", "status": "failed", "reason": reason})
                print(f"{name}: failed: {reason}")
        if several:
            write_table(output / TABLE, rows)
    add_outcome(scenes=rows)
    failed = sum(row["status"] == "failed" for row in rows)
    shown = f"{TABLE} and a folder for each of {len(rows) - failed} scenes" if several else f"{PREDICTION}, {PICTURE}"
    print(f"wrote {options.output}/: {shown}" + (f"; {failed} failed" if failed else ""))
    return SOME_FAILED if failed else DONE


def _predict_one(options: Predict, model: NetworkModel, name: str, scene: Scene | str, folder: Path) -> dict[str, Any]:
    """Predict one scene and return its row of the table, or raise the reason why it cannot be read."""
    if isinstance(scene, str):
        raise ValueError(scene)
    how = {
        "samples": options.samples,
        "temperature": options.temperature,
        "width": options.beam_width,
        "seed": options.seed,
        "max_length": options.max_length,
    }
    prediction = predict_scene(model, scene, options.decode, how)
    write_prediction(folder, scene, prediction, picture=not options.no_pictures)
    first = prediction["paths"][0]
    words = " ".join(f"{k + 1}:{o}" for k, o in enumerate(first["names"][:8]))
    print(f"{name}: {len(prediction['paths'])} paths, the first {words}{' ...' if len(first['names']) > 8 else ''}")
    for note in prediction["notes"]:
        print(f"note: {name}: {note}")
    count = len(first["objects"])
    return {"scene": name, "folder": folder.name, "fixations": count, "status": "done", "reason": ""}


def predict_scene(model: NetworkModel, scene: Scene, decode: str, how: dict[str, Any]) -> dict[str, Any]:
    """Predict paths on one scene, the probability that each object is fixated, and the attention on it.

    Args:
        model: the trained network.
        scene: a scene that fits the network.
        decode: "greedy", "sample" or "beam".
        how: options of `NetworkModel.decode`.
    """

    paths = model.decode([scene], decode, **how)[0]
    records, counts, attention = [], np.zeros(len(scene)), np.zeros(len(scene) + 1)
    for path in paths:
        log_p = model.log_probabilities(scene, path)
        tokens = np.append(path, len(scene))
        chosen = log_p[np.arange(len(tokens)), tokens]
        counts += np.bincount(path, minlength=len(scene))
        attention += model.attention(scene, path).mean(0) / len(paths)
        records.append(
            {
                "objects": [int(k) for k in path],
                "names": [scene.objects[k].name for k in path],
                "x": [round(float(x), 1) for x in scene.centres[path, 0]],
                "y": [round(float(y), 1) for y in scene.centres[path, 1]],
                "log_probability": [round(float(v), 5) for v in chosen[:-1]],
                "log_probability_of_end": round(float(chosen[-1]), 5),
            }
        )
    notes = []
    if scene.layout in model.info.trained_on:
        notes.append("the weights were trained on this layout, so the prediction is optimistic")
    if decode == "sample":
        share = counts / counts.sum()
    else:  # one path is little evidence: average the network's expectation over its steps
        steps = np.exp(model.log_probabilities(scene, paths[0]))[:, :-1]
        share = steps.sum(0) / steps.sum()
    return {
        "scene": scene.identifier,
        "size": list(scene.size),
        "target": scene.target,
        "decode": decode,
        "seed": how["seed"],
        "paths": records,
        "objects": [o.name for o in scene.objects],
        "fixation_probability": [round(float(v), 5) for v in share],
        "attention": [round(float(v), 5) for v in attention[:-1]],
        "attention_on_target_token": round(float(attention[-1]), 5),
        "notes": notes,
    }


def write_prediction(folder: Path, scene: Scene, prediction: dict[str, Any], *, picture: bool = True) -> None:
    """Write prediction.json and, if `picture` is set, scanpath.png to a folder."""
    write_json(folder / PREDICTION, prediction)
    if picture:
        draw_prediction(folder / PICTURE, scene, prediction)


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in PICTURE_SUFFIXES and not is_hidden(file.relative_to(folder))
    )


def _scenes_of_pictures(options: Predict, files: list[Path], model: NetworkModel) -> list[tuple[str, Scene | str]]:
    """The scenes of pictures, or why one is none; the cells are a free layout unless the weights are for grids."""
    network = model.network
    rows, columns = options.grid or ((network.rows, network.columns) if model.info.grid else _GRID)
    found: list[tuple[str, Scene | str]] = []
    for file in files:
        try:
            scene = scene_of_picture(file, rows=rows, columns=columns)
        except ValueError as error:
            if file == options.input:
                raise
            found.append((file.name, one_line(error)))
            continue
        found.append((scene.identifier, scene if model.info.grid else replace(scene, rows=None, columns=None)))
    if files:
        name = files[0].name if len(files) == 1 else plural(len(files), "picture")
        print(f"note: the objects of {name} are {rows} x {columns} cells of a grid; no detector was used")
    return found


def read_scenes(place: Path) -> Iterator[tuple[str, Scene | str]]:
    """The name of each scene, and the scene or the reason why its file cannot be read."""
    tables = place.is_dir() and (place / TABLES[0]).is_file()
    files = [place]
    if place.is_dir() and not tables:
        files = sorted(file for file in place.rglob("*.json") if not is_hidden(file.relative_to(place)))
    for file in files:
        try:
            dataset = read_scanpaths(file, duplicates="drop")
        except (ValueError, OSError, AttributeError, TypeError) as error:
            if place.is_file():
                raise ValueError(one_line(error)) from error
            yield file.relative_to(place).as_posix(), one_line(error)
            continue
        yield from dataset.scenes.items()


def _unique(name: str, rows: list[dict[str, Any]]) -> str:
    """A folder name for a scene that no earlier scene has."""
    taken = {row["folder"] for row in rows}
    folder, k = file_name(name), 2
    while folder in taken:
        folder, k = f"{file_name(name)}-{k}", k + 1
    return folder
