"""Alignment of one head in two contrasts, such as T1w and diffusion, in stages that are kept only if they improve it.

The first alignment is that of the scanner's geometry. The stages are a rigid fit, and then either a distortion along
the phase-encoding axis or, on request, a free deformation. A stage is kept if it raises the mutual information of
held-out voxels of the head (`evidence`); a free deformation is kept unless it lowers it. The stages work on the grid of
one image, which does not depend on the image that is named first, so that swapping the images inverts the map.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..kernels.threads import ordered_sums
from ..volumes import AffineTransform, DisplacementField, Volume, compose_to_field
from .acquisition import PairFacts
from .choices import Transform
from .contrasts import SPACING_MM, HeadPair
from .distortion import axis_direction, distorted_to_undistorted, shift_of_reversed_pair, undistorted
from .evidence import Evidence, Verdict, head_mask, restricted
from .masks import Masks
from .rigid import affine_candidate, align_one_subject, motion_of
from .settings import RegistrationSettings

Progress = Callable[[str], None]

SIMILARITY = "context"
# Mean error in mm on known warps (B-spline and shift along the phase encoding, peak 8 mm) from T1w to b0, FA and mean
# DWI of two people: "context" 1.0 to 1.2, "mi" 1.1 to 1.7, "mind" 1.0 to 1.4, "ncc" 1.0 to 1.8.


@dataclass(frozen=True)
class StageResult:
    """One stage of an alignment.

    Args:
        name: the name of the stage, which says what it changes.
        kept: whether it is part of the result.
        gain: mean increase in the information of a held-out voxel of the head, in nats.
        standard_error: standard error of the gain.
        price: the gain that its deformation has to exceed.
        detail: the distance by which it moves the head, as text.
    """

    name: str
    kept: bool
    gain: float
    standard_error: float
    price: float
    detail: str

    @classmethod
    def of(cls, name: str, verdict: Verdict, detail: str, *, kept: bool | None = None) -> "StageResult":
        """The stage that a verdict describes; `kept` may differ from the verdict."""
        kept = verdict.accepted if kept is None else kept
        return cls(name, kept, verdict.gain, verdict.standard_error, verdict.price, detail)

    def __str__(self) -> str:
        word = "kept" if self.kept else "dropped"
        price = f", price {self.price:.4f}" if self.price else ""
        return f"{self.name} {word} ({self.detail}; gain {self.gain:+.4f} ± {self.standard_error:.4f}{price})"


@dataclass(frozen=True, eq=False)
class StagedAlignment:
    """The result of the stages.

    Args:
        forward: on the grid of the fixed image, fixed world -> moving world.
        inverse: on the grid of the moving image, moving world -> fixed world.
        linear: the linear part, fixed world -> moving world.
        stages: the stages that were tried, in order.
        similarity: similarity of the deformation; "" if none was tried.
    """

    forward: DisplacementField
    inverse: DisplacementField
    linear: AffineTransform
    stages: list[StageResult] = field(default_factory=list)
    similarity: str = ""


@ordered_sums()
def align_in_stages(
    moving: Volume,
    fixed: Volume,
    settings: RegistrationSettings,
    facts: PairFacts,
    *,
    masks: Masks = Masks(),  # noqa: B008  it is frozen
    progress: Progress | None = None,
) -> StagedAlignment:
    """Align two scans of one subject.

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        settings: `transform`, `pe_axis`, `similarity` and `seed` are used.
        facts: facts about the scans besides their grids.
        masks: the voxels that are compared.
        progress: called with a line about each step.
    """
    swapped = works_on_moving(moving, fixed, facts)
    images = (fixed, moving) if swapped else (moving, fixed)
    masks = masks.swapped() if swapped else masks
    stages = _Stages(*images, settings, facts, masks, swapped=swapped, report=progress or (lambda line: None))
    stages.run()
    there = stages.map_on_grid()
    back = there.inverse(images[0], iterations=30, tolerance_mm=0.05)
    linear = AffineTransform(stages.linear)
    if swapped:
        return StagedAlignment(back, there, linear.inverse(), stages.results, stages.similarity)
    return StagedAlignment(there, back, linear, stages.results, stages.similarity)


def resolved(transform: Transform, facts: PairFacts) -> Transform:
    """The transform with "auto" filled in: rigid for one subject, else deformable."""
    if transform != "auto":
        return transform
    return "rigid" if facts.one_subject else "deformable"


def works_on_moving(moving: Volume, fixed: Volume, facts: PairFacts) -> bool:
    """Whether the stages work on the grid of the moving image, not of the fixed image.

    If one image is a diffusion image, they work on its grid; otherwise on that with the smaller field of view or, if
    these are about equal, on the grid with the larger voxels. The choice does not depend on which image is named first.
    """
    if facts.moving.diffusion != facts.fixed.diffusion:
        return facts.moving.diffusion
    view, other = (math.prod(n * mm for n, mm in zip(v.shape, v.spacing, strict=True)) for v in (moving, fixed))
    if not math.isclose(view, other, rel_tol=0.05):
        return view < other
    voxel, other = math.prod(moving.spacing), math.prod(fixed.spacing)
    if not math.isclose(voxel, other, rel_tol=1e-5):
        return voxel > other
    digests = [hashlib.sha256(volume.array.tobytes()).digest() for volume in (moving, fixed)]
    return digests[0] > digests[1]  # alike: any order that does not depend on the names


class _Stages:
    """The stages on the grid of one image (here "fixed") and their results so far."""

    def __init__(
        self,
        moving: Volume,
        fixed: Volume,
        settings: RegistrationSettings,
        facts: PairFacts,
        masks: Masks,
        *,
        swapped: bool,
        report: Progress,
    ) -> None:
        self.moving, self.fixed, self.settings, self.facts, self.report = moving, fixed, settings, facts, report
        own = facts.moving if swapped else facts.fixed
        self.axis = (settings.pe_axis or own.phase_axis) if own.diffusion or settings.pe_axis else None
        self.masks, self.head = masks, head_mask(fixed)
        self.linear = np.eye(4)
        self.shift: Tensor | None = None  # of the kept deformation, in voxels of the pair's grid
        self.pair: HeadPair | None = None
        self.results: list[StageResult] = []
        self.similarity = ""

    def run(self) -> None:
        """Try each stage that the settings allow."""
        undistorted_b0 = self._from_reversed()
        self._linear(undistorted_b0 or self.fixed)
        free = resolved(self.settings.transform, self.facts) == "deformable"
        if not free and (self.axis is None or self.settings.transform != "auto"):
            return
        self.head = restricted(self.head, self.masks.on_grid(self.fixed, AffineTransform(self.linear)))
        self.pair = HeadPair.of(self.moving, self.fixed, self.head, AffineTransform(self.linear))
        evidence = Evidence(self.moving, self.fixed, self.head)
        if undistorted_b0 is not None:
            self._judge("distortion of the reversed pair", self._pair_displacement(), evidence, measured=True)
        elif not free and self.axis is not None:
            self._fit("distortion along the phase-encoding axis", evidence, axis_direction(self.fixed, self.axis))
        if free:
            self._fit("free deformation", evidence, None)

    def map_on_grid(self) -> DisplacementField:
        """The map on the whole grid of the fixed image."""
        if self.shift is None or self.pair is None:
            return compose_to_field([AffineTransform(self.linear)], self.fixed)
        return self.pair.on_grid(self.shift, self.fixed)

    def _linear(self, fixed: Volume) -> None:
        centre = np.array(self.fixed.affine @ [*(np.array(self.fixed.shape) - 1) / 2, 1])[:3]
        self.linear, tried = align_one_subject(
            self.moving,
            fixed,
            one_session=self.facts.relation == "session",
            mask=self.masks.fixed,
            moving_mask=self.masks.moving,
            seed=self.settings.seed,
        )
        if not any(candidate.kept for candidate in tried):
            self.report("the scanner's geometry is kept")
        for candidate in tried:
            degrees, mm = motion_of(candidate.matrix, centre)
            self._add(candidate.name, candidate.verdict, f"{degrees:.1f} degrees, {mm:.1f} mm")
        transform = self.settings.transform
        if transform == "affine" or (transform != "rigid" and not self.facts.one_subject):
            affine = affine_candidate(self.moving, fixed, self.linear, mask=self.masks.fixed, seed=self.settings.seed)
            scales = np.linalg.svd(affine.matrix[:3, :3], compute_uv=False)
            self._add(affine.name, affine.verdict, f"scales of {scales.min():.3f} to {scales.max():.3f}")
            if affine.kept:
                self.linear = affine.matrix

    def _from_reversed(self) -> Volume | None:
        """The b0 image without its distortion, measured from the reversed pair; None if there is no reversed b0."""
        self.pair_shift: np.ndarray | None = None
        if self.facts.reversed_b0 is None:
            return None
        if self.axis is None:
            raise ValueError("the reversed b0 needs the phase-encoding axis: give --pe-axis i, j or k")
        self.pair_shift = shift_of_reversed_pair(self.fixed, self.facts.reversed_b0, self.axis)
        return undistorted(self.fixed, self.pair_shift, self.axis)

    def _pair_displacement(self) -> Tensor:
        assert self.pair is not None
        assert self.pair_shift is not None
        assert self.axis is not None
        way = distorted_to_undistorted(self.pair_shift, self.fixed, self.axis)
        direction = axis_direction(self.fixed, self.axis)
        return self.pair.displacement_of(self.fixed.with_array(way), direction)

    def _fit(self, name: str, evidence: Evidence, direction: np.ndarray | None) -> None:
        assert self.pair is not None
        self.similarity = SIMILARITY if self.settings.similarity == "auto" else self.settings.similarity
        found = self.pair.fit(
            self.similarity, direction=direction, start=self.shift, progress=lambda line: self.report(f"  {line}")
        )
        if self._judge(name, found, evidence):  # the held-out voxels may now help
            self.shift = self.pair.fit(self.similarity, direction=direction, start=found, judged=False, finish=True)

    def _judge(self, name: str, found: Tensor, evidence: Evidence, *, measured: bool = False) -> bool:
        """Compare a displacement with the one kept so far, and keep it if it is better.

        A displacement that was `measured` without the other image has no price.
        """
        assert self.pair is not None
        before = torch.zeros_like(found) if self.shift is None else self.shift
        added = found - before
        verdict = evidence.compare(
            self.pair.field(found).map, self.pair.field(before).map, strain=0.0 if measured else self.pair.strain(added)
        )
        where = self.pair.head[0, 0] > 0
        mm = (added[0] * SPACING_MM).norm(dim=0)[where]
        detail = f"{float(mm.mean()):.1f} mm on average, {float(mm.max()):.1f} mm at most"
        kept = verdict.accepted
        if not kept and self.settings.transform == "deformable" and not verdict.harmful:
            kept, detail = True, f"{detail}; no significant gain, but requested"
        if kept:
            self.shift = found
        self._add(name, verdict, detail, kept=kept)
        return kept

    def _add(self, name: str, verdict: Verdict, detail: str, *, kept: bool | None = None) -> None:
        result = StageResult.of(name, verdict, detail, kept=kept)
        self.results.append(result)
        self.report(str(result))
