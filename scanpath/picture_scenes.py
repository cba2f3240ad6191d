"""A scene from a picture of one's own, without outlines of objects: the cells of a grid, with their mean colours."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .scene import Scene, SceneObject


def scene_of_picture(path: str | os.PathLike[str], *, rows: int = 4, columns: int = 6) -> Scene:
    """The scene of a picture whose objects are the cells of a grid; no detector looks for objects.

    Args:
        path: the picture.
        rows: rows of the grid.
        columns: columns of the grid.

    Returns:
        The scene; the features of a cell are the mean red, green and blue of its pixels, 0 to 1.

    Raises:
        ValueError: the file is no readable picture, or is smaller than the grid.
    """
    path = Path(path)
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"), dtype=np.float32) / 255
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a readable picture: {error}") from None
    height, width = pixels.shape[:2]
    if min(rows, columns) < 1 or height < rows or width < columns:
        raise ValueError(f"the grid must have 1 to {height} rows and 1 to {width} columns, got {rows} x {columns}")
    objects = []
    for cell in cells((width, height), rows, columns):
        x, y, w, h = (int(v) for v in cell.box)
        mean = pixels[y : y + h, x : x + w].mean(axis=(0, 1)).round(3)
        objects.append(replace(cell, features=mean))
    return Scene(path.stem, (width, height), tuple(objects), rows=rows, columns=columns, image=path)


def cells(size: tuple[int, int], rows: int, columns: int) -> tuple[SceneObject, ...]:
    """The cells of a grid on a picture of this width and height, row by row."""
    width, height = size
    across, down = (np.linspace(0, n, k + 1).round().astype(int) for n, k in ((width, columns), (height, rows)))
    return tuple(
        SceneObject(
            f"row {row + 1}, column {column + 1}",
            (
                float(across[column]),
                float(down[row]),
                float(across[column + 1] - across[column]),
                float(down[row + 1] - down[row]),
            ),
        )
        for row in range(rows)
        for column in range(columns)
    )
