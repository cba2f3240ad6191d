"""Grounding: one map out of many heads that says where in the image an answer comes from.

An idea after arXiv 2511.00810. Tokens of a query Q choose the heads; an anchor token a reads the patches V of an image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy import ndimage
from torch import Tensor

Box = tuple[float, float, float, float]  # top, left, bottom, right


class Grounding(NamedTuple):
    """The combined map."""

    patches: Tensor  # P (V), sums to 1
    head_weights: Tensor  # (heads), sums to 1
    pattern: Tensor  # g (Q), sums to 1


def ground(maps: Tensor, hidden: Tensor, *, query: Tensor, patches: Tensor, anchor: int) -> Grounding:
    """Weight the heads by how well their attention from the query tokens fits the similarity of the hidden states.

    g_j = softmax_j sum_layers sum_v cos(h_j, h_v), w_h(j) = softmax_j sum_v A_h[j, v], the weight of head h is
    softmax_h -KL(g | w_h), and P(v) = sum_h weight_h A_h[a, v], divided by its sum.

    Args:
        maps: (heads, L, L), the heads of all layers.
        hidden: (layers, L, dim).
        query: int (Q), places of the query's tokens.
        patches: int (V), places of the patches.
        anchor: place of the anchor.

    Raises:
        ValueError: no head reads the patches from the anchor.
    """
    unit = torch.nn.functional.normalize(hidden, dim=-1)
    log_pattern = (unit[:, query] @ unit[:, patches].mT).sum((0, 2)).log_softmax(0)
    by_head = maps[:, query][:, :, patches].sum(-1).log_softmax(-1)  # (heads, Q)
    pattern = log_pattern.exp()
    divergence = (pattern * (log_pattern - by_head)).sum(-1)
    weights = (-divergence).softmax(0)
    found = (weights[:, None] * maps[:, anchor][:, patches]).sum(0)
    if not found.sum() > 0:
        raise ValueError("no head reads the patches from the anchor token, so there is no map")
    return Grounding(found / found.sum(), weights, pattern)


def box_target(rows: int, columns: int, box: Box) -> Tensor:
    """(rows columns): uniform over the patches that a box touches; a patch is the unit square at (row, column)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    inside = (row + 1 > box[0]) & (row < box[2]) & (column + 1 > box[1]) & (column < box[3])
    target = inside.flatten().double()
    return target / target.sum().clamp_min(1)


def grounding_loss(found: Tensor, target: Tensor) -> Tensor:
    """KL(target | P) in nats, for P (V) and target (V)."""
    tiny = torch.finfo(found.dtype).tiny
    loss: Tensor = (torch.xlogy(target, target) - target * found.clamp_min(tiny).log()).sum()
    return loss


class Region(NamedTuple):
    """The predicted point and box, in patches."""

    row: float
    column: float
    box: Box


def best_region(found: Tensor, *, level: float = 0.5) -> Region:
    """The connected region with the largest sum, of the patches of a map (rows, columns) above level times its maximum.

    Its centre is weighted by the map; the middle of patch (0, 0) is (0.5, 0.5).
    """
    above = found >= level * found.max()
    labels, count = ndimage.label(above.numpy())
    numbers = torch.from_numpy(labels)
    best = max(range(1, count + 1), key=lambda n: float(found[numbers == n].sum()))
    place = (numbers == best).nonzero()
    weight = found[numbers == best]
    centre = ((place + 0.5) * weight.unsqueeze(1)).sum(0) / weight.sum()
    (top, left), (bottom, right) = place.amin(0).tolist(), (place.amax(0) + 1).tolist()
    return Region(float(centre[0]), float(centre[1]), (top, left, bottom, right))


def locate(map_of: Callable[[Box], Tensor], image: Box, *, zooms: int = 1, part: float = 0.5) -> tuple[float, float]:
    """The point, row and column, at which a model looks; each further pass looks at a part around the last point.

    Args:
        map_of: runs the model on a part of the image and returns its map (rows, columns).
        image: the whole image.
        zooms: number of further passes.
        part: side of the next part, as a share of the last one.
    """
    view = image
    for zoom in range(zooms + 1):
        found = map_of(view)
        region = best_region(found)
        height, width = view[2] - view[0], view[3] - view[1]
        row = view[0] + height * region.row / found.shape[0]
        column = view[1] + width * region.column / found.shape[1]
        if zoom < zooms:
            high, wide = part * height, part * width
            top = min(max(row - high / 2, image[0]), image[2] - high)
            left = min(max(column - wide / 2, image[1]), image[3] - wide)
            view = (top, left, top + high, left + wide)
    return row, column


def hit(point: tuple[float, float], box: Box) -> bool:
    """Whether a point is in a box."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    high = min(first[2], second[2]) - max(first[0], second[0])
    wide = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0.0, high) * max(0.0, wide)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both) if areas > both else 0.0


def hidden_of(residuals: Sequence[Tensor], sample: int = 0) -> Tensor:
    """(layers, L, dim): recorded residual streams of one sample, for `ground`."""
    return torch.stack([stream[sample] for stream in residuals])
