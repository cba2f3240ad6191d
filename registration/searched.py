"""A picture of the regions of the moving image in which a network searched for regions of the fixed image."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..kernels.threads import kernel_threads
from ..runs.files import atomic_path
from ..runs.threads import limited_threads
from ..volumes import AffineTransform, Volume
from .cross_attention import Searched
from .grids import to_grid, training_grid, unit_range
from .nestedmorph import MULTIPLE, NestedMorph
from .nestedmorph_files import TrainedNetwork

_COLOURS = ("#ff8c00", "#00bfff", "#7fff00", "#ff69b4")

Index = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class SearchedRegions:
    """The regions that a network searched, on the grid of its input without the padding.

    Args:
        fixed: (D, H, W) in [0, 1].
        moving: (D, H, W) in [0, 1], moved by the affine.
        region: voxels of a region along each axis.
        counts: number of regions along each axis.
        before: voxels of padding before the first voxel of each axis.
        chosen: (regions, K), the numbers of the searched regions of `moving` for each region of `fixed`, best first.
    """

    fixed: np.ndarray
    moving: np.ndarray
    region: Index
    counts: Index
    before: Index
    chosen: np.ndarray

    def box(self, number: int) -> list[tuple[int, int]]:
        """The first voxel and the one after the last of a region, along each axis."""
        place = np.unravel_index(number, self.counts)
        starts = [int(p) * r - b for p, r, b in zip(place, self.region, self.before, strict=True)]
        ends = zip(starts, self.region, self.fixed.shape, strict=True)
        return [(max(start, 0), min(start + r, n)) for start, r, n in ends]

    def best_shift(self) -> np.ndarray:
        """Voxels from each region of `fixed` to its best region of `moving`, (regions, 3)."""
        places = np.stack(np.unravel_index(np.arange(len(self.chosen)), self.counts), 1)
        result: np.ndarray = (places[self.chosen[:, 0]] - places) * np.array(self.region)
        return result


def find_searched(
    network: TrainedNetwork, moving: Volume, fixed: Volume, affine: AffineTransform, *, grid: Volume
) -> SearchedRegions | None:
    """The regions that the network searches at the finer of its coarse stages; None if it chooses no regions.

    Args:
        network: the network.
        moving: (D, H, W).
        fixed: (D, H, W).
        affine: fixed world -> moving world.
        grid: the network's input grid if its training recorded no spacing.
    """
    model = network.network
    if not isinstance(model, NestedMorph) or model.mixer is None:
        return None
    seen = grid if network.spacing_mm is None else training_grid(fixed, spacing_mm=network.spacing_mm)
    pair = [to_grid(unit_range(volume), seen, way)[None] for volume, way in ((moving, affine), (fixed, None))]
    return searched_regions(model, *pair)


def searched_regions(model: NestedMorph, moving: torch.Tensor, fixed: torch.Tensor) -> SearchedRegions | None:
    """The regions that the network searches for one pair (1, 1, D, H, W); None if it chooses no regions."""
    place = next(model.parameters()).device
    with torch.inference_mode(), limited_threads(kernel_threads()):
        found = model.eval().searched_regions(moving.to(place), fixed.to(place))
    if not found:
        return None
    return _described(found[0], moving[0, 0].cpu().numpy(), fixed[0, 0].cpu().numpy())


def _described(searched: Searched, moving: np.ndarray, fixed: np.ndarray) -> SearchedRegions:
    missing = [-n % MULTIPLE for n in fixed.shape]
    padded = [n + m for n, m in zip(fixed.shape, missing, strict=True)]
    a, b, c = (-(-n // r) for n, r in zip(padded, searched.region, strict=True))
    d, h, w = (m // 2 for m in missing)
    return SearchedRegions(fixed, moving, searched.region, (a, b, c), (d, h, w), searched.chosen[0, 0].cpu().numpy())


def draw_searched(path: str | os.PathLike[str], searched: SearchedRegions) -> None:
    """Write a PNG with a row for each plane: regions of the fixed image, and where each was searched in the moving one.

    Each plane goes through the middle of the fixed image's content. Up to four regions with the most content are drawn
    in four colours. In the moving image, the best region is drawn with a thick line and the others with thin lines;
    regions in front of or behind the plane are dashed.
    """
    figure = Figure(figsize=(8, 11), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    figure.suptitle("regions of the fixed image, and where they were searched", color="white", fontsize=12)
    axes = figure.subplots(3, 2, squeeze=False)
    content = np.argwhere(searched.fixed > searched.fixed.mean())
    middle = content.mean(0).round().astype(int) if len(content) else np.array(searched.fixed.shape) // 2
    for row, axis in enumerate((2, 1, 0)):
        position = int(middle[axis])
        for panel, image, title in zip(
            axes[row], (searched.fixed, searched.moving), ("fixed", "moving, after the affine"), strict=True
        ):
            panel.imshow(image.take(position, axis).T, origin="lower", cmap="gray", vmin=0.0, vmax=1.0)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_title(title if row == 0 else "", color="white", fontsize=11)
        for colour, number in zip(_COLOURS, _fullest(searched, axis, position), strict=False):
            _outline(axes[row, 0], searched.box(number), axis, position, colour, 2.0)
            for rank, chosen in enumerate(searched.chosen[number].tolist()):
                _outline(axes[row, 1], searched.box(chosen), axis, position, colour, 2.0 if rank == 0 else 0.7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _fullest(searched: SearchedRegions, axis: int, position: int) -> list[int]:
    """The regions across a plane whose intensities vary most, at most one per colour."""
    spread = {}
    for number in range(len(searched.chosen)):
        box = searched.box(number)
        part = searched.fixed[tuple(slice(start, max(start, stop)) for start, stop in box)]
        if box[axis][0] <= position < box[axis][1] and part.size:
            spread[number] = float(part.std())
    return sorted(spread, key=lambda number: -spread[number])[: len(_COLOURS)]


def _outline(panel: Axes, box: Sequence[tuple[int, int]], axis: int, position: int, colour: str, width: float) -> None:
    (x, x_end), (y, y_end) = (side for number, side in enumerate(box) if number != axis)
    style = "-" if box[axis][0] <= position < box[axis][1] else "--"
    panel.add_patch(
        Rectangle(
            (x - 0.5, y - 0.5), x_end - x, y_end - y, fill=False, edgecolor=colour, linewidth=width, linestyle=style
        )
    )
