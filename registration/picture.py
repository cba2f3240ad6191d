"""A picture of a registration in three planes, with the outlines of the fixed image over the moving one."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from skimage.filters import threshold_otsu

from ..runs.files import atomic_path
from ..volumes import AffineTransform, DisplacementField, Volume, VolumeWarning, resample
from ..volumes.sampling import apply_affine
from .planar import is_planar, laid_over

_PLANES = ("sagittal", "coronal", "axial")  # planes across the x, y and z axis of a RAS grid
_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))  # of the three axes
_TILE_MM = 20.0  # side of a tile of the checkerboard
_LINE_MM = 8.0  # distance between the lines of the grid
_SHOWN_MM = 0.1  # a deformable part below this is not drawn
_OUTLINE = "#ff8c00"
_THIN, _THIN_SHARE = 0.2, 0.35  # height over width of a thin plane, and the height of its row over that of others
_LINE = 120  # characters of a line below the title
_LONGEST_SIDE = 1000  # pixels of a 2-D image as drawn; a panel has about 300


@dataclass(frozen=True, eq=False)
class _Row:
    """A plane of the picture.

    Args:
        axis: the axis of the RAS grid across the plane.
        cuts: fixed, moving and warped, (n, m) in [0, 1].
        rest: displacement beyond the affine part, (n, m, 3) in mm.
    """

    axis: int
    cuts: list[np.ndarray]
    rest: np.ndarray

    @property
    def thin(self) -> bool:
        """Whether the plane is too low for letters in it, as the planes along the slices of a slab."""
        n, m = self.cuts[0].shape
        return bool(m < _THIN * n)

    @property
    def in_plane(self) -> list[int]:
        """The axes of the RAS grid along the plane."""
        return [k for k in range(3) if k != self.axis]


def draw_registration(
    path: str | os.PathLike[str],
    *,
    fixed: Volume,
    moving: Volume,
    warped: Volume,
    forward: DisplacementField,
    linear: AffineTransform | None = None,
    note: str = "",
    sides: bool = True,
    unit: str = "mm",
) -> None:
    """Write a PNG with a row for each plane through the middle of the fixed image's content.

    Columns: fixed; moving in the scanner's space and warped, both under the outlines of fixed; checkerboard of fixed
    and warped; and, if the map is not affine, a regular grid deformed by the deformable part, over the length of the
    displacement in mm. The sides of the patient are marked, and a bar shows the scale. A 2-D image has one row; its
    moving image is laid into the plane of the fixed one.

    Args:
        path: the PNG to write.
        fixed: (D, H, W).
        moving: (D, H, W) on its own grid.
        warped: (D, H, W) on the grid of `fixed`.
        forward: on the grid of `fixed`, from fixed space into moving space.
        linear: the affine part of `forward`; by default the affine that fits it best.
        note: a line below the title, such as the stage that was kept.
        sides: mark the patient's sides; not for a photograph, whose axes are not those of a patient.
        unit: the unit of lengths.
    """
    planar = is_planar(fixed)
    grid = _upright_slice(fixed) if planar else _display_grid(fixed)
    before = laid_over(moving, fixed) if planar else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VolumeWarning)  # what is to be said about the files has been said
        rows = _rows(grid, fixed, moving, warped, forward, linear or forward.linear_part(), before)
    lengths = [np.linalg.norm(row.rest, axis=2) for row in rows]
    longest = max(float(np.percentile(length, 99.5)) for length in lengths)
    deformed = longest > _SHOWN_MM

    shares = [_THIN_SHARE if row.thin else 1.0 for row in rows]
    height = 3.2 * sum(shares) + (0.6 if planar or sum(shares) < 2 else 0)
    figure = Figure(figsize=(15 if deformed else 12, height), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    names = [Path(volume.source or "").name or what for volume, what in ((moving, "moving"), (fixed, "fixed"))]
    title = "\n".join(filter(None, [f"{names[0]} aligned to {names[1]}", fill(note, _LINE)]))
    figure.suptitle(title, color="white", fontsize=13)
    axes = figure.subplots(len(rows), 5 if deformed else 4, squeeze=False, height_ratios=shares)
    to_voxels = np.linalg.inv(grid.affine[:3, :3]).T
    for number, row in enumerate(rows):
        titles = ["fixed", "moving (before)" if planar else "moving (scanner space)", "warped", "fixed | warped"]
        spacing = grid.spacing[row.in_plane[0]]
        _draw_row(axes[number], row, spacing, titles if number == 0 else [""] * 4, unit)
        if sides:
            _mark_sides(axes[number, 0], row)
        if deformed:
            panel = axes[number, 4]
            heat = _show(panel, lengths[number], "deformable part" if number == 0 else "", vmax=max(longest, 1.0))
            _draw_lines(panel, (row.rest @ to_voxels)[..., row.in_plane], spacing)
    if deformed:
        bar = figure.colorbar(heat, ax=axes[:, 4], shrink=0.6)
        bar.set_label(f"displacement beyond the affine part ({unit})", color="white")
        bar.ax.tick_params(colors="white")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _rows(
    grid: Volume,
    fixed: Volume,
    moving: Volume,
    warped: Volume,
    forward: DisplacementField,
    linear: AffineTransform,
    before: AffineTransform | None,
) -> list[_Row]:
    """The planes through the middle of the content, or the one of a slice."""
    planar = 1 in grid.shape
    centre = _centre(fixed, grid)
    windows = [_window(volume.array) for volume in (fixed, moving, warped)]
    rows = []
    for axis in (grid.shape.index(1),) if planar else (2, 1, 0):
        plane = _plane(grid, axis, centre[axis])
        cuts = [
            np.clip((resample(volume, plane, way).array.take(0, axis) - low) / (high - low), 0, 1)
            for volume, way, (low, high) in zip((fixed, moving, warped), (None, before, None), windows, strict=True)
        ]
        points = grid_points_mm(plane)
        moved = forward.map(points)
        rest = np.where(np.isnan(moved), 0.0, moved - linear.map(points)).reshape(*plane.shape, 3).take(0, axis)
        rows.append(_Row(axis, cuts, rest))
    return rows


def _draw_row(axes: np.ndarray, row: _Row, spacing: float, titles: list[str], unit: str) -> None:
    """Draw the four panels of a plane."""
    fixed, moving, warped = row.cuts
    tiles = (np.indices(fixed.shape) // max(1, round(_TILE_MM / spacing))).sum(axis=0) % 2 == 0
    panels = [fixed, moving, warped, np.where(tiles, fixed, warped)]
    content = fixed[fixed > 0.02]
    level = float(threshold_otsu(content)) if content.size and np.ptp(content) > 0 else None
    for number, (title, image) in enumerate(zip(titles, panels, strict=True)):
        _show(axes[number], image, title, cmap="gray", vmax=1.0)
        if number in (1, 2) and level is not None and fixed.min() < level < fixed.max() and min(fixed.shape) > 1:
            axes[number].contour(fixed.T, levels=[level], colors=_OUTLINE, linewidths=0.7)
    length_mm = _round_length(0.3 * fixed.shape[0] * spacing)
    length = length_mm / spacing
    bottom = 2 if not row.thin else -0.02 * fixed.shape[0] - 0.5
    axes[0].plot([2, 2 + length], [bottom, bottom], color="white", linewidth=2, clip_on=False)
    axes[0].text(3 + length, bottom, f"{length_mm:g} {unit}", color="white", fontsize=9, va="center")
    axes[0].set_ylim(-0.5, fixed.shape[1] - 0.5)


def _mark_sides(panel: Axes, row: _Row) -> None:
    """Write the patient's sides in the panel of a plane, or around it if it is thin."""
    across, up = (ends for k, ends in enumerate(_ENDS) if k != row.axis)
    panel.set_ylabel(_PLANES[row.axis], color="white", labelpad=18 if row.thin else None)
    if row.thin:
        for text, place, shift, ha, va in (
            (across[0], (0.0, 0.5), (-3, 0), "right", "center"),
            (across[1], (1.0, 0.5), (3, 0), "left", "center"),
            (up[1], (0.5, 1.0), (0, 3), "center", "bottom"),
        ):
            note = panel.annotate(text, place, shift, xycoords="axes fraction", textcoords="offset points", fontsize=11)
            note.set(ha=ha, va=va, color="white")
        return
    for x, y, text in ((0.02, 0.5, across[0]), (0.98, 0.5, across[1]), (0.5, 0.98, up[1])):
        ha = {0.02: "left", 0.98: "right"}.get(x, "center")
        va = "top" if y > 0.9 else "center"
        panel.text(x, y, text, ha=ha, va=va, color="white", fontsize=11, transform=panel.transAxes)


