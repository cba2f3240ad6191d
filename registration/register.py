"""Align two scans: affine by ANTs, then a network if weights are given, then refinement of a dense field."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn

from ..volumes import AffineTransform, DisplacementField, Volume, VolumeWarning, compose_to_field, resample
from .affine import align_affine
from .ants import syn
from .grids import to_grid, training_grid, unit_range
from .jacobian import non_positive_jacobian_fraction, sdlogj
from .mutual_information import normalized_mutual_information
from .refine import Similarity, refine
from .warp import jacobian_determinant, warp

Method = Literal["nestedmorph", "field", "syn"]

_LEAST_GAIN = 0.005  # of the normalised mutual information, for a refinement to be kept
_WORKING_SPACING_MM = 1.0  # anatomy moves smoothly: a field finer than this costs time and gains nothing


@dataclass(frozen=True, eq=False)
class Registration:
    """What `register` found.

    Args:
        warped: the moving image on the fixed grid, in its own intensities, interpolated once from the original.
        forward: on the fixed grid, fixed space -> moving space, the affine part included; it warps the moving image.
        inverse: on the moving grid, moving space -> fixed space; it warps the fixed image.
        affine: (4, 4), the affine part of `forward` alone, fixed world -> moving world, RAS mm.
        metrics: normalised mutual information before and after, and the Jacobian's figures of the deformable part.
        seconds: wall time of each step.
    """

    warped: Volume
    forward: DisplacementField
    inverse: DisplacementField
    affine: np.ndarray
    metrics: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)


def register(
    moving: Volume,
    fixed: Volume,
    *,
    method: Method = "field",
    network: nn.Module | None = None,
    network_spacing_mm: float | None = None,
    similarity: Similarity = "auto",
    diffeomorphic: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> Registration:
    """Align `moving` to `fixed`.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        method: "field" refines a dense displacement after the affine; "nestedmorph" starts that refinement from the
            network's displacement; "syn" is ANTs' symmetric normalisation, for comparison.
        network: for "nestedmorph": `network(moving, fixed) -> (warped, displacement)` on (1, 1, D, H, W) in [0, 1].
        network_spacing_mm: of the grid that the network was trained on; by default it sees the refinement's grid.
        similarity: what the refinement compares; "auto" chooses by how alike the two contrasts are.
        diffeomorphic: only compose small smooth steps, so that no voxel folds.
        device: where network and refinement run; "auto" takes a GPU if there is one.
        seed: of the affine's sampling.
        cache_dir: where affine results are kept and found again.
        progress: called with a line about each step.

    Returns:
        The warped image, both transforms and what was measured.

    Raises:
        ValueError: for images that are not 3-D or constant, an unknown method, or "nestedmorph" without a network.
    """
    if method not in ("nestedmorph", "field", "syn"):
        raise ValueError(f'method must be "nestedmorph", "field" or "syn", got {method!r}')
    if (network is None) == (method == "nestedmorph"):
        raise ValueError(f'a network must be given for method "nestedmorph" and only for it, got method {method!r}')
    place = _device(device)
    tell = progress or (lambda text: None)
    seconds: dict[str, float] = {}
    before, _ = normalized_mutual_information(moving, fixed)

    if method == "syn":
        with _step("affine and SyN (ANTs)", seconds, tell):
            forward, inverse = syn(moving, fixed, seed=seed)
        affine = forward.linear_part()
    else:
        with _step("affine (ANTs)", seconds, tell):
            affine = AffineTransform(align_affine(moving, fixed, seed=seed, cache_dir=cache_dir))
        grid = working_grid(fixed)
        start = None
        if network is not None:
            with _step("network", seconds, tell):
                start = network_displacement(network.to(place), moving, fixed, affine, grid, network_spacing_mm)
        images = [to_grid(unit_range(v), grid, t)[None].to(place) for v, t in ((moving, affine), (fixed, None))]
        with _step("refinement", seconds, tell):
            refined = refine(
                *images,
                spacing=grid.spacing,
                displacement=None if start is None else start.to(place),
                similarity=similarity,
                diffeomorphic=diffeomorphic,
                progress=lambda text: tell(f"  {text}"),
            )
            refined = better_of(start, refined, *images)
        with _step("transforms", seconds, tell):
            displacement = refined.cpu().numpy()
            forward = DisplacementField.from_voxels(displacement, grid.affine, pre=affine)
            if grid.shape != fixed.shape:
                forward = compose_to_field([forward], fixed)
            inverse = forward.inverse(moving, iterations=30, tolerance_mm=0.05)
    with _step("resampling", seconds, tell):
        warped = resample(moving, fixed, forward)
    after, _ = normalized_mutual_information(warped, fixed)
    metrics = {"nmi_before": before, "nmi_after": after, **jacobian_figures(forward, affine)}
    return Registration(warped, forward, inverse, affine.matrix, metrics, seconds)


def better_of(
    start: torch.Tensor | None, refined: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor
) -> torch.Tensor:
    """Of no displacement, the start and the refined one the latest that raises the mutual information.

    Each must raise the normalised mutual information in the foreground above that of the one kept so far. Two scans of
    one person are often aligned by the affine already; what a refinement then fits is noise and the bias of the
    similarity at tissue borders. Measured on such pairs the value stays within 0.002 (and the error against the
    published rigid transform grows by 1 mm), where there was something to find it rises by 0.09.

    Args:
        start: (1, 3, D, H, W) in voxels; None for no displacement.
        refined: (1, 3, D, H, W) in voxels.
        moving: (1, 1, D, H, W) in [0, 1].
        fixed: (1, 1, D, H, W) in [0, 1].
    """
    grid = np.eye(4)
    target = Volume(fixed[0, 0].cpu().numpy(), grid)
    foreground = target.with_array(target.array > 0.05)

    def score(displacement: torch.Tensor) -> float:
        warped = Volume(warp(moving, displacement)[0, 0].cpu().numpy(), grid)
        return normalized_mutual_information(warped, target, mask=foreground, samples=200_000)[0]

    kept = torch.zeros_like(refined)
    best = score(kept)
    for candidate in (refined,) if start is None else (start.to(refined), refined):
        after = score(candidate)
        if after > best + _LEAST_GAIN:
            kept, best = candidate, after
    if kept is not refined:
        warnings.warn(
            f"refining does not raise the mutual information ({best:.4f} before, {after:.4f} after): the alignment"
            " before it is kept",
            VolumeWarning,
            stacklevel=3,
        )
    return kept


def network_displacement(
    network: nn.Module,
    moving: Volume,
    fixed: Volume,
    affine: AffineTransform,
    grid: Volume,
    spacing_mm: float | None = None,
) -> torch.Tensor:
    """What the network adds to the affine, as voxels of `grid`.

    Args:
        network: `network(moving, fixed) -> (warped, displacement)`.
        moving: (D, H, W).
        fixed: (D, H, W).
        affine: fixed world -> moving world.
        grid: where the displacement is wanted.
        spacing_mm: of the grid that the network sees, as in training; `grid` itself if not given.

    Returns:
        (1, 3, D, H, W) float32, the size of `grid`.
    """
    seen = grid if spacing_mm is None else training_grid(fixed, spacing_mm=spacing_mm)
    place = next((p.device for p in network.parameters()), torch.device("cpu"))
    images = (to_grid(unit_range(moving), seen, affine), to_grid(unit_range(fixed), seen))
    with torch.inference_mode():
        _, displacement = network.eval()(*(image[None].to(place) for image in images))
    found = DisplacementField.from_voxels(displacement.cpu().numpy(), seen.affine)
    return torch.from_numpy(compose_to_field([found], grid).to_voxels())[None]


def working_grid(fixed: Volume) -> Volume:
    """The grid that the field is refined on: that of `fixed`, axes finer than 1 mm thinned out to about 1 mm.

    Returns:
        An empty volume that begins at the first voxel of `fixed` and covers it whole.
    """
    step = np.array([max(1.0, _WORKING_SPACING_MM / spacing) for spacing in fixed.spacing])
    step[step < 1.25] = 1.0  # not worth an interpolation
    shape = tuple(int(np.ceil((n - 1) / s)) + 1 for n, s in zip(fixed.shape, step, strict=True))
    affine = fixed.affine @ np.diag([*step, 1.0])
    return Volume(np.broadcast_to(np.float32(0), shape), affine)


def jacobian_figures(forward: DisplacementField, affine: AffineTransform) -> dict[str, float]:
    """How strongly the map changes local volume beyond its affine part (Learn2Reg's definitions; see `metrics`).

    Returns:
        "sdlogj", "non_positive_jacobian_percent", "jacobian_min", "jacobian_max".
    """
    # as voxels of the fixed grid carried into the moving world by the affine, so that the affine itself is no movement
    displacement = torch.from_numpy(forward.to_voxels(moving_affine=affine.matrix @ forward.affine))[None]
    determinant = jacobian_determinant(displacement)
    return {
        "sdlogj": float(sdlogj(displacement)),
        "non_positive_jacobian_percent": 100 * float(non_positive_jacobian_fraction(displacement)),
        "jacobian_min": float(determinant.min()),
        "jacobian_max": float(determinant.max()),
    }


@contextmanager
def _step(name: str, seconds: dict[str, float], tell: Callable[[str], None]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
    tell(f"{name:<24}{seconds[name]:6.1f} s")


def _device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device must be "auto", "cpu" or "cuda", got {device!r}')
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('device "cuda" needs a CUDA GPU and none is found; use "cpu" or "auto"')
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
