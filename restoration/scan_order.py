"""Nested S-shaped scanning: the order in which a selective scan visits the pixels of a map.

The map is divided into vertical stripes. Within a stripe, rows are read alternately from left to right and from right
to left; stripes are read alternately downwards and upwards. Most neighbours in the sequence are thus neighbours in the
image.
 Li et al., MaIR, CVPR 2025 (arXiv 2412.20066), section 3.2.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

DIRECTIONS = 4


def scan_order(
    height: int,
    width: int,
    stripe_width: int,
    *,
    shifted: bool = False,
    continuous: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """The pixels of a height x width map in the order of each of the four directions.

    Direction 0 reads vertical stripes from the left, direction 2 horizontal stripes from the top; directions 1 and 3
    are 0 and 2 on the map rotated by 180 degrees. Tables are cached per size and device: do not write into them.

    Args:
        height, width: size of the map in pixels.
        stripe_width: width of a stripe in pixels; the last stripe is narrower if it does not divide the map's width.
        shifted: halve the width of the first stripe, so that the borders are in the middle of the plain stripes.
        continuous: avoid the jump that the published order makes at every stripe border of a map with an even number
            of rows (see `stripe_path`).
        device: the table's device; None is the CPU.

    Returns:
        (4, height * width) int32, raster indices y * width + x.

    Raises:
        ValueError: a size is below 1.

    Example:
        >>> scan_order(2, 4, 2)[0].tolist()
        [0, 1, 5, 4, 6, 7, 3, 2]
        >>> scan_order(2, 4, 2, continuous=True)[0].tolist()
        [4, 5, 6, 7, 3, 2, 1, 0]
    """
    if torch.compiler.is_exporting():
        return traced_order(height, width, stripe_width, shifted=shifted, continuous=continuous, device=device)
    return _order(height, width, stripe_width, shifted, continuous, device)


@lru_cache(maxsize=64)
def _order(
    height: int, width: int, stripe_width: int, shifted: bool, continuous: bool, device: torch.device | None
) -> Tensor:
    last = height * width - 1
    down = stripe_path(height, width, stripe_width, shifted=shifted, continuous=continuous)
    transposed = stripe_path(width, height, stripe_width, shifted=shifted, continuous=continuous)
    across = transposed % height * width + transposed // height
    table = np.stack([down, last - down, across, last - across]).astype(np.int32)
    with torch.inference_mode(False):  # a cached table created in inference mode could not be used in training
        return torch.from_numpy(table).to(device or "cpu")


def stripe_path(
    height: int, width: int, stripe_width: int, *, shifted: bool = False, continuous: bool = False
) -> np.ndarray:
    """The pixels of a map in the order of direction 0.

    In the published order, consecutive pixels are neighbours inside a stripe. If the number of rows is even, however, a
    stripe ends on its left edge, and the step to the next stripe is as long as the stripe is wide. `continuous` reads
    all rows but one in stripes (an odd number of rows, so that every stripe ends on its right edge) and then the
    remaining row from right to left, at the top or bottom, where the last stripe ends; every step then has length 1.

    Args:
        height, width: size of the map in pixels.
        stripe_width: width of a stripe in pixels.
        shifted: begin with a stripe of half the width.
        continuous: avoid the jumps between stripes.

    Returns:
        (height * width,) int64, raster indices y * width + x.
    """
    for name, value in (("height", height), ("width", width), ("stripe_width", stripe_width)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    raster = np.arange(height * width).reshape(height, width)
    shift = stripe_width // 2 if shifted else 0
    if width < shift and not continuous:
        return raster.ravel()  # as published: the half stripe would be wider than the map
    borders = [0, *range(shift or stripe_width, width, stripe_width), width]
    if not continuous or height % 2:
        return _stripes(raster, borders)
    ends_below = len(borders) % 2 == 0  # an odd number of stripes
    if ends_below:
        return np.concatenate([_stripes(raster[:-1], borders), raster[-1, ::-1]])
    return np.concatenate([_stripes(raster[1:], borders), raster[0, ::-1]])


def _stripes(raster: np.ndarray, borders: list[int]) -> np.ndarray:
    path = []
    for number, (left, right) in enumerate(pairwise(borders)):
        stripe = raster[:, left:right].copy()
        if number % 2:
            stripe = stripe[::-1]
        stripe[1::2] = stripe[1::2, ::-1]
        path.append(stripe.ravel())
    return np.concatenate(path)


def traced_order(
    height: int,
    width: int,
    stripe_width: int,
    *,
    shifted: bool = False,
    continuous: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """The same as `scan_order`, by tensor operations, for an exported program, whose sizes are known when it runs.

    Example:
        >>> traced_order(2, 4, 2)[0].tolist()
        [0, 1, 5, 4, 6, 7, 3, 2]
    """
    options = {"shifted": shifted, "continuous": continuous}
    down = _steps(height, width, stripe_width, **options, device=device)
    across = _steps(width, height, stripe_width, **options, device=device).T
    steps = torch.stack([part.reshape(-1) for part in (down, down.flip(0, 1), across, across.flip(0, 1))])
    pixels = torch.arange(height * width, device=device).expand_as(steps)
    return torch.zeros_like(steps).scatter(1, steps, pixels).int()


def _steps(
    height: int, width: int, stripe_width: int, *, shifted: bool, continuous: bool, device: torch.device | None
) -> Tensor:
    """The step at which `stripe_path` reads each pixel, (height, width)."""
    y = torch.arange(height, device=device).unsqueeze(1)
    x = torch.arange(width, device=device)
    cut = (stripe_width - stripe_width // 2) % stripe_width if shifted else 0  # pixels that the first stripe lacks
    stripe = (x + cut) // stripe_width
    left = (stripe * stripe_width - cut).clamp(min=0)
    right = torch.minimum((stripe + 1) * stripe_width - cut, x[-1:] + 1)
    rows, top = height, 0 * stripe[-1:]
    if continuous:  # with an even number of rows, one row is read at the end: the first, or the last
        even = 1 - height % 2
        rows, top = height - even, stripe[-1:] % 2 * even
    row = y - top
    in_stripe = torch.where(stripe % 2 == 1, rows - 1 - row, row)
    column = torch.where(in_stripe % 2 == 1, right - 1 - x, x - left)
    steps = left * rows + in_stripe * (right - left) + column
    if continuous:
        return torch.where((row < 0) | (row >= rows), rows * width + width - 1 - x, steps)
    shift = stripe_width // 2 if shifted else 0
    return torch.where(x[-1:] + 1 < shift, y * width + x, steps)  # as published, see `stripe_path`
