"""A picture of a registration: fixed, moving, warped, checkerboard and displacement, in three planes."""

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..runs.files import atomic_path
from ..volumes import DisplacementField, Volume, resample

_PLANES = ("sagittal", "coronal", "axial")  # planes across the x, y and z axis of a RAS grid
_TILE_MM = 20.0  # side of a tile of the checkerboard
_LINE_MM = 8.0  # distance between the lines of the grid


def draw_registration(
    path: str | os.PathLike[str], *, fixed: Volume, moving: Volume, warped: Volume, forward: DisplacementField
) -> None:
    """Write a PNG with a row for each plane through the middle of the fixed image's content.

    The columns are: fixed; moving in the scanner's space; warped; checkerboard of fixed and warped; a regular grid
    deformed by the deformable part, drawn over the length of the displacement in mm.

    Args:
        path: the PNG to write.
        fixed: (D, H, W).
        moving: (D, H, W) on its own grid.
        warped: (D, H, W) on the grid of `fixed`.
        forward: the transform on the grid of `fixed`, from fixed space into moving space.
    """
    grid = _display_grid(fixed)
    images = [_window(resample(volume, grid).array) for volume in (fixed, moving, warped)]
    points = grid_points_mm(grid)
    moved = forward.map(points)
    linear = forward.linear_part()
    rest = np.where(np.isnan(moved), 0.0, moved - linear.map(points)).reshape(*grid.shape, 3)
    centre = _centre(images[0])
    spacing = grid.spacing[0]

    figure = Figure(figsize=(15, 9.2), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 5)
    length = np.linalg.norm(rest, axis=3)
    longest = max(float(np.percentile(length, 99.5)), 1.0)
    for row, axis in enumerate((2, 1, 0)):
        cut = [np.take(image, centre[axis], axis) for image in images]
        tiles = (np.indices(cut[0].shape) // round(_TILE_MM / spacing)).sum(axis=0) % 2 == 0
        panels = {
            "fixed": cut[0],
            "moving (scanner space)": cut[1],
            "warped": cut[2],
            "fixed | warped": np.where(tiles, cut[0], cut[2]),
        }
        for column, (title, image) in enumerate(panels.items()):
            _show(axes[row, column], image, title if row == 0 else "", cmap="gray", vmax=1.0)
        plane = [k for k in range(3) if k != axis]
        heat = _show(
            axes[row, 4], np.take(length, centre[axis], axis), "deformable part" if row == 0 else "", vmax=longest
        )
        _draw_lines(axes[row, 4], np.take(rest, centre[axis], axis)[..., plane] / spacing, spacing)
        axes[row, 0].set_ylabel(_PLANES[axis], color="white")
    bar = figure.colorbar(heat, ax=axes[:, 4], shrink=0.6)
    bar.set_label("displacement beyond the affine part (mm)", color="white")
    bar.ax.tick_params(colors="white")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def grid_points_mm(volume: Volume) -> np.ndarray:
    """The world points (D*H*W, 3) of all voxels of a grid, RAS+ mm."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij"), -1).reshape(-1, 3)
    points: np.ndarray = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return points


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


def _window(array: np.ndarray) -> np.ndarray:
    """Grey values in [0, 1] between the 1st and 99.5th percentile of the foreground."""
    content = array[array > array.min()]
    low, high = np.percentile(content, (1, 99.5)) if content.size else (0.0, 1.0)
    return np.clip((array - low) / max(high - low, 1e-6), 0, 1)


def _centre(image: np.ndarray) -> tuple[int, ...]:
    content = np.argwhere(image > 0.1)
    return tuple(content.mean(axis=0).round().astype(int)) if len(content) else tuple(n // 2 for n in image.shape)


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
