"""Search Target Inference (Stauden, Barz and Sonntag, 2018): collages in a grid, with one target box each."""

from pathlib import Path
from typing import Any

import numpy as np

from ..runs.words import tidy_name
from .grid import fit_axis
from .measured import MeasuredPath, Reading, label, listed, numbers, take, whole
from .scene import Box, Scene, SceneObject


def is_collage(record: Any) -> bool:
    return isinstance(record, dict) and {"fixations", "ground_truth", "size", "target"} <= record.keys()


def read_collages(content: dict[str, Any], path: Path, rows: int | None, columns: int | None) -> Reading:
    """Read the scenes and paths of all collages.

    The file lists only the targets, so the grid of objects is fitted to the target boxes of all collages. Every object
    of every collage gets a box of the mean size at its grid position. This includes the target, because its own box,
    exact to the pixel, would reveal its position.
    """
    if (rows is None) != (columns is None):
        raise ValueError(f"rows and columns must be given together, got {rows} and {columns}")
    corners, sides = [], []
    for name, record in content.items():
        where = f"{path}: {name}"
        told = listed(record, "ground_truth", where)
        if len(told) != 1:
            raise ValueError(f"{where} must have one target box, got {len(told)}")
        if not isinstance(record["fixations"], dict):
            raise ValueError(f"{where}: fixations must be lists by person, got {str(record['fixations'])[:60]}")
        box = numbers([take(told[0], k, where) for k in ("xmin", "ymin", "xmax", "ymax")], where, 1)
        if not (box[:2] < box[2:]).all():
            raise ValueError(f"{where}: the target box must have xmin < xmax and ymin < ymax, got {box.tolist()}")
        corners.append(box)
        sides.append([whole(record["size"], k, where) for k in ("width", "height")])
    truth, extents = np.array(corners), np.array(sides)
    middle, side = (truth[:, :2] + truth[:, 2:]) / 2, (truth[:, 2:] - truth[:, :2]).mean(0)
    across = fit_axis(middle[:, 0], extents[:, 0], columns)
    down = fit_axis(middle[:, 1], extents[:, 1], rows)
    targets = down.place(middle[:, 1]) * across.count + across.place(middle[:, 0])
    notes = [
        f"grid of {down.count} rows and {across.count} columns from {len(content)} target boxes: x = {across.first:.1f}"
        f" + {across.pitch:.2f} column, y = {down.first:.1f} + {down.pitch:.2f} row, largest residuals"
        f" {across.residual:.1f} and {down.residual:.1f} px"
    ]
    boxes: list[Box] = [
        (float(x - side[0] / 2), float(y - side[1] / 2), float(side[0]), float(side[1]))
        for y in down.centres
        for x in across.centres
    ]
    scenes, paths = [], []
    for (name, record), target, extent in zip(content.items(), targets, extents, strict=True):
        sought = Path(label(record, "target", f"{path}: {name}")).stem
        objects = tuple(SceneObject(sought if k == target else "cover", box) for k, box in enumerate(boxes))
        size = int(extent[0]), int(extent[1])
        scenes.append(Scene(name, size, objects, int(target), down.count, across.count))
        for person, fixations in record["fixations"].items():
            where = f"{path}: fixations of {person} on {name}"
            xy = numbers(fixations, where, 2) if fixations else np.empty((0, 2))
            if xy.shape[1] != 2:
                raise ValueError(f"{where} must be pairs x, y, got {xy.shape[1]} numbers each")
            paths.append(MeasuredPath(name, tidy_name(str(person)), xy))
    return scenes, paths, notes
