"""Training data: stacks of slices from files, and patches and degradations that are drawn on the fly from a seed.

Item number i of a `PatchDataset` depends only on the seed and on i, so a resumed training gets the same patches as an
uninterrupted one.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..runs.generators import item_generator
from .degradations import Degrade
from .images import LUMA, Image, IntensityRange, choose_range, find_images, read_image
from .views import dihedral, neighbours

_UNIT_RANGE = IntensityRange(0, 1)
_VALIDATION = 1 << 40  # far above the number of any training item


class Patches(TypedDict):
    """The two tensors of an item or a batch of a data set."""

    degraded: Tensor
    clean: Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """The clean slices of one image, and their degraded partners if there are any.

    Args:
        clean: (N, C, H * scale, W * scale) float32, scaled so that the ends of the intensity range are 0 and 1.
        degraded: (N, C, H, W) in the same unit, for real pairs and super-resolution; otherwise None.
        name: the file's name, for messages.
        intensity_range: the intensities that were mapped to 0 and 1, for degradations that depend on them.
    """

    clean: Tensor
    degraded: Tensor | None = None
    name: str = ""
    intensity_range: IntensityRange = _UNIT_RANGE

    def __post_init__(self) -> None:
        if self.clean.ndim != 4:
            raise ValueError(f"clean must have shape (N, C, H, W), got {tuple(self.clean.shape)}")
        if self.degraded is None:
            return
        n, c, height, width = self.clean.shape
        small = self.degraded.shape
        if small[:2] != (n, c) or height % small[2] or height // small[2] * small[3] != width:
            raise ValueError(
                f"degraded of {self.name or 'a pair'} must have {n} slices of {c} channels and a size that clean's"
                f" is a multiple of, got {tuple(small)} for clean {tuple(self.clean.shape)}"
            )

    @property
    def scale(self) -> int:
        """The size of `clean` divided by the size of `degraded`."""
        return 1 if self.degraded is None else self.clean.shape[2] // self.degraded.shape[2]


class PatchDataset(Dataset[Patches]):
    """Random patches: {"degraded": (C_in, patch, patch), "clean": (C, patch * scale, patch * scale)}.

    For each item, an image is drawn with a probability proportional to its number of pixels; then a slice, a position,
    one of the eight flips and rotations, and the degradation are drawn. Images smaller than a patch are refused.

    Args:
        pairs: the images.
        patch: side of the degraded patch in pixels.
        length: number of items.
        degrade: function that returns the degraded patch; None if the pairs have degraded images.
        seed: seed of all draws.
        first: number of the first item, so that later epochs get other patches.
        slices: 1, or the odd number of neighbouring slices that become input channels (2.5-D); the clean patch is from
            the middle slice. At the ends of a stack, the last slice is repeated, with its noise.
        single_slices: the fraction of patches whose neighbours are copies of the middle slice, as in the restoration of
            an image without neighbours.
        margin: pixels around the patch that are degraded with it and then cut off, for degradations that depend on
            neighbouring pixels (blur).

    Example:
        >>> from voxelwave.restoration.degradations import make_degradation
        >>> degrade = make_degradation("gaussian", sigma=0.1)
        >>> patches = PatchDataset([Pair(torch.rand(1, 1, 20, 30))], patch=8, length=4, degrade=degrade)
        >>> {name: tuple(tensor.shape) for name, tensor in patches[0].items()}
        {'degraded': (1, 8, 8), 'clean': (1, 8, 8)}
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        patch: int,
        length: int,
        degrade: Degrade | None = None,
        seed: int = 0,
        first: int = 0,
        slices: int = 1,
        single_slices: float = 0.0,
        margin: int = 0,
    ):
        _check_slices(slices)
        if not 0 <= single_slices <= 1:
            raise ValueError(f"single_slices must be from 0 to 1, got {single_slices}")
        if not pairs:
            raise ValueError("pairs must hold at least one image, got none")
        for pair in pairs:
            small = pair.clean if pair.degraded is None else pair.degraded
            if min(small.shape[2:]) < patch:
                raise ValueError(f"{pair.name or 'an image'} is {tuple(small.shape[2:])}, smaller than patch ({patch})")
            if (pair.degraded is None) == (degrade is None):
                raise ValueError(
                    f"{pair.name or 'a pair'} needs either its own degraded image or degrade, got"
                    f" {'neither' if degrade is None else 'both'}"
                )
        self.pairs, self.patch, self.length, self.degrade = list(pairs), patch, length, degrade
        self.seed, self.first, self.slices, self.margin = seed, first, slices, margin
        self.single_slices = single_slices
        self._areas = torch.tensor([float(p.clean.shape[0] * p.clean.shape[2] * p.clean.shape[3]) for p in pairs])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Patches:
        if not 0 <= index < self.length:
            raise IndexError(f"index must be in [0, {self.length}), got {index}")
        generator = item_generator(self.seed, self.first + index)
        pair = self.pairs[int(torch.multinomial(self._areas, 1, generator=generator))]
        n, _, height, width = pair.clean.shape
        k, scale, size = _draw(n, generator), pair.scale, self.patch
        top = _draw(height // scale - size + 1, generator)
        left = _draw(width // scale - size + 1, generator)
        view = _draw(8, generator)
        chosen = neighbours(n, k, self.slices)
        if self.single_slices and float(torch.rand(1, generator=generator)) < self.single_slices:
            chosen = [k] * self.slices
        if pair.degraded is None:
            assert self.degrade is not None
            whole, window = _window(pair.clean, top, left, size, self.margin)
            degraded = _degraded(whole, chosen, self.degrade, generator, pair.intensity_range)
            degraded = degraded[..., window[0], window[1]]
            clean = whole[k, :, window[0], window[1]]
        else:
            degraded = pair.degraded[chosen, :, top : top + size, left : left + size]
            rows, columns = (slice(scale * at, scale * (at + size)) for at in (top, left))
            clean = pair.clean[k, :, rows, columns]
        return {
            "degraded": dihedral(degraded.flatten(0, 1), view).contiguous(),
            "clean": dihedral(clean, view).contiguous(),
        }


class ValidationDataset(Dataset[Patches]):
    """Whole slices, each degraded once; the items are like those of `PatchDataset`, but have the size of the images.

    Args:
        pairs: the images.
        degrade: as in `PatchDataset`.
        seed: seed of the degradations.
        slices: as in `PatchDataset`.
        per_stack: largest number of slices taken from a stack, evenly spaced.
        crop: side in pixels of the central square to keep, for a shorter validation; None for whole slices.
        margin: as in `PatchDataset`, around the crop.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        degrade: Degrade | None = None,
        seed: int = 0,
        slices: int = 1,
        per_stack: int = 4,
        crop: int | None = None,
        margin: int = 0,
    ):
        _check_slices(slices)
        self.items: list[Patches] = []
        for pair in pairs:
            n = pair.clean.shape[0]
            for k in np.unique(np.linspace(0, n - 1, min(n, per_stack) + 2).round().astype(int)[1:-1]).tolist() or [0]:
                chosen = neighbours(n, k, slices)
                if pair.degraded is None:
                    if degrade is None:
                        raise ValueError(f"{pair.name or 'a pair'} needs its own degraded image or degrade, got none")
                    whole = _middle(pair.clean, None if crop is None else crop + 2 * margin)
                    generator = item_generator(seed, _VALIDATION + len(self.items))
                    degraded = _middle(_degraded(whole, chosen, degrade, generator, pair.intensity_range), crop)
                    degraded, clean = degraded.flatten(0, 1), _middle(whole[k], crop)
                else:
                    small = None if crop is None else crop // pair.scale
                    degraded = _middle(pair.degraded[chosen], small).flatten(0, 1)
                    clean = _middle(pair.clean[k], None if small is None else small * pair.scale)
                self.items.append({"degraded": degraded.contiguous(), "clean": clean.contiguous()})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Patches:
        return self.items[index]


def load_clean(
    path: str | os.PathLike[str],
    *,
    intensity_range: str | Sequence[float] = "auto",
    slice_axis: int = 2,
    grey: bool = False,
) -> list[Pair]:
    """Read the images of a folder, or one file, as clean stacks, scaled so that the ends of their range are 0 and 1.

    Args:
        path: a folder of bitmaps, volumes and folders of DICOM files.
        intensity_range: see `images.choose_range`; "auto" chooses for each image.
        slice_axis: the array axis of volumes along which slices lie.
        grey: convert colour images to their luminance (ITU-R BT.601 weights).
    """
    pairs = []
    for file in find_images(path):
        image = read_image(file, slice_axis=slice_axis)
        chosen = choose_range(image, intensity_range)
        pairs.append(Pair(unit_stack(image, chosen, grey=grey), name=file.name, intensity_range=chosen))
    return pairs


def load_pairs(
    degraded: str | os.PathLike[str],
    clean: str | os.PathLike[str],
    *,
    intensity_range: str | Sequence[float],
    slice_axis: int = 2,
    grey: bool = False,
) -> list[Pair]:
    """Read real pairs from two folders, or two files; the images of the folders are paired in sorted order.

    Args:
        degraded: the inputs of the network.
        clean: the targets, aligned to the inputs; their size may be an integer multiple of that of the inputs.
        intensity_range: a fixed range for both: "dtype", "LOW,HIGH" or "hu:LOW,HIGH".
        slice_axis, grey: as in `load_clean`.

    Raises:
        ValueError: the numbers of images differ, or two paired images differ in size or position.
    """
    files = find_images(degraded), find_images(clean)
    if len(files[0]) != len(files[1]):
        raise ValueError(
            f"{degraded} and {clean} must hold equally many images, got {len(files[0])} and {len(files[1])}"
        )
    if isinstance(intensity_range, str) and intensity_range.startswith(("auto", "percentiles")):
        raise ValueError(f"intensity_range of pairs must be fixed, dtype or LOW,HIGH, got {intensity_range!r}")
    pairs = []
    for paths in zip(*files, strict=True):
        images = [read_image(path, slice_axis=slice_axis) for path in paths]
        _check_same_place(images)
        chosen = [choose_range(image, intensity_range) for image in images]
        noisy, sharp = (unit_stack(image, each, grey=grey) for image, each in zip(images, chosen, strict=True))
        pairs.append(Pair(sharp, noisy, f"{paths[0].name} -> {paths[1].name}", chosen[1]))
    return pairs


def unit_stack(image: Image, intensity_range: IntensityRange, *, grey: bool = False) -> Tensor:
    """An image as (N, C, H, W) float32, with the range scaled to 0 to 1; `grey` converts colour to luminance."""
    stack = intensity_range.to_unit(image.stack)
    if grey and image.channels == 3:
        stack = np.tensordot(stack, LUMA.astype(np.float32), axes=(1, 0))[:, None]
    return torch.from_numpy(np.ascontiguousarray(stack, np.float32))


def downsampled(pairs: Sequence[Pair], downsample: Callable[[Tensor], Tensor], scale: int) -> list[Pair]:
    """Pairs for super-resolution: each clean image, cropped to a multiple of `scale`, with its small version.

    Whole images are downsampled, not patches, so that the pixels at a patch's border also depend on their neighbours
    outside the patch.

    Args:
        pairs: clean images.
        downsample: (N, C, H, W) -> (N, C, H / scale, W / scale).
        scale: clean size / degraded size.
    """
    made = []
    for pair in pairs:
        height, width = (size // scale * scale for size in pair.clean.shape[2:])
        clean = pair.clean[..., :height, :width]
        made.append(Pair(clean, downsample(clean), pair.name, pair.intensity_range))
    return made


def _check_slices(slices: int) -> None:
    if slices < 1 or slices % 2 == 0:
        raise ValueError(f"slices must be an odd number, got {slices}")


def _check_same_place(images: Sequence[Image]) -> None:
    """Refuse two volumes of equal size with different positions in the world."""
    first, second = (image.volume for image in images)
    if first is None or second is None or first.shape != second.shape:
        return
    if not np.allclose(first.affine, second.affine, atol=0.1 * min(first.spacing)):
        raise ValueError(f"{images[0].path} and {images[1].path} must have the same position; resample one first")


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def _degraded(
    stack: Tensor, chosen: Sequence[int], degrade: Degrade, generator: torch.Generator, intensity_range: IntensityRange
) -> Tensor:
    """The chosen slices of a clean stack (N, C, H, W), degraded; a slice that is chosen twice has the same noise."""
    different = sorted(set(chosen))
    clean = stack[different]
    degraded = degrade(clean.flatten(0, 1), generator, intensity_range).view_as(clean)
    return degraded[[different.index(k) for k in chosen]]


def _window(stack: Tensor, top: int, left: int, size: int, margin: int) -> tuple[Tensor, tuple[slice, slice]]:
    """The patch with the part of its margin that is inside the image, and the rows and columns of the patch in it."""
    starts = [max(at - margin, 0) for at in (top, left)]
    stops = [min(at + size + margin, length) for at, length in zip((top, left), stack.shape[-2:], strict=True)]
    inner = [slice(at - start, at - start + size) for at, start in zip((top, left), starts, strict=True)]
    return stack[..., starts[0] : stops[0], starts[1] : stops[1]], (inner[0], inner[1])


def _middle(stack: Tensor, crop: int | None) -> Tensor:
    if crop is None:
        return stack
    for axis in (-2, -1):
        size = min(crop, stack.shape[axis])
        stack = stack.narrow(axis, (stack.shape[axis] - size) // 2, size)
    return stack
