import numpy as np
import pytest

from voxelwave.scanpath.grid import fit_axis, regularity


def boxes(count, pitch, first, jitter, seed=0, n=60):
    rng = np.random.default_rng(seed)
    place = np.concatenate([np.arange(count), rng.integers(0, count, n - count)])
    return first + pitch * place + rng.uniform(-jitter, jitter, n), np.full(n, count * pitch), place


@pytest.mark.parametrize("count", [2, 5, 6, 14, 23])
def test_the_number_of_places_pitch_and_first_centre_are_found(count):
    centres, extents, place = boxes(count, 90.0, 47.0, jitter=6.0)
    axis = fit_axis(centres, extents)
    assert axis.count == count
    assert axis.pitch == pytest.approx(90, abs=1.5)
    assert axis.first == pytest.approx(47, abs=5)
    assert axis.residual < 12
    np.testing.assert_array_equal(axis.place(centres), place)


def test_positions_beside_the_grid_belong_to_its_edge():
    axis = fit_axis(*boxes(4, 100.0, 50.0, jitter=0)[:2])
    assert axis.place(np.array([-80, 99, 101, 4000])).tolist() == [0, 0, 1, 3]
    np.testing.assert_allclose(axis.centres, [50, 150, 250, 350])


def test_pictures_of_slightly_different_extents_share_a_grid():
    centres, extents, place = boxes(14, 180.0, 92.0, jitter=10.0)
    extents = extents + np.random.default_rng(1).uniform(-15, 5, len(extents))
    axis = fit_axis(centres, extents)
    assert axis.count == 14
    np.testing.assert_array_equal(axis.place(centres), place)


def test_centres_at_random_show_no_grid():
    centres = np.random.default_rng(2).uniform(0, 1000, 80)
    with pytest.raises(ValueError, match="on no grid of 2 to 40 places"):
        fit_axis(centres, np.full(80, 1000))
    with pytest.raises(ValueError, match="10 boxes or more, got 9"):
        fit_axis(centres[:9], np.full(9, 1000))


def test_a_told_number_of_places_needs_few_boxes_which_must_lie_near_their_places():
    axis = fit_axis(np.array([50, 250]), np.array([400, 400]), 4)
    np.testing.assert_allclose(axis.centres, [50, 150, 250, 350])
    with pytest.raises(ValueError, match=r"a box is \d+ px from its grid position, over half the pitch"):
        fit_axis(np.array([50, 150, 250, 350] * 5 + [700.0]), np.full(21, 400), 4)


def test_regularity_is_one_on_a_grid_and_small_off_it():
    even = np.arange(12) * 50.0 + 7
    assert regularity(even, np.full(12, 600), 12) == pytest.approx(1)
    assert regularity(even, np.full(12, 600), 7) == pytest.approx(0, abs=1e-9)
