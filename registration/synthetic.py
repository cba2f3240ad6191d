"""Pairs of synthetic images for training: one label map, two random deformations, two random contrasts.

Images of a random contrast for each label are drawn so widely that real scans of any contrast lie within their variety
(Hoffmann et al., SynthMorph, IEEE TMI 2022). The loss of such a training compares the labels, or the places in the
head that the voxels show, which are known.

A label map is resampled once for each image, through an affine transform and a smooth displacement, with two samples
per voxel along each axis. The mean intensity of the samples of a voxel is its partial volume.
"""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..runs.files import is_hidden
from ..runs.generators import item_generator
from ..volumes import Volume, read_volume
from .benchmark_labels import FREESURFER_LABELS
from .free_form import separable, spline_basis
from .grids import unit_range
from .levels import interpolation_matrix
from .tissues import TISSUES, tissue_classes
from .warp import integrate, jacobian_determinant

# choroid plexus within the lateral ventricles in the label maps of SynthSeg: 136 and 137 left, 163 and 164 right
MERGED = {136: 4, 137: 4, 163: 43, 164: 43}
OUTSIDE_BRAIN = 500  # labels from this number on are classes of skull, skin, eyes and other tissue around the brain
_FLUID = 24  # cerebrospinal fluid around the brain
# right structure -> left structure
_LEFT_OF = (
    {n: n - 39 for n in (41, 42, 43, 44, 46, 47, 49, 50, 51, 52)}
    | {53: 17, 54: 18, 57: 25, 58: 26, 60: 28, 62: 30, 63: 31}
    | {163: 136, 164: 137}
)
_FORMATS = (".nii", ".nii.gz", ".mgz")

PEAK_MM = 8.0  # longest vector of a random displacement
_CONTROL_MM = (20.0, 35.0, 60.0)  # distance of the control points of each scale
_LEAST_DETERMINANT = 0.1


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map with axes close to RAS, cropped to its content.

    Args:
        name: name of the file.
        indices: (D, H, W) uint8, positions in `numbers`; the outermost voxels are background.
        numbers: the labels in the map, in increasing order; the first is 0, the background.
        spacing: (3,) in mm.
        centre: (3,) in voxels, the middle of the brain.
    """

    name: str
    indices: Tensor
    numbers: tuple[int, ...]
    spacing: Tensor
    centre: Tensor


class SyntheticPair(TypedDict):
    """An item as `registration.data` describes it, and the place in the head that each voxel shows.

    Places, (3, D, H, W) in mm from the middle of the brain, are in the frame of the label map, which both images share.
    `fixed_head` is 1 at the voxels of the fixed image that show the head or tissue around it, (1, D, H, W) float32.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor
    fixed_labels: Tensor
    moving_places: Tensor
    fixed_places: Tensor
    fixed_head: Tensor
    spacing: Tensor
    subject: str


class SyntheticScan(TypedDict):
    """A synthetic image in [0, 1], (1, D, H, W), and the tissues that its voxels show.

    `tissues`, (8, D, H, W) uint8, counts the samples of each voxel, 8 in all, that lie in each of the `TISSUES`.
    """

    image: Tensor
    tissues: Tensor


class Spread(NamedTuple):
    """The largest parameters of a random affine transform.

    Args:
        degrees: rotation about each axis.
        share: scale along each axis, and shear, as a share of the length.
        shift_mm: shift along each axis.
    """

    degrees: float
    share: float
    shift_mm: float


_POSE = Spread(degrees=8.0, share=0.08, shift_mm=8.0)  # of the head, the same in both images
# What an affine registration leaves between them. Four times as much made up five sixths of the distance between the
# images: a network that learned from them moved people, whom an affine registration had aligned, apart.
_APART = Spread(degrees=1.0, share=0.01, shift_mm=1.0)


class Acquired(NamedTuple):
    """What is drawn for the acquisition of an image.

    Args:
        thickness_mm: distance between slices along `axis`; None for a voxel of the grid.
        axis: the axis across the slices.
        slab: the first voxel in the field of view along `slab_axis`, and the one after the last.
        slab_axis: the axis along which the field of view may end within the head.
    """

    thickness_mm: float | None
    axis: int
    slab: tuple[int, int]
    slab_axis: int


