"""Affine pre-alignment and the SyN baseline, both by ANTs (antspyx), on volumes with any orientation."""

import hashlib
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from ..volumes import AffineTransform, DisplacementField, Volume, VolumeWarning, read_transform, write_transform
from ..volumes.files import atomic_path

Metric = Literal["mattes", "gc", "meansquares"]

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
_ANTS_METRIC = {"mattes": "MI", "gc": "GC", "meansquares": "MeanSquares"}
_BINS = 32
_FINEST_MM = 2.0  # the finest working spacing
_CACHE_VERSION = 2  # raise it when the same inputs and options give another matrix


def _ants() -> ModuleType:
    # Imported late: antspyx takes seconds to load. ITK reads the thread count once, at its first use.
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(torch.get_num_threads()))
    import ants

    return ants


def to_ants(volume: Volume) -> Any:
    """The volume as a float32 ANTs image: the same voxels, its place in LPS mm. Oblique and sheared grids are exact."""
    ants = _ants()
    _require_3d("volume", volume)
    lps = _RAS_LPS @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(volume.array, dtype=np.float32),
        origin=lps[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=lps[:3, :3] / spacing,
    )


def from_ants(image: Any) -> Volume:
    """An ANTs image (one component) as a volume: the same voxels, its place in RAS+ mm."""
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    lps[:3, 3] = image.origin
    return Volume(image.numpy(), _RAS_LPS @ lps)


def normalized_mutual_information(
    moving: Volume,
    fixed: Volume,
    world: np.ndarray | None = None,
    *,
    mask: Volume | None = None,
    samples: int = 100_000,
) -> tuple[float, float]:
    """How well `world` aligns two images of any contrast: (H(m) + H(f)) / H(m, f), in 1..2 (Studholme 1999).

    Args:
        moving: (D, H, W), any unit.
        fixed: (D, H, W), any unit; about `samples` voxels on a regular lattice of it are compared.
        world: (4, 4), fixed-space points -> moving-space points, RAS mm. Default: the identity.
        mask: on the grid of `fixed`; only its non-zero voxels count.
        samples: how many voxels to compare at most.

    Returns:
        The value over the region where both images exist, and that region's share of the compared voxels (0..1).
        (1, 0) where the images do not meet.
    """
    points, values = _lattice(fixed, mask, samples)
    return _nmi(moving, points, values, np.eye(4) if world is None else world)


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
    if metric not in _ANTS_METRIC:
        raise ValueError(f"metric must be one of {', '.join(_ANTS_METRIC)}, got {metric!r}")
    for name, volume, mask in (("moving", moving, moving_mask), ("fixed", fixed, fixed_mask)):
        _check(name, volume, mask)

    entry = None
    if cache_dir is not None:
        key = _key(moving, fixed, moving_mask, fixed_mask, options={"kind": kind, "metric": metric, "seed": seed})
        entry = Path(cache_dir) / f"affine-{key}.json"
        cached = _read_cached(entry)
        if cached is not None:
            return cached

    matrix = _align(
        _thinned(_without_outliers(moving)),
        _thinned(_without_outliers(fixed)),
        kind,
        metric,
        None if moving_mask is None else _thinned(moving_mask, smooth=False),
        None if fixed_mask is None else _thinned(fixed_mask, smooth=False),
        seed,
    )
    if entry is not None:
        with atomic_path(entry) as temporary:
            temporary.write_text(json.dumps({"fixed_to_moving_ras_mm": matrix.tolist()}, indent=1))
    return matrix


def syn(
    moving: Volume,
    fixed: Volume,
    *,
    metric: Literal["mattes", "CC"] = "mattes",
    initial: np.ndarray | None = None,
    fixed_mask: Volume | None = None,
    moving_mask: Volume | None = None,
    seed: int = 0,
) -> tuple[DisplacementField, DisplacementField]:
    """Symmetric normalisation by ANTs with its default settings (Avants 2008): the baseline beside our methods.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        metric: of the deformable stage: "mattes" (mutual information, the ANTs default) or "CC" (local correlation).
        initial: (4, 4) start as from `align_affine`. Without one ANTs aligns the centres of mass first.
        fixed_mask: on the grid of `fixed`; voxels that are 0 are not compared.
        moving_mask: on the grid of `moving`; voxels that are 0 are not compared.
        seed: of the metric's sampling.

    Returns:
        Forward: on the grid of `fixed`, fixed space -> moving space (it warps the moving image), the affine part
        included. Inverse: on the grid of `moving`, moving space -> fixed space.
    """
    for name, volume, mask in (("moving", moving, moving_mask), ("fixed", fixed, fixed_mask)):
        _check(name, volume, mask)
    ants = _ants()
    fixed_image, moving_image = to_ants(fixed), to_ants(moving)
    with tempfile.TemporaryDirectory(prefix="voxelwave-syn-") as folder, _ants_seed(seed):
        prefix = os.path.join(folder, "syn")
        start = None if initial is None else _write_affine(initial, Path(folder) / "initial.mat")
        result = ants.registration(
            fixed_image,
            moving_image,
            type_of_transform="SyN",
            syn_metric=metric,
            syn_sampling=4 if metric == "CC" else _BINS,  # a radius in voxels, or a number of bins
            initial_transform=start,
            mask=None if fixed_mask is None else to_ants(fixed_mask),
            moving_mask=None if moving_mask is None else to_ants(moving_mask),
            outprefix=prefix,
        )
        forward = _composite(fixed, moving_image, result["fwdtransforms"], prefix + "-forward")
        inverse = _composite(moving, fixed_image, result["invtransforms"], prefix + "-inverse")
    return forward, inverse


