"""Pictures of measures of attention, as SVG text for a page."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

Curve = tuple[Sequence[float], Sequence[float]]  # x, y


def curves(
    found: Mapping[str, Curve],
    *,
    x: str,
    y: str,
    log: bool = False,
    level: tuple[str, float] | None = None,
    limits: tuple[float, float] | None = None,
    bands: Mapping[str, Curve] | None = None,
) -> str:
    """Named curves in one plot; `level` is a labelled horizontal line, `bands` the (low, high) limits of curves."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, (places, values) in found.items():
        line = axis.plot(places, values, marker=".", label=name)[0]
        if bands is not None and name in bands:
            axis.fill_between(places, *bands[name], color=line.get_color(), alpha=0.15, linewidth=0)
    if level is not None:
        axis.axhline(level[1], color="0.5", linestyle="--", label=level[0])
    if log:
        axis.set_xscale("log")
    if limits is not None:
        axis.set_ylim(*limits)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(color="0.92")
    axis.legend(fontsize=8, frameon=False)
    return as_svg(figure)


def panels(found: Mapping[str, Mapping[str, Curve]], *, x: str, y: str, log: bool = False) -> str:
    """Small plots side by side with one scale, each with named curves; the names are explained once."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3 * columns + 1, 2.3 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axis, (title, named) in zip(axes, found.items(), strict=False):
        for name, (places, values) in named.items():
            axis.plot(places, values, label=name, linewidth=1.2)
        axis.set_title(title, fontsize=9)
        axis.grid(color="0.92")
        if log:
            axis.set_xscale("log")
    for axis in list(axes)[len(found) :]:
        axis.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    return as_svg(figure)


def head_matrix(values: np.ndarray, *, label: str, symmetric: bool = False) -> str:
    """A value for each (layer, head), as squares on a colour scale with the numbers."""
    layers, heads = values.shape
    figure = Figure(figsize=(1.1 * heads + 1.8, 0.55 * layers + 1.1), layout="constrained")
    axis = figure.subplots()
    largest = float(np.nanmax(np.abs(values))) or 1.0
    picture = axis.imshow(
        values,
        cmap="RdBu_r" if symmetric else "Blues",
        vmin=-largest if symmetric else 0,
        vmax=largest,
        aspect="auto",
    )
    for layer in range(layers):
        for head in range(heads):
            strong = abs(values[layer, head]) > 0.6 * largest
            text = "–" if np.isnan(values[layer, head]) else f"{values[layer, head]:.2g}"
            axis.text(head, layer, text, ha="center", va="center", fontsize=8, color="white" if strong else "black")
    axis.set_xticks(range(heads), [str(h) for h in range(heads)])
    axis.set_yticks(range(layers), [str(layer) for layer in range(layers)])
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    figure.colorbar(picture, ax=axis, label=label)
    return as_svg(figure)


def map_gallery(maps: Sequence[np.ndarray], titles: Sequence[str]) -> str:
    """Maps as small pictures, each on its own scale from 0."""
    columns = min(8, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(1.35 * columns, 1.55 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, one, title in zip(axes, maps, titles, strict=False):
        axis.imshow(one, cmap="Blues", vmin=0, aspect="auto")
        axis.set_title(title, fontsize=7)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[len(maps) :]:
        axis.remove()
    return as_svg(figure)


def boxes_over_image(
    image: np.ndarray | None,
    boxes: Sequence[tuple[float, float, float, float]],
    weights: Sequence[float],
    *,
    marked: int | None = None,
    size: tuple[float, float] | None = None,
) -> str:
    """Weights on objects of a scene: boxes (left, top, width, height) in pixels, filled by weight; one is outlined."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    if image is not None:
        axis.imshow(image, alpha=0.6)
    elif size is not None:
        axis.set_xlim(0, size[0])
        axis.set_ylim(size[1], 0)
    largest = max(weights) or 1.0
    for number, ((left, top, width, height), weight) in enumerate(zip(boxes, weights, strict=True)):
        axis.add_patch(Rectangle((left, top), width, height, color="C3", alpha=0.75 * weight / largest, linewidth=0))
        if number == marked:
            axis.add_patch(Rectangle((left, top), width, height, fill=False, color="C0", linewidth=2))
    _plain(axis)
    return as_svg(figure)


class Slice(NamedTuple):
    """A picture of one plane."""

    title: str
    image: np.ndarray  # (rows, columns), in [0, 1]
    weights: np.ndarray  # (rows, columns), the attention on each pixel
    box: tuple[float, float, float, float] | None = None  # top, left, bottom, right in pixels


def attention_over_slices(slices: Sequence[Slice], *, label: str) -> str:
    """Attention in colour over grey pictures, with one scale for all, and boxes."""
    largest = max(float(one.weights.max()) for one in slices) or 1.0
    figure = Figure(figsize=(2.9 * len(slices) + 0.9, 3.3), layout="constrained")
    axes = list(figure.subplots(1, len(slices), squeeze=False).flat)
    shown = None
    for axis, one in zip(axes, slices, strict=True):
        axis.imshow(one.image, cmap="gray", vmin=0, vmax=1)
        shown = axis.imshow(one.weights, cmap="inferno", vmin=0, vmax=largest, alpha=0.45, interpolation="bilinear")
        if one.box is not None:
            top, left, bottom, right = one.box
            place = (left - 0.5, top - 0.5)
            axis.add_patch(Rectangle(place, right - left, bottom - top, fill=False, color="#00e5ff", linewidth=1.6))
        axis.set_title(one.title, fontsize=9)
        _plain(axis)
    assert shown is not None
    figure.colorbar(shown, ax=axes, label=label, shrink=0.8)
    return as_svg(figure)


def points_on_head(places: np.ndarray, names: Sequence[str], values: Sequence[float], *, label: str) -> str:
    """Values at electrodes seen from above; places (n, 2), x to the right ear and y to the nose."""
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axis = figure.subplots()
    radius = 1.12 * float(np.linalg.norm(places, axis=1).max())
    axis.add_patch(Circle((0, 0), radius, fill=False, color="0.5"))
    axis.plot([-0.1 * radius, 0, 0.1 * radius], [radius, 1.1 * radius, radius], color="0.5")
    shown = axis.scatter(
        places[:, 0], places[:, 1], c=list(values), cmap="Blues", vmin=0, s=420, edgecolors="0.4", linewidths=0.6
    )
    for (x, y), name in zip(places, names, strict=True):
        axis.text(x, y, name, ha="center", va="center", fontsize=7)
    figure.colorbar(shown, ax=axis, label=label, shrink=0.8)
    axis.set_xlim(-1.15 * radius, 1.15 * radius)
    axis.set_ylim(-1.15 * radius, 1.2 * radius)
    axis.set_axis_off()
    axis.set_aspect("equal")
    return as_svg(figure)


def intervals(rows: Sequence[tuple[str, float, float, float]], *, label: str) -> str:
    """Named values with the limits of their intervals, (name, value, low, high), one below the other, beside 0."""
    figure = Figure(figsize=(7, 0.26 * len(rows) + 0.9), layout="constrained")
    axis = figure.subplots()
    for place, (_, value, low, high) in enumerate(rows):
        axis.plot([low, high], [place, place], color="C0", linewidth=1.4)
        axis.plot(value, place, "o", color="C0", markersize=4)
    axis.axvline(0, color="0.5", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.grid(axis="x", color="0.92")
    return as_svg(figure)


def _plain(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal")


def as_svg(figure: Figure) -> str:
    """The figure as SVG that can be put into a page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