def _round_length(at_most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not longer."""
    power = 10.0 ** np.floor(np.log10(at_most))
    return float(power * max(factor for factor in (1, 2, 5) if factor * power <= at_most * (1 + 1e-9)))


def _plane(grid: Volume, axis: int, position: int) -> Volume:
    """The grid's plane across `axis` at `position`."""
    shape = tuple(1 if k == axis else n for k, n in enumerate(grid.shape))
    affine = grid.affine.copy()
    affine[:3, 3] += position * affine[:3, axis]
    return Volume(np.broadcast_to(np.float32(0), shape), affine)


def grid_points_mm(volume: Volume) -> np.ndarray:
    """The world points (D*H*W, 3) of all voxels of a grid, RAS+ mm."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij"), -1).reshape(-1, 3)
    points: np.ndarray = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return points


def _upright_slice(fixed: Volume) -> Volume:
    """A grid with equal spacing in the plane of a slice, whose axes are those of the slice, ordered and flipped to be
    closest to RAS, so that y goes up in an axial slice or a photograph, and z in the others."""
    # the axis across the slice may be oblique or of any length, so the nearest axes are those of unit vectors
    directions = np.eye(4)
    directions[:3, :3] = fixed.affine[:3, :3] / np.linalg.norm(fixed.affine[:3, :3], axis=0)
    order = nib.orientations.io_orientation(directions)
    upright = fixed.affine @ nib.orientations.inv_ornt_aff(order, fixed.shape)
    full = np.array(fixed.shape)[np.argsort(order[:, 0])]
    lengths = np.linalg.norm(upright[:3, :3], axis=0)
    spacing = max(lengths[full > 1].min(), float(((full - 1) * lengths).max()) / _LONGEST_SIDE)
    steps = np.where(full > 1, spacing / lengths, 1.0)
    shape = np.where(full > 1, np.floor((full - 1) / steps + 1e-6).astype(int) + 1, 1)
    return Volume(np.broadcast_to(np.float32(0), tuple(shape.tolist())), upright @ np.diag([*steps, 1.0]))


def _display_grid(fixed: Volume) -> Volume:
    """An upright RAS grid around `fixed` with equal spacing, small enough to draw."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(fixed.shape) - 1)
    world = corners @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    low, high = world.min(axis=0), world.max(axis=0)
    spacing = max(min(fixed.spacing), float((high - low).max()) / 220)
    shape = tuple(np.floor((high - low) / spacing).astype(int) + 1)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = low
    return Volume(np.broadcast_to(np.float32(0), shape), affine)


def _window(array: np.ndarray) -> tuple[float, float]:
    """The grey values of black and white: the 1st and 99.5th percentile of the foreground."""
    values = array.ravel()[:: max(1, array.size // 1_000_000)]
    content = values[values > values.min()]
    low, high = np.percentile(content, (1, 99.5)) if content.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _centre(fixed: Volume, grid: Volume) -> tuple[int, ...]:
    """The voxel of `grid` at the middle of the content of `fixed`."""
    low, high = _window(fixed.array)
    content = np.argwhere(fixed.array > low + 0.1 * (high - low))
    middle = content.mean(axis=0) if len(content) else (np.array(fixed.shape) - 1) / 2
    place = apply_affine(np.linalg.inv(grid.affine) @ fixed.affine, middle[None])[0]
    return tuple(np.clip(place.round().astype(int), 0, np.array(grid.shape) - 1).tolist())


def _show(axis: Axes, image: np.ndarray, title: str, *, vmax: float, cmap: str | None = None) -> AxesImage:
    axis.set_title(title, color="white", fontsize=12)
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(image.T, origin="lower", vmin=0.0, vmax=vmax, cmap=cmap)


def _draw_lines(axis: Axes, displacement: np.ndarray, spacing: float) -> None:
    """Draw a regular grid moved by x + u(x); displacement (n, m, 2) in voxels of the picture."""
    step = max(2, round(_LINE_MM / spacing))
    n, m = displacement.shape[:2]
    x = np.arange(n)[:, None] + displacement[..., 0]
    y = np.arange(m)[None, :] + displacement[..., 1]
    axis.plot(x[::step].T, y[::step].T, color="white", linewidth=0.5)
    axis.plot(x[:, ::step], y[:, ::step], color="white", linewidth=0.5)
    axis.set_xlim(-0.5, n - 0.5)
    axis.set_ylim(-0.5, m - 0.5)