def _composite(reference: Volume, image: Any, transforms: list[str], prefix: str) -> DisplacementField:
    """A chain of ANTs transform files as one dense field on the grid of `reference`."""
    ants = _ants()
    path = ants.apply_transforms(to_ants(reference), image, transforms, compose=prefix)
    lps_mm = ants.image_read(path).numpy()  # (D, H, W, 3)
    vectors_mm = lps_mm.astype(np.float32) * np.array([-1, -1, 1], np.float32)
    return DisplacementField(vectors_mm, reference.affine)


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
    points, values = _lattice(fixed, fixed_mask, 100_000)

    def score(world: np.ndarray) -> tuple[float, float]:
        return _nmi(moving, points, values, world)

    def register(stage: str, start: np.ndarray, levels: int, finest_mm: float) -> np.ndarray:
        schedule = _schedule(fixed, levels, finest_mm)
        return _run_ants(images, masks, stage, start, metric, schedule, _sampling(fixed, schedule), seed)

    starts = _best_starts(moving, fixed, moving_mask, fixed_mask)
    coarse = [register("Rigid", start, 2, 4.0) for start in starts] if len(starts) > 1 else []
    start = _best([*starts, *coarse], score)
    rigid = register("Rigid", start, 3, _FINEST_MM)
    if not _improves(rigid, start, score):
        rigid = start
    if kind == "rigid":
        return rigid
    affine = register("Affine", rigid, 3, _FINEST_MM)
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
    smooth_moving = moving.with_array(_smooth(moving, 4.0))
    smooth_fixed = fixed.with_array(_smooth(fixed, 4.0))
    points, values = _lattice(smooth_fixed, fixed_mask, 8_000)

    def score(world: np.ndarray) -> tuple[float, float]:
        return _nmi(smooth_moving, points, values, world)

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


def _run_ants(
    images: tuple[Any, Any],
    masks: tuple[Any, ...],
    stage: str,
    start: np.ndarray,
    metric: Metric,
    schedule: dict[str, str],
    sampling: float,
    seed: int,
) -> np.ndarray:
    ants = _ants()
    from ants.internal import get_pointer_string

    fixed, moving = map(get_pointer_string, images)
    masks_given = ",".join("NA" if mask is None else get_pointer_string(mask) for mask in masks)
    bins = _BINS if metric == "mattes" else 1
    with tempfile.TemporaryDirectory(prefix="voxelwave-affine-") as folder:
        arguments = [
            *("--dimensionality", "3", "--float", "1", "--random-seed", str(seed), "--collapse-output-transforms", "1"),
            *("--initial-moving-transform", _write_affine(start, Path(folder) / "start.mat")),
            *("--metric", f"{_ANTS_METRIC[metric]}[{fixed},{moving},1,{bins},Regular,{sampling:.3f}]"),
            *("--transform", f"{stage}[0.1]"),
            *itertools.chain.from_iterable(schedule.items()),
            *("--masks", f"[{masks_given}]", "--output", os.path.join(folder, "out")),
        ]
        try:
            ants.registration(arguments, None)
        except RuntimeError as error:
            raise RuntimeError(f"ANTs could not align the images ({stage.lower()} stage): {error}") from error
        return _read_affine(Path(folder) / "out0GenericAffine.mat")


def _write_affine(world: np.ndarray, path: Path) -> str:
    write_transform(path, AffineTransform(world))
    return str(path)


def _read_affine(path: Path) -> np.ndarray:
    transform = read_transform(path)
    assert isinstance(transform, AffineTransform)
    return transform.matrix


