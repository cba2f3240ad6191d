"""The pictures of `voxelwave eeg explain`."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import mne
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ...eeg.channels import positions
from ...eeg.features import BANDS
from ...eeg.windows import Windows
from ...runs.files import atomic_path
from ..nested_cv.records import ExplanationFigures
from .explanation import Found

_CLASS_COLOURS = "#3b6ea5", "#c8553d"
_FEW = 5  # largest number of networks whose features are drawn


def draw(
    output: Path, found: list[Found], windows: Windows, summary: ExplanationFigures
) -> tuple[dict[str, str], dict[str, str]]:
    """Write the pictures and return their file names and captions."""
    n, subjects = len(found), summary["subjects"]
    whom = f"{subjects} held-out subjects" + (f", mean of {n} networks" if n > 1 else "")
    figures: dict[str, tuple[Figure | None, str]] = {
        "topomap": (
            _scalp(found, windows),
            f"Integrated gradients by channel, as a share of the total, for all frequencies and each band ({whom}).",
        ),
        "bands": (
            _bands(summary),
            "Integrated gradients by frequency band (bars: standard deviation over the networks), and the increase of "
            f"the loss when the band is hidden ({whom}).",
        ),
        "filters": (
            _filters(found),
            "Frequency responses of the temporal filters, sorted by their peak, and the share of attribution that "
            "passes through the filters whose peak is in a band.",
        ),
        "patterns": (
            _patterns(found, windows),
            "The four most important filter pairs of the first network. The filter holds the weights of the sum over "
            "the electrodes that extracts a source; the pattern is the projection of that source onto the scalp. Only "
            "the pattern is a map of activity.",
        ),
        "tsne": (
            _tsne(found, windows),
            "t-SNE of the last features, one point per window, coloured by class (above) and by subject (below). "
            "Clusters of single subjects are a warning sign.",
        ),
    }
    images, captions = {}, {}
    for name, (figure, caption) in figures.items():
        if figure is None:
            continue
        images[name], captions[name] = f"{name}.png", caption
        with atomic_path(output / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=130)
    return images, captions


def _scalp(found: list[Found], windows: Windows) -> Figure | None:
    info, rows = _info(windows)
    if info is None:
        return None
    parts = np.mean([f.channel_and_band for f in found], axis=0)[rows]  # (channels, bands + 1)
    whole = np.mean([f.channel for f in found], axis=0)[rows]
    maps = [("all frequencies", whole)]
    for i, (name, (low, high)) in enumerate(BANDS.items()):
        maps.append((f"{name}, {low:g}–{high:g} Hz", parts[:, i]))
    figure = Figure(figsize=(2.15 * len(maps), 2.9), layout="constrained")
    axes = figure.subplots(1, len(maps))
    for number, (axis, (title, values)) in enumerate(zip(axes, maps, strict=True)):
        top = float(whole.max() if number == 0 else parts[:, :-1].max())
        names = [windows.channels[i] for i in rows] if number == 0 else None
        image = _topomap(axis, values, info, limits=(0, top), colours="viridis", names=names)
        axis.set_title(title, fontsize=9)
        if number in (0, len(maps) - 1):
            bar = figure.colorbar(image, ax=axis if number == 0 else axes[1:].tolist(), shrink=0.6, location="bottom")
            bar.ax.tick_params(labelsize=7)
            bar.set_label("share of attribution", fontsize=8)
    return figure


def _bands(summary: ExplanationFigures) -> Figure:
    rows = summary["bands"]
    names = [row["band"] if row["low"] is None else f"{row['band']}\n{row['low']:g}–{row['high']:g}" for row in rows]
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(
        names, [row["importance"] for row in rows], yerr=[row["sd"] or 0 for row in rows], color="#4a7c8c", capsize=3
    )
    left.set_ylabel("share of attribution")
    kept = [
        (name, row["hiding_costs"]) for name, row in zip(names, rows, strict=True) if row["hiding_costs"] is not None
    ]
    right.bar([name for name, _ in kept], [cost for _, cost in kept], color="#a86f3d")
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylabel("rise of cross-entropy\nwhen hidden (nats)")
    for axis in (left, right):
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _filters(found: list[Found]) -> Figure | None:
    tables = [f.filters for f in found if f.filters is not None]
    if not tables:
        return None
    response = np.concatenate([t.response for t in tables])
    peak = np.concatenate([t.peak for t in tables])
    order = np.argsort(peak, kind="stable")
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    highest = float(tables[0].frequencies[-1])
    image = left.imshow(
        response[order], aspect="auto", origin="lower", extent=(0, highest, 0, len(order)), cmap="magma"
    )
    left.set_xlabel("frequency (Hz)")
    left.set_ylabel("temporal filters, all networks")
    for low, _ in BANDS.values():
        left.axvline(low, color="white", linewidth=0.5, linestyle=":")
    figure.colorbar(image, ax=left, label="response, largest 1")
    names = [*BANDS, "none"]
    share = np.array([[t.weight[t.band == i].sum() for i in (*range(len(BANDS)), -1)] for t in tables])
    count = np.array([[(t.band == i).mean() for i in (*range(len(BANDS)), -1)] for t in tables])
    places = np.arange(len(names))
    right.barh(places + 0.2, count.mean(0), height=0.38, color="#b8b8b8", label="share of filters")
    right.barh(places - 0.2, share.mean(0), height=0.38, color="#4a7c8c", label="share of attribution")
    right.set_yticks(places, names)
    right.invert_yaxis()
    right.set_xlabel("peak in band")
    right.legend(fontsize=7, frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def _patterns(found: list[Found], windows: Windows) -> Figure | None:
    info, rows = _info(windows)
    table = found[0].filters
    if info is None or table is None:
        return None
    best = np.argsort(-table.weight, axis=None)[:4]
    figure = Figure(figsize=(7.5, 1.9 * len(best)), layout="constrained")
    axes = figure.subplots(len(best), 3, squeeze=False, width_ratios=(1.5, 1, 1))
    for row, flat in zip(axes, best, strict=True):
        f, d = np.unravel_index(flat, table.weight.shape)
        row[0].plot(table.frequencies, table.response[f], color="#4a7c8c")
        row[0].set_title(f"peak {table.peak[f]:.1f} Hz, {100 * table.weight[f, d]:.1f} % of attribution", fontsize=8)
        row[0].set_xlabel("Hz", fontsize=7)
        row[0].tick_params(labelsize=7)
        row[0].spines[["top", "right"]].set_visible(False)
        for axis, values, title in ((row[1], table.spatial[f, d], "filter"), (row[2], table.pattern[f, d], "pattern")):
            top = float(np.abs(values[rows]).max())
            _topomap(axis, values[rows], info, limits=(-top, top), colours="RdBu_r")
            axis.set_title(title, fontsize=8)
    return figure


def _tsne(found: list[Found], windows: Windows) -> Figure:
    shown = found[:_FEW]
    figure = Figure(figsize=(2.6 * max(len(shown), 2), 5.4), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, one in zip(axes.T, shown, strict=True):
        x, y = one.embedding.T
        for label, name in enumerate(windows.classes):
            own = one.label == label
            column[0].scatter(x[own], y[own], s=5, color=_CLASS_COLOURS[label], label=name, linewidths=0)
        _, number = np.unique(one.subject, return_inverse=True)
        people = number.max() + 1
        colours = mpl.colormaps["hsv"](np.linspace(0, 1, people, endpoint=False))
        column[1].scatter(x, y, s=5, color=colours[number], linewidths=0)
        column[0].set_title(f"{one.name}\nby class ({one.silhouette['class']:.2f})", fontsize=8)
        column[1].set_title(f"by subject ({people}; {one.silhouette['subject']:.2f})", fontsize=8)
        for axis in column:
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 0].legend(fontsize=7, markerscale=2, frameon=False)
    figure.supxlabel("in brackets: silhouette of the features, -1 to 1", fontsize=8)
    return figure


def _info(windows: Windows) -> tuple[mne.Info | None, list[int]]:
    """MNE's info of the channels with known positions, and their indices; None if they are too few for a map."""
    rows = [i for i, name in enumerate(windows.channels) if name in positions()]
    if len(rows) < 4:
        return None, rows
    names = [windows.channels[i] for i in rows]
    info = mne.create_info(names, windows.sfreq, "eeg")
    info.set_montage(mne.channels.make_dig_montage({name: positions()[name] for name in names}, coord_frame="head"))
    return info, rows


def _topomap(
    axis: Axes,
    values: np.ndarray,
    info: mne.Info,
    *,
    limits: tuple[float, float],
    colours: str,
    names: Sequence[str] | None = None,
) -> AxesImage:
    """Draw a scalp map, with the names of the electrodes if given."""
    image: AxesImage
    given = {"show": False, "contours": 0, "sensors": "k.", "sphere": "auto"}
    image, _ = mne.viz.plot_topomap(values, info, axes=axis, vlim=limits, cmap=colours, names=names, **given)
    for text in axis.texts:
        text.set(fontsize=5, color="white", horizontalalignment="center", verticalalignment="bottom")
    return image
