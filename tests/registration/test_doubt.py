"""An alignment is credible if the scans fit better than when displaced, and no worse than at the start."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.registration.affine import align_affine
from voxelwave.registration.doubt import doubt_about, start_is_better
from voxelwave.registration.linear import coarsened
from voxelwave.volumes import AffineTransform, Volume, compose_to_field, read_volume, resample

SHAPE = (40, 44, 36)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def head(seed: int) -> Volume:
    """An ellipsoid with a texture."""
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5)
    return Volume(((sum(a**2 for a in axes) < 1) * (1 + 4 * texture)).astype(np.float32), AFFINE)


def by(millimetres: float) -> AffineTransform:
    matrix = np.eye(4)
    matrix[0, 3] = millimetres
    return AffineTransform(matrix)


def test_the_true_map_raises_no_doubt_in_either_contrast():
    fixed = head(0)
    moving = resample(fixed, fixed, by(-10.0))  # its content lies 10 mm further along x
    inverted = moving.with_array(np.where(moving.array > 0.1, 3 - moving.array, 0).astype(np.float32))
    for image in (moving, inverted):
        assert doubt_about(image, fixed, compose_to_field([by(10.0)], fixed)) == ""


def test_a_map_away_from_the_truth_is_worse_than_the_start():
    fixed = head(0)
    assert "worse than they did at the start" in doubt_about(fixed, fixed, compose_to_field([by(6.0)], fixed))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_unrelated_textures_may_be_different_objects(seed):
    fixed = head(0)
    assert "different objects" in doubt_about(head(seed), fixed, compose_to_field([by(0.0)], fixed))


def slice_of(volume: Volume, axis: int) -> Volume:
    """The middle slice across an axis, as an image of one voxel along it."""
    at = [slice(None)] * 3
    at[axis] = slice(volume.shape[axis] // 2, volume.shape[axis] // 2 + 1)
    return Volume(volume.array[tuple(at)], volume.affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_unrelated_slices_may_be_different_objects(seed, axis):
    fixed, moving = slice_of(head(0), axis), slice_of(head(seed), axis)
    assert "different objects" in doubt_about(moving, fixed, compose_to_field([by(0.0)], fixed))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_on_itself_raises_no_doubt(axis):
    fixed = slice_of(head(0), axis)
    assert doubt_about(fixed, fixed, compose_to_field([by(0.0)], fixed)) == ""


def test_too_small_an_image_is_not_judged():
    rng = np.random.default_rng(0)
    tiny = [Volume(rng.uniform(1, 2, (6, 6, 6)).astype(np.float32), AFFINE) for _ in range(2)]
    assert doubt_about(*tiny, compose_to_field([by(0.0)], tiny[1])) == ""


def test_the_geometry_of_the_scanner_is_better_than_a_wrong_map_only():
    fixed = head(0)
    assert start_is_better(fixed, fixed, by(6.0).matrix)
    assert not start_is_better(resample(fixed, fixed, by(-10.0)), fixed, by(10.0).matrix)
    assert not start_is_better(fixed, fixed, np.eye(4))


def brain(white: float, grey: float, shift_mm: float, noise: float = 0.0) -> Volume:
    """White matter within grey matter on a black background, (40, 44, 36); its middle lies `shift_mm` along x."""
    places = [c * 4.0 for c in np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij")]
    radius = np.sqrt(((places[0] - shift_mm) / 60) ** 2 + (places[1] / 70) ** 2 + (places[2] / 56) ** 2)
    folds = 0.12 * gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.0)
    folds = resample(Volume(folds.astype(np.float32), AFFINE), Volume(folds, AFFINE), by(-shift_mm)).array
    grain = np.random.default_rng(1).normal(scale=noise, size=SHAPE)
    image = np.select([radius < 0.75 + folds, radius < 1], [white + grain, grey + grain], 0)
    return Volume(image.astype(np.float32), AFFINE)


def test_the_background_of_a_brain_is_no_evidence_for_the_geometry_of_the_scanner():
    """Grey matter that lies on the background of the other brain must not count as explained."""
    fixed, moving = brain(white=1.0, grey=0.7, shift_mm=0), brain(white=0.52, grey=0.62, shift_mm=32, noise=0.1)
    assert not start_is_better(moving, fixed, by(32.0).matrix)
    assert start_is_better(moving, brain(white=1.0, grey=0.7, shift_mm=32), by(32.0).matrix)


def test_two_real_brains_in_two_contrasts_leave_the_geometry_of_the_scanner(shared_data):
    """As they lie in the scanner, the brains are more than 10 mm apart."""
    (file,) = (shared_data / "mri_ms_multimodal/more/cross_sectional/MNI/patient26").glob("T2_*.nii.gz")
    moving = coarsened(read_volume(file), 2.0)
    with np.load(shared_data / "mri_t1_labels/voxelmorph_test_scan/test_scan.npz") as scan:
        affine = np.array([[-1.0, 0, 0, 80], [0, 0, 1, -112], [0, -1, 0, 96], [0, 0, 0, 1]])
        fixed = coarsened(Volume(scan["vol"].astype(np.float32), affine), 2.0)
    found = align_affine(moving, fixed)
    assert np.linalg.norm(found[:3, 3]) > 10
    assert not start_is_better(moving, fixed, found)
