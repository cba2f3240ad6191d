"""The layer equals PyTorch's multi-head attention, and its edits change only what they name."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from voxelwave.kernels.attention.baselines import EfficientAttention, SoftmaxAttention
from voxelwave.kernels.attention.layer import Edits, Gates, MixingLayer
from voxelwave.kernels.attention.mixer import CS, NC

F64 = torch.float64


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return MixingLayer(8, 4, SoftmaxAttention()).double()


def test_softmax_layer_equals_multi_head_attention_of_pytorch(layer, generator):
    x = torch.randn(2, 5, 8, generator=generator, dtype=F64)
    context = torch.randn(2, 7, 8, generator=generator, dtype=F64)
    known = nn.MultiheadAttention(8, 4, batch_first=True, dtype=F64)
    with torch.no_grad():
        known.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        known.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        known.out_proj.weight.copy_(layer.output.weight)
        known.out_proj.bias.copy_(layer.output.bias)
    assert_close(layer(x, context, pattern=NC).out, known(x, context, context)[0])


@pytest.mark.parametrize("mixer", [SoftmaxAttention(), EfficientAttention()], ids=["softmax", "efficient"])
def test_weights_that_are_not_changed_give_the_same_output(layer, mixer, generator):
    x = torch.randn(2, 5, 8, generator=generator, dtype=F64)
    layer.mixer = mixer
    plain = layer(x, pattern=CS).out
    layer.edits = Edits(edit_weights=lambda weights: weights)
    assert_close(layer(x, pattern=CS).out, plain)


def test_a_gate_of_0_and_a_head_set_to_0_are_the_same(layer, generator):
    x = torch.randn(2, 5, 8, generator=generator, dtype=F64)
    layer.edits = Edits(gates=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    gated = layer(x).out
    layer.edits = Edits(edit_heads=lambda z: torch.cat([z[:, :1], 0 * z[:, 1:2], z[:, 2:]], 1))
    assert_close(layer(x).out, gated)
    layer.edits = Edits()
    assert not torch.allclose(layer(x).out, gated)


def test_a_bias_through_the_door_adds_to_that_of_the_call(layer, generator):
    x = torch.randn(2, 5, 8, generator=generator, dtype=F64)
    bias = torch.randn(1, 4, 5, 5, generator=generator, dtype=F64)
    expected = layer(x, bias=2 * bias).out
    layer.edits = Edits(bias=bias)
    assert_close(layer(x, bias=bias).out, expected)


def test_a_mixer_without_scores_refuses_a_bias(layer):
    layer.mixer = EfficientAttention()
    layer.edits = Edits(bias=torch.zeros(5, 5))
    with pytest.raises(TypeError, match="bias"):
        layer(torch.zeros(1, 5, 8, dtype=F64))


def test_gates_of_a_module_multiply_the_heads_and_are_handed_on(layer, generator):
    class HalfGates(nn.Module):
        def forward(self, x):
            return Gates(torch.full((*x.shape[:2], 4), 0.5), x.new_zeros(()))

    x = torch.randn(2, 5, 8, generator=generator, dtype=F64)
    bias = layer.output.bias
    plain = layer(x).out
    layer.gates = HalfGates()
    result = layer(x)
    assert_close(result.out - bias, (plain - bias) / 2)
    assert result.gates.gates.shape == (2, 5, 4)


def test_streaming_through_the_layer_equals_one_call(generator):
    torch.manual_seed(0)
    layer = MixingLayer(8, 4, EfficientAttention(), key_heads=2, qk_norm=True).double()
    x = torch.randn(2, 6, 8, generator=generator, dtype=F64)
    outs, state = [], None
    for t in range(6):
        result = layer(x[:, t : t + 1], pattern=CS, state=state)
        outs.append(result.out)
        state = result.state
    assert_close(torch.cat(outs, 1), layer(x, pattern=CS).out)
