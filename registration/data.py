"""Training pairs: found in a list or a folder, split by subject, brought onto one grid, augmented.

Reading files (`read_pairs`, `find_pairs`), choosing (`split_by_subject`) and changing (`prepare`, `augmentation`) are
three things; `pair_dataset` puts them together as a MONAI data set. A prepared item is a dictionary:

| key | what |
| --- | --- |
| moving, fixed | (1, D, H, W) float32 in [0, 1], both on the training grid, the affine applied |
| moving_labels, fixed_labels | (1, D, H, W) int64, if the pair has both |
| spacing | (3,) float32, mm |
| subject | name |
"""

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandFlipd, Transform
from scipy.ndimage import gaussian_filter

from ..volumes import AffineTransform, Volume, VolumeWarning, read_volume
from ..volumes.resample import resample
from .affine import align_affine
from .diffusion import fractional_anisotropy, mean_b0, mean_dwi, read_bvals, read_gradients

Contrast = Literal["image", "b0", "fa", "dwi"]
Task = Literal["t1-dwi", "atlas-to-patient", "patient-to-patient"]
Split = Literal["train", "val", "test"]

_CONTRASTS = ("image", "b0", "fa", "dwi")
_SPLITS = ("train", "val", "test")
_FILES = ("moving", "fixed", "moving_labels", "fixed_labels")
_CACHE_VERSION = 1  # raise it when `prepare` gives other tensors for the same files and options


@dataclass(frozen=True)
class Pair:
    """Two images to align, by their files.

    Args:
        moving: image file.
        fixed: image file.
        subject: whose images they are; a subject is never in two splits.
        moving_labels: label map in the world of `moving`.
        fixed_labels: label map in the world of `fixed`.
        fixed_subject: whose `fixed` is, where it is not `subject`.
        contrast: what is taken of a 4-D diffusion series in `fixed`: "b0" (mean), "fa" or "dwi" (mean of the weighted
            volumes), by the .bval and .bvec files beside it. "image" for a 3-D file.
        split: "train", "val" or "test" if it is already decided.
    """

    moving: Path
    fixed: Path
    subject: str
    moving_labels: Path | None = None
    fixed_labels: Path | None = None
    fixed_subject: str | None = None
    contrast: Contrast = "image"
    split: Split | None = None

    @property
    def has_labels(self) -> bool:
        """Whether both label maps are there."""
        return self.moving_labels is not None and self.fixed_labels is not None