@contextmanager
def _ants_seed(seed: int) -> Iterator[None]:
    before = os.environ.get("ANTS_RANDOM_SEED")
    os.environ["ANTS_RANDOM_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ANTS_RANDOM_SEED"]
        else:
            os.environ["ANTS_RANDOM_SEED"] = before


def _lattice(fixed: Volume, mask: Volume | None, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """World points (4, N) on a regular lattice of voxels of `fixed`, about cubic in mm, and the values there (N,)."""
    pitch_mm = (np.prod(fixed.shape) * np.prod(fixed.spacing) / samples) ** (1 / 3)
    steps = [max(1, round(pitch_mm / s)) for s in fixed.spacing]
    voxels = np.meshgrid(*[np.arange(n % s // 2, n, s) for n, s in zip(fixed.shape, steps, strict=True)], indexing="ij")
    index = tuple(axis.ravel() for axis in voxels)
    if mask is not None:
        inside = mask.array[index] != 0
        index = tuple(axis[inside] for axis in index)
    points = fixed.affine @ np.stack([*index, np.ones(len(index[0]))])
    return points, np.asarray(fixed.array[index], dtype=np.float32)


def _nmi(moving: Volume, points: np.ndarray, values: np.ndarray, world: np.ndarray) -> tuple[float, float]:
    voxels = (np.linalg.inv(moving.affine) @ world @ points)[:3]
    limits = np.array(moving.shape)[:, None] - 1
    inside = ((voxels >= 0) & (voxels <= limits)).all(axis=0)
    if inside.sum() < 64:
        return 1.0, 0.0
    sampled = map_coordinates(moving.array.astype(np.float32, copy=False), voxels[:, inside], order=1)
    joint, _, _ = np.histogram2d(values[inside], sampled, bins=_BINS)
    both = _entropy(joint)
    single = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
    return (single / both if both > 0 else 1.0), float(inside.mean())


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _smooth(volume: Volume, sigma_mm: float) -> np.ndarray:
    return gaussian_filter(volume.array.astype(np.float32), [sigma_mm / s for s in volume.spacing])


def _centre_of_mass(volume: Volume, mask: Volume | None) -> np.ndarray:
    weight = volume.array.astype(np.float64)
    weight = weight - weight.min()
    if mask is not None:
        weight = weight * (mask.array != 0)
    axes = [weight.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    voxel = [float((along * np.arange(len(along))).sum() / along.sum()) for along in axes]
    return volume.affine[:3, :3] @ voxel + volume.affine[:3, 3]


def _without_outliers(volume: Volume) -> Volume:
    # A few very bright voxels would leave most of the 32 histogram bins empty.
    low, high = np.percentile(volume.array, [0.1, 99.9])
    if high <= low:
        return volume
    return volume.with_array(np.clip(volume.array.astype(np.float32), low, high))


def _thinned(volume: Volume, *, smooth: bool = True) -> Volume:
    """Every n-th voxel of axes finer than the working spacing: an affine needs no more, at an eighth of the time."""
    steps = [max(1, int(_FINEST_MM / spacing + 0.1)) for spacing in volume.spacing]
    if max(steps) == 1:
        return volume
    array = volume.array
    if smooth:
        array = gaussian_filter(array.astype(np.float32), [0.42 * np.sqrt(step**2 - 1) for step in steps])
    array = array[tuple(slice(None, None, step) for step in steps)]
    return Volume(np.ascontiguousarray(array), volume.affine @ np.diag([*steps, 1.0]))


def _require_3d(name: str, volume: Volume) -> None:
    if volume.array.ndim != 3:
        raise ValueError(
            f"{name} must be 3-D, got shape {volume.array.shape}; "
            "of a diffusion series take the mean b0, the mean DWI or the FA map"
        )


def _check(name: str, volume: Volume, mask: Volume | None) -> None:
    _require_3d(name, volume)
    if not np.isfinite(volume.array).all():
        raise ValueError(f"{name} must be finite, got NaN or inf in {volume.source or 'its array'}")
    if volume.array.min() == volume.array.max():
        raise ValueError(f"{name} must not be constant, got {volume.array.flat[0]} everywhere")
    if mask is None:
        return
    if mask.shape != volume.shape or not np.allclose(mask.affine, volume.affine, atol=1e-3):
        raise ValueError(
            f"{name}_mask must lie on the grid of {name} (shape {volume.shape}, and the same affine), got {mask.shape}"
        )
    if not mask.array.any():
        raise ValueError(f"{name}_mask must have non-zero voxels, got none")


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
