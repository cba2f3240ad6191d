"""Training pairs as a MONAI data set: read, aligned, resampled to one grid and augmented.

Pairs are listed and split in `pairs`; `prepare` and `augmentation` change their images, and `pair_dataset` combines
the two. A prepared item is a dictionary:

| key | value |
| --- | --- |
| moving, fixed | (1, D, H, W) float32 in [0, 1], both on the training grid, after the affine |
| moving_labels, fixed_labels | (1, D, H, W) int64, if the pair has both |
| spacing | (3,) float32, mm |
| subject | name of the subject |
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandFlipd, Transform

from ..volumes import AffineTransform, Volume, read_volume
from ..volumes.resample import resample
from .affine import align_affine
from .choices import AffineKind
from .grids import to_grid, training_grid, unit_range, with_channel
from .pairs import MASK_FILES, PAIR_FILES, Pair
from .series import load_fixed, sidecar

_CACHE_VERSION = 1  # increase it when `prepare` gives other tensors for the same files and options


def prepare(
    pair: Pair,
    *,
    spacing_mm: float,
    size: Sequence[int] | None = None,
    affine: AffineKind = "affine",
    cache_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Read a pair, align it, and resample it to the training grid; each image is interpolated once.

    Args:
        pair: the files.
        spacing_mm: voxel spacing of the training grid.
        size: size of the training grid in voxels; by default it covers the fixed image.
        affine: alignment by `align_affine`; "none" uses the world coordinates of the files.
        cache_dir: folder in which affine results are kept.

    Returns:
        An item as described at the top of this module.
    """
    moving_labels, fixed_labels = (
        read_volume(file) if pair.has_labels and file is not None else None
        for file in (pair.moving_labels, pair.fixed_labels)
    )
    item = prepare_volumes(
        read_volume(pair.moving),
        load_fixed(pair),
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
        spacing_mm=spacing_mm,
        size=size,
        affine=affine,
        cache_dir=cache_dir,
    )
    return item | {"subject": pair.subject}


