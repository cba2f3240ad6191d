"""An alignment is credible if the scans fit better than when displaced, and no worse than at the start."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.registration.doubt import doubt_about, start_is_better
from voxelwave.volumes import AffineTransform, Volume, compose_to_field, resample

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