def read_label_maps(folder: str | os.PathLike[str]) -> list[LabelMap]:
    """Read the label maps of a folder (.nii, .nii.gz, .mgz), in the order of their names.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no such files.
        ValueError: a file is no label map with FreeSurfer's numbers.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.glob("*") if p.name.lower().endswith(_FORMATS) and not is_hidden(Path(p.name)))
    if not files:
        raise FileNotFoundError(f"no label maps ({', '.join(_FORMATS)}) in {folder}")
    return [label_map(read_volume(file, ndim=3), name=file.name) for file in files]


def label_map(volume: Volume, *, name: str = "") -> LabelMap:
    """Prepare a label map with FreeSurfer's numbers for drawing.

    Raises:
        ValueError: values that are no whole numbers from 0, or none of `FREESURFER_LABELS`.
    """
    image = nib.as_closest_canonical(nib.Nifti1Image(volume.array.astype(np.float32), volume.affine))
    values = np.asarray(image.dataobj)
    name = name or str(volume.source or "the label map")
    if values.min() < 0 or not np.array_equal(values, np.rint(values)):
        raise ValueError(f"{name} must hold whole numbers from 0, got {values.min():g} to {values.max():g}")
    whole = values.astype(np.int32)
    count = np.bincount(whole.ravel())
    numbers = tuple(sorted({0, *np.flatnonzero(count).tolist()}))
    if not set(numbers) & set(FREESURFER_LABELS) or len(numbers) > 256:
        raise ValueError(
            f"{name} must hold labels with FreeSurfer's numbers, such as 2 and 41 for white matter, "
            f"got {len(numbers)} labels from {numbers[0]} to {numbers[-1]}"
        )
    position = np.zeros(numbers[-1] + 1, np.uint8)
    position[list(numbers)] = np.arange(len(numbers))
    box, margin = _box(whole > 0), 1
    cropped = np.ascontiguousarray(np.pad(position[whole[box]], margin))
    brain = _box((whole > 0) & (whole < OUTSIDE_BRAIN) & (whole != _FLUID))
    centre = [(b.start + b.stop - 1) / 2 - outer.start + margin for b, outer in zip(brain, box, strict=True)]
    spacing = torch.tensor(nib.affines.voxel_sizes(image.affine), dtype=torch.float32)
    return LabelMap(name, torch.from_numpy(cropped), numbers, spacing, torch.tensor(centre))


def synthetic_pair(
    labels: LabelMap, *, size: Sequence[int], spacing_mm: float, seed: int, number: int, one_contrast: bool = False
) -> SyntheticPair:
    """Draw a training pair; it depends only on the label map, the grid, the seed and the number of the item.

    Args:
        labels: the label map of which both images are drawn.
        size: the training grid in voxels, at least 8 along each axis; it is centred on the brain.
        spacing_mm: its voxel spacing.
        seed: seed of all draws.
        number: number of the item.
        one_contrast: whether both images have the contrast of the moving image.

    Returns:
        Images in [0, 1], and label maps that hold the `FREESURFER_LABELS` only, after `MERGED`. Images may lack the
        tissue around the brain or a part of the field of view; their label maps do not.
    """
    _check_grid(size, spacing_mm)
    generator = item_generator(seed, number)
    mirrored, brain_only = _chance(0.5, generator), _chance(0.4, generator)
    pose = random_affine(_POSE, generator)
    item: dict[str, Tensor] = {}
    contrast: tuple[Tensor, Tensor] | None = None
    for image in ("moving", "fixed"):
        places = _mapped(pose, random_places(size, spacing_mm, generator))
        shown = dense(places, size)
        indices, samples = (_labels_at(labels, part, mirrored) for part in (shown, dense(places, size, 2)))
        if contrast is None or not one_contrast:
            contrast = random_contrast(labels.numbers, brain_only=brain_only, generator=generator)
        drawn = random_image(
            indices, samples, contrast=contrast, spacing_mm=spacing_mm, brain_only=brain_only, generator=generator
        )
        item[image] = drawn[None]
        item[f"{image}_labels"] = scored_labels(indices, labels.numbers, mirrored=mirrored)[None]
        item[f"{image}_places"] = shown
        item[f"{image}_head"] = (indices > 0).float()[None]
    return SyntheticPair(
        moving=item["moving"],
        fixed=item["fixed"],
        moving_labels=item["moving_labels"],
        fixed_labels=item["fixed_labels"],
        moving_places=item["moving_places"],
        fixed_places=item["fixed_places"],
        fixed_head=item["fixed_head"],
        spacing=torch.full((3,), float(spacing_mm)),
        subject=labels.name,
    )


def synthetic_scan(
    labels: LabelMap, *, size: Sequence[int], spacing_mm: float, seed: int, number: int
) -> SyntheticScan:
    """Draw one image and its tissues; it depends only on the label map, the grid, the seed and the number of the item.

    Args:
        labels: the label map of which the image is drawn.
        size: the training grid in voxels, at least 8 along each axis; it is centred on the brain.
        spacing_mm: its voxel spacing.
        seed: seed of all draws.
        number: number of the item.

    Returns:
        Half of the images lack the tissue around the brain, and some of these the fluid around it; both are then
        outside for `tissues`, too. Parts outside the field of view keep their tissues.
    """
    _check_grid(size, spacing_mm)
    generator = item_generator(seed, number)
    mirrored, brain_only = _chance(0.5, generator), _chance(0.5, generator)
    places = _mapped(random_affine(_POSE, generator), random_places(size, spacing_mm, generator))
    indices, samples = (_labels_at(labels, dense(places, size, count), mirrored) for count in (1, 2))
    contrast = random_contrast(labels.numbers, brain_only=brain_only, generator=generator)
    image = random_image(
        indices, samples, contrast=contrast, spacing_mm=spacing_mm, brain_only=brain_only, generator=generator
    )
    classes = np.array(tissue_classes([MERGED.get(number, number) for number in labels.numbers]), np.uint8)
    if brain_only:
        classes[(contrast[0] == 0).numpy()] = 0
    found = np.take(classes, samples.numpy())
    within = [found[a::2, b::2, c::2].copy() for a, b, c in itertools.product((0, 1), repeat=3)]
    tissues = [np.sum([part == k for part in within], axis=0, dtype=np.uint8) for k in range(len(TISSUES))]
    return SyntheticScan(image=image[None], tissues=torch.from_numpy(np.stack(tissues)))


def random_affine(spread: Spread, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random matrix (3, 3), and a shift (3,) in mm that follows it."""
    angles = math.radians(spread.degrees) * _between(-1, 1, generator, 3)
    skew = torch.zeros(3, 3)
    skew[[0, 0, 1], [1, 2, 2]] = angles
    stretch = torch.eye(3) + torch.triu(spread.share * _between(-1, 1, generator, 3, 3))
    matrix = torch.linalg.matrix_exp(skew - skew.T) @ stretch
    return matrix, spread.shift_mm * _between(-1, 1, generator, 3)


