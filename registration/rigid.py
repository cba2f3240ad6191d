"""Rigid alignment of two scans of one person, which starts from the scanner's geometry and allows plausible motion.

If one image is a slab, a search over all rotations, as in `affine`, can find a false optimum. Between scans of one
session the scanner's geometry is nearly right, so fits start only from it and from the shift between the centres of the
heads. A fit is accepted only if it is better on held-out voxels (`evidence`).
"""

from dataclasses import dataclass

import numpy as np

from ..kernels.threads import ordered_sums
from ..volumes import AffineTransform, Volume
from ..volumes.sampling import apply_affine
from .affine import align_affine
from .evidence import Evidence, Verdict, head_mask, restricted, seen_mask, widened
from .linear import fit, samples_of

# spacing in mm and number of samples
_LEVELS = ((8.0, 8_000), (4.0, 20_000), (2.0, 60_000))
# per mm^2 at each level. Near the scanner's geometry, 2 mm or 2 degrees cost 0.002 of the similarity. With the loose
# value, a fit finds 8 degrees, but local warps of a T1w scan turned its fit to a b0 image by up to 3 degrees, not by 1
_TIGHT, _LOOSE = 5e-4, 4e-5
_MARGIN_MM = 6.0  # around the head, so that its outline counts
_LEAST_OVERLAP = 0.5  # fraction of the head; if the scanner's geometry gives less, rotated starts are tried too
MOST_SCALE = 1.6  # largest scale of an affine fit; heads of infants and adults differ by about this factor
_LEAST_HEAD_MM = 130.0
MOST_DEGREES, MOST_MM = 20.0, 40.0  # between scans of one session; a head coil allows no more


@dataclass(frozen=True, eq=False)
class Candidate:
    """A linear alignment that competes with the scanner's geometry.

    Args:
        name: the way in which it was found.
        matrix: (4, 4), fixed world -> moving world.
        verdict: the comparison with the best alignment before it.
    """

    name: str
    matrix: np.ndarray
    verdict: Verdict

    @property
    def kept(self) -> bool:
        """Whether it was better than the alignments before it."""
        return self.verdict.accepted


@ordered_sums()
def align_one_subject(
    moving: Volume,
    fixed: Volume,
    *,
    one_session: bool = True,
    mask: Volume | None = None,
    moving_mask: Volume | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, list[Candidate]]:
    """The rigid map from points of `fixed` to points of `moving`, and the candidates that were compared.

    Args:
        moving: (D, H, W), of the same person.
        fixed: (D, H, W); the image that shows less, such as a slab.
        one_session: whether the person stayed in the scanner between the scans; motions of more than 20 degrees or
            40 mm are then not accepted, unless the images hardly overlap by the scanner's geometry.
        mask: on the grid of `fixed`; voxels that are 0 are not compared.
        moving_mask: on the grid of `moving`; voxels that are 0 are not compared in the fits.
        seed: seed for the sampling of the images.

    Returns:
        (4, 4), fixed world -> moving world, RAS mm; the identity is the scanner's geometry.
    """
    head = restricted(widened(head_mask(fixed), _MARGIN_MM), mask)
    evidence = Evidence(moving, fixed, head, every=2)
    voxels = apply_affine(np.linalg.inv(moving.affine), evidence.points)
    overlap = ((voxels > -0.5) & (voxels < np.array(moving.shape) - 0.5)).all(axis=1).mean()
    search = not one_session or overlap < _LEAST_OVERLAP
    seen = head.with_array(head.array * seen_mask(head, fixed, every=2))
    levels = [
        samples_of(moving, fixed, spacing_mm=mm, count=count, seed=seed, fixed_mask=seen, moving_mask=moving_mask)
        for mm, count in _LEVELS
    ]
    starts = {
        "rigid fit near the geometry of the scanner": (np.eye(4), _TIGHT),
        "rigid fit": (np.eye(4), _LOOSE),
        "rigid fit from the centres of mass": (_between_centres(moving, head), _LOOSE),
    }
    centre = evidence.points.mean(axis=0)
    if search:
        turned = align_affine(moving, fixed, kind="rigid", moving_mask=moving_mask, fixed_mask=mask, seed=seed)
        starts["rigid fit from turned starts"] = turned, _LOOSE
    best, of_best, tried = np.eye(4), _TIGHT, []
    for name, (start, tether) in starts.items():
        found = start
        for samples in levels:
            found = fit(samples, found, "rigid", tether=tether)
        if not search and not _possible(found, centre):
            continue
        verdict = evidence.compare(AffineTransform(found).map, AffineTransform(best).map)
        tried.append(Candidate(name, found, verdict))
        if verdict.accepted:
            best, of_best = found, tether
    if any(candidate.kept for candidate in tried):  # the held-out voxels may now help
        mm, count = _LEVELS[-1]
        whole = samples_of(
            moving, fixed, spacing_mm=mm, count=count, seed=seed, fixed_mask=head, moving_mask=moving_mask
        )
        best = fit(whole, best, "rigid", tether=of_best)
    return best, tried


