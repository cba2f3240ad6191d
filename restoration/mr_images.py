"""Slices of MR scans of several sharpnesses, and synthetic slices from label maps, to train and validate a denoiser."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, zoom

from ..runs.files import atomic_path
from ..volumes import Volume, read_volume, write_volume
from ..volumes.head import head_region
from .suffixes import VOLUME_SUFFIXES

_MARGIN = 8  # pixels kept around the head
_SIZES = {"": 1.0, "_two_thirds": 2 / 3, "_half": 1 / 2}
_RIGHT_TO_LEFT = {41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 57: 25}
_RIGHT_TO_LEFT |= {58: 26, 60: 28, 62: 30, 136: 4, 137: 5, 163: 4, 164: 5}  # choroid plexus is seen as the ventricle
_OUTSIDE_BRAIN = 500  # FreeSurfer's numbers from here on are skull, scalp and eyes
_TEXTURE = 0.04  # standard deviation within a tissue, as a fraction of the range
_FLOOR = 0.06  # highest noise floor of a scan, as a fraction of its range
_GAPS = (1, 2, 3, 4)  # slices of a label map between neighbours of a synthetic stack
_LONGEST = 24  # slices of a synthetic stack


def write_mr_images(
    scans: str | os.PathLike[str],
    folder: Path,
    *,
    labels: str | os.PathLike[str] | None = None,
    validation: Sequence[str] = (),
    least_side: int = 64,
    seed: int = 0,
) -> dict[str, int]:
    """Write stacks of slices into folder/train and folder/validation, as NIfTI files.

    The slices of each scan, across its thickest axis, are cut to the head. They are written at their own size, at two
    thirds and at half of it (averaged, so that they are sharper and less noisy), since a denoiser that has only seen
    interpolated scans blurs sharp ones. Every second stack gets a random noise floor, since many published scans have a
    background of 0 and those of other scanners do not: a denoiser that has only seen the former darkens air.

    Args:
        scans: a folder; scans at any depth of it are read.
        folder: the folder to write to.
        labels: a folder of label maps with FreeSurfer numbers, 1 mm; each gives one stack of synthetic slices, 1 to 4
            mm apart, in which each structure has a random brightness and texture. Half of the stacks show the brain
            alone.
        validation: scans whose path contains one of these words are for validation.
        least_side: stacks whose slices have a side of fewer pixels are left out.
        seed: seed of the synthetic slices and of the noise floors.

    Returns:
        Name of the folder -> number of its stacks.

    Raises:
        ValueError: there is no scan for training.
    """
    counts = {"train": 0, "validation": 0}
    rng = np.random.default_rng(seed)
    for number, (name, array) in enumerate(_stacks(Path(scans), None if labels is None else Path(labels), seed)):
        if min(array.shape[:2]) < least_side:
            continue
        if number % 2:
            array = np.hypot(array, np.float32(rng.uniform(0, _FLOOR) * np.percentile(array, 99.9)))
        part = "validation" if any(word in name for word in validation) else "train"
        with atomic_path(folder / part / f"{name}.nii.gz") as temporary:
            write_volume(temporary, Volume(array, np.eye(4)))
        counts[part] += 1
    if not counts["train"]:
        raise ValueError(
            f"{scans} must hold scans (NIfTI, MGH or NRRD) for training, with heads of {least_side} pixels or more in"
            " height and width, got none"
        )
    return counts


def _stacks(scans: Path, labels: Path | None, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and slices (H, W, N)."""
    for path in _files(scans):
        scan = read_volume(path)
        slices = _cut(np.moveaxis(scan.array.astype(np.float32), int(np.argmax(scan.spacing)), 2))
        name = "_".join((*path.relative_to(scans).parent.parts, _stem(path)))
        for ending, size in _SIZES.items():
            yield name + ending, _resized(slices, size)
    if labels is not None:
        for number, path in enumerate(_files(labels)):
            rng = np.random.default_rng([seed, number])
            yield f"synthetic_{_stem(path)}", _synthetic(np.rint(read_volume(path).array).astype(np.int32), rng)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    return sorted(path for path in folder.rglob("*") if path.name.lower().endswith(VOLUME_SUFFIXES))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _cut(slices: np.ndarray) -> np.ndarray:
    """Slices (H, W, N) without the rows, columns and slices in which no slice shows a head."""
    heads = np.stack([head_region(plane, (1.0, 1.0)) for plane in np.moveaxis(slices, 2, 0)], axis=2)
    kept = heads.mean(axis=(0, 1)) > 0.25 * heads.mean(axis=(0, 1)).max()
    box = tuple(
        slice(max(int(where.min()) - _MARGIN, 0), int(where.max()) + _MARGIN + 1)
        for where in (np.flatnonzero(heads[..., kept].any(axis=axes)) for axes in ((1, 2), (0, 2)))
    )
    return slices[(*box, kept)]


def _resized(slices: np.ndarray, size: float) -> np.ndarray:
    """Slices (H, W, N) at a fraction of their size, each pixel the mean of the area it covers."""
    if size == 1:
        return slices
    shape = [round(n * size) for n in slices.shape[:2]]
    batch = torch.from_numpy(np.ascontiguousarray(np.moveaxis(slices, 2, 0)))[:, None]
    small = F.interpolate(batch, size=shape, mode="bilinear", antialias=True)
    return np.moveaxis(small[:, 0].numpy(), 0, 2)


def _synthetic(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slices (H, W, N) in which each structure of a label map (D, H, W) has a random brightness, from 0 to 255."""
    brain_alone = rng.random() < 0.5
    labels = np.moveaxis(labels, rng.integers(3), 2)[..., :: rng.choice(_GAPS)]
    shown = np.flatnonzero(labels.any(axis=(0, 1)))
    first = int(rng.integers(shown[0], max(shown[-1] - _LONGEST, shown[0]) + 1))
    labels = labels[..., first : min(first + _LONGEST, shown[-1] + 1)]
    for right, left in _RIGHT_TO_LEFT.items():
        labels = np.where(labels == right, left, labels)
    if brain_alone:
        labels = np.where(labels >= _OUTSIDE_BRAIN, 0, labels)
    numbers, index = np.unique(labels, return_inverse=True)
    means = np.where(numbers == 0, 0.0, rng.uniform(0.05, 1.0, len(numbers)))
    textures = np.where(numbers == 0, 0.0, rng.uniform(0, _TEXTURE, len(numbers)))
    grain = gaussian_filter(rng.standard_normal(labels.shape, np.float32), (1, 1, 0))
    image = means[index].reshape(labels.shape) + (textures[index].reshape(labels.shape) * grain / grain.std())
    coarse = rng.uniform(0.7, 1.3, (3, 3, 1))
    bias = zoom(coarse, [n / 3 for n in labels.shape[:2]] + [1], order=2)
    softened = gaussian_filter(image * bias, (*[rng.uniform(0.3, 0.9)] * 2, 0))
    return _cut(np.clip(255 * softened, 0, None).astype(np.float32))