def _mapped(affine: tuple[Tensor, Tensor], places: Tensor) -> Tensor:
    matrix, shift = affine
    return torch.einsum("ab,bdhw->adhw", matrix, places) + shift.view(3, 1, 1, 1)


def random_places(size: Sequence[int], spacing_mm: float, generator: torch.Generator) -> Tensor:
    """The places in the head that the voxels of a training grid show, in mm from the middle of the brain.

    A small affine transform (rotations of up to 1 degree, scales and shears of up to 1 %, shifts of up to 1 mm along
    each axis) follows a random displacement.

    Returns:
        (3, d, h, w) on a grid with half as many points, whose corners are those of the training grid; see `dense`.
    """
    displacement = random_displacement(size, spacing_mm, generator)
    shape = displacement.shape[1:]
    axes = [torch.linspace(-0.5, 0.5, n) * (full - 1) * spacing_mm for n, full in zip(shape, size, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return _mapped(random_affine(_APART, generator), grid + displacement)


def random_displacement(size: Sequence[int], spacing_mm: float, generator: torch.Generator) -> Tensor:
    """A smooth displacement without folds, in mm; its longest vector is at most `PEAK_MM`.

    It is the flow along a stationary velocity, the sum of cubic B-splines of several scales with random weights.

    Returns:
        (3, d, h, w) on a grid with half as many points as the training grid, whose corners are the same.
    """
    shape = [max(4, n // 2) for n in size]
    steps = torch.tensor([(full - 1) * spacing_mm / (n - 1) for n, full in zip(shape, size, strict=True)])
    velocity = torch.zeros(1, 3, *shape)
    for control_mm in _CONTROL_MM:
        bases = [spline_basis(n, max(1.0, control_mm / float(step))) for n, step in zip(shape, steps, strict=True)]
        weights = torch.randn(1, 3, *(basis.shape[1] for basis in bases), generator=generator)
        velocity += separable(weights, bases) * control_mm * _between(0, 1, generator)
    # the flow is never longer than the longest velocity
    velocity *= PEAK_MM * _between(0, 1, generator) / velocity.norm(dim=1).max().clamp(min=1e-6)
    steps = steps.view(1, 3, 1, 1, 1)
    while True:
        displacement = integrate(velocity / steps, steps=6)
        if jacobian_determinant(displacement).min() >= _LEAST_DETERMINANT:
            return (displacement * steps)[0]
        velocity *= 0.8


def dense(places: Tensor, size: Sequence[int], samples: int = 1) -> Tensor:
    """Interpolate places linearly at the voxels of a training grid, or at several samples per voxel.

    Args:
        places: (3, d, h, w) on a grid whose corners are those of the training grid.
        size: the training grid, (D, H, W).
        samples: number of samples per voxel along each axis, evenly spaced within the voxel.

    Returns:
        (3, samples * D, samples * H, samples * W).
    """
    matrices = []
    for n, full in zip(places.shape[1:], size, strict=True):
        position = ((torch.arange(samples * full) + 0.5) / samples - 0.5) * (n - 1) / (full - 1)
        below = position.floor().clamp(0, n - 2)
        matrix = torch.zeros(samples * full, n)
        rows = torch.arange(samples * full)
        matrix[rows, below.long()] = 1 - (position - below)
        matrix[rows, below.long() + 1] = position - below
        matrices.append(matrix)
    return separable(places[None], matrices)[0]


def random_image(
    indices: Tensor,
    samples: Tensor,
    *,
    contrast: tuple[Tensor, Tensor],
    spacing_mm: float,
    brain_only: bool,
    generator: torch.Generator,
) -> Tensor:
    """An image of a given contrast and of random resolution, field of view, bias field and noise.

    Args:
        indices: (D, H, W), the position in `numbers` of the label of each voxel.
        samples: (2 D, 2 H, 2 W), the same for the samples within the voxels.
        contrast: the mean intensity and the spread of each label, see `random_contrast`.
        spacing_mm: voxel spacing of the image.
        brain_only: whether the tissue around the brain is left out.
        generator: source of all draws.

    Returns:
        (D, H, W) float32, scaled to [0, 1] as `unit_range` scales scans.
    """
    size = indices.shape
    mean, spread = contrast
    image = _pooled(torch.from_numpy(np.take(mean.numpy(), samples.numpy())))
    texture = torch.from_numpy(np.take(spread.numpy(), indices.numpy()))
    image = image + texture * torch.randn(size, generator=generator)
    image = image * _bias(size, spacing_mm, generator)
    acquired = random_acquisition(size, spacing_mm, generator)
    image = acquire(image, acquired, spacing_mm, generator)
    if brain_only:  # masked after the acquisition, as scans are
        image[np.take((mean > 0).numpy(), indices.numpy()) == 0] = 0
    scaled = unit_range(Volume(image.numpy(), np.eye(4))).array
    return torch.from_numpy(scaled) ** (0.25 * torch.randn(1, generator=generator)).exp()


def random_contrast(numbers: Sequence[int], *, brain_only: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The mean intensity and the spread of each label, (labels,) each.

    In most cases, the left and the right structure of a pair have the same. The background is 0 in most images.
    """
    mean = _between(0, 1, generator, len(numbers))
    spread = 0.1 * _between(0, 1, generator, len(numbers))
    position = {number: i for i, number in enumerate(numbers)}
    if _chance(0.7, generator):
        for right, left in _LEFT_OF.items():
            if right in position and left in position:
                mean[position[right]], spread[position[right]] = mean[position[left]], spread[position[left]]
    dark, without_fluid = _chance(0.8, generator), _chance(0.5, generator)
    for number, i in position.items():
        outside = number >= OUTSIDE_BRAIN or (number == _FLUID and without_fluid)
        if (number == 0 and (dark or brain_only)) or (brain_only and outside):
            mean[i] = spread[i] = 0
    return mean, spread


def random_acquisition(size: Sequence[int], spacing_mm: float, generator: torch.Generator) -> Acquired:
    """Thick slices in 40 % of the images, and a field of view that ends within the head in 20 %."""
    axis, slab_axis = (int(torch.randint(3, (1,), generator=generator)) for _ in range(2))
    thick, cut = _chance(0.4, generator), _chance(0.2, generator)
    thickness = float(_between(spacing_mm, max(8.0, 2 * spacing_mm), generator)) if thick else None
    share, start = _between(0, 1, generator, 2).tolist()
    n = size[slab_axis]
    kept = round(n * (0.5 + 0.4 * share)) if cut else n
    first = round((n - kept) * start)
    return Acquired(thickness, axis, (first, first + kept), slab_axis)


def scored_labels(indices: Tensor, numbers: Sequence[int], *, mirrored: bool = False) -> Tensor:
    """The labels of `FREESURFER_LABELS` after `MERGED`, int64; all other labels become 0.

    Args:
        indices: positions in `numbers`.
        numbers: the labels.
        mirrored: whether left and right are exchanged.
    """
    other_side = _LEFT_OF | {left: right for right, left in _LEFT_OF.items()} if mirrored else {}
    named = [MERGED.get(number, number) for number in numbers]
    named = [other_side.get(number, number) for number in named]
    table = np.array([number if number in FREESURFER_LABELS else 0 for number in named])
    return torch.from_numpy(np.take(table, indices.numpy()))


def _check_grid(size: Sequence[int], spacing_mm: float) -> None:
    if min(size) < 8 or spacing_mm <= 0:
        raise ValueError(f"size must be at least 8 along each axis and spacing_mm positive, got {size}, {spacing_mm}")


def _labels_at(labels: LabelMap, places: Tensor, mirrored: bool) -> Tensor:
    """The position in `numbers` of the label at each place, (D, H, W)."""
    return torch.take(labels.indices, _voxels(labels, places, mirrored))


def _voxels(labels: LabelMap, places: Tensor, mirrored: bool) -> Tensor:
    """The position in memory of the voxel nearest to each place; places outside the map lie in its background."""
    shape = labels.indices.shape
    flat = torch.zeros(places.shape[1:], dtype=torch.int32)
    for axis, (part, n) in enumerate(zip(places, shape, strict=True)):
        scale = (-1 if mirrored and axis == 0 else 1) / float(labels.spacing[axis])
        nearest = part.mul(scale).add_(float(labels.centre[axis])).round_().clamp_(0, n - 1)
        flat = flat * n + nearest.int()
    return flat.long()


def _pooled(samples: Tensor) -> Tensor:
    """The mean of the 2 x 2 x 2 samples of each voxel."""
    for axis in (0, 1, 2):
        samples = samples.unflatten(axis, (-1, 2)).mean(axis + 1)
    return samples


def _bias(size: Sequence[int], spacing_mm: float, generator: torch.Generator) -> Tensor:
    """A smooth field of factors around 1, with control points every 60 to 120 mm."""
    control = float(_between(60, 120, generator)) / spacing_mm
    bases = [spline_basis(n, control) for n in size]
    weights = torch.randn(1, 1, *(basis.shape[1] for basis in bases), generator=generator)
    return (0.4 * _between(0, 1, generator) * separable(weights, bases)[0, 0]).exp()


def acquire(image: Tensor, acquired: Acquired, spacing_mm: float, generator: torch.Generator) -> Tensor:
    """Blur an image to a random resolution, add noise to its slices, and interpolate between them linearly.

    Args:
        image: (D, H, W).
        acquired: the slices and the field of view; voxels outside become 0.
        spacing_mm: voxel spacing of the image.
        generator: source of the resolution within the slices and of the noise.
    """
    sigma = float(_between(0.2, 1.0, generator))  # voxels
    profiles, back = [], []
    for axis, n in enumerate(image.shape):
        step = 1.0
        if axis == acquired.axis and acquired.thickness_mm is not None:
            step = acquired.thickness_mm / spacing_mm
        slices = max(2, round((n - 1) / step) + 1) if step > 1 else n
        at = torch.linspace(0, n - 1, slices)
        width = max(sigma, 0.42 * step) if step > 1 else sigma  # a full width at half maximum of one slice
        profile = torch.exp(-((at[:, None] - torch.arange(n)) ** 2) / (2 * width**2))
        profiles.append(profile / profile.sum(1, keepdim=True))
        back.append(interpolation_matrix(slices, n).float())
    slices_of = separable(image[None, None], profiles)
    noise = 0.08 * _between(0, 1, generator) ** 2
    noisy = slices_of + noise * torch.randn(slices_of.shape, generator=generator)
    first, end = acquired.slab
    inside = torch.zeros(image.shape[acquired.slab_axis])
    inside[first:end] = 1
    shape = [-1 if axis == acquired.slab_axis else 1 for axis in range(3)]
    return separable(noisy, back)[0, 0].abs() * inside.view(shape)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around the voxels of a mask."""
    edges = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(at[0]), int(at[-1]) + 1) for at in edges)


def _chance(share: float, generator: torch.Generator) -> bool:
    return float(torch.rand(1, generator=generator)) < share


def _between(low: float, high: float, generator: torch.Generator, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*(shape or (1,)), generator=generator)
