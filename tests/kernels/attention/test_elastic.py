"""Nested submodels: an extracted size equals the masked parent, sizes are nested, and costs equal the counts."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.associative import AssociativeMemory
from voxelwave.kernels.attention.baselines import SoftmaxAttention
from voxelwave.kernels.attention.elastic import (
    ActiveNorm,
    ElasticLayer,
    ElasticStack,
    LayerSize,
    SizeRouter,
    channel_importance,
    depth_importance,
    draw_budget,
    elastic_loss,
    head_importance,
    layer_cost,
    prefix_mask,
    scan_ranking,
)
from voxelwave.kernels.attention.mixer import CS
from voxelwave.kernels.attention.recurrent import RecurrentAttention

F64 = torch.float64
FULL = LayerSize(8, 4, 12)
SIZES = [LayerSize(*size) for size in itertools.product((3, 8), (1, 4), (5, 12))]


def made(mixer=None, depth=1):
    torch.manual_seed(0)
    layers = [ElasticLayer(FULL, 3, mixer or SoftmaxAttention()).double() for _ in range(depth)]
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
    return layers[0] if depth == 1 else ElasticStack(layers)


@pytest.fixture
def x(generator):
    return torch.randn(2, 6, 8, generator=generator, dtype=F64)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mixer", [SoftmaxAttention(), AssociativeMemory()], ids=["softmax", "linear"])
def test_a_size_cut_out_equals_the_masked_parent(size, mixer, x):
    layer = made(mixer)
    masked = layer(x, layer.masks(size), pattern=CS)
    small = layer.extract(size)
    assert not masked[..., size.embedding :].any()
    assert_close(small(x[..., : size.embedding], pattern=CS), masked[..., : size.embedding])
    assert sum(p.numel() for p in small.parameters()) == layer_cost(size, 3)


def test_the_full_size_is_the_parent(x):
    layer = made()
    assert_close(layer(x, layer.masks(FULL)), layer(x))
    assert_close(layer.extract(FULL)(x), layer(x))


def test_a_norm_over_active_channels_equals_that_of_the_cut_model_and_over_all_does_not(x):
    norm = ActiveNorm(8).double()
    mask = prefix_mask(3, 8, x)
    cut = torch.nn.functional.layer_norm(x[..., :3], (3,))
    assert_close(norm(x, mask)[..., :3], cut)
    naive = torch.nn.functional.layer_norm(x * mask, (8,))[..., :3]
    assert (naive - cut).abs().max() > 0.1


def test_sizes_are_nested(x):
    layer = made()
    for small, large in itertools.pairwise([LayerSize(3, 1, 5), LayerSize(5, 2, 9), FULL]):
        for a, b in zip(layer.masks(small), layer.masks(large), strict=True):
            assert (a <= b).all()


def test_a_skipped_layer_hands_its_input_on_and_a_stack_is_cut_like_a_layer(x):
    stack = made(depth=3)
    sizes = [LayerSize(5, 2, 9), None, LayerSize(5, 4, 5)]
    masked = stack(x, sizes)
    small = stack.extract(sizes)
    assert len(small.layers) == 2
    assert_close(small(x[..., :5]), masked[..., :5])
    assert_close(stack(x, [FULL, None, None]), stack.layers[0](x))
    with pytest.raises(ValueError, match="the same embedding"):
        stack.extract([LayerSize(5, 2, 9), None, FULL])


def test_sorting_the_units_changes_only_their_order(x, generator):
    layer = made()
    before = layer(x)
    embedding, heads, neurons = (torch.randperm(n, generator=generator) for n in FULL)
    layer.reorder(embedding, heads, neurons)
    assert_close(layer(x[..., embedding]), before[..., embedding])


def test_importance_finds_the_strong_units(generator):
    activations = torch.randn(4, 9, 5, generator=generator) * torch.tensor([1.0, 9.0, 3.0, 0.1, 5.0])
    assert channel_importance(activations).argsort(descending=True).tolist() == [1, 4, 2, 0, 3]
    q = torch.randn(2, 3, 9, 4, generator=generator) * torch.tensor([1.0, 5.0, 2.0]).view(3, 1, 1)
    assert head_importance(q).argsort(descending=True).tolist() == [1, 2, 0]
    full = torch.ones(3)
    assert_close(depth_importance(full, [full, 0 * full, 0.5 * full]), torch.tensor([0.0, 1.0, 0.25]))


def test_scan_heads_are_ranked_within_their_group_and_channels_in_all_heads():
    strength = torch.tensor([1.0, 9.0, 2.0, 8.0, 7.0, 3.0])
    s = strength.view(1, 1, 6, 1) * torch.tensor([0.1, 1.0, 0.5]) * torch.ones(2, 4, 6, 3)
    heads, channels = scan_ranking(s, 2, 2)
    assert heads.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert channels.tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="groups must divide"):
        scan_ranking(s, 4, 2)


def test_the_router_learns_to_meet_the_cost_of_each_budget():
    torch.manual_seed(0)
    router = SizeRouter(2, (2, 4, 8))
    optimiser = torch.optim.Adam(router.parameters(), 0.02)
    logits = torch.zeros(1, 3)
    for step in range(300):
        optimiser.zero_grad()
        _, count = router(step % 2, temperature=0.5)
        elastic_loss(logits, logits, count, (2.0, 8.0)[step % 2]).backward()
        optimiser.step()
    for budget, wanted in ((0, 2), (1, 8)):
        mask, count = router(budget, temperature=0.1, hard=True)
        assert round(count.item()) == wanted
        assert mask.sum().round() == wanted


def test_the_second_stage_draws_large_budgets_more_often(generator):
    draws = [torch.tensor([draw_budget(3, stage, generator) for _ in range(600)]).bincount() for stage in (1, 2)]
    assert draws[0].max() < 1.3 * draws[0].min()
    assert draws[1][2] > 2 * draws[1][0]


def test_mixers_with_parameters_and_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="mixer must have no parameters"):
        ElasticLayer(FULL, 3, RecurrentAttention(4, 3))
    with pytest.raises(ValueError, match="size must be between"):
        made().extract(LayerSize(9, 4, 12))
