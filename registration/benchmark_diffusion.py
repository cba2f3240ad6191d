"""Accuracy of the alignment of T1w and diffusion scans of one person, measured without a known true map.

Each method aligns a pair, which gives a map T0. Then a known warp w is applied to one image, and the method aligns the
pair again: a consistent method finds T0 combined with w. Other figures are the overlap of brain and ventricles, which
are segmented in each image; the inverse consistency, which is the distance between a point and its image under both
maps (forward and inverse, and both orders of the images); and those of the NestedMorph paper (SSIM, HD95, SDlogJ).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..volumes import AffineTransform, DisplacementField, Volume, compose_to_field, resample
from .acquisition import PairFacts
from .affine import align_affine
from .ants import syn
from .choices import DIFFUSION_METHODS, DiffusionMethod
from .distortion import axis_direction
from .evidence import head_mask
from .greedy import greedy
from .grids import unit_range
from .jacobian import sdlogj
from .known_warps import Warp, known_warps, source_of, warped_by
from .landmarks import BRAIN, VENTRICLES, above_base, segmented_b0, segmented_t1
from .metrics import dice, hd95_mm
from .register import register
from .settings import RegistrationSettings
from .ssim import ssim

Progress = Callable[[str], None]
Maps = tuple[DisplacementField, DisplacementField]  # fixed world -> moving world on the fixed grid, and back

_POINTS = 4000
_BORDER_MM = 5.0  # more than the scanner's geometry is off within one session


@dataclass(frozen=True, eq=False)
class DiffusionPair:
    """A T1w scan and a diffusion image of one person.

    Args:
        name: name in the table.
        t1: (D, H, W).
        diffusion: (D, H, W), such as the mean b0.
        facts: facts about the pair, with the T1w scan as moving image.
        atlas: on the grid of `t1`, where an atlas that was registered to it has brain; see `segmented_t1`.
    """

    name: str
    t1: Volume
    diffusion: Volume
    facts: PairFacts
    atlas: Volume | None = None

    def points(self) -> np.ndarray:
        """Points of the brain in the diffusion image that the T1w scan shows, too, (N, 3) world mm."""
        where = np.argwhere(head_mask(self.diffusion).array)
        where = where[np.random.default_rng(0).permutation(len(where))[:_POINTS]]
        points = where @ self.diffusion.affine[:3, :3].T + self.diffusion.affine[:3, 3]
        inverse = np.linalg.inv(self.t1.affine)
        voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
        shown: np.ndarray = points[((voxels > 1) & (voxels < np.array(self.t1.shape) - 2)).all(axis=1)]
        return shown


def direction(name: str, *, swapped: bool) -> str:
    """The name in the table of one direction of a pair; swapped if the diffusion image moves."""
    return name + (" b0 -> T1w" if swapped else " T1w -> b0")


def aligned(method: DiffusionMethod, moving: Volume, fixed: Volume, facts: PairFacts) -> Maps:
    """The maps of a method in `choices.DIFFUSION_METHODS`."""
    match method:
        case "rigid" | "auto" | "deformable":
            settings = RegistrationSettings(method="field", transform=method)
            found = register(moving, fixed, settings, facts=facts)
            return found.forward, found.inverse
        case "syn":
            return syn(moving, fixed)
        case "greedy":
            forward = compose_to_field([greedy(moving, fixed, contrasts=True)], fixed)
            return forward, forward.inverse(moving, iterations=30, tolerance_mm=0.05)
        case "identity" | "affine":
            linear = AffineTransform(np.eye(4) if method == "identity" else align_affine(moving, fixed))
            return compose_to_field([linear], fixed), compose_to_field([linear.inverse()], moving)


def diffusion_benchmark(
    pair: DiffusionPair,
    *,
    methods: Sequence[DiffusionMethod] = DIFFUSION_METHODS,
    seeds: range = range(5),
    swapped: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure each method, and return one row of figures for each.

    Args:
        pair: the scans.
        methods: some of `choices.DIFFUSION_METHODS`.
        seeds: seeds of the known warps.
        swapped: whether the diffusion image is the moving image.
        progress: called with a line about each method.
    """
    facts = pair.facts
    if swapped:
        facts = _exchanged(facts)
    rows = []
    for method in methods:
        row: dict[str, Any] = {"pair": direction(pair.name, swapped=swapped), "method": method}
        started, cpu = time.perf_counter(), time.process_time()
        first = _align(pair, pair.t1, pair.diffusion, method, facts, swapped=swapped)
        row |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        row |= _without_truth(pair, first, swapped=swapped)
        other = _align(pair, pair.t1, pair.diffusion, method, _exchanged(facts), swapped=not swapped)
        points = pair.points()
        there_and_back = other[0].map(_inside(first[0].map(points)))
        row["swap_mm"] = float(np.nanmean(np.linalg.norm(there_and_back - points, axis=1)))
        row |= consistency(pair, method, first, facts, seeds=seeds, swapped=swapped)
        rows.append(row)
        if progress is not None:
            progress(f"{row['pair']} {method}: consistency {row['consistency_mm']:.3g} mm, {row['seconds']:.3g} s")
    return rows


def _exchanged(facts: PairFacts) -> PairFacts:
    return replace(facts, moving=facts.fixed, fixed=facts.moving)


def _inside(points: np.ndarray) -> np.ndarray:
    """The points without NaN, which a field cannot read: they are put far outside."""
    return np.where(np.isfinite(points), points, 1e6)


