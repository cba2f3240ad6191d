"""Sections 6 and 7: planted sinks are found, and calibration takes exactly the named part of their weight."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.edits import intervene
from voxelwave.attention_analysis.handmade import map_model, planted_classifier, sink_map, uniform_map
from voxelwave.attention_analysis.sinks import (
    activation_sinks,
    attention_sinks,
    calibrate,
    calibration_edit,
    choose_heads,
    column_means,
    massive_dimensions,
    relative_columns,
    sink_relevance,
    without_keys,
)
from voxelwave.attention_analysis.trace import Head

F64 = torch.float64
LENGTH = 40


def mixed(columns, share=0.5):
    """Uniform attention, of which a share goes to some columns."""
    a = (1 - share) * uniform_map(LENGTH)
    for column in columns:
        a += share / len(columns) * sink_map(LENGTH, column)
    return a


@pytest.mark.parametrize("columns", [(0,), (7,), (3, 20), (0, 10, 29)])
@pytest.mark.parametrize("alpha", [5.0, None])
def test_planted_sinks_are_found_and_no_others(columns, alpha):
    a = 0.1 / LENGTH + 0.9 / len(columns) * torch.zeros(LENGTH, LENGTH, dtype=F64)
    a[:, list(columns)] += 0.9 / len(columns)
    found = attention_sinks(a, causal=False, alpha=alpha)
    assert found.nonzero().flatten().tolist() == list(columns)


def test_planted_sinks_of_a_causal_map_are_found():
    means = column_means(mixed([10], 0.9), causal=True)
    assert attention_sinks(mixed([10], 0.9), causal=True)[10]
    assert_close(column_means(sink_map(LENGTH, 10), causal=True)[10], torch.tensor(1.0, dtype=F64))
    assert means.argmax() == 10


def test_uniform_attention_has_no_sink():
    assert not attention_sinks(uniform_map(LENGTH, causal=False), causal=False).any()


def test_the_planted_massive_dimension_and_its_token_are_found(generator):
    x = torch.randn(10, 30, 600, generator=generator, dtype=F64)
    x[:, 4, 17] = 4000
    found = massive_dimensions(x)
    assert found.nonzero().flatten().tolist() == [17]
    tokens = activation_sinks(x, found)
    assert tokens[:, 4].all()
    assert tokens.sum() == 10
    assert not activation_sinks(x, torch.zeros(600, dtype=torch.bool)).any()


@pytest.mark.parametrize("silent", [True, False])
def test_a_sink_is_idle_if_its_value_is_0(generator, silent):
    a = torch.full((6, 6), 0.1, dtype=F64)
    a[:, 2] = 0.5
    model = map_model([a[None]], channels=6)
    x = torch.randn(20, 6, 6, generator=generator, dtype=F64)
    if silent:
        x[:, 2] = 0
    passed_on = x[:, -1] @ model.readout.mT
    added = model(x) - passed_on

    def angle(out):  # without the sink, the row sum is restored, which scales what the layer adds
        return 1 - torch.nn.functional.cosine_similarity(out - passed_on, added).mean()

    assert sink_relevance(model, x, angle, 0, torch.arange(6) == 2).idle == silent


def test_keys_can_be_left_out():
    a = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]], dtype=F64)
    expected = torch.tensor([[5 / 7, 0, 2 / 7], [0, 1, 0]], dtype=F64)
    assert_close(without_keys(a, torch.tensor([False, True, False])), expected)


# calibration


@pytest.fixture
def maps(generator):
    a = torch.rand(3, 2, LENGTH, LENGTH, generator=generator, dtype=F64).tril()
    return a / a.sum(-1, keepdim=True)


@pytest.fixture
def sinks():
    return torch.isin(torch.arange(LENGTH), torch.tensor([0, 5, 9]))


def test_calibration_keeps_row_sums_zeros_and_ratios(maps, sinks):
    after = calibrate(maps, sinks, beta=0.4)
    assert_close(after.sum(-1), torch.ones_like(after.sum(-1)))
    assert (after >= 0).all()
    assert torch.equal(after == 0, maps == 0)
    assert torch.equal(after[..., 0, :], maps[..., 0, :])
    assert_close(after[..., 1:, [5, 9]], 0.4 * maps[..., 1:, [5, 9]])
    others = [0, 1, 2, 3]
    assert_close(after[..., 10:, others] / after[..., 10:, :1], maps[..., 10:, others] / maps[..., 10:, :1])


def test_calibration_with_beta_1_or_without_sinks_is_the_identity(maps, sinks):
    assert torch.equal(calibrate(maps, sinks, beta=1.0), maps)
    assert torch.equal(calibrate(maps, torch.zeros(LENGTH, dtype=torch.bool)), maps)


def test_the_planted_signal_gains_the_freed_weight(maps, sinks):
    after = calibrate(maps, sinks, beta=0.4)
    on_sinks = maps[..., [5, 9]].sum(-1)
    expected = maps[..., 20] * (1 + 0.6 * on_sinks / (1 - on_sinks))
    assert_close(after[..., 1:, 20], expected[..., 1:])


def test_a_row_of_sinks_only_stays():
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)
    assert torch.equal(calibrate(a, torch.tensor([False, True])), a)


def test_the_head_with_a_harmful_sink_is_selected_and_accuracy_rises(generator):
    count, length = 400, 12
    maps = torch.full((3, length, length), 0.02, dtype=F64)
    maps[0, :, 5], maps[0, :, 3] = 0.5, 0.3  # a strong signal beside a sink without harm
    maps[1, :, 5], maps[1, :, 7] = 0.3, 0.5  # the signal, and a sink with noise
    maps[2, :, 1:6] = 0.16
    maps = maps / maps.sum(-1, keepdim=True)
    model, vectors = planted_classifier(torch.tensor([0.0, 1.0, 0.0]), classes=2, maps=maps)
    values = model.blocks[0].mixing.value.weight[6:12]
    target = torch.randint(2, (count,), generator=generator)
    x = torch.zeros(count, length, 18, dtype=F64)
    want = vectors[target] - vectors[1 - target]  # the value that the head should see
    x[:, 5] = want @ torch.linalg.pinv(values).mT
    noise = 3 * torch.randn(count, 1, generator=generator, dtype=F64) * (vectors[0] - vectors[1])
    x[:, 7] = noise @ torch.linalg.pinv(values).mT
    x[..., :2] = 0

    def accuracy():
        return float((model(x).argmax(1) == target).double().mean())

    plain = accuracy()
    heads = [Head(0, h) for h in range(3)]
    found = choose_heads(model, heads, accuracy, causal=False, beta=0.1)
    assert [gain.head for gain in found] == [Head(0, 1)]
    with intervene(model, [calibration_edit(Head(0, 1), causal=False, beta=0.1)]):
        assert accuracy() == plain + found[0].gain > plain
    assert choose_heads(model, heads, accuracy, causal=False, layers=1) == []  # first and last layers are left out


def test_relative_columns_are_1_for_uniform_attention_and_large_for_a_sink():
    for causal in (True, False):
        flat = uniform_map(200, causal=causal)
        assert_close(relative_columns(flat, causal=causal), torch.ones(200, dtype=flat.dtype))
    sink = relative_columns(sink_map(200, 30), causal=True)
    assert int(sink.argmax()) == 30
    assert sink[30] > 5 > sink[31:].max()
