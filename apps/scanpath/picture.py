"""Pictures of predicted scanpaths: numbered fixations over the scene, and maps over its objects."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ...runs.files import atomic_path
from ...scanpath.scene import Scene

_PATH, _OTHERS, _TARGET = "#d1246b", "#3b5bdb", "#0b7a3b"
_SIDE = 5.2  # length of a panel's longer side in inches
_NUMBERED = 30  # values are written into the objects of a scene with at most this many


def draw_prediction(path: Path, scene: "Scene", prediction: dict[str, Any]) -> None:
    """Write a picture of three panels: scanpaths, fixation probabilities, and the attention of the network.

    Args:
        path: the .png to write.
        scene: the scene; its image is shown if there is one.
        prediction: the result of `predict_scene`.
    """
    width, height = scene.size
    side = _SIDE / max(width, height)
    figure = Figure(figsize=(3 * side * width + 1.8, side * height + 0.75), layout="constrained")
    axes = figure.subplots(1, 3)
    _draw_scene(axes[0], scene)
    _draw_paths(axes[0], scene, prediction["paths"])
    others = len(prediction["paths"]) - 1
    axes[0].set_title(
        f"first drawn scanpath, and {others} more" if others else f"{prediction['decode']} scanpath", fontsize=10
    )
    of_paths = "of drawn fixations" if prediction["decode"] == "sample" else "expected along this path"
    for axis, key, title in (
        (axes[1], "fixation_probability", f"share {of_paths}"),
        (axes[2], "attention", "attention of the decoder"),
    ):
        _draw_scene(axis, scene, faint=True)
        values = 100 * np.array(prediction[key])
        shades = PatchCollection(_boxes(scene), cmap="YlOrRd", alpha=0.75)
        shades.set_array(values)
        shades.set_clim(0, max(float(values.max()), 1e-9))
        axis.add_collection(shades)
        for box, value in zip(scene.boxes, values, strict=True):
            if len(scene) <= _NUMBERED and value >= 0.5:
                place = box[:2] + box[2:] / 2
                dark = value > 0.7 * values.max()
                axis.text(*place, f"{value:.0f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
        figure.colorbar(shades, cax=axis.inset_axes((1.02, 0, 0.03, 1)))
        axis.set_title(f"{title}, %", fontsize=10)
    figure.suptitle(scene.identifier if scene.sought is None else f"{scene.identifier}: {scene.sought}", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_scene(axis: "Axes", scene: "Scene", *, faint: bool = False) -> None:
    width, height = scene.size
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)  # y down, as in the picture
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])
    if scene.image is not None and scene.image.is_file():
        with Image.open(scene.image) as file:
            pixels = np.asarray(file.convert("RGB"))
        axis.imshow(pixels, extent=(0, width, height, 0), alpha=0.35 if faint else 1.0)
    boxes = PatchCollection(_boxes(scene), facecolor="none", edgecolor="0.6", linewidth=0.7)
    if scene.image is None:
        boxes.set_facecolor("0.95")
    axis.add_collection(boxes)
    if scene.target is not None:
        x, y, w, h = scene.boxes[scene.target]
        axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=_TARGET, linewidth=2.0))


def _draw_paths(axis: "Axes", scene: "Scene", paths: list[dict[str, Any]]) -> None:
    for other in paths[1:]:
        axis.plot(other["x"], other["y"], color=_OTHERS, alpha=0.25, linewidth=1.0)
    x, y = np.array(paths[0]["x"]), np.array(paths[0]["y"])
    # fixations on one object would hide each other, so they are drawn in a ring around its centre
    size = float(min(scene.boxes[:, 2:].min(), 0.1 * max(scene.size)))
    objects = np.array(paths[0]["objects"])
    for k in np.unique(objects):
        where = np.flatnonzero(objects == k)
        if len(where) > 1:
            angle = 2 * np.pi * np.arange(len(where)) / len(where) - np.pi / 2
            x[where] += 0.28 * size * np.cos(angle)
            y[where] += 0.28 * size * np.sin(angle)
    axis.plot(x, y, color="white", linewidth=3.2, alpha=0.8)
    axis.plot(x, y, color=_PATH, linewidth=1.8)
    axis.scatter(x, y, s=110, color=_PATH, edgecolor="white", linewidth=0.9, zorder=3)
    for k, place in enumerate(zip(x, y, strict=True), start=1):
        axis.text(*place, str(k), color="white", fontsize=7, ha="center", va="center", zorder=4, fontweight="bold")


def _boxes(scene: "Scene") -> list[Rectangle]:
    return [Rectangle((x, y), w, h) for x, y, w, h in scene.boxes]
