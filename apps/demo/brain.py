"""The registration parts of `voxelwave demo`: an atlas on a patient, and a diffusion scan on a T1-weighted scan."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...runs.files import atomic_path
from ...volumes import DisplacementField, Volume, read_transform, read_volume, resample
from ..registration.options import FORWARD, Register
from ..registration.register import register
from .page import Shown

T1, B0, ATLAS, LABELS = "sub-01_T1w.nii.gz", "sub-01_b0.nii.gz", "atlas.nii.gz", "atlas_labels.nii.gz"
_MOVED = "atlas/warped_labels.nii.gz"
_VENTRICLES = (4, 43, 14, 15)  # FreeSurfer's numbers
_STRUCTURES = {
    "ventricles": ("#56b4e9", _VENTRICLES),
    "thalamus": ("#e69f00", (10, 49)),
    "caudate": ("#cc79a7", (11, 50)),
    "putamen": ("#00c08b", (12, 51)),
}


def atlas_to_patient(output: Path) -> Shown:
    """Align the atlas to the patient, move its labels, and draw their outlines before and after.

    Args:
        output: the folder of the demo, with the inputs in data/.
    """
    data = output / "data"
    register(Register(data / ATLAS, data / T1, output=output / "atlas", moving_labels=data / LABELS, effort="fast"))
    patient, atlas, labels = (read_volume(data / name) for name in (T1, ATLAS, LABELS))
    moved = read_volume(output / _MOVED)
    figure = _figure(13)
    axes = figure.subplots(1, 3)
    panels = {
        "atlas with its labels": (atlas, labels),
        "patient, labels before": (patient, resample(labels, patient, order="nearest")),
        "patient, labels after": (patient, moved),
    }
    for axis, (title, (image, own)) in zip(axes, panels.items(), strict=True):
        level = _level(labels if image is atlas else moved, [n for _, numbers in _STRUCTURES.values() for n in numbers])
        _show(axis, image, level, title)
        for colour, numbers in _STRUCTURES.values():
            _outline(axis, np.isin(own.array[:, :, level], numbers), colour)
    for k, (name, (colour, _)) in enumerate(_STRUCTURES.items()):
        axes[2].text(1.0, 0.95 - 0.09 * k, name, color=colour, fontsize=12, transform=axes[2].transAxes)
    _save(figure, output / "atlas.png")
    return Shown(
        "The atlas is the brain of another person, with labels. The labels do not fit the patient until both brains are"
        " aligned; afterwards, their outlines follow the anatomy of the patient, for whom no labels exist.",
        "atlas.png",
        f"voxelwave registration register {data / ATLAS} {data / T1} --moving-labels {data / LABELS} --effort fast"
        f" -o {output / 'atlas'} --overwrite",
        {"all planes": "atlas/picture.png", "labels on the patient": _MOVED, "record": "atlas/record.json"},
    )


def diffusion_to_t1(output: Path) -> Shown:
    """Align the b0 image to the T1w scan, and draw the outlines of the T1w scan on it before and after.

    Args:
        output: the folder of the demo, with the inputs in data/ and the labels of `atlas_to_patient`.
    """
    data, results = output / "data", output / "diffusion"
    register(Register(data / B0, data / T1, output=results))
    fixed, labels, warped = (read_volume(path) for path in (data / T1, output / _MOVED, results / "warped.nii.gz"))
    forward = read_transform(results / FORWARD)
    assert isinstance(forward, DisplacementField)
    level = _level(labels, _VENTRICLES)
    brain, ventricles = fixed.array[:, :, level] > 0, np.isin(labels.array[:, :, level], _VENTRICLES)
    figure = _figure(16)
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.25])
    before = resample(read_volume(data / B0), fixed)
    for axis, title, volume in zip(
        axes, ("T1-weighted", "b0 before", "b0 after"), (fixed, before, warped), strict=False
    ):
        _show(axis, volume, level, title)
        _outline(axis, ventricles, "#56b4e9")
        _outline(axis, brain, "#e69f00")
    shift = np.where(brain, forward.vectors_mm[:, :, level, 1], np.nan)
    largest = float(np.nanmax(np.abs(shift)))
    heat = axes[3].imshow(shift.T, origin="lower", cmap="coolwarm", vmin=-largest, vmax=largest)
    axes[3].set_title("correction", color="white", fontsize=13)
    axes[3].set_axis_off()
    bar = figure.colorbar(heat, ax=axes[3], shrink=0.7)
    bar.set_label("mm along the phase-encoding axis", color="white")
    bar.ax.tick_params(colors="white")
    _save(figure, output / "diffusion.png")
    return Shown(
        "Echo-planar diffusion images are distorted along the phase-encoding axis, here from back to front. The command"
        " keeps the geometry of the scanner, which no rigid fit improves, and corrects the distortion, because that"
        " proves better on voxels that were not used to fit it. The outlines are those of the T1-weighted scan: its"
        " brain, and its ventricles as the atlas above marks them.",
        "diffusion.png",
        f"voxelwave registration register {data / B0} {data / T1} -o {results} --overwrite",
        {"all planes": "diffusion/picture.png", "record": "diffusion/record.json"},
    )


def _figure(width: float) -> Figure:
    return Figure(figsize=(width, 4.6), layout="constrained", facecolor="black")


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)


def _level(labels: Volume, numbers: Sequence[int]) -> int:
    """The axial plane with most voxels of these labels, on a RAS grid."""
    return int(np.isin(labels.array, numbers).sum(axis=(0, 1)).argmax())


def _show(axis: Axes, volume: Volume, level: int, title: str) -> None:
    """Draw an axial plane of a RAS grid; the left of the person is on the left."""
    plane = volume.array[:, :, level]
    axis.imshow(plane.T, origin="lower", cmap="gray", vmin=0, vmax=float(np.percentile(plane[plane > 0], 99)))
    axis.set_title(title, color="white", fontsize=13)
    axis.set_axis_off()
    axis.text(0.01, 0.5, "L", color="white", fontsize=11, transform=axis.transAxes)


def _outline(axis: Axes, inside: np.ndarray, colour: str) -> None:
    if inside.any():
        axis.contour(inside.T.astype(float), levels=[0.5], colors=colour, linewidths=1.3)
