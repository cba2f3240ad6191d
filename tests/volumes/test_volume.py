"""A volume knows its position in the world."""

import numpy as np
import pytest

from voxelwave.volumes import Volume

OBLIQUE = np.array([[0, -0.3, 2.0, 5], [1.5, 0, 0, -7], [0, 1.9, 0.4, 3], [0, 0, 0, 1]])


def test_spacing_origin_and_orientation_follow_from_the_affine():
    volume = Volume(np.zeros((2, 3, 4), np.int16), np.diag([-2.0, 3.0, 4.0, 1.0]))
    assert volume.spacing == (2.0, 3.0, 4.0)
    assert volume.origin == (0.0, 0.0, 0.0)
    assert volume.orientation == "LAS"
    assert volume.shape == (2, 3, 4)


def test_voxels_of_a_thousandth_of_a_millimetre_are_a_volume():
    assert Volume(np.zeros((1, 1, 1)), np.diag([1e-4, 1e-4, 1e-4, 1.0])).spacing == pytest.approx((1e-4,) * 3)


@pytest.mark.parametrize(
    ("array", "affine", "said"),
    [
        (np.zeros((2, 2)), np.eye(4), "array must have shape"),
        (np.zeros((2, 2, 2)), np.eye(3), r"affine must be a finite \(4, 4\)"),
        (np.zeros((2, 2, 2)), np.full((4, 4), np.nan), "finite"),
        (np.zeros((2, 2, 2)), np.diag([1.0, 1.0, 0.0, 1.0]), "invertible"),
        (np.zeros((2, 2, 2)), OBLIQUE[:, [0, 0, 2, 3]], "invertible"),
    ],
)
def test_what_has_no_place_in_the_world_is_refused(array, affine, said):
    with pytest.raises(ValueError, match=said):
        Volume(array, affine)


def test_other_values_keep_their_place():
    volume = Volume(np.zeros((2, 3, 4)), OBLIQUE)
    assert np.array_equal(volume.with_array(np.ones((2, 3, 4), bool)).affine, OBLIQUE)
