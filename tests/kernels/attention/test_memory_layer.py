"""Memory beside attention: the sliding window is exact, no layer uses later tokens, and memories reach further back."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.memory_layer import MemoryLayer, PersistentTokens, reference, sliding_window_attention
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64
JOINS = ["gate", "layer", "context"]


def made(join, **options):
    torch.manual_seed(0)
    layer = MemoryLayer(8, 2, join=join, window=4, persistent=3, chunk=3, **options).double()
    torch.nn.init.zeros_(layer.memory.gate_bias)
    return layer


@pytest.mark.parametrize("window", [1, 3, 4, 13, 20])
@pytest.mark.parametrize("persistent", [0, 2])
def test_the_sliding_window_equals_an_explicit_mask_with_all_gradients(window, persistent, generator):
    inputs = [torch.randn(2, 2, 13, 4, generator=generator, dtype=F64) for _ in range(3)]
    inputs += [torch.randn(2, persistent, 4, generator=generator, dtype=F64) for _ in range(2)]
    q, k, v, k_fixed, v_fixed = (x.requires_grad_() for x in inputs)
    out = sliding_window_attention(q, k, v, window, PersistentTokens(k_fixed, v_fixed))
    age = torch.arange(13).unsqueeze(1) - torch.arange(13)
    near = (age >= 0) & (age < window)
    keys, values = (torch.cat([a.expand(2, -1, -1, -1), b], 2) for a, b in ((k_fixed, k), (v_fixed, v)))
    expected = attention(q, keys, values, mask=torch.cat([near.new_ones(13, persistent), near], 1))
    assert_close(out, expected)
    gradients = [torch.autograd.grad(x.sin().sum(), (q, k, v), retain_graph=True) for x in (out, expected)]
    assert_close(*gradients)


def test_the_near_branch_of_a_layer_equals_its_reference(generator):
    layer = made("gate")
    x = torch.randn(2, 14, 8, generator=generator, dtype=F64)
    assert_close(layer._near(x), reference(layer, x))


@pytest.mark.parametrize("join", JOINS)
def test_no_output_depends_on_later_tokens(join, generator):
    layer = made(join)
    x = torch.randn(2, 14, 8, generator=generator, dtype=F64)
    whole = layer(x)
    for t in (1, 4, 5, 11):
        assert_close(layer(x[:, :t]), whole[:, :t])


@pytest.mark.parametrize("join", JOINS)
def test_the_memory_reaches_past_the_window(join, generator):
    layer = made(join)
    x = torch.randn(1, 14, 8, generator=generator, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[:, -1].sum(), x)
    assert gradient[:, 0].any()


def test_one_token_and_wrong_options():
    for join in JOINS:
        assert made(join)(torch.zeros(1, 1, 8, dtype=F64)).shape == (1, 1, 8)
    with pytest.raises(ValueError, match="join"):
        MemoryLayer(8, 2, join="sum")
