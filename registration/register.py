"""Align two scans: affine by ANTs, then a network if weights are given, then refinement of a dense field."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..volumes import AffineTransform, DisplacementField, Volume, compose_to_field, resample
from .affine import align_affine, normalized_mutual_information, syn
from .metrics import non_positive_jacobian_fraction, sdlogj
from .refine import refine
from .warp import jacobian_determinant

Method = Literal["nestedmorph", "field", "syn"]
Similarity = Literal["auto", "ncc", "mi", "mind"]

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
    similarity: Similarity = "auto",
    diffeomorphic: bool = False,
    seed: int = 0,
    cache_dir: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Registration:
    """Align `moving` to `fixed`.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        method: "field" refines a dense displacement after the affine; "nestedmorph" starts that refinement from the
            network's displacement; "syn" is ANTs' symmetric normalisation, for comparison.
        network: for "nestedmorph": `network(moving, fixed) -> (warped, displacement)` on (1, 1, D, H, W) in [0, 1].
        similarity: what the refinement compares: local correlation, mutual information or MIND features; "auto"
            chooses by how alike the two contrasts are.
        diffeomorphic: refine a velocity, so that the map is invertible and no voxel folds.
        seed: of the affine's sampling.
        cache_dir: where affine results are kept and found again.
        progress: called with a line about each step.

    Returns:
        The warped image, both transforms and what was measured.

    Raises:
        ValueError: for images that are not 3-D, an unknown method, or "nestedmorph" without a network.
    """
    if method not in ("nestedmorph", "field", "syn"):
        raise ValueError(f'method must be "nestedmorph", "field" or "syn", got {method!r}')
    if method == "nestedmorph" and network is None:
        raise ValueError('method "nestedmorph" needs a trained network; give its weights, or use method "field"')
    tell = progress or (lambda text: None)
    seconds: dict[str, float] = {}
    before, _ = normalized_mutual_information(moving, fixed)

    if method == "syn":
        with _timed(seconds, "affine and SyN", tell):
            forward, inverse = syn(moving, fixed, seed=seed)
        affine = forward.linear_part().matrix
    else:
        with _timed(seconds, "affine", tell):
            affine = align_affine(moving, fixed, seed=seed, cache_dir=cache_dir)
        grid = working_grid(fixed)
        aligned = resample(moving, grid, AffineTransform(affine))
        fixed_image, moving_image = to_image(resample(fixed, grid)), to_image(aligned)
        start = None
        if method == "nestedmorph" and network is not None:
            with _timed(seconds, "network", tell), torch.inference_mode():
                start = network(moving_image, fixed_image)[1]
        with _timed(seconds, "refinement", tell):
            refined = refine(
                moving_image,
                fixed_image,
                spacing=grid.spacing,
                displacement=start,
                similarity=similarity,
                diffeomorphic=diffeomorphic,
            )
        with _timed(seconds, "transforms", tell):
            forward, inverse = _both_ways(refined, grid, AffineTransform(affine), moving, fixed)

    with _timed(seconds, "resampling", tell):
        warped = resample(moving, fixed, forward)
    after, _ = normalized_mutual_information(warped, fixed)
    metrics = {"nmi_before": before, "nmi_after": after, **jacobian_figures(forward, AffineTransform(affine))}
    return Registration(warped, forward, inverse, affine, metrics, seconds)


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
    residual = compose_after(affine.inverse(), forward)
    displacement = torch.from_numpy(residual.to_voxels())[None]
    determinant = jacobian_determinant(displacement)
    return {
        "sdlogj": float(sdlogj(displacement)),
        "non_positive_jacobian_percent": 100 * float(non_positive_jacobian_fraction(displacement)),
        "jacobian_min": float(determinant.min()),
        "jacobian_max": float(determinant.max()),
    }
