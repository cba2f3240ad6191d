"""The nested S-shaped scan orders."""

import itertools

import numpy as np
import pytest
import torch

from voxelwave.restoration.scan_order import scan_order, stripe_path, traced_order

SIZES = [(1, 1), (1, 5), (5, 1), (2, 2), (4, 8), (5, 7), (6, 4), (7, 3), (9, 17), (16, 16)]
SIZES_AND_WIDTHS = list(itertools.product(SIZES, (1, 2, 3, 4, 8)))


def steps(path: torch.Tensor, width: int) -> np.ndarray:
    """City-block distance between consecutive pixels."""
    y, x = np.divmod(path.numpy(), width)
    return abs(np.diff(y)) + abs(np.diff(x))


# Written by hand from the definition: map 4 x 8, raster numbers 0..7 / 8..15 / 16..23 / 24..31.
@pytest.mark.parametrize(
    ("stripe_width", "shifted", "direction", "expected"),
    [
        (2, False, 0, "0 1 9 8 16 17 25 24 26 27 19 18 10 11 3 2 4 5 13 12 20 21 29 28 30 31 23 22 14 15 7 6"),
        (2, True, 1, "31 23 15 7 6 5 13 14 22 21 29 30 28 27 19 20 12 11 3 4 2 1 9 10 18 17 25 26 24 16 8 0"),
        (2, True, 2, "0 1 2 3 4 5 6 7 15 23 22 14 13 21 20 12 11 19 18 10 9 17 16 8 24 25 26 27 28 29 30 31"),
        (4, False, 3, "31 23 15 7 6 14 22 30 29 21 13 5 4 12 20 28 27 19 11 3 2 10 18 26 25 17 9 1 0 8 16 24"),
        (4, True, 0, "0 1 9 8 16 17 25 24 26 27 28 29 21 20 19 18 10 11 12 13 5 4 3 2 6 7 15 14 22 23 31 30"),
    ],
)
def test_order_follows_the_worked_example(stripe_width, shifted, direction, expected):
    order = scan_order(4, 8, stripe_width, shifted=shifted)[direction]
    assert order.tolist() == [int(pixel) for pixel in expected.split()]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_every_direction_visits_each_pixel_once(shifted, continuous):
    for size, stripe_width in SIZES_AND_WIDTHS:
        order = scan_order(*size, stripe_width, shifted=shifted, continuous=continuous)
        assert order.dtype == torch.int32
        assert (order.sort(dim=1).values == torch.arange(size[0] * size[1])).all(), (size, stripe_width)


def test_directions_1_and_3_are_0_and_2_on_the_map_rotated_by_180_degrees():
    order = scan_order(5, 7, 4, shifted=True)
    torch.testing.assert_close(order[[1, 3]], 34 - order[[0, 2]])


def test_direction_2_is_direction_0_of_the_transposed_map():
    across = scan_order(5, 7, 4)[2]
    down = scan_order(7, 5, 4)[0]
    y, x = across // 7, across % 7
    torch.testing.assert_close(x * 5 + y, down)


def test_published_order_jumps_by_a_stripe_width_at_each_border_of_an_even_map():
    for path in scan_order(64, 64, 4):
        lengths = steps(path, 64)
        assert sorted(set(lengths)) == [1, 4]
        assert (lengths == 4).sum() == 15


@pytest.mark.parametrize("shifted", [False, True])
def test_continuous_order_always_steps_to_a_neighbour(shifted):
    for size, stripe_width in SIZES_AND_WIDTHS:
        for path in scan_order(*size, stripe_width, shifted=shifted, continuous=True):
            assert (steps(path, size[1]) == 1).all(), (size, stripe_width)


def test_continuous_order_equals_the_published_one_where_that_has_no_jump():
    torch.testing.assert_close(scan_order(7, 9, 4, continuous=True), scan_order(7, 9, 4))


def test_map_narrower_than_the_half_stripe_is_read_row_by_row():
    assert stripe_path(4, 3, 8, shifted=True).tolist() == list(range(12))


def test_a_table_made_in_inference_mode_can_be_used_in_training():
    with torch.inference_mode():
        order = scan_order(3, 11, 4)
    assert not order.is_inference()


def test_table_of_one_size_is_made_once():
    assert scan_order(6, 5, 4) is scan_order(6, 5, 4)


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_empty_size_is_refused(shape):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        scan_order(*shape)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("continuous", [False, True])
def test_the_order_of_an_exported_program_is_that_of_the_table(shifted, continuous):
    options = {"shifted": shifted, "continuous": continuous}
    for height, width, stripe in itertools.product((1, 2, 5, 8), (1, 3, 4, 10), (1, 3, 4, 8)):
        assert torch.equal(
            traced_order(height, width, stripe, **options), scan_order(height, width, stripe, **options)
        ), (height, width, stripe)
