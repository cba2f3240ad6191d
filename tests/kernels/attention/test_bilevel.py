"""Bi-level routing: its limits, grids with one to three axes, and padded regions, which must not affect the result."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.bilevel import BilevelAttention, LocalEnhancement, reference, regions_of
from voxelwave.kernels.attention.mixer import NC, attention_map
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


def random_qkv(length, generator, key_length=None):
    sizes = (length, key_length or length, key_length or length)
    return tuple(torch.randn(2, 2, n, 4, generator=generator, dtype=F64) for n in sizes)


@pytest.mark.parametrize("mixer", [BilevelAttention((5, 6), (2, 3), 6), BilevelAttention((5, 6), (5, 6), 1)], ids=str)
def test_all_regions_or_one_region_is_exactly_plain_attention(mixer, generator):
    q, k, v = random_qkv(30, generator)
    assert torch.equal(mixer(q, k, v).out, attention(q, k, v))


def test_more_regions_than_there_are_is_plain_attention(generator):
    q, k, v = random_qkv(30, generator)
    assert_close(BilevelAttention((5, 6), (2, 3), 99)(q, k, v).out, attention(q, k, v))


def test_regions_that_choose_themselves_are_window_attention(generator):
    q, k, v = random_qkv(16, generator)
    region = (torch.arange(4)[:, None] // 2 * 2 + torch.arange(4) // 2).flatten()
    k = k + 50 * torch.eye(4, dtype=F64)[region]
    q = q + 50 * torch.eye(4, dtype=F64)[region]
    mixed = BilevelAttention((4, 4), (2, 2), 1)(q, k, v)
    assert mixed.extras.chosen[0, 0, :, 0].tolist() == [0, 1, 2, 3]
    assert_close(mixed.out, attention(q, k, v, mask=region.unsqueeze(1) == region))


@pytest.mark.parametrize(
    ("grid", "region", "key_grid"),
    [((13,), (4,), None), ((5, 7), (2, 3), None), ((3, 4, 5), (2, 2, 2), None), ((5, 7), (2, 3), (4, 6))],
    ids=str,
)
@pytest.mark.parametrize("per_head", [False, True])
def test_grids_of_one_to_three_axes_equal_the_reference(grid, region, key_grid, per_head, generator):
    length, key_length = (int(torch.tensor(g).prod()) for g in (grid, key_grid or grid))
    q, k, v = random_qkv(length, generator, key_length)
    mixer = BilevelAttention(grid, region, 2, key_grid, per_head)
    mask = torch.rand(2, 1, 1, key_length, generator=generator) < 0.8  # items with different numbers of valid keys
    for given in (None, mask):
        assert_close(mixer(q, k, v, pattern=NC, mask=given).out, reference(mixer, q, k, v, pattern=NC, mask=given))


def test_tokens_that_fill_up_a_region_take_no_weight(generator):
    q, k, _ = random_qkv(35, generator)
    weights = attention_map(BilevelAttention((5, 7), (2, 3), 2), q, k)
    assert_close(weights.sum(-1), torch.ones(2, 2, 35, dtype=F64))


def test_identical_regions_choose_the_first_ones():
    x = torch.ones(1, 1, 12, 4, dtype=F64)
    assert BilevelAttention((12,), (3,), 2)(x, x, x).extras.chosen[0, 0].tolist() == [[0, 1]] * 4


def test_a_moved_patch_is_found_in_its_region(generator):
    fixed = torch.randn(1, 1, 64, 8, generator=generator, dtype=F64).view(1, 1, 8, 8, 8)
    moving = fixed.roll((4, -2), (2, 3))
    q, k = fixed.flatten(2, 3), moving.flatten(2, 3)
    chosen = BilevelAttention((8, 8), (2, 2), 1)(q, k, k, pattern=NC).extras.chosen[0, 0, :, 0]
    where = (torch.arange(4)[:, None] + 2) % 4 * 4 + (torch.arange(4) - 1) % 4
    assert (chosen == where.flatten()).float().mean() > 0.7


def test_the_choice_has_no_gradient_and_the_attention_has(generator):
    q, k, v = (x.requires_grad_() for x in random_qkv(16, generator))
    mixed = BilevelAttention((4, 4), (2, 2), 1)(q, k, v)
    gradients = torch.autograd.grad(mixed.out.sum(), (q, k, v))
    assert all(g.any() for g in gradients)
    assert not mixed.extras.chosen.requires_grad


def test_seven_regions_along_each_axis():
    assert regions_of((56, 30)) == (8, 5)


@pytest.mark.parametrize("grid", [(12,), (3, 4), (2, 3, 2)], ids=str)
def test_local_enhancement_is_a_convolution_of_each_channel_on_the_grid(grid, generator):
    v = torch.randn(2, 2, 12, 3, generator=generator, dtype=F64)
    mask = torch.rand(2, 1, 1, 12, generator=generator) < 0.7
    module = LocalEnhancement(2, 3, len(grid), kernel=3).double()
    kernel = module.convolution.weight.unflatten(0, (2, 3)).squeeze(2)
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(12, -1)
    expected = module.convolution.bias.view(2, 1, 3).expand(2, 2, 12, 3).clone()
    for i in range(12):
        for j in range(12):
            shift = places[j] - places[i]
            if shift.abs().max() <= 1:
                tap = kernel[(slice(None), slice(None), *(shift + 1).tolist())]
                expected[:, :, i] += tap * v[:, :, j] * mask[:, 0, :, j, None]
    assert_close(module(v, grid, mask), expected)


def test_a_grid_that_does_not_fit_is_refused(generator):
    with pytest.raises(ValueError, match=r"q must have 20 tokens for its grid \(4, 5\), got 21"):
        BilevelAttention((4, 5), (2, 2), 2)(*random_qkv(21, generator))
    with pytest.raises(ValueError, match="as many axes"):
        BilevelAttention((4, 5), (2,), 2)