def read_pairs(
    path: str | os.PathLike, *, folder: str | os.PathLike | None = None, must_exist: bool = True
) -> list[Pair]:
    """Read a list of pairs: .csv, .tsv, or .json (a list of objects).

    The columns are the names of `Pair`; `moving` and `fixed` are needed, the rest may be absent or empty. Without
    `subject`, every pair is a subject of its own.

    Args:
        path: the list.
        folder: where relative paths start; by default the list's folder.
        must_exist: refuse a list that names a file that is not there.

    Raises:
        ValueError: naming the line (or the entry) for missing columns, unknown columns or values.
        FileNotFoundError: naming the line for a file that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no list of pairs at {path}")
    if path.suffix.lower() == ".json":
        rows = _json_rows(path)
    elif path.suffix.lower() in (".csv", ".tsv"):
        rows = _table_rows(path)
    else:
        raise ValueError(f"a list of pairs ends in .csv, .tsv or .json, got {path.name}")
    if not rows:
        raise ValueError(f"{path} must name at least one pair, got none")
    start = path.parent if folder is None else Path(folder)
    return [_pair(start, where, row, number, must_exist=must_exist) for number, (where, row) in enumerate(rows)]


def find_pairs(
    folder: str | os.PathLike,
    task: Task,
    *,
    contrast: Contrast = "b0",
    atlas: str | os.PathLike | None = None,
) -> list[Pair]:
    """Find pairs in a BIDS-like folder: sub-*/[ses-*/]anat/*_T1w.nii.gz, and dwi/*_dwi.nii.gz with .bval and .bvec.

    A label map is found by its name: `*_dseg` in place of the image's last part (T1w, dwi).

    Args:
        folder: holds the folders sub-*.
        task: "t1-dwi": T1w (moving) and diffusion (fixed) of one session. "atlas-to-patient": the atlas (moving) to
            each T1w. "patient-to-patient": each T1w to that of each other subject, sessions of one subject left out.
        contrast: of the diffusion series, see `Pair`.
        atlas: image file, for "atlas-to-patient"; its label map lies beside it as `*_dseg`.

    Raises:
        ValueError: nothing found, or an atlas missing or not asked for.
    """
    folder = Path(folder)
    if (atlas is not None) != (task == "atlas-to-patient"):
        raise ValueError(f'atlas must be given for task "atlas-to-patient" and only for it, got {atlas} for "{task}"')
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    t1s = [(path, _subject_of(folder, path)) for path in _images(folder, "anat", "T1w")]
    if task == "t1-dwi":
        pairs = [
            Pair(t1, dwi, subject, _labels_of(t1), _labels_of(dwi), contrast=contrast)
            for t1, subject in t1s
            for dwi in _images(t1.parent.parent, "dwi", "dwi", sessions=False)
        ]
    elif task == "atlas-to-patient":
        atlas = Path(str(atlas))
        if not atlas.is_file():
            raise FileNotFoundError(f"no atlas at {atlas}")
        pairs = [
            Pair(atlas, t1, subject, _labels_of(atlas), _labels_of(t1), fixed_subject=subject) for t1, subject in t1s
        ]
    elif task == "patient-to-patient":
        pairs = [
            Pair(a, b, subject_a, _labels_of(a), _labels_of(b), fixed_subject=subject_b)
            for (a, subject_a), (b, subject_b) in permutations(t1s, 2)
            if subject_a != subject_b
        ]
    else:
        raise ValueError(f'task must be "t1-dwi", "atlas-to-patient" or "patient-to-patient", got {task!r}')
    if not pairs:
        raise ValueError(
            f'no pairs for task "{task}" in {folder}: looked for sub-*/[ses-*/]anat/*_T1w.nii[.gz]'
            + (" with dwi/*_dwi.nii[.gz] beside anat/" if task == "t1-dwi" else "")
        )
    return pairs


def split_by_subject(
    pairs: Sequence[Pair], *, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[Split, list[Pair]]:
    """Share the pairs out to train, val and test; no subject is in two of them.

    Pairs of two different subjects are kept only where both subjects are in one split. If any pair has a `split`, all
    must, and that is what counts; it is checked. Subjects are drawn at random; val gets one subject at least as soon
    as there are two, test as soon as there are three and its share is not 0.

    Raises:
        ValueError: for fractions that do not sum to 1, a split given for some pairs only, or a subject in two splits.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three shares that sum to 1, got {fractions}")
    given = [pair.split is not None for pair in pairs]
    if any(given):
        if not all(given):
            raise ValueError(f"split must be given for all pairs or for none, got {sum(given)} of {len(pairs)}")
        return _given_splits(pairs)
    subjects = sorted({name for pair in pairs for name in _subjects(pair)})
    drawn = np.random.default_rng(seed).permutation(len(subjects))
    counts = _counts(len(subjects), fractions)
    of_subject: dict[str, Any] = {
        subjects[index]: split
        for split, indices in zip(_SPLITS, np.split(drawn, np.cumsum(counts)[:2]), strict=True)
        for index in indices
    }
    shared: dict[Any, list[Pair]] = {split: [] for split in _SPLITS}
    for pair in pairs:
        splits = {of_subject[name] for name in _subjects(pair)}
        if len(splits) == 1:
            split = splits.pop()
            shared[split].append(replace(pair, split=split))
    return shared


def training_grid(fixed: Volume, *, spacing_mm: float, size: Sequence[int] | None = None) -> Volume:
    """The grid that a network sees: axes along those of `fixed`, ordered and directed nearest to RAS, even spacing.

    Args:
        fixed: its content is what the grid is centred on.
        spacing_mm: of all three axes.
        size: voxels per axis; what lies outside is cut off, what is missing reads 0. By default all of `fixed` fits.

    Returns:
        An empty volume. A size that cuts off more than 2 % of the content of `fixed` is warned about.
    """
    canonical = nib.orientations.io_orientation(fixed.affine)
    to_axes = nib.orientations.inv_ornt_aff(canonical, fixed.shape)
    nearest_ras = fixed.affine @ to_axes  # voxel -> world for the reordered axes
    directions = nearest_ras[:3, :3] / np.linalg.norm(nearest_ras[:3, :3], axis=0)
    lengths_mm = np.linalg.norm(nearest_ras[:3, :3], axis=0)
    full = np.array(fixed.shape)[np.argsort(canonical[:, 0])]
    whole = size is None
    shape = np.ceil((full - 1) * lengths_mm / spacing_mm).astype(int) + 1 if size is None else np.asarray(size)
    if shape.shape != (3,) or shape.min() < 1 or spacing_mm <= 0:
        raise ValueError(f"size must be three numbers of voxels and spacing_mm positive, got {size} and {spacing_mm}")
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    content = _content(fixed)
    voxels = np.argwhere(content)
    middle = (np.array(fixed.shape) - 1) / 2 if whole else (voxels.min(axis=0) + voxels.max(axis=0)) / 2
    centre = fixed.affine[:3, :3] @ middle + fixed.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    if not whole:
        to_grid = np.linalg.inv(affine) @ fixed.affine
        inside = voxels @ to_grid[:3, :3].T + to_grid[:3, 3]
        lost = 1 - float(((inside > -0.5) & (inside < shape - 0.5)).all(axis=1).mean())
        if lost > 0.02:
            warnings.warn(
                f"size {shape.tolist()} at {spacing_mm} mm cuts off {100 * lost:.0f} % of {fixed.source or 'fixed'}",
                VolumeWarning,
                stacklevel=2,
            )
    return Volume(np.broadcast_to(np.float32(0), tuple(shape.tolist())), affine)


def unit_range(volume: Volume) -> Volume:
    """Intensities in [0, 1], clipped beyond.

    0 is the 0.5th percentile of all voxels, 1 the 99.5th percentile of the voxels above it, so that the share of empty
    background hardly matters and a blank background stays 0.
    """
    array = volume.array.astype(np.float32)
    low = np.percentile(array, 0.5)
    above = array[array > low]
    high = np.percentile(above, 99.5) if above.size else low
    if high <= low:
        raise ValueError(f"{volume.source or 'volume'} must not be constant, got {low} almost everywhere")
    return volume.with_array(np.clip((array - low) / (high - low), 0.0, 1.0))


def to_grid(volume: Volume, grid: Volume, transform: AffineTransform | None = None) -> torch.Tensor:
    """The image on another grid as a network sees it, (1, D, H, W) float32: smoothed for it, interpolated once.

    Args:
        volume: (D, H, W).
        grid: its shape and affine are taken, its values are not.
        transform: from the world of `grid` into that of `volume`; None where both are one world.
    """
    return _channel(resample(_antialiased(volume, min(grid.spacing)), grid, transform), np.float32)


def load_fixed(pair: Pair) -> Volume:
    """The fixed image of a pair, (D, H, W); of a diffusion series the map that `pair.contrast` names."""
    volume = read_volume(pair.fixed)
    if pair.contrast == "image":
        if volume.array.ndim == 4:
            raise ValueError(
                f'{pair.fixed} is 4-D, shape {volume.array.shape}: set contrast to "b0", "fa" or "dwi" for this pair'
            )
        return volume
    base = _without_suffix(pair.fixed)
    bval, bvec = base.with_name(base.name + ".bval"), base.with_name(base.name + ".bvec")
    for file in (bval, bvec) if pair.contrast == "fa" else (bval,):
        if not file.is_file():
            raise FileNotFoundError(f'contrast "{pair.contrast}" of {pair.fixed} needs {file.name} beside it')
    try:
        if pair.contrast == "fa":
            return fractional_anisotropy(volume, *read_gradients(bval, bvec))
        return (mean_b0 if pair.contrast == "b0" else mean_dwi)(volume, read_bvals(bval))
    except ValueError as error:
        raise ValueError(f"{pair.fixed}: {error}") from error


def prepare(
    pair: Pair,
    *,
    spacing_mm: float,
    size: Sequence[int] | None = None,
    affine: Literal["affine", "rigid", "none"] = "affine",
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Read a pair, align it, and bring it onto the training grid: each image is interpolated once.

    Args:
        pair: the files.
        spacing_mm: of the training grid.
        size: of the training grid in voxels; by default all of the fixed image.
        affine: pre-alignment by `align_affine`; "none" trusts the worlds of the files.
        cache_dir: of the affine results.

    Returns:
        The item described at the top of this module.
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
    affine: Literal["affine", "rigid", "none"] = "affine",
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """`prepare` for images in memory: the same item without "subject".

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        spacing_mm: of the training grid.
        moving_labels: label map in the world of `moving`; used if `fixed_labels` is given too.
        fixed_labels: label map in the world of `fixed`.
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
            item[name] = _channel(resample(labels, grid, transform, order="nearest"), np.int64)
    return item


def augmentation(*, labels: bool) -> Compose:
    """Random changes of a prepared item, for training only; seed them with `.set_random_state(seed)`.

    Each axis is flipped with probability 0.5 in both images alike. The moving image alone is then turned by up to 6
    degrees, shifted by up to 3 voxels and scaled by up to 5 %, its labels with it, and each image's contrast is bent
    by a gamma of 0.8 to 1.25.

    Args:
        labels: whether items have label maps.
    """
    keys = list(_FILES) if labels else ["moving", "fixed"]
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
    affine: Literal["affine", "rigid", "none"] = "affine",
    augment: bool = False,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """A MONAI data set of prepared items: each pair is prepared once, and augmented anew every time it is taken.

    Args:
        pairs: at least one; all with both label maps, or none.
        spacing_mm: see `prepare`.
        size: see `prepare`.
        affine: see `prepare`.
        augment: see `augmentation`; for training only.
        seed: of the augmentation.
        cache_dir: prepared items and affine results are kept here, and found again as long as the files and options
            are the same; without it they are kept in memory.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one pair, got none")
    labelled = {pair.has_labels for pair in pairs}
    if len(labelled) > 1:
        without = next(pair for pair in pairs if not pair.has_labels)
        raise ValueError(f"either all pairs or none must have both label maps, {without.subject} has not")
    options = {"spacing_mm": spacing_mm, "size": None if size is None else list(size), "affine": affine}
    steps: list[Any] = [_Prepare(options, cache_dir)]
    if augment:
        steps.append(augmentation(labels=labelled.pop()))
    transform = Compose(steps).set_random_state(seed)  # MONAI's Compose draws new states for what it is given
    items = [_item(pair, options) for pair in pairs]
    if cache_dir is None:
        return CacheDataset(items, transform, progress=False, num_workers=1)
    return PersistentDataset(items, transform, cache_dir=Path(cache_dir) / "prepared")


class _Prepare(Transform):
    """The deterministic part; MONAI's caching data sets keep its result."""

    def __init__(self, options: dict[str, Any], cache_dir: str | os.PathLike | None):
        self.options = options
        self.cache_dir = cache_dir

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        files = {name: None if item[name] is None else Path(item[name]) for name in _FILES}
        pair = Pair(**{field.name: files.get(field.name, item[field.name]) for field in fields(Pair)})
        return prepare(pair, **self.options, cache_dir=self.cache_dir)


class _PlainTensors(Transform):
    """Back from MONAI's tensors, labels to whole numbers."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        for name in _FILES:
            if name in item:
                plain = torch.as_tensor(item[name]).as_subclass(torch.Tensor)
                item[name] = plain.round().long() if name.endswith("labels") else plain.float()
        return item


def _item(pair: Pair, options: dict[str, Any]) -> dict[str, Any]:
    """What MONAI hashes for its cache on disk: the pair, the options, and each file's size and time."""
    files = [file for name in _FILES if (file := getattr(pair, name)) is not None]
    if pair.contrast != "image":
        base = _without_suffix(pair.fixed)
        files += [file for end in (".bval", ".bvec") if (file := base.with_name(base.name + end)).is_file()]
    stamps = [[file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()]
    content = json.dumps([_CACHE_VERSION, options, stamps], sort_keys=True)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(pair).items()}
    return plain | {"key": hashlib.sha256(content.encode()).hexdigest()}


def _table_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        _check_columns(f"{path}:1", reader.fieldnames or [])
        rows = []
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where} must have {len(reader.fieldnames or [])} columns as the first line has")
            rows.append((where, row))
    return rows


def _json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno} is not JSON: {error.msg}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path} must hold a list of objects, such as [{{"moving": ..., "fixed": ...}}]')
    for number, entry in enumerate(entries):
        _check_columns(f"{path}, entry {number}", entry)
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries)]


def _check_columns(where: str, names: Any) -> None:
    known = [field.name for field in fields(Pair)]
    missing = [name for name in ("moving", "fixed") if name not in names]
    unknown = [str(name) for name in names if name not in known]
    if missing or unknown:
        problem = f"has no column {', '.join(missing)}" if missing else f"has unknown columns {', '.join(unknown)}"
        raise ValueError(f"{where} {problem}; columns are {', '.join(known)}")


def _pair(folder: Path, where: str, row: dict[str, Any], number: int, *, must_exist: bool) -> Pair:
    values: dict[str, Any] = {
        name: text for name, value in row.items() if (text := "" if value is None else str(value).strip())
    }
    for name in _FILES:
        if name not in values:
            if name in ("moving", "fixed"):
                raise ValueError(f"{where}: {name} is empty")
            continue
        file = folder / values[name]
        if must_exist and not file.exists():
            raise FileNotFoundError(f"{where}: {name} not found: {file}")
        values[name] = file
    for name, allowed in (("contrast", _CONTRASTS), ("split", _SPLITS)):
        if values.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {name} must be one of {', '.join(allowed)}, got {values[name]!r}")
    return Pair(**{"subject": f"pair-{number}", **values})


def _images(folder: Path, kind: str, suffix: str, *, sessions: bool = True) -> list[Path]:
    patterns = [f"sub-*/{kind}", f"sub-*/ses-*/{kind}"] if sessions else [kind]
    found = {p for pattern in patterns for end in ("nii", "nii.gz") for p in folder.glob(f"{pattern}/*_{suffix}.{end}")}
    return sorted(found)


