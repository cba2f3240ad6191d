"""Affine pre-alignment and the SyN baseline, both by ANTs (antspyx), on volumes with any orientation."""

import hashlib
import itertools
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..runs.files import atomic_path
from ..volumes import Volume, VolumeWarning
from .ants import ANTS_METRIC, Metric, check_images, run_ants, to_ants
from .mutual_information import FINEST_MM, lattice, nmi_of_samples, smooth_array, thinned, without_outliers

_CACHE_VERSION = 2  # raise it when the same inputs and options give another matrix


def align_affine(
    moving: Volume,
    fixed: Volume,
    *,
    kind: Literal["affine", "rigid"] = "affine",
    metric: Metric = "mattes",
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> np.ndarray:
    """The matrix that maps points of the fixed space to points of the moving space (a pull-back), RAS mm.

    Several starts compete: the scanner's own geometry, the centres of mass, and rotations about them. A rigid and then
    an affine registration by ANTs follow, and each is kept only if it raises the normalised mutual information:
    two scans of one session often fit best as the scanner placed them, and an affine fit to a thin slab can run away.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        kind: "affine" (12 parameters) or "rigid" (6).
        metric: "mattes" (mutual information: any two contrasts), "gc" (global correlation) or "meansquares".
        moving_mask: on the grid of `moving`; voxels that are 0 are not compared.
        fixed_mask: on the grid of `fixed`; voxels that are 0 are not compared.
        seed: of the metric's sampling. Equal seeds agree to about 0.1 mm: threads add up in another order each time.
        cache_dir: results are kept here, found again by the content of all arguments.

    Returns:
        (4, 4) float64; `warped(x) = moving(matrix @ x)`.

    Raises:
        ValueError: for images that are not 3-D, constant or not finite, and masks on another grid.
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

    matrix = _align(
        thinned(without_outliers(moving)),
        thinned(without_outliers(fixed)),
        kind,
        metric,
        None if moving_mask is None else thinned(moving_mask, smooth=False),
        None if fixed_mask is None else thinned(fixed_mask, smooth=False),
        seed,
    )
    if entry is not None:
        with atomic_path(entry) as temporary:
            temporary.write_text(json.dumps({"fixed_to_moving_ras_mm": matrix.tolist()}, indent=1))
    return matrix


def _align(
    moving: Volume,
    fixed: Volume,
    kind: str,
    metric: Metric,
    moving_mask: Volume | None,
    fixed_mask: Volume | None,
    seed: int,
) -> np.ndarray:
    images = (to_ants(fixed), to_ants(moving))
    masks = tuple(None if mask is None else to_ants(mask) for mask in (fixed_mask, moving_mask))
    points, values = lattice(fixed, fixed_mask, 100_000)

    def score(world: np.ndarray) -> tuple[float, float]:
        return nmi_of_samples(moving, points, values, world)

    def register(stage: str, start: np.ndarray, levels: int, finest_mm: float) -> np.ndarray:
        schedule = _schedule(fixed, levels, finest_mm)
        return run_ants(images, masks, stage, start, metric, schedule, _sampling(fixed, schedule), seed)

    starts = _best_starts(moving, fixed, moving_mask, fixed_mask)
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
            f"the affine fit scales by {scales.min():.2f} to {scales.max():.2f}: the rigid alignment is used instead",
            VolumeWarning,
            stacklevel=3,
        )
        return rigid
    return affine if _improves(affine, rigid, score) else rigid


def _improves(new: np.ndarray, old: np.ndarray, score: Any) -> bool:
    # Measured on T1w and b0 of one session: 2 mm or 3 degrees change the value by 0.003 to 0.008, chance by 0.001.
    (new_nmi, new_overlap), (old_nmi, old_overlap) = score(new), score(old)
    return new_overlap > 0.7 * old_overlap and new_nmi > old_nmi + 0.001


def _best_starts(
    moving: Volume, fixed: Volume, moving_mask: Volume | None, fixed_mask: Volume | None
) -> list[np.ndarray]:
    """The scanner's geometry where the images meet in it, and the best of the turns about the centres of mass."""
    smooth_moving = moving.with_array(smooth_array(moving, 4.0))
    smooth_fixed = fixed.with_array(smooth_array(fixed, 4.0))
    points, values = lattice(smooth_fixed, fixed_mask, 8_000)

    def score(world: np.ndarray) -> tuple[float, float]:
        return nmi_of_samples(smooth_moving, points, values, world)

    centre_f, centre_m = _centre_of_mass(fixed, fixed_mask), _centre_of_mass(moving, moving_mask)
    turns = [_turn(angles, centre_f, centre_m) for angles in itertools.product((-30, -15, 0, 15, 30), repeat=3)]
    turned = _best(turns, score)
    scanner = np.eye(4)
    scanner_nmi, scanner_overlap = score(scanner)
    turned_nmi, turned_overlap = score(turned)
    if scanner_overlap < 0.3 * turned_overlap:
        return [turned]
    if scanner_nmi > turned_nmi + 0.02:
        return [scanner]
    return [scanner, turned]


def _best(candidates: list[np.ndarray], score: Any) -> np.ndarray:
    """The candidate of highest score among those that cover at least 70 % of what the best covered one covers."""
    scores = [score(world) for world in candidates]
    enough = 0.7 * max(overlap for _, overlap in scores)
    return max(zip(candidates, scores, strict=True), key=lambda item: item[1][0] if item[1][1] >= enough else 0.0)[0]


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
    """Shrink factors that end near `finest_mm`, twice as coarse per level; ANTs evens out uneven spacing itself."""
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
    """The share of voxels to compare: about 100,000 at the finest level."""
    finest = int(schedule["--shrink-factors"].rsplit("x", 1)[-1])
    return float(np.clip(100_000 / (np.prod(fixed.shape) / finest**3), 0.1, 1.0))


def _centre_of_mass(volume: Volume, mask: Volume | None) -> np.ndarray:
    weight = volume.array.astype(np.float64)
    weight = weight - weight.min()
    if mask is not None:
        weight = weight * (mask.array != 0)
    axes = [weight.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    voxel = [float((along * np.arange(len(along))).sum() / along.sum()) for along in axes]
    return volume.affine[:3, :3] @ voxel + volume.affine[:3, 3]


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
        warnings.warn(f"unreadable cache entry {entry} is computed anew: {error}", VolumeWarning, stacklevel=3)
        return None
    return matrix
