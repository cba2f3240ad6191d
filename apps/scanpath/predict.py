"""`voxelwave scanpath predict`: in which order people will probably look at the objects of a scene."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ...scanpath.scene import Scene
    from ...scanpath.weights import NetworkModel

# torch and its friends load in the functions, so that --help answers at once

PREDICTION, PICTURE, TABLE = "prediction.json", "scanpath.png", "predictions.csv"


def predict(
    *,
    input: Path,
    output: Path,
    weights: str,
    samples: int = 10,
    decode: Literal["greedy", "sample", "beam"] = "sample",
    temperature: float = 1.0,
    beam_width: int = 8,
    max_length: int | None = None,
    no_pictures: bool = False,
    seed: int = 0,
    threads: int | None = None,
) -> int:
    """Predict scanpaths on one scene, or on every scene of a folder, by trained weights.

    OUTPUT receives prediction.json (paths with object, position and log-probability, the probability of each object to
    be looked at, the attention on it) and scanpath.png (numbered fixations over the scene's image, or over its boxes
    where there is none; maps of that probability and of the attention). For several scenes these lie in a folder of
    each scene, beside predictions.csv. Of several scenes, one that is broken or does not fit the weights is recorded
    with its reason, and the others go on (exit code 3).

    Args:
        input: a .json file with scenes as docs/scanpath_format.md describes, or a folder of such files or of our
            tables; trials in them are not looked at.
        output: the folder to write to.
        weights: model.safetensors of a training, or the name of weights that come with the package: planted-observer.
        samples: drawn scanpaths of each scene.
        decode: greedy takes the likeliest object at each step, beam the likeliest scanpath that it finds, sample draws.
        temperature: of the draws; below 1 keeps to likely objects.
        beam_width: scanpaths that a beam keeps at each step.
        max_length: fixations at most; default the longest scanpath of the training.
        no_pictures: write no pictures.
        seed: of the draws.
        threads: of the CPU; default all.
    """
    from ...runs.checks import use_threads
    from ...scanpath.weights import load_model

    use_threads(threads)
    if not input.exists():
        raise FileNotFoundError(f"no scene or folder at {input}")
    if samples < 1 or (max_length is not None and max_length < 1):
        raise ValueError(f"samples and max_length must be at least 1, got {samples} and {max_length}")
    model = load_model(weights)
    how: dict[str, Any] = {"samples": samples, "temperature": temperature, "width": beam_width, "seed": seed}
    how["max_length"] = max_length
    found = list(_scenes(input))
    if not found:
        raise FileNotFoundError(f"{input} holds no scene: no .json file and no tables")
    several = input.is_dir() or len(found) > 1
    rows: list[dict[str, Any]] = []
    for name, scene in found:
        try:
            if isinstance(scene, str):
                raise ValueError(scene)
            prediction = predict_scene(model, scene, decode, how)
            folder = output / _unique(name, rows) if several else output
            write_prediction(folder, scene, prediction, picture=not no_pictures)
        except (ValueError, OSError) as error:
            if not several:
                raise
            rows.append({"scene": name, "folder": "", "fixations": "", "status": "failed", "reason": _one_line(error)})
            print(f"{name}: failed: {_one_line(error)}")
            continue
        first = prediction["paths"][0]
        words = " ".join(f"{k + 1}:{o}" for k, o in enumerate(first["names"][:8]))
        print(f"{name}: {len(prediction['paths'])} paths, the first {words}{' ...' if len(first['names']) > 8 else ''}")
        for note in prediction["notes"]:
            print(f"note: {name}: {note}")
        count = len(first["objects"])
        rows.append({"scene": name, "folder": folder.name, "fixations": count, "status": "done", "reason": ""})
    failed = sum(row["status"] == "failed" for row in rows)
    if several:
        _write_table(output / TABLE, rows)
    shown = f"{TABLE} and a folder for each of {len(rows) - failed} scenes" if several else f"{PREDICTION}, {PICTURE}"
    print(f"wrote {output}/: {shown}" + (f"; {failed} failed" if failed else ""))
    return 3 if failed else 0


def predict_scene(model: "NetworkModel", scene: "Scene", decode: str, how: dict[str, Any]) -> dict[str, Any]:
    """Paths on one scene, and where they and the network look, as plain values.

    Args:
        model: trained weights.
        scene: that they are made for.
        decode: "greedy", "sample" or "beam".
        how: options of `NetworkModel.decode`.
    """
    import numpy as np

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
        notes.append("the weights were trained on this layout, so the prediction flatters")
    if decode == "sample":
        share = counts / counts.sum()
    else:  # one path says little: the mean of what the network expects at each of its steps
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


def write_prediction(folder: Path, scene: "Scene", prediction: dict[str, Any], *, picture: bool = True) -> None:
    """prediction.json and, if wanted, scanpath.png into a folder."""
    from ...runs.files import atomic_path

    with atomic_path(folder / PREDICTION) as temporary:
        temporary.write_text(json.dumps(prediction, indent=1) + "\n")
    if picture:
        from .picture import draw_prediction

        draw_prediction(folder / PICTURE, scene, prediction)


def _scenes(place: Path) -> "Iterator[tuple[str, Scene | str]]":
    """Name and scene, or what is wrong with a file."""
    from ...scanpath.own_files import TABLES
    from ...scanpath.readers import read_scanpaths

    tables = place.is_dir() and (place / TABLES[0]).is_file()
    files = [place] if tables or place.is_file() else sorted(place.rglob("*.json"))
    for file in files:
        try:
            dataset = read_scanpaths(file, duplicates="drop")
        except (ValueError, OSError, AttributeError, TypeError) as error:
            if place.is_file():
                raise ValueError(_one_line(error)) from error
            yield file.relative_to(place).as_posix(), _one_line(error)
            continue
        yield from dataset.scenes.items()


def _unique(name: str, rows: list[dict[str, Any]]) -> str:
    """A folder's name for a scene, which no earlier one has."""
    from ..batch.case import file_name

    taken = {row["folder"] for row in rows}
    folder, k = file_name(name), 2
    while folder in taken:
        folder, k = f"{file_name(name)}-{k}", k + 1
    return folder


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv

    from ...runs.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
