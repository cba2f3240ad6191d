"""The distortion of echo-planar images along the phase-encoding axis."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from voxelwave.registration.distortion import (
    axis_direction,
    distorted_to_undistorted,
    shift_of_reversed_pair,
    undistorted,
)
from voxelwave.volumes import Volume

SHAPE = (30, 36, 20)
AFFINE = np.diag([-3.0, 3.0, 3.0, 1.0])


def head() -> np.ndarray:
    axes = np.meshgrid(*[np.linspace(-1.4, 1.4, n) for n in SHAPE], indexing="ij")
    tissue = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
    return (1 / (1 + np.exp(12 * (sum(a**2 for a in axes) - 1)))) * (1 + 0.5 * tissue / tissue.std())


def distorted(image: np.ndarray, shift_mm: np.ndarray, sign: int) -> Volume:
    """The distorted image of the scanner: the signal at x moves to x + sign * shift, and its total is preserved."""
    n = SHAPE[1]
    out = np.zeros(SHAPE)
    fine = np.linspace(0, n - 1, 20 * n)
    for i in range(SHAPE[0]):
        for k in range(SHAPE[2]):
            values = np.interp(fine, np.arange(n), image[i, :, k])
            at = fine + sign * np.interp(fine, np.arange(n), shift_mm[i, :, k]) / 3.0
            out[i, :, k] = np.histogram(at, bins=np.arange(n + 1) - 0.5, weights=values)[0] / 20
    return Volume(out.astype(np.float32), AFFINE)


@pytest.fixture(scope="module")
def pair():
    image = head()
    shift = gaussian_filter(np.random.default_rng(1).normal(size=SHAPE), 5)
    shift *= 5 / np.abs(shift[image > 0.5]).max()
    return image, shift, distorted(image, shift, 1), distorted(image, shift, -1)


@pytest.mark.slow
def test_shift_is_found_from_a_reversed_pair(pair):
    image, shift, there, back = pair
    found = shift_of_reversed_pair(there, back, "j-")
    inside = image > 0.5
    assert np.abs(shift[inside]).mean() > 1.2
    assert np.abs(found - shift)[inside].mean() < 0.4  # mm; the voxels are 3 mm long


def test_the_corrected_image_has_its_form_and_brightness(pair):
    image, shift, there, _ = pair
    inside = image > 0.5
    corrected = undistorted(there, shift, "j").array
    assert np.abs(corrected - image)[inside].mean() < 0.3 * np.abs(there.array - image)[inside].mean()


def test_the_way_back_inverts_the_shift(pair):
    image, shift, there, _ = pair
    way = distorted_to_undistorted(shift, there, "j")
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).astype(float)
    grid[1] += shift / 3.0
    there_and_back = shift + map_coordinates(way, grid, order=1, mode="nearest")
    assert np.abs(there_and_back[image > 0.5]).max() < 0.4


def test_pairs_on_two_grids_are_refused(pair):
    _, _, there, back = pair
    with pytest.raises(ValueError, match="grid of the diffusion image"):
        shift_of_reversed_pair(there, Volume(back.array[:-1], back.affine), "j")


def test_direction_follows_the_voxel_axis():
    assert axis_direction(Volume(np.zeros(SHAPE), AFFINE), "i-").tolist() == [-1, 0, 0]
