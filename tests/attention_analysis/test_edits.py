"""Edits act at the named place only, in order, and leave no trace."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.edits import (
    HeadGate,
    HeadReplacement,
    ResidualEdit,
    ScoreBias,
    WeightEdit,
    intervene,
    remove_heads,
)
from voxelwave.attention_analysis.handmade import InductionModel, planted_classifier
from voxelwave.attention_analysis.trace import attention_layers, record
from voxelwave.kernels.attention.layer import Edits

F64 = torch.float64


@pytest.fixture
def model():
    return planted_classifier(torch.tensor([1.0, -2.0, 0.5, 0.0]))[0]


@pytest.fixture
def tokens(generator):
    x = torch.randn(2, 5, 24, generator=generator, dtype=F64)
    x[..., :3] = 0
    return x


def test_no_edit_gives_the_same_bytes(model, tokens):
    plain = model(tokens)
    with intervene(model, []):
        assert torch.equal(model(tokens), plain)


def test_the_model_is_as_before_also_after_an_exception(model, tokens):
    plain = model(tokens)
    edits = [
        HeadGate(0, torch.zeros(4)),
        ScoreBias(0, torch.ones(5)),
        WeightEdit(0, lambda a: a),
        HeadReplacement(0, torch.zeros(2, 4, 5, 6)),
        ResidualEdit("blocks.0.after", torch.zeros(2, 5, 24)),
    ]
    with intervene(model, edits):
        assert model(tokens).abs().max() == 0
    with pytest.raises(RuntimeError), intervene(model, edits):
        model(tokens[..., :3])
    assert torch.equal(model(tokens), plain)
    assert attention_layers(model)["blocks.0.mixing"].edits == Edits()


def test_nested_and_listed_edits_apply_in_order(model, tokens):
    double, add = WeightEdit(0, lambda a: 2 * a), WeightEdit(0, lambda a: a + 1)
    with intervene(model, [double, add]):
        listed = record(model, tokens)[0].map()
    with intervene(model, [double]), intervene(model, [add]):
        assert torch.equal(record(model, tokens)[0].map(), listed)
    assert_close(listed, 2 * record(model, tokens)[0].map() + 1)


def test_edits_of_some_heads_leave_the_others(model, tokens):
    plain = record(model, tokens)[0]
    with intervene(model, [WeightEdit(0, lambda a: a.flip(-1), heads=[1])]):
        changed = record(model, tokens)[0].map()
    assert torch.equal(changed[:, [0, 2, 3]], plain.map()[:, [0, 2, 3]])
    assert torch.equal(changed[:, 1], plain.map()[:, 1].flip(-1))
    with intervene(model, [HeadReplacement(0, torch.zeros(2, 1, 5, 6), heads=[2])]):
        heads = record(model, tokens)[0].heads
    assert heads[:, :, 2].abs().max() == 0
    assert torch.equal(heads[:, :, 3], plain.heads[:, :, 3])


def test_biases_of_tensors_and_functions_add_up(model, tokens):
    bias = torch.arange(5.0, dtype=F64)
    with intervene(model, [ScoreBias(0, bias), ScoreBias(0, lambda q, k: 2 * bias)]):
        found = record(model, tokens)[0].map()
    plain = record(model, tokens)[0].map()
    assert_close(found, (plain.log() + 3 * bias).softmax(-1))


def test_a_replaced_residual_stream_replaces_what_follows(generator):
    model = InductionModel()
    clean = model.embed(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[3, 2, 1, 0]]), torch.tensor([1]))
    other = model.embed(torch.tensor([[3, 2, 1, 0]]), torch.tensor([[3, 2, 1, 0]]), torch.tensor([1]))
    stream = record(model, other).residuals["blocks.0.after"][0]
    with intervene(model, [ResidualEdit("blocks.0.after", stream)]):
        assert torch.equal(model(clean), model(other))


def test_removed_heads_have_output_0(model, tokens):
    with intervene(model, remove_heads(model, [(0, 0), (0, 3)])):
        heads = record(model, tokens)[0].heads
    assert [bool(heads[:, :, h].any()) for h in range(4)] == [False, True, True, False]


def test_wrong_edits_are_reported_and_change_nothing(model, tokens):
    with pytest.raises(ValueError, match="numbers below 1, got 3"), intervene(model, [HeadGate(3, torch.ones(4))]):
        pass
    with (
        pytest.raises(ValueError, match="must be one of"),
        intervene(model, [ResidualEdit("x", tokens)]),
    ):
        pass
    with (
        pytest.raises(ValueError, match="must keep the shape"),
        intervene(model, [WeightEdit(0, lambda a: a[..., :1])]),
    ):
        model(tokens)
    assert attention_layers(model)["blocks.0.mixing"].edits == Edits()
