"""Rigid and affine alignment of two volumes of any orientation, from many starting points."""

import hashlib
import itertools
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels.threads import ordered_sums
from ..runs.json_files import write_json
from ..volumes import Volume, VolumeWarning
from .checks import check_images
from .linear import Kind, Metric, Samples, coarsened, fit, samples_of, similarity, without_outliers

_CACHE_VERSION = 3  # increase it when the same inputs and options give another matrix
_LEVELS = ((8.0, 8_000), (4.0, 30_000), (2.0, 60_000))  # spacing in mm, and number of samples of the fixed image
# Measured on T1w and b0 of one session: 2 mm or 3 degrees change the similarity by 0.003 to 0.008; noise, by 0.001.
_LEAST_GAIN = 0.001
_PRICE_OF_OVERLAP = 0.05  # in similarity, for the loss of all overlap; a small overlap can be similar by chance
_TRIED = 8  # number of rotated starting points that get a coarse fit
# the 24 rotations of a cube, in degrees about x, y and z
_RIGHT_ANGLES = (
    *itertools.product((0, 90, 180, 270), (0,), (0, 90, 180, 270)),
    *itertools.product((0, 90, 180, 270), (90, 270), (0,)),
)
_TURNS_IN_PLANE = tuple((0, 0, angle) for angle in range(0, 360, 15))
_TURNS = tuple(
    dict.fromkeys(
        [
            *itertools.product((-30, -15, 0, 15, 30), repeat=3),
            *itertools.product((-60, 0, 60), repeat=3),
            *_RIGHT_ANGLES,
        ]
    )
)


