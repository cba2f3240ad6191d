"""People's searches for a target in pictures, listed by person, as the Interiors set of ViSioNS is distributed here.

Travi et al., "ViSioNS: visual search in natural scenes", NeurIPS Datasets and Benchmarks 2022. The pictures are divided
into the cells of a grid, which serve as objects.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..runs.words import tidy_name
from .measured import MeasuredPath, Reading, label, listed, numbers, take
from .picture_scenes import cells
from .scene import Scene

ROWS, COLUMNS = 6, 8


def is_people_search(content: Any) -> bool:
    return isinstance(content, dict) and {"image_size", "people"} <= content.keys()


def read_people_search(content: dict[str, Any], path: Path, rows: int | None, columns: int | None) -> Reading:
    """Read the scenes and paths of a file with "image_size" and "people" (name -> trials).

    A trial has "image", "target_rect" (x1, y1, x2, y2), "x" and "y" (pixels, counted from 1) and "duration_ms". A
    scene is a picture with one target: the same picture with another target is another scene of the same layout.

    Args:
        content: the content of the file.
        path: its path, for messages.
        rows: rows of the grid, by default 6.
        columns: columns of the grid, by default 8.
    """
    size = numbers(content["image_size"], f"{path}: image_size", 1)
    if size.shape != (2,) or size.min() < 1:
        raise ValueError(f"{path}: image_size must be a width and a height in pixels, got {content['image_size']}")
    width, height = int(size[0]), int(size[1])
    grid = rows or ROWS, columns or COLUMNS
    objects = cells((width, height), *grid)
    scenes: dict[str, Scene] = {}
    paths = []
    empty = 0
    if not isinstance(content["people"], dict):
        raise ValueError(f"{path}: people must be lists of trials by name, got {str(content['people'])[:60]}")
    for person in content["people"]:
        for number, trial in enumerate(listed(content["people"], person, path), start=1):
            where = f"{path}: trial {number} of {person}"
            picture = label(trial, "image", where)
            box = numbers(take(trial, "target_rect", where), where, 1)
            if box.shape != (4,):
                raise ValueError(f"{where}: target_rect must be x1, y1, x2, y2, got {box.tolist()}")
            target = _cell((box[:2] + box[2:]) / 2 - 1, (width, height), grid)
            name = f"{picture} {'_'.join(f'{v:g}' for v in box)}"
            if name not in scenes:
                scenes[name] = Scene(name, (width, height), objects, target, *grid, layout=picture)
            found = [numbers(take(trial, key, where), where, 1) for key in ("x", "y", "duration_ms")]
            if len({len(values) for values in found}) > 1:
                raise ValueError(f"{where}: x, y and duration_ms must be equally long, got {[len(v) for v in found]}")
            if not len(found[0]):
                empty += 1
                continue
            xy = np.stack(found[:2], axis=1) - 1
            paths.append(MeasuredPath(name, tidy_name(str(person)), xy, duration=found[2] / 1000))
    notes = [f"{empty} trials without fixations left out"] if empty else []
    return list(scenes.values()), paths, notes


def _cell(point: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> int:
    """The index of the cell that holds a point (x, y)."""
    rows, columns = grid
    row, column = int(point[1] / size[1] * rows), int(point[0] / size[0] * columns)
    return min(max(row, 0), rows - 1) * columns + min(max(column, 0), columns - 1)
