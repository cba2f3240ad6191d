"""Affine alignment of two volumes of any orientation by ANTs (antspyx)."""

import hashlib
import itertools
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ..runs.json_files import write_json
from ..volumes import Volume, VolumeWarning
from .ants import ANTS_METRIC, AntsPair, Metric, check_images, run_ants, to_ants
from .mutual_information import FINEST_MM, lattice, nmi_of_samples, smooth_array, thinned, without_outliers

_CACHE_VERSION = 2  # raise it when the same inputs and options give another matrix


class _Score(NamedTuple):
    """How well a matrix aligns two images: normalised mutual information, and the fraction of compared voxels."""

    nmi: float
    overlap: float


class _Scorer(Protocol):
    def __call__(self, world: np.ndarray) -> _Score: ...


def align_affine(
    moving: Volume,
    fixed: Volume,
    *,
    kind: Literal["affine", "rigid"] = "affine",
    metric: Metric = "mattes",
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """The matrix that maps points of the fixed space to points of the moving space (a pull-back), RAS mm.

    Several starts compete: the scanner's own geometry, the centres of mass, and rotations about them. A rigid and then
    an affine registration by ANTs follow, and each is kept only if it raises the normalised mutual information:
    two scans of one session are often aligned best by the scanner's geometry, and an affine fit to a thin slab can
    diverge.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        kind: "affine" (12 parameters) or "rigid" (6).
        metric: "mattes" (mutual information: any two contrasts), "gc" (global correlation) or "meansquares".
        moving_mask: on the grid of `moving`; voxels that are 0 are not compared.
        fixed_mask: on the grid of `fixed`; voxels that are 0 are not compared.
        seed: seed for the sampling of the metric. Runs with one seed agree to about 0.1 mm, since the order in which
            threads add up varies.
        cache_dir: folder in which results are kept and found again by the content of all arguments.

    Returns:
        (4, 4) float64; `warped(x) = moving(matrix @ x)`.

    Raises:
        ValueError: images that are not 3-D, constant or not finite, or masks on another grid.
    """
    if kind not in ("affine", "rigid"):
        raise ValueError(f'kind must be "affine" or "rigid", got {kind!r}')
    if metric not in ANTS_METRIC:
        raise ValueError(f"metric must be one of {', '.join(ANTS_METRIC)}, got {metric!r}")
    for name, volume, mask in (("moving", moving, moving_mask), ("fixed", fixed, fixed_mask)):
        check_images(name, volume, mask)

    entry = None
    if cache_dir is not None:
        key = _key(moving, fixed, moving_mask, fixed_mask, options={"kind": kind, "metric": metric, "seed": seed})
        entry = Path(cache_dir) / f"affine-{key}.json"
        cached = _read_cached(entry)
        if cached is not None:
            return cached

    moving_mask, fixed_mask = (
        None if mask is None else thinned(mask, smooth=False) for mask in (moving_mask, fixed_mask)
    )
    moving, fixed = thinned(without_outliers(moving)), thinned(without_outliers(fixed))
    pair = AntsPair(
        to_ants(fixed), to_ants(moving), _mask_to_ants(fixed_mask), _mask_to_ants(moving_mask), metric, seed
    )
    starts = _best_starts(moving, fixed, moving_mask, fixed_mask)
    matrix = _align(pair, kind, starts, fixed, _scorer(moving, fixed, fixed_mask, 100_000))
    if entry is not None:
        write_json(entry, {"fixed_to_moving_ras_mm": matrix.tolist()})
    return matrix


def _mask_to_ants(mask: Volume | None) -> Any:
    return None if mask is None else to_ants(mask)


def _scorer(moving: Volume, fixed: Volume, fixed_mask: Volume | None, samples: int) -> _Scorer:
    points, values = lattice(fixed, fixed_mask, samples)

    def score(world: np.ndarray) -> _Score:
        return _Score(*nmi_of_samples(moving, points, values, world))

    return score


def _align(pair: AntsPair, kind: str, starts: list[np.ndarray], fixed: Volume, score: _Scorer) -> np.ndarray:
    """The best start, improved by a rigid and then an affine stage, as far as each raises the score."""

    def register(stage: Literal["Rigid", "Affine"], start: np.ndarray, levels: int, finest_mm: float) -> np.ndarray:
        schedule = _schedule(fixed, levels, finest_mm)
        return run_ants(pair, stage, start, schedule, _sampling(fixed, schedule))

    coarse = [register("Rigid", start, 2, 4.0) for start in starts] if len(starts) > 1 else []
    start = _best([*starts, *coarse], score)
    rigid = register("Rigid", start, 3, FINEST_MM)
    if not _improves(rigid, start, score):
        rigid = start
    if kind == "rigid":
        return rigid
    affine = register("Affine", rigid, 3, FINEST_MM)
    scales = np.linalg.svd(affine[:3, :3], compute_uv=False)
    if scales.max() > 1.6 or scales.min() < 1 / 1.6:  # heads of infants and adults differ by about this factor
        warnings.warn(
            f"the affine fit scales by {scales.min():.2f} to {scales.max():.2f}; the rigid alignment is used instead",
            VolumeWarning,
            stacklevel=3,
        )
        return rigid
    return affine if _improves(affine, rigid, score) else rigid


def _improves(new: np.ndarray, old: np.ndarray, score: _Scorer) -> bool:
    # Measured on T1w and b0 of one session: 2 mm or 3 degrees change the value by 0.003 to 0.008, chance by 0.001.
    after, before = score(new), score(old)
    return after.overlap > 0.7 * before.overlap and after.nmi > before.nmi + 0.001


def _best_starts(
    moving: Volume, fixed: Volume, moving_mask: Volume | None, fixed_mask: Volume | None
) -> list[np.ndarray]:
    """The scanner's geometry, if the images overlap in it, and the best rotation about the centres of mass."""
    smooth_moving = moving.with_array(smooth_array(moving, 4.0))
    smooth_fixed = fixed.with_array(smooth_array(fixed, 4.0))
    score = _scorer(smooth_moving, smooth_fixed, fixed_mask, 8_000)
    centre_f, centre_m = _centre_of_mass(fixed, fixed_mask), _centre_of_mass(moving, moving_mask)
    turns = [_turn(angles, centre_f, centre_m) for angles in itertools.product((-30, -15, 0, 15, 30), repeat=3)]
    turned = _best(turns, score)
    scanner = np.eye(4)
    of_scanner, of_turned = score(scanner), score(turned)
    if of_scanner.overlap < 0.3 * of_turned.overlap:
        return [turned]
    if of_scanner.nmi > of_turned.nmi + 0.02:
        return [scanner]
    return [scanner, turned]


def _best(candidates: list[np.ndarray], score: _Scorer) -> np.ndarray:
    """The candidate with the highest score among those with at least 70 % of the largest overlap."""
    scores = [score(world) for world in candidates]
    enough = 0.7 * max(found.overlap for found in scores)
    return max(
        zip(candidates, scores, strict=True), key=lambda item: item[1].nmi if item[1].overlap >= enough else 0.0
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


def _schedule(fixed: Volume, levels: int, finest_mm: float) -> dict[str, str]:
    """ANTs' resolution levels: the last is near `finest_mm`, each one before it twice as coarse.

    ANTs itself compensates for anisotropic spacing.
    """
    finest = max(1, round(finest_mm / min(fixed.spacing)))
    smallest_side = min(n * s for n, s in zip(fixed.shape, fixed.spacing, strict=True)) / min(fixed.spacing)
    shrink = [max(1, min(finest * 2**level, int(smallest_side // 8))) for level in reversed(range(levels))]
    sigma_mm = [0.5 * factor * min(fixed.spacing) if factor > 1 else 0.0 for factor in shrink]
    return {
        "--convergence": f"[{'x'.join(['500', '250', '50'][:levels])},1e-6,10]",
        "--shrink-factors": "x".join(map(str, shrink)),
        "--smoothing-sigmas": "x".join(f"{sigma:.2f}" for sigma in sigma_mm) + "mm",
    }


def _sampling(fixed: Volume, schedule: dict[str, str]) -> float:
    """The fraction of voxels to compare: about 100,000 voxels at the finest level."""
    finest = int(schedule["--shrink-factors"].rsplit("x", 1)[-1])
    return float(np.clip(100_000 / (np.prod(fixed.shape) / finest**3), 0.1, 1.0))


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