def prepare_volumes(
    moving: Volume,
    fixed: Volume,
    *,
    spacing_mm: float,
    moving_labels: Volume | None = None,
    fixed_labels: Volume | None = None,
    size: Sequence[int] | None = None,
    affine: AffineKind = "affine",
    cache_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Prepare two images in memory like `prepare`; the item has no "subject".

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        spacing_mm: voxel spacing of the training grid.
        moving_labels: label map in the world space of `moving`; used if `fixed_labels` is given too.
        fixed_labels: label map in the world space of `fixed`.
        size: see `prepare`.
        affine: see `prepare`.
        cache_dir: see `prepare`.
    """
    grid = training_grid(fixed, spacing_mm=spacing_mm, size=size)
    matrix = np.eye(4) if affine == "none" else align_affine(moving, fixed, kind=affine, cache_dir=cache_dir)
    pull_back = AffineTransform(matrix)
    item: dict[str, Any] = {
        "moving": to_grid(unit_range(moving), grid, pull_back),
        "fixed": to_grid(unit_range(fixed), grid),
        "spacing": torch.full((3,), float(spacing_mm)),
    }
    if moving_labels is not None and fixed_labels is not None:
        for name, labels, transform in (
            ("moving_labels", moving_labels, pull_back),
            ("fixed_labels", fixed_labels, None),
        ):
            if labels.array.ndim != 3:
                raise ValueError(
                    f"{name} must be 3-D, got shape {labels.array.shape} in {labels.source or 'its array'}"
                )
            item[name] = with_channel(resample(labels, grid, transform, order="nearest"), np.int64)
    return item


def augmentation(*, labels: bool) -> Compose:
    """Random augmentation of a prepared item, for training only; seed it with `.set_random_state(seed)`.

    Each axis is flipped with probability 0.5, in both images together. The moving image and its labels are then rotated
    by up to 6 degrees, shifted by up to 3 voxels and scaled by up to 5 %, and the contrast of each image is changed by
    a gamma of 0.8 to 1.25.

    Args:
        labels: whether items have label maps.
    """
    keys = list(PAIR_FILES) if labels else ["moving", "fixed"]
    moving = ["moving", "moving_labels"] if labels else ["moving"]
    return Compose(
        [
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
            RandAffined(
                moving,
                prob=0.5,
                rotate_range=np.deg2rad(6).item(),
                translate_range=3,
                scale_range=0.05,
                mode=["bilinear", "nearest"][: len(moving)],
                padding_mode="zeros",
            ),
            RandAdjustContrastd("moving", prob=0.5, gamma=(0.8, 1.25)),
            RandAdjustContrastd("fixed", prob=0.5, gamma=(0.8, 1.25)),
            _PlainTensors(),
        ]
    )


def pair_dataset(
    pairs: Sequence[Pair],
    *,
    spacing_mm: float,
    size: Sequence[int] | None = None,
    affine: AffineKind = "affine",
    augment: bool = False,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """A MONAI data set of prepared items; each pair is prepared once, and augmented again each time it is read.

    Args:
        pairs: at least one; either all or none with both label maps.
        spacing_mm: see `prepare`.
        size: see `prepare`.
        affine: see `prepare`.
        augment: whether to apply `augmentation`, for training only.
        seed: seed of the augmentation.
        cache_dir: folder in which prepared items and affine results are kept; they are used again if files and options
            are the same. By default they are kept in memory.

    Raises:
        ValueError: there are no pairs, or only some pairs have label maps.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one pair, got none")
    labelled = {pair.has_labels for pair in pairs}
    if len(labelled) > 1:
        without = next(pair for pair in pairs if not pair.has_labels)
        raise ValueError(f"either all pairs or none must have both label maps, got {without.subject} without them")
    options = {"spacing_mm": spacing_mm, "size": None if size is None else list(size), "affine": affine}
    steps: list[Any] = [_Prepare(options, cache_dir)]
    if augment:
        steps.append(augmentation(labels=labelled.pop()))
    transform = Compose(steps).set_random_state(seed)  # MONAI's Compose draws new random states for its parts
    items = [_item(pair, options) for pair in pairs]
    if cache_dir is None:
        return CacheDataset(items, transform, progress=False, num_workers=1)
    return PersistentDataset(items, transform, cache_dir=Path(cache_dir) / "prepared")


class _Prepare(Transform):
    """The deterministic part, whose result the caching data sets of MONAI store."""

    def __init__(self, options: dict[str, Any], cache_dir: str | os.PathLike[str] | None):
        self.options = options
        self.cache_dir = cache_dir

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        files = {name: None if item[name] is None else Path(item[name]) for name in PAIR_FILES}
        pair = Pair(**{f.name: files.get(f.name, item[f.name]) for f in fields(Pair) if f.name not in MASK_FILES})
        return prepare(pair, **self.options, cache_dir=self.cache_dir)


class _PlainTensors(Transform):
    """Convert MONAI's tensors to plain tensors, and labels to integers."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        for name in PAIR_FILES:
            if name in item:
                plain = torch.as_tensor(item[name]).as_subclass(torch.Tensor)
                item[name] = plain.round().long() if name.endswith("labels") else plain.float()
        return item


def _item(pair: Pair, options: dict[str, Any]) -> dict[str, Any]:
    """The content that MONAI hashes for its cache on disk: pair, options, and size and change time of each file."""
    files = [file for name in PAIR_FILES if (file := getattr(pair, name)) is not None]
    if pair.contrast != "image":
        files += [file for end in (".bval", ".bvec") if (file := sidecar(pair.fixed, end)).is_file()]
    stamps = [[file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()]
    content = json.dumps([_CACHE_VERSION, options, stamps], sort_keys=True)
    used = {name: value for name, value in asdict(pair).items() if name not in MASK_FILES}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in used.items()}
    return plain | {"key": hashlib.sha256(content.encode()).hexdigest()}
