"""Align two scans: affine registration, then a network if one is given, then refinement of a dense field."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.threads import kernel_threads, ordered_sums
from ..runs.compute import choose_device
from ..runs.finite import check_finite
from ..runs.threads import limited_threads
from ..volumes import AffineTransform, DisplacementField, Volume, VolumeWarning, compose_to_field, resample
from .acquisition import PairFacts
from .affine import align_affine
from .ants import syn
from .checks import check_images
from .choices import METHODS, Levels, Method, Similarity
from .doubt import doubt_about, start_is_better
from .evidence import Evidence, head_mask, restricted, seen_mask, strain_of
from .grids import to_grid, training_grid, unit_range, with_channel
from .jacobian import field_measures
from .linear import Kind
from .masks import Masks
from .mirror import warn_if_mirrored
from .mutual_information import normalized_mutual_information
from .nestedmorph_files import TrainedNetwork
from .network_files import RegistrationNetwork
from .planar import displacement_grid, is_planar, maps, on_grid, planes
from .refine import Pass, chosen_similarity, coarse_level, refine, rounds_of, unfold
from .result import Choice, Progress, Registration, Steps
from .settings import RegistrationSettings
from .stages import StageResult, align_in_stages, resolved, works_on_moving
from .tissues import TrainedTissueNet, in_one_contrast
from .warp import resize_displacement, warp

_LEAST_GAIN = 0.005  # in normalised mutual information, which a refinement must reach to be kept
_FEW_VOXELS = 16**3
_WORKING_SPACING_MM = 1.0  # anatomy deforms smoothly: a finer field costs time and gains nothing
_WORKING_SIDE = 128  # least number of voxels along the mean side of a small image


@ordered_sums()
def register(
    moving: Volume,
    fixed: Volume,
    settings: RegistrationSettings = RegistrationSettings(),  # noqa: B008  it is frozen
    *,
    network: RegistrationNetwork | None = None,
    facts: PairFacts | None = None,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
    device: str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Registration:
    """Align `moving` to `fixed`.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        settings: the method and its options.
        network: the network for the method "nestedmorph" or "tissues". The displacement of NestedMorph is the starting
            point of the refinement; if its `spacing_mm` is unknown, its input is on the grid of the refinement. By the
            network that finds tissues, scans of two contrasts are brought into one for the refinement; scans of one
            contrast need no network.
        facts: facts about the scans besides their grids, such as whether they are of one subject.
        moving_mask: on the grid of `moving`; voxels that are 0, such as a lesion, are not compared.
        fixed_mask: on the grid of `fixed`; voxels that are 0 are not compared.
        device: "auto", "cpu" or "cuda", where network and refinement run; "auto" uses a GPU if there is one.
        cache_dir: folder in which affine results are kept for later runs.
        progress: called with a line about each step.

    Returns:
        The warped image, both transforms and the measurements.

    Raises:
        ValueError: an image is not 3-D or is constant, the method or device is unknown, or the method does not fit the
            network.
    """
    of_network: Method | None = (
        None if network is None else "tissues" if isinstance(network, TrainedTissueNet) else "nestedmorph"
    )
    method = settings.method or of_network or "field"
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method != of_network and (network is not None or method in ("nestedmorph", "tissues")):
        given = "none" if network is None else f"one for the method {of_network}"
        raise ValueError(f"the method {method} must have its own network, or none if it is field or syn, got {given}")
    masks = Masks(moving_mask, fixed_mask)
    check_images("moving", moving, moving_mask)
    check_images("fixed", fixed, fixed_mask)
    _warn_of_few_voxels(moving, fixed)
    moving, fixed = _in_memory_order(moving), _in_memory_order(fixed)
    place = torch.device(choose_device(device))
    steps = Steps(progress or (lambda text: None))
    if _identical(moving, fixed):
        return _identity(moving, fixed, steps)
    if is_planar(moving) or is_planar(fixed):
        _check_reversed(facts, used=False)
        return _register_planar(moving, fixed, masks, settings, place, steps)
    staged_path = method in ("field", "tissues") and facts is not None and (facts.one_subject or facts.with_diffusion)
    _check_reversed(facts, used=staged_path)
    before, _ = normalized_mutual_information(resample(moving, fixed), fixed)  # blurred as `after` is
    if method == "syn":
        with steps.timed("affine and SyN (ANTs)"):
            forward, inverse = syn(moving, fixed, fixed_mask=fixed_mask, moving_mask=moving_mask, seed=settings.seed)
        affine, choice = forward.linear_part(), Choice("deformable", "mi")
    elif staged_path:
        assert facts is not None
        if network is not None:
            steps.report("  the network is for two people: scans of one subject, and diffusion scans, do without it")
        with steps.timed("stages"):
            staged = align_in_stages(
                moving, fixed, settings, facts, masks=masks, progress=lambda text: steps.report(f"  {text}")
            )
        forward, inverse, affine = staged.forward, staged.inverse, staged.linear
        transform = resolved(settings.transform, facts)
        choice = Choice(transform, staged.similarity, tuple(staged.stages))
    else:
        both_ways = settings.effort != "fast" and not isinstance(network, TrainedNetwork)
        swapped = both_ways and works_on_moving(moving, fixed, facts or PairFacts())
        forward, inverse, affine, choice = _by_search(
            moving, fixed, masks, settings, network, place, steps, cache_dir, swapped=swapped
        )
    steps.report(str(choice))
    if method != "syn":
        with steps.timed("left and right"):
            kind: Kind = "rigid" if choice.transform == "rigid" else "affine"
            warn_if_mirrored(moving, fixed, affine.matrix, kind=kind, seed=settings.seed)
    with steps.timed("resampling"):
        warped = resample(moving, fixed, forward)
    _check_result(affine, forward, inverse, warped)
    after, _ = normalized_mutual_information(warped, fixed)
    metrics = {"nmi_before": before, "nmi_after": after, **jacobian_figures(forward, affine)}
    with steps.timed("doubt"):
        doubt = doubt_about(moving, fixed, forward, fixed_mask)
    return Registration(warped, forward, inverse, affine.matrix, metrics, steps.seconds, choice, doubt)


def _in_memory_order(volume: Volume) -> Volume:
    """The volume with a contiguous array; an array from a file often is not, and each use would copy it."""
    return volume.with_array(np.ascontiguousarray(volume.array))


def _check_reversed(facts: PairFacts | None, *, used: bool) -> None:
    """Refuse a reversed b0 image that the alignment would ignore."""
    if facts is not None and facts.reversed_b0 is not None and not used:
        raise ValueError(
            "the reversed b0 image needs a diffusion scan and the method field, got scans that are not known as such:"
            " name the diffusion image as in BIDS (ending in _dwi or _b0), or leave the reversed b0 out"
        )


def _check_result(
    affine: AffineTransform, forward: DisplacementField, inverse: DisplacementField, warped: Volume
) -> None:
    for values, what in (
        (affine.matrix, "the affine"),
        (forward.vectors_mm, "displacements"),
        (inverse.vectors_mm, "displacements of the inverse"),
        (warped.array, "values of the warped scan"),
    ):
        check_finite(values, what)


def _register_planar(
    moving: Volume, fixed: Volume, masks: Masks, settings: RegistrationSettings, device: torch.device, steps: Steps
) -> Registration:
    """The alignment of two 2-D images."""
    for one, other in ((moving, fixed), (fixed, moving)):
        if not is_planar(other):
            what = " x ".join(map(str, other.shape))
            raise ValueError(
                f"{one.source or 'one image'} is a single slice, so the other image must be one too, got {what} voxels"
                f" in {other.source or 'it'}: take one slice of it"
            )
    if settings.method not in (None, "field"):
        raise ValueError(f'2-D images need the method "field", got {settings.method!r}')
    transform = "deformable" if settings.transform == "auto" else settings.transform
    kind: Kind = "rigid" if transform == "rigid" else "affine"
    from_plane, to_plane = planes(moving, fixed)
    laid = Masks(
        from_plane.laid(masks.moving) if masks.moving is not None else None,
        to_plane.laid(masks.fixed) if masks.fixed is not None else None,
    )
    with steps.timed(kind):
        matrix = align_affine(
            from_plane.image,
            to_plane.image,
            kind=kind,
            moving_mask=laid.moving,
            fixed_mask=laid.fixed,
            seed=settings.seed,
        )
    grid = displacement_grid(to_plane)
    displacement = torch.zeros(1, 3, *grid.shape)
    if transform == "deformable":
        linear = AffineTransform(matrix)
        images = [on_grid(from_plane, grid, linear).to(device), on_grid(to_plane, grid).to(device)]
        mask = laid.on_grid(grid, linear)
        refinement = _Refinement(images, grid, settings, settings.similarity, steps.report)
        with steps.timed("refinement"):
            refined = refinement.run(mask=_weights(mask, device))
            displacement = better_of(None, refined, *images, mask=mask).cpu()
    forward, inverse, whole = maps(from_plane, to_plane, matrix, displacement)
    warped = resample(moving, fixed, forward)
    before, _ = normalized_mutual_information(from_plane.image, to_plane.image)
    after, _ = normalized_mutual_information(warped, fixed)
    _check_result(whole, forward, inverse, warped)
    metrics = {"nmi_before": before, "nmi_after": after, **field_measures(displacement)}
    choice = Choice(transform, settings.similarity if transform == "deformable" else "")
    steps.report(str(choice))
    with steps.timed("doubt"):
        doubt = doubt_about(moving, fixed, forward, masks.fixed)
    return Registration(warped, forward, inverse, whole.matrix, metrics, steps.seconds, choice, doubt)


def _identical(moving: Volume, fixed: Volume) -> bool:
    return np.array_equal(moving.affine, fixed.affine) and np.array_equal(moving.array, fixed.array)


def _identity(moving: Volume, fixed: Volume, steps: Steps) -> Registration:
    """The result for identical images."""
    steps.report("both images are identical: nothing to align")
    unmoved = DisplacementField(np.zeros((*fixed.shape, 3), np.float32), fixed.affine)
    nmi, _ = normalized_mutual_information(moving, fixed)
    metrics = {"nmi_before": nmi, "nmi_after": nmi, **jacobian_figures(unmoved, AffineTransform(np.eye(4)))}
    warped = resample(moving, fixed)
    return Registration(warped, unmoved, unmoved, np.eye(4), metrics, steps.seconds, Choice("identity"))


def _warn_of_few_voxels(moving: Volume, fixed: Volume) -> None:
    for name, volume in (("moving", moving), ("fixed", fixed)):
        if np.prod(volume.shape) < _FEW_VOXELS:
            size = " x ".join(map(str, volume.shape))
            warnings.warn(
                f"{volume.source or name} has only {size} voxels: an alignment from so few can be off by millimetres",
                VolumeWarning,
                stacklevel=3,
            )


def _by_search(
    moving: Volume,
    fixed: Volume,
    masks: Masks,
    settings: RegistrationSettings,
    network: RegistrationNetwork | None,
    device: torch.device,
    steps: Steps,
    cache_dir: str | os.PathLike[str] | None,
    *,
    swapped: bool,
) -> tuple[DisplacementField, DisplacementField, AffineTransform, Choice]:
    """Find a linear map from many starts, and a deformation if the settings allow one.

    With `swapped`, what has a direction is worked out from the fixed to the moving image, and inverted. If this does
    not depend on which image is named first, then exchanging the images inverts the map.
    """
    transform = "deformable" if settings.transform == "auto" else settings.transform
    kind: Kind = "rigid" if transform == "rigid" else "affine"
    first, second, own_masks = (fixed, moving, masks.swapped()) if swapped else (moving, fixed, masks)
    with steps.timed(kind):
        matrix = align_affine(
            first,
            second,
            kind=kind,
            moving_mask=own_masks.moving,
            fixed_mask=own_masks.fixed,
            seed=settings.seed,
            cache_dir=cache_dir,
        )
        if start_is_better(first, second, matrix, own_masks.fixed):
            steps.report(f"  the geometry of the scanner is kept: it fits better than the {kind} map that was found")
            matrix = np.eye(4)
    found = AffineTransform(matrix)
    linear = found.inverse() if swapped else found
    if transform != "deformable":
        forward = compose_to_field([linear], fixed)
        return forward, compose_to_field([linear.inverse()], moving), linear, Choice(transform)
    similarity = settings.similarity
    if similarity == "auto":
        images = _on_grid(first, second, working_grid(second), found, device)
        similarity = chosen_similarity(*images)
    if isinstance(network, TrainedTissueNet) and similarity == "ncc":
        steps.report("  the scans have one contrast: the network is not needed")
        network = None
    if swapped and similarity != "ncc":  # a refinement of one contrast has both directions
        back, forward, choice = _deformable(
            first, second, own_masks, found, similarity, settings, network, device, steps
        )
        return forward, back, linear, choice
    forward, back, choice = _deformable(moving, fixed, masks, linear, similarity, settings, network, device, steps)
    return forward, back, linear, choice


def _deformable(
    moving: Volume,
    fixed: Volume,
    masks: Masks,
    affine: AffineTransform,
    similarity: Similarity,
    settings: RegistrationSettings,
    network: RegistrationNetwork | None,
    device: torch.device,
    steps: Steps,
) -> tuple[DisplacementField, DisplacementField, Choice]:
    """The forward and inverse transforms, with a dense displacement in addition to the affine, and the kept stages."""
    grid = working_grid(fixed, finer=settings.effort == "accurate" and network is None)
    images = _on_grid(moving, fixed, grid, affine, device)
    lesions = masks.on_grid(grid, affine)
    compared = _weights(lesions, device)
    refinement = _Refinement(images, grid, settings, similarity, steps.report)
    start: Tensor | None = None
    of_tissues: _Refinement | None = None
    if isinstance(network, TrainedTissueNet):
        with steps.timed("tissues"):
            one, other = (in_one_contrast(network, scan, device=device) for scan in (moving, fixed))
        of_tissues = replace(
            refinement, images=_on_grid(one, other, grid, affine, device), similarity="ncc", prefix="tissues: "
        )
    elif network is not None:
        with steps.timed("network"):
            model = network.network.to(device)
            start = network_displacement(model, moving, fixed, affine, grid, network.spacing_mm).to(device)

    stages: tuple[StageResult, ...] = ()
    with steps.timed("refinement"):
        if similarity == "ncc" and network is None and settings.effort != "fast":
            refined = _in_both_directions(refinement, moving, fixed, masks, affine, compared)
            refined = better_of(None, refined, *images, mask=lesions)
        elif similarity == "ncc" or isinstance(network, TrainedNetwork):
            refined = better_of(start, refinement.run(start, mask=compared), *images, mask=lesions)
        else:
            refined, judged = _between_contrasts(refinement, of_tissues, moving, fixed, masks, affine, compared)
            stages = (judged,)
    with steps.timed("transforms"):
        forward = DisplacementField.from_voxels(refined[0].cpu().numpy(), grid.affine, pre=affine)
        if grid.shape != fixed.shape or not np.array_equal(grid.affine, fixed.affine):
            forward = compose_to_field([forward], fixed)
        inverse = forward.inverse(moving, iterations=30, tolerance_mm=0.05)
    used = similarity if of_tissues is None else f"{similarity}, and {of_tissues.similarity} of tissues"
    return forward, inverse, Choice("deformable", used, stages)


@dataclass(frozen=True, eq=False)
class _Refinement:
    """The refinement of one pair of images on one grid.

    Args:
        images: moving and fixed, (1, 1, D, H, W) in [0, 1], on `grid`.
        grid: its shape and affine are used.
        settings: `diffeomorphic` and `effort` are used.
        similarity: see `refine`.
        report: called with a line about each level.
        prefix: what the lines begin with.
    """

    images: list[Tensor]
    grid: Volume
    settings: RegistrationSettings
    similarity: Similarity
    report: Progress
    prefix: str = ""

    def run(
        self,
        start: Tensor | None = None,
        *,
        mask: Tensor | None,
        levels: Levels | Sequence[Pass] | None = None,
        iterations: float = 1.0,
    ) -> Tensor:
        """The refined displacement, (1, 3, D, H, W) in voxels; see `refine`. `levels`: by the effort."""
        return refine(
            *self.images,
            spacing=self.grid.spacing,
            fixed_mask=mask,
            displacement=start,
            similarity=self.similarity,
            levels=levels or ("coarse" if self.settings.effort == "fast" else "all"),
            diffeomorphic=self.settings.diffeomorphic,
            iterations=iterations,
            progress=lambda text: self.report(f"  {self.prefix}{text}"),
        )

    def coarser(self, mask: Tensor | None) -> tuple["_Refinement", Tensor]:
        """The same refinement on the grid of the finest coarse level, and the mask on it."""
        moving, fixed = self.images
        level = coarse_level(moving, fixed, mask, self.grid.spacing)
        shape = level.fixed.shape[2:]
        steps = [(n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(self.grid.shape, shape, strict=True)]
        grid = Volume(np.broadcast_to(np.float32(0), shape), self.grid.affine @ np.diag([*steps, 1.0]))
        return replace(self, images=[level.moving, level.fixed], grid=grid), level.mask


def _on_grid(
    moving: Volume, fixed: Volume, grid: Volume, affine: AffineTransform, device: torch.device
) -> list[Tensor]:
    """Both images in [0, 1] on a grid of the fixed world, (1, 1, D, H, W) each; `affine` leads to the moving world."""
    return [to_grid(unit_range(v), grid, t)[None].to(device) for v, t in ((moving, affine), (fixed, None))]


def _weights(mask: Volume | None, device: torch.device) -> Tensor | None:
    """A mask as a tensor (1, 1, D, H, W); None without a mask."""
    return None if mask is None else with_channel(mask, np.float32)[None].to(device)


def _in_both_directions(
    refinement: _Refinement,
    moving: Volume,
    fixed: Volume,
    masks: Masks,
    affine: AffineTransform,
    compared: Tensor | None,
) -> Tensor:
    """The displacement from rounds in both directions, whose maps are averaged after each round.

    Neither direction is then worse than the other, and exchanging the images inverts the map of the coarse levels. The
    fine level has the direction that was asked for, since its inverse would align labels less well.
    """
    back_grid, back_affine = working_grid(moving), affine.inverse()
    images = _on_grid(fixed, moving, back_grid, back_affine, refinement.images[0].device)
    back_compared = _weights(masks.swapped().on_grid(back_grid, back_affine), images[0].device)
    way_back = replace(refinement, images=images, grid=back_grid, prefix="back: ")
    there, compared_there = refinement.coarser(compared)
    back, compared_back = way_back.coarser(back_compared)
    del images, way_back, back_compared
    mean: Tensor | None = None
    for passes in rounds_of(*there.images):
        start = None if mean is None else _inverse_on(back.grid, mean, there.grid, affine)
        backward = back.run(start, mask=compared_back, levels=passes)
        forward = there.run(mean, mask=compared_there, levels=passes)
        mean = unfold((forward + _inverse_on(there.grid, backward, back.grid, back_affine)) / 2)
    assert mean is not None
    mean = resize_displacement(mean, refinement.grid.shape)
    factor = 2.0 if refinement.settings.effort == "accurate" else 1.0
    return refinement.run(mean, mask=compared, levels="fine", iterations=factor)


def _between_contrasts(
    refinement: _Refinement,
    of_tissues: _Refinement | None,
    moving: Volume,
    fixed: Volume,
    masks: Masks,
    affine: AffineTransform,
    compared: Tensor | None,
) -> tuple[Tensor, StageResult]:
    """The displacement between two contrasts, judged on held-out voxels: a fit can raise the similarity by chance.

    With tissues, it is the mean of the displacements by both similarities. On T2w to T1w of two people (patient07 and
    two others, both directions), the mean Dice was 0.676 with it, 0.656 by mutual information and 0.670 by tissues.
    """
    seen = torch.from_numpy(seen_mask(refinement.grid, fixed)).float()[None, None].to(refinement.images[0].device)
    if of_tissues is not None:
        # composed steps keep the mean free of folds
        refinement = replace(refinement, settings=replace(refinement.settings, diffeomorphic=True))
    by_tissue = None if of_tissues is None else of_tissues.run(mask=compared)

    def mean_of(by_contrast: Tensor) -> Tensor:
        return by_contrast if by_tissue is None else unfold((by_contrast + by_tissue) / 2)

    refined = refinement.run(mask=seen if compared is None else seen * compared)
    judged = _judged(mean_of(refined), refinement.grid, affine, moving, fixed, masks)
    if not judged.kept:
        return torch.zeros_like(refined), judged
    return mean_of(refinement.run(refined, mask=compared, iterations=0.5)), judged


def _inverse_on(target: Volume, displacement: Tensor, grid: Volume, affine: AffineTransform) -> Tensor:
    """The inverse on the grid `target` of a displacement on `grid` after an affine, (1, 3, D, H, W) in voxels."""
    field = DisplacementField.from_voxels(displacement[0].cpu().numpy(), grid.affine, pre=affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VolumeWarning)  # the inverse of the result is judged later
        inverse = field.inverse(target, iterations=30, tolerance_mm=0.05)
    del field
    voxels = inverse.to_voxels(moving_affine=np.linalg.inv(affine.matrix) @ target.affine)
    return torch.from_numpy(voxels)[None].to(displacement.device)


def _judged(
    refined: Tensor, grid: Volume, affine: AffineTransform, moving: Volume, fixed: Volume, masks: Masks
) -> StageResult:
    """Compare a displacement (1, 3, D, H, W) in voxels of `grid` with no displacement; warn if it is dropped."""
    head = restricted(head_mask(fixed), masks.on_grid(fixed, affine))
    field = DisplacementField.from_voxels(refined[0].cpu().numpy(), grid.affine, pre=affine)
    vectors = refined[0].cpu().numpy() * np.array(grid.spacing, np.float32).reshape(3, 1, 1, 1)
    inside = resample(head, grid, order="nearest").array > 0
    strain = strain_of(vectors, grid.spacing, inside)
    verdict = Evidence(moving, fixed, head).compare(field.map, affine.map, strain=strain)
    lengths = np.linalg.norm(vectors, axis=0)[inside]
    detail = f"{lengths.mean():.1f} mm on average, {lengths.max():.1f} mm at most"
    stage = StageResult.of("free deformation", verdict, detail)
    if not stage.kept:
        warnings.warn(f"{stage}: the alignment before it is kept", VolumeWarning, stacklevel=4)
    return stage


def better_of(
    start: Tensor | None, refined: Tensor, moving: Tensor, fixed: Tensor, *, mask: Volume | None = None
) -> Tensor:
    """The displacement to keep: zero, the network's, or the refined one, the last that raises the mutual information.

    Each candidate must raise the normalised mutual information in the foreground above that of the last one kept. Two
    scans of one person are often already aligned by the affine; a refinement then fits noise and the bias of the
    similarity at tissue borders. On such pairs the value changed by less than 0.002 (and the error against the
    published rigid transform grew by 1 mm); on pairs that needed a deformation, it rose by 0.09.

    Args:
        start: the network's displacement, (1, 3, D, H, W) in voxels; None without a network.
        refined: (1, 3, D, H, W) in voxels.
        moving: (1, 1, D, H, W) in [0, 1].
        fixed: (1, 1, D, H, W) in [0, 1].
        mask: (D, H, W); voxels that are 0 are not compared.

    Returns:
        The displacement to keep, (1, 3, D, H, W) in voxels. If the refined one is dropped, a warning is given.
    """
    grid = np.eye(4)
    target = Volume(fixed[0, 0].cpu().numpy(), grid)
    compared = target.array > 0.05 if mask is None else (target.array > 0.05) & (mask.array != 0)
    foreground = target.with_array(compared)

    def score(displacement: Tensor) -> float:
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
            f"refinement does not raise the mutual information ({best:.4f} before, {after:.4f} after); the alignment"
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
) -> Tensor:
    """The displacement by a network in addition to the affine, in voxels of `grid`.

    Args:
        network: `network(moving, fixed) -> (warped, displacement)`.
        moving: (D, H, W).
        fixed: (D, H, W).
        affine: fixed world -> moving world.
        grid: the grid of the result.
        spacing_mm: spacing of the network's input grid, as in its training; by default the input grid is `grid`.

    Returns:
        (1, 3, D, H, W) float32 on `grid`.
    """
    seen = network_grid(fixed, grid, spacing_mm)
    place = next((p.device for p in network.parameters()), torch.device("cpu"))
    images = network_images(moving, fixed, affine, seen)
    with torch.inference_mode(), limited_threads(kernel_threads()):
        _, displacement = network.eval()(*(image[None].to(place) for image in images))
    found = DisplacementField.from_voxels(displacement[0].cpu().numpy(), seen.affine)
    return torch.from_numpy(compose_to_field([found], grid).to_voxels())[None]


def network_grid(fixed: Volume, grid: Volume, spacing_mm: float | None) -> Volume:
    """The input grid of a network that was trained with this spacing; `grid` if the spacing is unknown."""
    return grid if spacing_mm is None else training_grid(fixed, spacing_mm=spacing_mm)


def network_images(
    moving: Volume, fixed: Volume, affine: AffineTransform, seen: Volume
) -> tuple[torch.Tensor, torch.Tensor]:
    """Moving and fixed image on the input grid of a network, (1, D, H, W) in [0, 1] each."""
    return to_grid(unit_range(moving), seen, affine), to_grid(unit_range(fixed), seen)


def working_grid(fixed: Volume, *, finer: bool = False) -> Volume:
    """The grid on which the field is refined: that of `fixed`, with axes finer than 1 mm coarsened to about 1 mm.

    For an image that is less than 128 mm wide, such as that of a mouse, 1/128 of its mean side counts in place of 1 mm.

    Args:
        fixed: its grid is used.
        finer: divide coarser axes, too.

    Returns:
        An empty volume that begins at the first voxel of `fixed` and covers `fixed` completely.
    """
    sides = np.array(fixed.shape) * fixed.spacing
    target = min(_WORKING_SPACING_MM, float(np.prod(sides)) ** (1 / 3) / _WORKING_SIDE)
    step = target / np.array(fixed.spacing)
    if not finer:
        step = step.clip(min=1.0)
    step[(step > 0.8) & (step < 1.25)] = 1.0  # not worth an interpolation
    shape = tuple(int(np.ceil((n - 1) / s)) + 1 for n, s in zip(fixed.shape, step, strict=True))
    affine = fixed.affine @ np.diag([*step, 1.0])
    return Volume(np.broadcast_to(np.float32(0), shape), affine)


def jacobian_figures(forward: DisplacementField, affine: AffineTransform) -> dict[str, float]:
    """Measures of the change of local volume beyond the affine part, by Learn2Reg's definitions (see `jacobian`).

    Returns:
        "sdlogj", "non_positive_jacobian_percent", "jacobian_min", "jacobian_max".
    """
    # in voxels of the fixed grid as the affine moves it, so that the affine itself is no displacement
    displacement = torch.from_numpy(forward.to_voxels(moving_affine=affine.matrix @ forward.affine))[None]
    return field_measures(displacement)
