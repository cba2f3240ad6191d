"""Restoration of an image in memory with trained weights, as the command does it with files."""

import os
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np

from ..runs.catalogue import entry_of, find_weights
from ..runs.compute import choose_device
from ..volumes import Volume
from .images import Image, from_slices, to_pixels, to_slices
from .inference import check_card, fitting_range
from .inference import restore as restore_stack
from .known_noise import NoiseHandling, check_noise_level, restore_image
from .settings import TILE
from .weights import load_weights


@overload
def restore(
    image: Volume,
    weights: str | os.PathLike[str] = "denoise-grey",
    *,
    intensity_range: str = "auto",
    slice_axis: int = 2,
    modality: str | None = None,
    sigma: float | None = None,
    tile: int = TILE,
    self_ensemble: bool = False,
    device: str = "auto",
) -> Volume: ...
@overload
def restore(
    image: np.ndarray,
    weights: str | os.PathLike[str] = "denoise-grey",
    *,
    intensity_range: str = "auto",
    slice_axis: int = 2,
    modality: str | None = None,
    sigma: float | None = None,
    tile: int = TILE,
    self_ensemble: bool = False,
    device: str = "auto",
) -> np.ndarray: ...
def restore(
    image: Volume | np.ndarray,
    weights: str | os.PathLike[str] = "denoise-grey",
    *,
    intensity_range: str = "auto",
    slice_axis: int = 2,
    modality: str | None = None,
    sigma: float | None = None,
    tile: int = TILE,
    self_ensemble: bool = False,
    device: str = "auto",
) -> Volume | np.ndarray:
    """Restore an image with trained weights; the result is that of `voxelwave restoration restore`.

    Args:
        image: a volume, restored slice by slice, or an array (H, W) or (H, W, 3); any dtype and unit.
        weights: a file, or the name of weights that come with the package. They must keep the size of the image.
        intensity_range: the intensities that the network sees as 0 and 1, as for --range.
        slice_axis: the axis of a volume along which its slices lie.
        modality: "MR", "CT" and so on, if known; weights whose card rules it out are refused.
        sigma: the noise level of MR magnitudes in the unit of the image, as for --sigma; None if it is unknown.
        tile: largest side of a tile in pixels.
        self_ensemble: average the results of eight flips and rotations.
        device: "auto", "cpu" or "cuda".

    Returns:
        The restored image: of the same kind, grid and dtype.

    Raises:
        Refused: the weights do not fit the image.
        ValueError: a shape or an option does not fit, or the weights change the size.

    Example:
        >>> noisy = (100 + 20 * np.random.default_rng(0).standard_normal((16, 16))).clip(0, 255).astype(np.uint8)
        >>> restored = restore(noisy)
        >>> restored.dtype, bool(restored.std() < noisy.std())
        (dtype('uint8'), True)
    """
    file = find_weights(weights, "restoration")
    model, info = load_weights(file)
    if model.scale != 1:
        raise ValueError(f"weights must keep the size of the image, got {file.name} with scale {model.scale}")
    whole = _as_image(image, slice_axis, modality)
    entry = entry_of(file)
    if entry is not None:
        check_card(whole, entry)
    chosen = fitting_range(whole, info, intensity_range)
    if sigma is not None:
        check_noise_level(whole, sigma, scale=model.scale)
    network = partial(
        restore_stack,
        model,
        tile=tile,
        self_ensemble=self_ensemble,
        groups=whole.groups,
        device=choose_device(device),
    )
    handling = NoiseHandling.of(entry, info)
    unit, _ = restore_image(network, whole, sigma, intensity_range=chosen, handling=handling)
    stack = to_pixels(chosen.from_unit(unit), whole.dtype)
    if isinstance(image, Volume):
        return image.with_array(np.ascontiguousarray(from_slices(stack, whole)))
    return stack[0, 0] if image.ndim == 2 else np.moveaxis(stack[0], 0, -1)


def _as_image(image: Volume | np.ndarray, slice_axis: int, modality: str | None) -> Image:
    """The stack of slices of an image, (N, C, H, W), as the readers of files give it."""
    if isinstance(image, Volume):
        if slice_axis not in (0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis}")
        groups = image.array.shape[3] if image.array.ndim == 4 else 1
        stack, place = to_slices(image.array, slice_axis), image.source or Path("volume")
        return Image(stack, place, "volume", groups, image, slice_axis, modality)
    if image.ndim == 2:
        return Image(image[None, None], Path("array"), "bitmap", modality=modality)
    if image.ndim == 3 and image.shape[2] == 3:
        return Image(np.moveaxis(image, 2, 0)[None], Path("array"), "bitmap", modality=modality)
    raise ValueError(f"image must be a Volume or have shape (H, W) or (H, W, 3), got {image.shape}")