def consistency(
    pair: DiffusionPair, method: DiffusionMethod, first: Maps, facts: PairFacts, *, seeds: range, swapped: bool
) -> dict[str, Any]:
    """The distance of the second alignment from the known warp after the first one, in mm over points of the brain."""
    figures: dict[str, list[float]] = {}
    tails: list[float] = []
    x = pair.points()
    for kind, _, warp, on_b0 in _warps(pair, x, seeds):
        t1 = pair.t1 if on_b0 else warped_by(pair.t1, warp)
        direction = _direction(pair)
        diffusion = warped_by(pair.diffusion, warp, compressed_along=direction) if on_b0 else pair.diffusion
        second = _align(pair, t1, diffusion, method, facts, swapped=swapped)
        if swapped:  # the map leads from the T1w scan to the diffusion image
            at = x if on_b0 else source_of(warp, x)
            truth = first[0].map(x)
            truth = source_of(warp, truth) if on_b0 else truth
        else:
            at = x
            truth = first[0].map(x + warp(x)) if on_b0 else source_of(warp, first[0].map(x))
        error = np.linalg.norm(second[0].map(at) - truth, axis=1)
        error = error[np.isfinite(error)]
        figures.setdefault(kind, []).append(float(error.mean()))
        figures.setdefault(f"{kind}_initial", []).append(float(np.linalg.norm(warp(x), axis=1).mean()))
        tails.append(float(np.percentile(error, 95)))
    errors = [value for kind, values in figures.items() if not kind.endswith("_initial") for value in values]
    means = {f"{kind}_mm": float(np.mean(values)) for kind, values in figures.items()}
    return {
        "consistency_mm": float(np.mean(errors)),
        "consistency_sd": float(np.std(errors)),
        "consistency_worst_mm": max(errors),
        "consistency_p95_mm": float(np.mean(tails)),
        **means,
        "errors_mm": figures,
    }


def _warps(pair: DiffusionPair, points: np.ndarray, seeds: range) -> Iterator[tuple[str, int, Warp, bool]]:
    direction = _direction(pair)
    for kind, seed, warp in known_warps(points, direction, seeds=seeds):
        yield kind, seed, warp, False
    for kind, seed, warp in known_warps(points, direction, seeds=range(seeds.start + 50, seeds.stop + 50)):
        if kind == "phase_encoding":
            yield "distorted_b0", seed, warp, True


def _direction(pair: DiffusionPair) -> np.ndarray:
    return axis_direction(pair.diffusion, pair.facts.fixed.phase_axis or "j")


def _align(
    pair: DiffusionPair, t1: Volume, diffusion: Volume, method: DiffusionMethod, facts: PairFacts, *, swapped: bool
) -> Maps:
    return aligned(method, *((diffusion, t1) if swapped else (t1, diffusion)), facts)


def _shown_by(moving: Volume, fixed: Volume) -> np.ndarray:
    """Where the fixed image lies well inside the field of view of the moving image by the scanner's geometry.

    This does not depend on the map: what each map leaves inside differs by whole slices, which would then be judged
    for one method and not for another.
    """
    inside = np.zeros(moving.shape, np.uint8)
    border = [math.ceil(_BORDER_MM / mm) for mm in moving.spacing]
    inside[tuple(slice(n, length - n) for n, length in zip(border, moving.shape, strict=True))] = 1
    shown: np.ndarray = resample(moving.with_array(inside), fixed, order="nearest").array > 0
    return shown


def _without_truth(pair: DiffusionPair, maps: Maps, *, swapped: bool) -> dict[str, float]:
    """Overlap of segmented structures, inverse consistency, SSIM and SDlogJ of one alignment."""
    moving, fixed = (pair.diffusion, pair.t1) if swapped else (pair.t1, pair.diffusion)
    labels = [segmented_t1(pair.t1, atlas=pair.atlas), segmented_b0(pair.diffusion)]
    of_moving, of_fixed = reversed(labels) if swapped else labels
    moved = resample(of_moving, fixed, maps[0], order="nearest").array
    shown = _shown_by(moving, fixed) & above_base(of_fixed)
    figures: dict[str, float] = {}
    for name, number in (("brain", BRAIN), ("ventricles", VENTRICLES)):
        first, second = ((array >= number) & shown for array in (moved, of_fixed.array))
        if not first.any() or not second.any():
            figures |= {f"dice_{name}": 0.0} if second.any() else {}
            continue
        pair_of = first.astype(np.uint8), second.astype(np.uint8)
        figures[f"dice_{name}"] = dice(*pair_of, label_list=[1])[1]
        figures[f"hd95_{name}_mm"] = hd95_mm(*pair_of, label_list=[1], spacing=fixed.spacing)[1]
    points = np.argwhere(of_fixed.array > 0)[::50] @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    there = maps[0].map(points)
    back = np.full_like(there, np.nan)
    known = np.isfinite(there).all(axis=1)
    back[known] = maps[1].map(there[known])
    figures["inverse_mm"] = float(np.nanmean(np.linalg.norm(back - points, axis=1)))
    warped = unit_range(resample(moving, fixed, maps[0])).array
    figures["ssim"] = ssim(warped, unit_range(fixed).array, data_range=1.0)
    linear = maps[0].linear_part()
    u = torch.from_numpy(maps[0].to_voxels(moving_affine=linear.matrix @ maps[0].affine))[None]
    figures["sdlogj"] = sdlogj(u)
    return figures
