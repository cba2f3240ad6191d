"""Section 11: exactly the heads that read the group depend on it, and reinforcement turns the output towards them."""

from itertools import pairwise

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from voxelwave.attention_analysis.divergence import (
    Divergence,
    dependence,
    dependent_heads,
    divergence,
    hide_keys,
    reinforce,
    reinforce_by_layer,
    total_divergence,
    without_outliers,
)
from voxelwave.attention_analysis.edits import intervene
from voxelwave.attention_analysis.handmade import TwoStreamModel
from voxelwave.attention_analysis.trace import Head, record
from voxelwave.kernels.attention.baselines import EfficientAttention
from voxelwave.kernels.attention.layer import MixingLayer

F64 = torch.float64
READERS = {(0, 1), (1, 2), (1, 3)}
GROUP = torch.arange(11) < 6


@pytest.fixture
def run(generator):
    model = TwoStreamModel(readers=READERS)
    image = torch.randn(3, 6, 4, generator=generator, dtype=F64)
    text = torch.randn(3, 4, 4, generator=generator, dtype=F64)
    return model, model.embed(image, text, torch.zeros(3, 6, dtype=torch.bool))


def test_the_divergence_separates_readers_from_all_other_heads(run):
    found = divergence(*run, group=GROUP)
    truth = torch.tensor([[(layer, h) in READERS for h in range(4)] for layer in range(2)])
    values = found.absolute
    assert roc_auc_score(truth.flatten(), values.flatten()) == 1
    assert values[~truth].abs().max() == 0
    assert found.relative[~truth].abs().max() == 0
    assert (values[truth] > 0).all()


def test_an_input_without_the_group_gives_the_same_heads(run):
    model, x = run
    without = x.clone()
    without[:, :6, model.space["content"]] = 0
    found = divergence(model, x, without=without)
    assert {tuple(i) for i in found.absolute.nonzero().tolist()} == READERS
    with pytest.raises(ValueError, match="either group"):
        divergence(model, x)


def test_hidden_keys_get_no_weight_and_rows_keep_their_sum(run):
    model, x = run
    with intervene(model, hide_keys(model, torch.arange(11) == 3)):
        a = record(model, x).maps
    assert a[..., 3].abs().max() == 0
    assert_close(a.sum(-1), torch.ones_like(a.sum(-1)))


def test_a_mechanism_without_a_bias_loses_the_keys_from_its_map(generator):
    layer = MixingLayer(8, 2, EfficientAttention()).double()
    x = torch.randn(2, 11, 8, generator=generator, dtype=F64)
    plain = record(layer, x)[0].map()
    with intervene(layer, hide_keys(layer, GROUP)):
        hidden = record(layer, x)[0].map()
    assert hidden[..., :6].abs().max() == 0
    assert_close(hidden[..., 6:], plain[..., 6:] / plain[..., 6:].sum(-1, keepdim=True))
    with intervene(layer, hide_keys(layer, torch.ones(11, dtype=torch.bool))):
        assert record(layer, x)[0].map().abs().max() == 0


def test_alpha_1_changes_nothing_and_alpha_2_doubles_the_readers(run):
    model, x = run
    plain = model(x)
    with intervene(model, reinforce(model, [Head(*r) for r in READERS], 1.0)):
        assert torch.equal(model(x), plain)
    before = record(model, x)[0].heads
    with intervene(model, reinforce(model, [Head(0, 1)], 2.0)):
        after = record(model, x)[0].heads
    assert_close(after[:, :, 1], 2 * before[:, :, 1])
    assert torch.equal(after[:, :, [0, 2, 3]], before[:, :, [0, 2, 3]])


@pytest.mark.parametrize("gain", [False, True])
def test_the_output_turns_towards_a_reinforced_head(generator, gain):
    for _ in range(200):
        rest, own, weight = torch.randn(3, 12, generator=generator, dtype=F64)
        weight = weight.abs() + 0.1 if gain else torch.ones(12, dtype=F64)
        sums = [rest + alpha * own for alpha in (1.0, 1.5, 2.0, 4.0)]
        normed = [weight * s / s.square().mean().sqrt() for s in sums]
        cosines = [float(torch.nn.functional.cosine_similarity(n, weight * own, dim=0)) for n in normed]
        assert all(a < b for a, b in pairwise(cosines))


def test_heads_are_chosen_and_reinforced_layer_by_layer(run):
    model, x = run
    edits, chosen = reinforce_by_layer(model, x, GROUP)
    assert set(chosen) <= {Head(*r) for r in READERS}
    assert len(chosen) > 0
    plain = model(x)
    with intervene(model, edits):
        assert not torch.allclose(model(x), plain)
    assert torch.equal(model(x), plain)


def test_outliers_of_size_are_set_to_0():
    absolute = torch.tensor([[1.0, 2.0, 1.0, 20.0], [1.0, 2.0, 1.0, 20.0]])
    without = torch.tensor([[1.0, 1.0, 1.0, 50.0], [1.0, 1.0, 1.0, 1.0]])
    found = without_outliers(Divergence(absolute, absolute, without))
    assert found.tolist() == [[1, 2, 1, 0], [1, 2, 1, 20]]
    assert dependent_heads(absolute, [1]) == [Head(1, 1), Head(1, 3)]
    assert float(total_divergence(absolute, 2)) == 44


def test_dependence_is_zero_for_heads_that_do_not_read_the_part(generator):
    model = TwoStreamModel()
    image, text = torch.randn(2, 2, 6, 4, generator=generator, dtype=F64)
    evidence = torch.zeros(2, 6, dtype=torch.bool)
    full = record(model, model.embed(image, text, evidence), weights=False)
    lacking = record(model, model.embed(torch.zeros_like(image), text, evidence), weights=False)
    found = dependence(full, lacking)
    assert found[Head(0, 1)] > 0.5
    assert [found[Head(0, h)] for h in (0, 2, 3)] == [0, 0, 0]