@ordered_sums()
def affine_candidate(
    moving: Volume, fixed: Volume, rigid: np.ndarray, *, mask: Volume | None = None, seed: int = 0
) -> Candidate:
    """Fit an affine map, starting from a rigid map, and compare both.

    If the fixed image is a slab, the map does not stretch along the normal of the slab.

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        rigid: (4, 4), fixed world -> moving world.
        mask: on the grid of `fixed`; voxels that are 0 are not compared.
        seed: seed for the sampling of the images.
    """
    head = restricted(widened(head_mask(fixed), _MARGIN_MM), mask)
    evidence = Evidence(moving, fixed, head, every=2)
    seen = head.with_array(head.array * seen_mask(head, fixed, every=2))
    found = rigid
    for mm, count in _LEVELS[1:]:
        samples = samples_of(moving, fixed, spacing_mm=mm, count=count, seed=seed, fixed_mask=seen)
        found = fit(samples, found, "affine", still=slab_normal(fixed))
    scales = np.linalg.svd(found[:3, :3], compute_uv=False)
    if scales.max() > MOST_SCALE or scales.min() < 1 / MOST_SCALE:
        return Candidate("affine fit", rigid, Verdict(0.0, 0.0))
    strain = float(np.sqrt(((scales - 1) ** 2).sum()))
    maps = AffineTransform(found).map, AffineTransform(rigid).map
    return Candidate("affine fit", found, evidence.compare(*maps, strain=strain))


def slab_normal(image: Volume) -> np.ndarray | None:
    """The unit vector (3,) in the world along which an image shows only a part of the head; None if there is none.

    Along that axis the grid is shorter than a head, and the head is cut off at both ends.
    """
    head = head_mask(image).array != 0
    for axis, (n, mm) in enumerate(zip(image.shape, image.spacing, strict=True)):
        areas = head.sum(axis=tuple(a for a in range(3) if a != axis))
        if n * mm < _LEAST_HEAD_MM and min(areas[0], areas[-1]) > 0.2 * areas.max():
            normal: np.ndarray = image.affine[:3, axis] / mm
            return normal
    return None


def motion_of(matrix: np.ndarray, centre: np.ndarray) -> tuple[float, float]:
    """The rotation in degrees and the shift of the centre in mm of a rigid map (4, 4)."""
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    shift = matrix[:3, :3] @ centre + matrix[:3, 3] - centre
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), float(np.linalg.norm(shift))


def _possible(matrix: np.ndarray, centre: np.ndarray) -> bool:
    degrees, mm = motion_of(matrix, centre)
    return degrees <= MOST_DEGREES and mm <= MOST_MM


def _between_centres(moving: Volume, head: Volume) -> np.ndarray:
    """The shift from the centre of the fixed head to that of the moving head."""
    centres = []
    for mask in (head, head_mask(moving)):
        where = np.argwhere(mask.array)
        centres.append(apply_affine(mask.affine, where.mean(axis=0, keepdims=True))[0] if len(where) else None)
    shift = np.eye(4)
    if centres[0] is not None and centres[1] is not None:
        shift[:3, 3] = centres[1] - centres[0]
    return shift
