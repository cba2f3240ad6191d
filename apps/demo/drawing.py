"""The scene of the demo: a shelf with fourteen coloured objects, drawn by this program and so free to distribute.

    python -m voxelwave.apps.demo.drawing FOLDER

writes shelf.png and shelf.json, which are also in data/.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ...scanpath.own_files import write_scanpaths
from ...scanpath.planted import COLOURS, SIZE
from ...scanpath.scene import Dataset, Scene, SceneObject

_FINE = 4  # the picture is drawn larger by this factor and then reduced, for smooth edges
_WALL, _WOOD, _EDGE = (238, 230, 216), (186, 140, 96), (139, 99, 63)
_BOARDS = (200, 390, 580)  # y of their upper edges in pixels
# kind, colour, x of the centre in pixels, board
_THINGS = (
    *(("mug", "white", 110, 0), ("books", "blue", 255, 0), ("vase", "green", 410, 0)),
    *(("ball", "yellow", 545, 0), ("box", "black", 690, 0)),
    *(("bottle", "green", 95, 1), ("ball", "red", 235, 1), ("mug", "blue", 375, 1)),
    *(("books", "yellow", 530, 1), ("bottle", "black", 690, 1)),
    *(("box", "blue", 130, 2), ("mug", "yellow", 300, 2), ("vase", "white", 480, 2), ("box", "red", 655, 2)),
)


def draw_shelf(folder: Path) -> Scene:
    """Write shelf.png and shelf.json to a folder; the features of an object are the mean colour of its pixels."""
    width, height = SIZE
    image = Image.new("RGB", (width * _FINE, height * _FINE), _WALL)
    pen = ImageDraw.Draw(image)
    for y in _BOARDS:
        _rectangle(pen, (20, y, width - 20, y + 14), _WOOD)
        _rectangle(pen, (20, y + 14, width - 20, y + 18), _EDGE)
    for x in (20, width - 34):
        _rectangle(pen, (x, 30, x + 14, height - 4), _WOOD)
    _rectangle(pen, (20, 30, width - 20, 44), _WOOD)
    drawn = []
    for kind, colour, x, board in _THINGS:
        before = np.asarray(image).copy()
        box = _DRAW[kind](pen, x, _BOARDS[board], tuple(round(255 * c) for c in COLOURS[colour]))
        after = np.asarray(image)
        mean = after[(before != after).any(axis=2)].mean(axis=0) / 255
        drawn.append(SceneObject(f"{colour} {kind}", box, np.round(mean, 3).astype(np.float32)))
    image.resize(SIZE, Image.Resampling.LANCZOS).quantize(128).save(folder / "shelf.png", optimize=True)
    scene = Scene("shelf", SIZE, tuple(drawn), image=folder / "shelf.png")
    write_scanpaths(Dataset({"shelf": scene}), folder / "shelf.json")
    return scene


Box = tuple[float, float, float, float]
Colour = tuple[int, ...]


def _mug(pen: ImageDraw.ImageDraw, x: float, floor: float, colour: Colour) -> Box:
    pen.ellipse(_fine(x + 18, floor - 54, x + 48, floor - 18), outline=_darker(colour), width=7 * _FINE)
    _rounded(pen, (x - 30, floor - 70, x + 30, floor), colour, 8)
    _rectangle(pen, (x - 30, floor - 60, x - 20, floor - 8), _lighter(colour))
    pen.ellipse(_fine(x - 30, floor - 78, x + 30, floor - 62), fill=_darker(colour))
    return x - 32, floor - 80, 82.0, 80.0


def _ball(pen: ImageDraw.ImageDraw, x: float, floor: float, colour: Colour) -> Box:
    pen.ellipse(_fine(x - 38, floor - 76, x + 38, floor), fill=colour, outline=_darker(colour), width=2 * _FINE)
    pen.ellipse(_fine(x - 22, floor - 64, x - 4, floor - 46), fill=_lighter(colour))
    return x - 38, floor - 76, 76.0, 76.0


def _box(pen: ImageDraw.ImageDraw, x: float, floor: float, colour: Colour) -> Box:
    _rectangle(pen, (x - 42, floor - 62, x + 42, floor), colour)
    _rectangle(pen, (x - 46, floor - 76, x + 46, floor - 58), _darker(colour))
    _rectangle(pen, (x - 7, floor - 76, x + 7, floor), _lighter(colour))
    return x - 46, floor - 76, 92.0, 76.0


def _bottle(pen: ImageDraw.ImageDraw, x: float, floor: float, colour: Colour) -> Box:
    _rounded(pen, (x - 22, floor - 84, x + 22, floor), colour, 16)
    _rectangle(pen, (x - 9, floor - 118, x + 9, floor - 74), colour)
    _rectangle(pen, (x - 11, floor - 122, x + 11, floor - 110), _darker(colour))
    _rectangle(pen, (x - 22, floor - 56, x + 22, floor - 26), _lighter(colour))
    return x - 24, floor - 122, 48.0, 122.0


def _vase(pen: ImageDraw.ImageDraw, x: float, floor: float, colour: Colour) -> Box:
    points = [(-14, 104), (-20, 98), (-10, 80), (-34, 44), (-20, 0), (20, 0), (34, 44), (10, 80), (20, 98), (14, 104)]
    pen.polygon([((x + a) * _FINE, (floor - b) * _FINE) for a, b in points], fill=colour)
    pen.line([((x + a) * _FINE, (floor - b) * _FINE) for a, b in points], fill=_darker(colour), width=2 * _FINE)
    pen.polygon(
        [((x + a) * _FINE, (floor - b) * _FINE) for a, b in [(-24, 44), (-14, 12), (-6, 12), (-14, 44), (-4, 72)]],
        fill=_lighter(colour),
    )
    return x - 34, floor - 104, 68.0, 104.0


def _books(pen: ImageDraw.ImageDraw, x: float, floor: float, colour: Colour) -> Box:
    for k, (left, right, shade) in enumerate(((-46, 46, colour), (-40, 42, _darker(colour)), (-44, 38, colour))):
        y = floor - 24 * k
        _rounded(pen, (x + left, y - 23, x + right, y), shade, 4)
        _rectangle(pen, (x + left + 10, y - 18, x + left + 16, y - 5), _lighter(colour))
    return x - 46, floor - 72, 92.0, 72.0


_DRAW = {"mug": _mug, "ball": _ball, "box": _box, "bottle": _bottle, "vase": _vase, "books": _books}


def _fine(*corners: float) -> list[float]:
    return [c * _FINE for c in corners]


def _rectangle(pen: ImageDraw.ImageDraw, corners: tuple[float, ...], colour: Colour) -> None:
    pen.rectangle(_fine(*corners), fill=colour)


def _rounded(pen: ImageDraw.ImageDraw, corners: tuple[float, ...], colour: Colour, radius: float) -> None:
    pen.rounded_rectangle(_fine(*corners), radius * _FINE, fill=colour, outline=_darker(colour), width=2 * _FINE)


def _darker(colour: Colour) -> Colour:
    return tuple(round(0.75 * c) for c in colour)


def _lighter(colour: Colour) -> Colour:
    return tuple(round(c + 0.3 * (255 - c)) for c in colour)


if __name__ == "__main__":
    draw_shelf(Path(sys.argv[1]))