def _subject_of(folder: Path, path: Path) -> str:
    return path.relative_to(folder).parts[0]


def _without_suffix(path: Path) -> Path:
    name = path.name
    for suffix in (".nii.gz", ".nii", ".mgz", ".mgh"):
        if name.lower().endswith(suffix):
            return path.with_name(name[: -len(suffix)])
    return path


def _labels_of(image: Path) -> Path | None:
    stem = _without_suffix(image).name
    stem = stem.rsplit("_", 1)[0] if "_" in stem else stem
    candidates = [image.with_name(f"{stem}_dseg{end}") for end in (".nii.gz", ".nii", ".mgz")]
    return next((file for file in candidates if file.is_file()), None)


def _subjects(pair: Pair) -> set[str]:
    return {pair.subject} if pair.fixed_subject is None else {pair.subject, pair.fixed_subject}


def _given_splits(pairs: Sequence[Pair]) -> dict[Split, list[Pair]]:
    seen: dict[str, str] = {}
    shared: dict[Any, list[Pair]] = {split: [] for split in _SPLITS}
    for pair in pairs:
        for name in _subjects(pair):
            if seen.setdefault(name, str(pair.split)) != pair.split:
                raise ValueError(f"subject {name} must be in one split, got {seen[name]} and {pair.split}")
        shared[pair.split].append(pair)
    return shared


def _counts(n: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    test = round(fractions[2] * n)
    if fractions[2] > 0 and n >= 3:
        test = max(test, 1)
    val = round(fractions[1] * n)
    if fractions[1] > 0 and n >= 2:
        val = max(val, 1)
    return n - val - test, val, test


def _content(volume: Volume) -> np.ndarray:
    """Where the image shows something: above a tenth of its robust range."""
    low, high = np.percentile(volume.array, [1, 99])
    content = volume.array > low + 0.1 * (high - low)
    return content if content.any() else np.ones(volume.shape, bool)


def _antialiased(volume: Volume, spacing_mm: float) -> Volume:
    """Smoothed as far as the coarser grid asks for, so that fine detail does not come back as noise."""
    ratio = spacing_mm / np.array(volume.spacing)
    sigma = 0.42 * np.sqrt(np.maximum(ratio**2 - 1, 0))  # a full width at half maximum of one coarse voxel
    return volume.with_array(gaussian_filter(volume.array, sigma)) if sigma.any() else volume


def _channel(volume: Volume, dtype: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(volume.array, dtype=dtype))[None]