def align_affine(
    moving: Volume,
    fixed: Volume,
    *,
    kind: Kind = "affine",
    metric: Metric = "mi",
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """The matrix that maps points of the fixed space to points of the moving space (a pull-back), RAS mm.

    The candidates for the starting point are the scanner's geometry, and rotations about the centres of mass and about
    the centres of the grids. Rigid and then affine fits follow, from coarse to fine. A fit is kept only if it raises
    the similarity on samples to which it was not fitted, because two scans of one session are often aligned best by the
    scanner's geometry, and an affine fit to a thin slab can diverge.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        kind: "affine" (12 parameters) or "rigid" (6).
        metric: "mi" (mutual information, for any two contrasts) or "ncc" (squared correlation, for one contrast).
        moving_mask: on the grid of `moving`; voxels that are 0 are not compared.
        fixed_mask: on the grid of `fixed`; voxels that are 0 are not compared.
        seed: seed for the sampling of the images; equal seeds give equal results.
        cache_dir: folder in which results are kept, and found again if the content of all arguments is the same.

    Returns:
        (4, 4) float64; `warped(x) = moving(matrix @ x)`.

    Raises:
        ValueError: an image is not 3-D, constant or not finite, or a mask is on another grid.
    """
    if kind not in ("affine", "rigid"):
        raise ValueError(f'kind must be "affine" or "rigid", got {kind!r}')
    if metric not in ("mi", "ncc"):
        raise ValueError(f'metric must be "mi" or "ncc", got {metric!r}')
    for name, volume, mask in (("moving", moving, moving_mask), ("fixed", fixed, fixed_mask)):
        check_images(name, volume, mask)

    entry = None
    if cache_dir is not None:
        key = _key(moving, fixed, moving_mask, fixed_mask, options={"kind": kind, "metric": metric, "seed": seed})
        entry = Path(cache_dir) / f"affine-{key}.json"
        cached = _read_cached(entry)
        if cached is not None:
            return cached

    with ordered_sums():  # besides: in thousands of short operations, two threads took three times as long as one
        matrix = _align(_Pair.of(moving, fixed, moving_mask, fixed_mask, metric, seed), kind)
    if entry is not None:
        write_json(entry, {"fixed_to_moving_ras_mm": matrix.tolist()})
    return matrix


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two volumes, downsampled to the finest working spacing, and the settings of their comparison."""

    moving: Volume
    fixed: Volume
    moving_mask: Volume | None
    fixed_mask: Volume | None
    metric: Metric
    seed: int

    @classmethod
    def of(
        cls,
        moving: Volume,
        fixed: Volume,
        moving_mask: Volume | None,
        fixed_mask: Volume | None,
        metric: Metric,
        seed: int,
    ) -> "_Pair":
        finest = _LEVELS[-1][0]
        images = [coarsened(without_outliers(image), finest) for image in (moving, fixed)]

        def thinned(mask: Volume | None) -> Volume | None:
            coarse = mask and coarsened(mask.with_array((mask.array != 0).astype(np.float32)), finest)
            return coarse and coarse.with_array(coarse.array > 0.5)

        return cls(images[0], images[1], thinned(moving_mask), thinned(fixed_mask), metric, seed)

    def samples(self, spacing_mm: float, count: int, *, seed: int = 0) -> Samples:
        return samples_of(
            self.moving,
            self.fixed,
            spacing_mm=spacing_mm,
            count=count,
            seed=2 * self.seed + seed,
            moving_mask=self.moving_mask,
            fixed_mask=self.fixed_mask,
        )


def _align(pair: _Pair, kind: Kind) -> np.ndarray:
    """The best starting point, improved by those rigid and then affine fits that raise the similarity.

    The similarity of a stage is computed on samples to which the stage was not fitted.
    """
    levels = [pair.samples(mm, count) for mm, count in _LEVELS]
    scores = [pair.samples(mm, count, seed=1) for mm, count in _LEVELS]

    def better(new: np.ndarray, old: np.ndarray) -> np.ndarray:
        after, before = (similarity(scores[-1], world, pair.metric) for world in (new, old))
        if before.overlap <= 0.3 * after.overlap:  # the images hardly overlap in the old geometry
            return new
        lost = max(0.0, 1 - after.overlap / before.overlap)
        enough = _LEAST_GAIN + _PRICE_OF_OVERLAP * lost
        return new if lost < 0.7 and after.value > before.value + enough else old

    scanner = np.eye(4)
    starts = [scanner, *_turned_starts(pair, levels[0])]
    coarse = [fit(levels[0], start, "rigid", metric=pair.metric, iterations=25) for start in starts]
    promising = [coarse[0], _best(coarse[1:], scores[0], pair.metric)]
    fine = [fit(levels[1], start, "rigid", metric=pair.metric) for start in promising]
    rigid = better(fit(levels[2], _best(fine, scores[1], pair.metric), "rigid", metric=pair.metric), scanner)
    if kind == "rigid":
        return rigid
    affine = fit(levels[1], rigid, "affine", metric=pair.metric)
    affine = fit(levels[2], affine, "affine", metric=pair.metric)
    scales = np.linalg.svd(affine[:3, :3], compute_uv=False)
    if scales.max() > 1.6 or scales.min() < 1 / 1.6:  # heads of infants and adults differ by about this factor
        warnings.warn(
            f"the affine fit scales by {scales.min():.2f} to {scales.max():.2f}; the rigid alignment is used instead",
            VolumeWarning,
            stacklevel=3,
        )
        return rigid
    return better(affine, rigid)


def _turned_starts(pair: _Pair, samples: Samples) -> list[np.ndarray]:
    """The rotations with the highest similarity, about the centres of mass and about the centres of the grids.

    Those about the centres of the grids help if the images show different parts of a body.
    """
    masses = _centre_of_mass(pair.fixed, pair.fixed_mask), _centre_of_mass(pair.moving, pair.moving_mask)
    grids = _centre_of_grid(pair.fixed), _centre_of_grid(pair.moving)
    about_masses, about_grids = (_TURNS_IN_PLANE, _TURNS_IN_PLANE) if samples.planar else (_TURNS, _RIGHT_ANGLES)
    turns = [_turn(angles, *masses) for angles in about_masses] + [_turn(angles, *grids) for angles in about_grids]
    found = [similarity(samples, turn, pair.metric) for turn in turns]
    enough = 0.5 * max(one.overlap for one in found)
    values = [one.value if one.overlap >= enough else 0.0 for one in found]
    order = sorted(range(len(turns)), key=lambda i: values[i], reverse=True)
    return _distinct([turns[i] for i in order], masses[0])


def _distinct(worlds: list[np.ndarray], centre: np.ndarray) -> list[np.ndarray]:
    """The first `_TRIED` maps that differ from each other by more than 20 mm at 60 mm from the centre."""
    corners = np.concatenate([centre + 60 * np.vstack([np.eye(3), -np.eye(3)]), np.ones((6, 1))], axis=1).T
    kept: list[np.ndarray] = []
    for world in worlds:
        apart = [np.linalg.norm(((world - other) @ corners)[:3], axis=0).max() for other in kept]
        if not apart or min(apart) > 20:
            kept.append(world)
        if len(kept) == _TRIED:
            break
    return kept


def _best(candidates: list[np.ndarray], scores: Samples, metric: Metric) -> np.ndarray:
    """The candidate with the highest similarity among those with at least 70 % of the largest overlap."""
    found = [similarity(scores, world, metric) for world in candidates]
    enough = 0.7 * max(one.overlap for one in found)
    return max(
        zip(candidates, found, strict=True), key=lambda item: item[1].value if item[1].overlap >= enough else 0.0
    )[0]


def _turn(degrees: tuple[float, ...], centre_f: np.ndarray, centre_m: np.ndarray) -> np.ndarray:
    x, y, z = np.deg2rad(degrees)
    turn_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    turn_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    turn_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    world = np.eye(4)
    world[:3, :3] = turn_z @ turn_y @ turn_x
    world[:3, 3] = centre_m - world[:3, :3] @ centre_f
    return world


def _centre_of_grid(volume: Volume) -> np.ndarray:
    centre: np.ndarray = volume.affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + volume.affine[:3, 3]
    return centre


def _centre_of_mass(volume: Volume, mask: Volume | None) -> np.ndarray:
    weight = volume.array.astype(np.float64)
    weight = weight - weight.min()
    if mask is not None:
        weight = weight * (mask.array != 0)
    axes = [weight.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    voxel = [float((along * np.arange(len(along))).sum() / along.sum()) for along in axes]
    centre: np.ndarray = volume.affine[:3, :3] @ voxel + volume.affine[:3, 3]
    return centre


def _key(*volumes: Volume | None, options: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps({"version": _CACHE_VERSION, **options}, sort_keys=True).encode())
    for volume in volumes:
        if volume is None:
            digest.update(b"none")
            continue
        digest.update(f"{volume.array.shape}{volume.array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(volume.array).data)
        digest.update(np.ascontiguousarray(volume.affine).data)
    return digest.hexdigest()[:32]


def _read_cached(entry: Path) -> np.ndarray | None:
    if not entry.is_file():
        return None
    try:
        matrix = np.array(json.loads(entry.read_text())["fixed_to_moving_ras_mm"], dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError(f"expected a finite (4, 4) matrix, got shape {matrix.shape}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"cache entry {entry} is unreadable and is replaced: {error}", VolumeWarning, stacklevel=3)
        return None
    return matrix
