"""Mixture of heads: the gates follow the equations, and have known values in the limits."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.baselines import EfficientAttention, SoftmaxAttention
from voxelwave.kernels.attention.layer import MixingLayer
from voxelwave.kernels.attention.mixer import CS
from voxelwave.kernels.attention.mixture_of_heads import (
    HeadGates,
    attend_where_gated,
    gates_from_query_norms,
    reference,
)
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


def made(**options):
    torch.manual_seed(0)
    return HeadGates(6, 8, **options).double()


@pytest.mark.parametrize(("shared", "active"), [(2, 4), (2, 0), (2, 6), (0, 3), (8, 0), (7, 1)])
@pytest.mark.parametrize("normalised", [True, False])
def test_gates_equal_the_reference_with_all_gradients(shared, active, normalised, generator):
    gates = made(shared=shared, active=active, normalised=normalised)
    x = torch.randn(2, 5, 6, generator=generator, dtype=F64, requires_grad=True)
    actual, expected = gates(x).gates, reference(gates, x)
    assert_close(actual, expected)
    assert ((actual != 0).sum(-1) == shared + active).all()
    upstream = torch.randn(actual.shape, generator=generator, dtype=F64)
    inputs = [x, *gates.parameters()]
    actual_gradients = torch.autograd.grad(actual, inputs, upstream, allow_unused=True, materialize_grads=True)
    assert_close(
        actual_gradients, torch.autograd.grad(expected, inputs, upstream, allow_unused=True, materialize_grads=True)
    )


@pytest.mark.parametrize("mixer", [SoftmaxAttention(), EfficientAttention()], ids=["softmax", "efficient"])
def test_routers_of_zero_with_all_heads_active_are_plain_multi_head_attention(mixer, generator):
    gates = made(shared=3, active=5)
    for parameter in gates.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 5, 8, generator=generator, dtype=F64)
    layer = MixingLayer(8, 8, mixer).double()
    plain = layer(x, pattern=CS).out
    gated = HeadGates(8, 8, shared=3, active=5).double()
    gated.load_state_dict({name: x.new_zeros(p.shape) for name, p in gated.named_parameters()})
    layer.gates = gated
    assert_close(gates(x[..., :6]).gates, torch.ones(2, 5, 8, dtype=F64))
    assert_close(layer(x, pattern=CS).out, plain)


def test_the_mean_gate_is_1(generator):
    gates = made(shared=2, active=4)(torch.randn(1, 4000, 6, generator=generator, dtype=F64)).gates
    assert_close(gates.sum(-1).mean(), torch.tensor(2.0 + 4.0, dtype=F64), rtol=0.05, atol=0)  # number of active heads


def test_balance_is_the_number_of_active_heads_when_all_are_chosen_alike_and_grows_when_they_are_not(generator):
    gates = HeadGates(6, 6, shared=0, active=2).double()
    with torch.no_grad():
        gates.route.copy_(torch.eye(6))
    pairs = torch.eye(6, dtype=F64) + torch.eye(6, dtype=F64).roll(1, 1)  # each head is active for two of six tokens
    assert_close(gates(3 * pairs.unsqueeze(0)).balance, torch.tensor(2.0, dtype=F64))
    piled = gates(3 * pairs[:1].expand(1, 6, 6)).balance
    assert piled > 2.5
    (gradient,) = torch.autograd.grad(piled, gates.route)
    assert gradient.any()


def test_gates_of_a_token_do_not_depend_on_other_tokens(generator):
    gates = made(shared=2, active=3)
    x = torch.randn(2, 7, 6, generator=generator, dtype=F64)
    assert_close(gates(x[:, :4]).gates, gates(x).gates[:, :4])


def test_equal_probabilities_choose_the_lower_heads():
    gates = made(shared=1, active=2)
    torch.nn.init.zeros_(gates.route)
    assert (gates(torch.zeros(1, 1, 6, dtype=F64)).gates[0, 0] != 0).tolist() == [True] * 3 + [False] * 5


def test_heads_with_the_longest_queries_work_without_a_router():
    q = torch.tensor([1.0, 4.0, 2.0, 3.0]).view(1, 4, 1, 1).expand(1, 4, 5, 2)
    gates = gates_from_query_norms(q, shared=1, active=2).gates
    assert gates[0, 0].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert not gates_from_query_norms(q, shared=1, active=0).gates[..., 1:].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_leaving_out_heads_that_are_not_chosen_changes_nothing(causal, masked, generator):
    q = torch.randn(2, 8, 9, 4, generator=generator, dtype=F64, requires_grad=True)
    k, v = torch.randn(2, 2, 4, 9, 4, generator=generator, dtype=F64).unbind()
    gates = made(shared=1, active=2)(torch.randn(2, 9, 6, generator=generator, dtype=F64)).gates
    mask = torch.arange(9).view(1, 1, 1, 9) != 4 if masked else None
    expected = attention(q, k, v, causal=causal, mask=mask) * gates.transpose(1, 2).unsqueeze(-1)
    out = attend_where_gated(q, k, v, gates, causal=causal, mask=mask)
    assert_close(out, expected)
    assert_close(*(torch.autograd.grad(x.sin().sum(), q, retain_graph=True)[0] for x in (out, expected)))


@pytest.mark.parametrize(("shared", "active"), [(2, 7), (9, 0), (-1, 0), (2, -1)])
def test_impossible_numbers_of_heads_are_refused(shared, active):
    with pytest.raises(ValueError, match="must be between 0"):
        HeadGates(6, 8, shared=shared, active=active)
    with pytest.raises(ValueError, match="must be between 0"):
        gates_from_query_norms(torch.zeros(1, 8, 1, 1), shared=shared, active=active)
