"""Restore images of any size in tiles, which limit the memory; refuse unsuitable weights; measure the change."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, Self

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..kernels import arena
from ..runs.catalogue import Entry
from ..runs.finite import check_finite
from ..volumes import VolumeWarning
from ..volumes.hounsfield import share_of_air
from .borders import mirrored
from .images import Image, IntensityRange, choose_range
from .settings import TILE
from .views import dihedral, neighbours, undo_dihedral
from .weights import WeightsInfo

Progress = Callable[[int, int], None]
"""Called with the number of finished slices and the number of all."""

_UNDERSHOOT = 0.01  # as a fraction of the largest value: interpolation may leave such negative values in magnitudes
_NEGATIVE = 0.002  # share of lower values that may be there
_LEAST = 96  # pixels; the denoisers leave much of strong noise in a smaller image, see `_restore_tiles`
_FAR = 0.5  # beyond the ends of the range, as a fraction of it; noise with sigma 50 of 255 rarely reaches further


class RestorationNetwork(Protocol):
    """A torch module that maps (1, in_channels, H, W) to (1, out_channels, H * scale, W * scale)."""

    @property
    def in_channels(self) -> int: ...

    @property
    def out_channels(self) -> int: ...

    @property
    def scale(self) -> int: ...

    def __call__(self, image: Tensor, /) -> Tensor: ...

    def to(self, device: torch.device | str, /) -> Self: ...

    def eval(self) -> Self: ...


class Refused(ValueError):
    """Raised if the weights do not apply to an image; the result would look plausible but be wrong."""


def restore(
    model: RestorationNetwork,
    image: np.ndarray | Tensor,
    *,
    tile: int = TILE,
    overlap: float = 0.1,
    self_ensemble: bool = False,
    blend: Literal["smooth", "cut"] = "smooth",
    groups: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> np.ndarray:
    """Restore a stack of slices with a model; the memory for the network depends on the size of the tiles only.

    Args:
        model: MaIR, MaIRUNet, or another `RestorationNetwork`. If it has several input channels and one output channel,
            the neighbours of a grey slice become the other input channels (2.5-D).
        image: (N, C, H, W), or (C, H, W), scaled so that the ends of the intensity range are 0 and 1.
        tile: largest side of a tile in pixels, without its overlap.
        overlap: overlap with the neighbouring tiles on each side, as a fraction of the tile.
        self_ensemble: average the results of the eight flips and rotations of the image; takes eight times as long.
        blend: "smooth" fades neighbouring tiles into each other over the inner half of their overlap, and mirrors an
            image below 96 pixels at its borders before a network with scale 1 sees it; "cut" places the tiles side by
            side, as in published results.
        groups: the number of volumes stacked along N; in 2.5-D, neighbouring slices come from the same volume only.
        device: where the model runs.
        progress: called after each slice.

    Returns:
        float32, (N, C, H * scale, W * scale), or without N if the image has none; not clipped to [0, 1].

    Raises:
        Refused: the image has another number of channels than the model.
        ValueError: a shape or an option does not fit.
    """
    stack = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
    single = stack.ndim == 3
    stack = stack[None] if single else stack
    if stack.ndim != 4 or 0 in stack.shape:
        raise ValueError(f"image must have shape (N, C, H, W) or (C, H, W), got {tuple(stack.shape)}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    if not 0 <= overlap <= 0.5:
        raise ValueError(f"overlap must be from 0 to 0.5, got {overlap}")
    if blend not in ("smooth", "cut"):
        raise ValueError(f'blend must be "smooth" or "cut", got {blend!r}')
    slices = slices_of(model, stack.shape[1])
    count, per_group = len(stack), len(stack) // groups
    model = model.to(device).eval()
    restored: Tensor | None = None
    with torch.inference_mode(), arena.reused():
        for k in range(count):
            first = k // per_group * per_group
            chosen = [first + i for i in neighbours(per_group, k - first, slices)]
            degraded = stack[chosen].flatten(0, 1).float()
            views = range(8) if self_ensemble else range(1)
            total = sum(
                undo_dihedral(_restore_tiles(model, dihedral(degraded, view), tile, overlap, blend, device), view)
                for view in views
            )
            assert isinstance(total, Tensor)
            result = total / len(views)
            if restored is None:
                restored = torch.empty(count, *result.shape)
            restored[k] = result
            if progress is not None:
                progress(k + 1, count)
    assert restored is not None
    check_finite(restored, "restored values")
    return restored[0].numpy() if single else restored.numpy()


def slices_of(model: RestorationNetwork, channels: int) -> int:
    """The number of neighbouring slices that the model takes as channels: 1, or an odd number (2.5-D).

    Args:
        model: the network, with in_channels and out_channels.
        channels: number of channels of the image.

    Raises:
        Refused: the model cannot restore an image with this number of channels.
    """
    taken, given = model.in_channels, model.out_channels
    if taken == channels == given:
        return 1
    if channels == given == 1 and taken % 2:
        return taken
    kind = {1: "grey", 3: "colour"}
    raise Refused(
        f"the weights are for {kind.get(given, str(given))} images ({taken} channel(s) in, {given} out), got an image"
        f" with {channels} channel(s)"
    )


def check_card(image: Image, entry: Entry) -> None:
    """Refuse an image that the card of the weights rules out.

    A volume of unknown modality counts as CT if more than 1 % of its values are those of air in Hounsfield units, -1100
    to -900, and some are those of bone, above 300.

    Args:
        image: the image.
        entry: the entry of the weights in the catalogue.

    Raises:
        Refused: the modality, the contrast, the pixel size or negative values are ruled out.
    """
    go_on = "choose other weights, or go on with --ignore-card"
    modality, reason = image.modality, ""
    if modality is None and image.kind != "bitmap" and (air := share_of_air(image.stack)):
        modality, reason = "CT", f"; {100 * air:.0f} % of the values lie near -1000, like those of air in CT"
    if modality in entry.not_for_modalities:
        raise Refused(f"{entry.name} is not for {modality} (see its card{reason}); {go_on}")
    if entry.for_contrasts and image.contrast is not None and image.contrast not in entry.for_contrasts:
        raise Refused(
            f"{entry.name} is for {', '.join(entry.for_contrasts)}, got {image.contrast} (see its card); {go_on}"
        )
    if entry.pixel_mm is not None and image.volume is not None:
        low, high = entry.pixel_mm
        sizes = [mm for axis, mm in enumerate(image.volume.spacing) if axis != image.slice_axis]
        if not 0.999 * low <= min(sizes) <= max(sizes) <= 1.001 * high:  # headers hold float32
            shown = " x ".join(f"{mm:.3g}" for mm in sizes)
            raise Refused(f"{entry.name} is for pixels of {low:g} to {high:g} mm, got {shown} mm; {go_on}")
    if entry.magnitudes:
        check_magnitudes(image, entry.name, go_on)


def check_magnitudes(image: Image, what: str, go_on: str) -> None:
    """Refuse an image with more negative values than interpolation leaves in magnitudes.

    Args:
        image: the image.
        what: what is for magnitudes, for the message.
        go_on: how to go on, for the message.

    Raises:
        Refused: there are too many negative values.
    """
    negative = float(np.mean(image.stack < -_UNDERSHOOT * float(image.stack.max())))
    if negative > _NEGATIVE:
        raise Refused(
            f"{what} is for magnitudes, got {100 * negative:.0f} % negative values, as in a phase image or"
            f" after filtering; {go_on}"
        )


def tile_windows(length: int, tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """The tiles of one axis: (start, stop) of the pixels that a tile reads, and (left, right) of its own part.

    As published, there are `length // tile + 1` tiles of equal size, each of which reads an additional fraction
    `overlap` of its size beyond its inner borders. The axis must be extended to a multiple of the number of tiles.

    Example:
        >>> tile_windows(10, 6, 0.2)
        [(0, 6, 0, 5), (4, 10, 5, 10)]
    """
    number = length // tile + 1
    size = -(-length // number)
    beyond = int(size * overlap)
    return [
        (max(i * size - beyond, 0), min((i + 1) * size + beyond, number * size), i * size, (i + 1) * size)
        for i in range(number)
    ]


def tile_weights(windows: list[tuple[int, int, int, int]], *, scale: int = 1, smooth: bool = True) -> list[np.ndarray]:
    """The weights of each tile's pixels along one axis; over all tiles they sum to 1 at every position.

    A smooth weight rises over the inner half of the overlap on both sides of a border. The outer half, whose pixels
    lack neighbours in the tile, has weight 0.

    Args:
        windows: from `tile_windows`.
        scale: pixels of the result per pixel of the image.
        smooth: fade at the borders; otherwise the weight is 1 inside the tile's own part and 0 outside.

    Example:
        >>> [w.tolist() for w in tile_weights([(0, 6, 0, 5), (4, 10, 5, 10)], smooth=False)]
        [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    weights = []
    for number, (start, stop, left, right) in enumerate(windows):
        position = np.arange(start * scale, stop * scale) + 0.5
        weight = np.ones(len(position))
        if number > 0:
            weight *= _rise(position, left * scale, (left - start) / 2 * scale if smooth else 0)
        if number < len(windows) - 1:
            weight *= 1 - _rise(position, right * scale, (stop - right) / 2 * scale if smooth else 0)
        weights.append(weight)
    return weights


def _rise(position: np.ndarray, border: float, half: float) -> np.ndarray:
    """0 below the border and 1 above it, with half a cosine over border - half .. border + half."""
    if half <= 0:
        return (position > border).astype(np.float64)
    part = np.clip((position - border) / (2 * half) + 0.5, 0, 1)
    return np.asarray((1 - np.cos(np.pi * part)) / 2)


def _restore_tiles(
    model: RestorationNetwork, degraded: Tensor, tile: int, overlap: float, blend: str, device: torch.device | str
) -> Tensor:
    """(C_in, H, W) -> (C, H * scale, W * scale) on the CPU, tile by tile.

    An image below `_LEAST` pixels is mirrored at its borders: alone, denoise-grey left 29 % of noise with sigma 50 on
    a smooth ramp of 48 x 48 pixels, and 1 % when the image was mirrored up to 96 x 96 pixels.
    """
    height, width = degraded.shape[1:]
    scale = model.scale
    least = min(_LEAST, tile - 1) if scale == 1 and blend == "smooth" else 0
    before = [max(0, least - length) // 2 for length in (height, width)]
    windows = [tile_windows(max(length, least), tile, overlap) for length in (height, width)]
    padded = degraded[None]
    for axis in (0, 1):
        padded = _extend(padded, axis + 2, before[axis], windows[axis][-1][1])
    weights = [tile_weights(w, scale=scale, smooth=blend == "smooth") for w in windows]
    total: Tensor | None = None
    for rows, row_weight in zip(windows[0], weights[0], strict=True):
        for columns, column_weight in zip(windows[1], weights[1], strict=True):
            piece = padded[:, :, rows[0] : rows[1], columns[0] : columns[1]]
            restored = model(piece.to(device))[0].float().cpu()
            if total is None:
                total = restored.new_zeros(restored.shape[0], windows[0][-1][1] * scale, windows[1][-1][1] * scale)
            weight = torch.from_numpy(np.outer(row_weight, column_weight).astype(np.float32))
            target = total[:, scale * rows[0] : scale * rows[1], scale * columns[0] : scale * columns[1]]
            target.addcmul_(restored, weight)
    assert total is not None
    top, left = (scale * pixels for pixels in before)
    return total[:, top : top + height * scale, left : left + width * scale]


def _extend(image: Tensor, axis: int, before: int, length: int) -> Tensor:
    """Extend an axis of the image to a length by mirroring at its ends, with `before` pixels ahead of the first."""
    size = image.shape[axis]
    if size == length:
        return image
    return image.index_select(axis, mirrored(torch.arange(length) - before, size))


@dataclass(frozen=True)
class Change:
    """The difference between a result and its input, in the image's unit unless noted otherwise.

    Attributes:
        bias: mean of result - input, which is the average shift of the mean of a region of interest.
        largest_local_bias: the largest mean of result - input over a Gaussian neighbourhood (sigma 8 pixels), signed.
        rms: root mean square of result - input.
        largest: largest absolute difference of one pixel.
        edge_ratio: mean slope at the input's strongest edges, result / input, both smoothed (sigma 1.5 pixels); a value
            below 1 means that edges were softened.
        structure: correlation of result - input with the smoothed input's local contrast; 0 if only noise was removed.
        outside: fraction of the result's pixels that lie outside the intensity range by more than 1 % of it.
        unit: the unit of the first four.
    """

    bias: float
    largest_local_bias: float
    rms: float
    largest: float
    edge_ratio: float
    structure: float
    outside: float
    unit: str

    def as_dict(self) -> dict[str, float | str]:
        """Plain values, for a record."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A line of text for each figure."""
        unit = f" {self.unit}" if self.unit not in ("", "relative") else ""
        return [
            f"bias (mean of result - input)     {self.bias:+.4g}{unit}",
            f"largest local bias                {self.largest_local_bias:+.4g}{unit}",
            f"difference, root mean square      {self.rms:.4g}{unit}",
            f"difference, largest               {self.largest:.4g}{unit}",
            f"slope at strong edges, out / in   {self.edge_ratio:.3f}",
            f"structure in what was taken out   {self.structure:+.3f} (correlation; 0 for pure noise)",
            f"pixels far outside the range      {100 * self.outside:.2f} % (by more than 1 % of it)",
        ]


def measure_change(
    degraded: np.ndarray, restored: np.ndarray, *, intensity_range: IntensityRange, scale: int = 1
) -> Change:
    """Measure the difference between a result and its input.

    Args:
        degraded: (N, C, H, W) in the image's unit.
        restored: (N, C, H * scale, W * scale) in the same unit; a larger one is averaged down to the input's pixels.
        intensity_range: the intensities that were 0 and 1 for the network.
        scale: the factor of super-resolution.

    Returns:
        Figures over all slices.
    """
    n, channels, height, width = degraded.shape
    slack = 0.01 * intensity_range.span  # a result without bias varies around 0 in the background
    low, high = intensity_range.low - slack, intensity_range.high + slack
    outside = float(np.mean((restored < low) | (restored > high)))
    worst, squares, total, largest = 0.0, 0.0, 0.0, 0.0
    slopes = np.zeros(2)
    moments = np.zeros(5)  # sums of x, y, x^2, y^2, x*y
    for before, after in _planes(degraded, restored, scale):
        difference = after - before
        total += difference.sum()
        squares += np.square(difference).sum()
        largest = max(largest, float(np.abs(difference).max()))
        local = gaussian_filter(difference, 8)
        position = np.unravel_index(np.abs(local).argmax(), local.shape)
        worst = max(worst, float(local[position]), key=abs)
        smooth = [gaussian_filter(plane, 1.5) for plane in (before, after)]
        steep = [np.hypot(*np.gradient(plane)) if min(plane.shape) > 1 else np.zeros_like(plane) for plane in smooth]
        edges = steep[0] >= np.quantile(steep[0], 0.95)
        slopes += [s[edges].sum() for s in steep]
        contrast = smooth[0] - gaussian_filter(before, 4)
        moments += [
            difference.sum(),
            contrast.sum(),
            np.square(difference).sum(),
            np.square(contrast).sum(),
            (difference * contrast).sum(),
        ]
    count = n * channels * height * width
    mx, my, mxx, myy, mxy = moments / count
    spread = np.sqrt(max(mxx - mx**2, 0.0) * max(myy - my**2, 0.0))
    return Change(
        bias=float(total / count),
        largest_local_bias=worst,
        rms=float(np.sqrt(squares / count)),
        largest=largest,
        edge_ratio=float(slopes[1] / slopes[0]) if slopes[0] > 0 else 1.0,
        structure=float((mxy - mx * my) / spread) if spread > 0 else 0.0,
        outside=outside,
        unit=intensity_range.unit,
    )


def _planes(degraded: np.ndarray, restored: np.ndarray, scale: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of input and result as float64 planes of the input's size."""
    height, width = degraded.shape[2:]
    for before, after in zip(
        degraded.reshape(-1, height, width), restored.reshape(-1, *restored.shape[2:]), strict=True
    ):
        mean = after.astype(np.float64).reshape(height, scale, width, scale).mean((1, 3))
        yield before.astype(np.float64), mean


def fitting_range(image: Image, info: WeightsInfo, how: str = "auto") -> IntensityRange:
    """The intensity range for an image and weights; refuses a range whose error would not show in the result.

    | weights for | image | outcome with "auto" | with a range given |
    | --- | --- | --- | --- |
    | HU | CT series | the weights' window | must be the weights' window |
    | HU | volume of unknown modality | refused: hu:LOW,HIGH is needed | must be hu: and the weights' window |
    | HU | bitmap, MR series | refused | refused |
    | 8-bit | uint8 | 0 to 255 | as given |
    | 8-bit | other types | refused: a range is needed | as given |
    | relative | any | `choose_range` | as given |

    A `VolumeWarning` reports an image with many pixels far outside the range, since networks were not trained on such
    values.

    Raises:
        Refused: as in the table.
    """
    chosen = _fitting_range(image, info, how)
    beyond = _FAR * chosen.span
    share = float(np.mean((image.stack < chosen.low - beyond) | (image.stack > chosen.high + beyond)))
    if share > 0.01:
        warnings.warn(
            f"{100 * share:.0f} % of {image.path} lies far outside the range {chosen}, on which the network was"
            " trained: look for stripes and shifted means, or choose a wider range",
            VolumeWarning,
            stacklevel=2,
        )
    return chosen


def _fitting_range(image: Image, info: WeightsInfo, how: str) -> IntensityRange:
    low, high = info.intensity_range
    if info.intensity_unit == "HU":
        wanted = f"hu:{low:g},{high:g}"
        if image.kind == "bitmap" or image.modality not in (None, "CT"):
            raise Refused(f"the weights are for CT numbers ({wanted}), got {image.path} ({image.modality or 'no CT'})")
        if how == "auto" and image.modality == "CT":
            how = wanted
        if how == "auto":
            raise Refused(f"the weights are for CT numbers; if {image.path} holds them, give --range {wanted}")
        chosen = choose_range(image, how)
        if chosen.unit != "HU" or (chosen.low, chosen.high) != (low, high):
            raise Refused(f"the weights are for the range {wanted}, got {how}")
        return chosen
    if info.intensity_unit == "8-bit" and how == "auto" and image.dtype != np.uint8:
        raise Refused(
            f"the weights are for 8-bit images, got {image.path} with {image.dtype.name} pixels; give the intensities"
            " of black and white with --range LOW,HIGH"
        )
    return choose_range(image, how)
