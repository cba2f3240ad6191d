"""The form of a dynamical system: each model's outputs are its map times the input, and parts can be exchanged."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from voxelwave.kernels.attention.associative import AssociativeMemory
from voxelwave.kernels.attention.dynamical import (
    DualityAttention,
    DynamicalSystem,
    duality_system,
    gated_rnn_system,
    linear_attention_system,
    state_space_system,
)
from voxelwave.kernels.attention.mixer import CS, NS, attention_map
from voxelwave.kernels.scan.selective import selective_scan

F64 = torch.float64
L, N, D = 9, 4, 3


@pytest.fixture
def random(generator):
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)


@pytest.mark.parametrize("normaliser", ["sum", "learned"])
def test_linear_attention_is_a_system(normaliser, random):
    q, k, v = random(1, 2, L, N), random(1, 2, L, N), random(1, 2, L, D)
    phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
    eta = None if normaliser == "sum" else random(1, 2, L).exp()
    system = linear_attention_system(phi_q, phi_k, normaliser=eta)
    out = system.run(v)
    assert_close(system.map()[..., 0, :, :] @ v, out)
    if eta is None:
        assert_close(out, AssociativeMemory("elu")(q, k, v, pattern=CS).out)
    else:
        assert_close(out, (phi_q @ phi_k.mT).tril() @ v / eta.unsqueeze(-1))


def test_the_state_space_model_of_the_scan_is_a_system(random):
    delta, b, c, u = F.softplus(random(1, L, D)), random(1, L, N), random(1, L, N), random(1, L, D)
    a, d = random(N, D).exp(), random(D)
    system = state_space_system(delta, a, b, c, d)
    out = system.run(u)
    assert_close(
        selective_scan(
            u.mT.contiguous(), delta.mT.contiguous(), -a.mT.contiguous(), b.mT.contiguous(), c.mT.contiguous(), d
        ).mT,
        out,
    )
    assert_close((system.map() @ u.mT.unsqueeze(-1)).squeeze(-1).mT, out)


def test_duality_is_a_masked_product_of_queries_and_keys(random):
    x, q, k, v = random(1, L), random(1, L, N), random(1, L, N), random(1, L, D)
    a = F.softplus(x).mul(-0.7).exp()
    assert_close(a, torch.sigmoid(-x) ** 0.7)  # exp(-softplus x) = sigmoid(-x)
    lower = torch.stack([torch.stack([a[0, s + 1 : t + 1].prod() * (s <= t) for s in range(L)]) for t in range(L)])
    system = duality_system(x, 0.7, k, q)
    assert_close(system.map()[:, 0], (q @ k.mT) * lower)
    assert_close(system.run(v), ((q @ k.mT) * lower) @ v)


def test_linear_attention_with_decay_is_duality_with_keys_and_queries(random):
    q, k, v = random(1, 2, L, N), random(1, 2, L, N), random(1, 2, L, D)
    x = torch.full((1, 2, L), 0.3, dtype=F64)
    decay = torch.sigmoid(torch.tensor(-0.3, dtype=F64)).item()
    expected = AssociativeMemory("identity", "decay", decay=decay)(q, k, v, pattern=CS).out
    assert_close(duality_system(x, 1.0, k, q).run(v), expected)


def test_changing_only_the_decay_turns_duality_into_linear_attention(random):
    q, k, v = random(1, 2, L, N), random(1, 2, L, N), random(1, 2, L, D)
    system = duality_system(random(1, 2, L), 1.0, k, q)
    kept = system._replace(decay=torch.ones_like(system.decay))
    assert_close(kept.run(v), AssociativeMemory("identity")(q, k, v, pattern=CS).out)


@pytest.mark.parametrize("power", [None, 2.0])
def test_a_gated_recurrent_network_is_a_system(power, random):
    forget, receive, read, u = (random(1, L, D) for _ in range(4))
    system = gated_rnn_system(forget, receive, read, reversed_power=power)
    h, expected = torch.zeros(1, D, dtype=F64), []
    for t in range(L):
        gate = torch.sigmoid(forget[:, t]) if power is None else torch.sigmoid(-forget[:, t]) ** power
        h = gate * h + torch.sigmoid(receive[:, t]) * u[:, t]
        expected.append(torch.sigmoid(read[:, t]) * h)
    assert_close(system.run(u), torch.stack(expected, 1))
    assert_close((system.map() @ u.mT.unsqueeze(-1)).squeeze(-1).mT, system.run(u))


def test_what_goes_straight_through_stands_on_the_diagonal():
    zeros, ones = torch.zeros(4, 1, 1), torch.ones(4, 1, 1)
    assert_close(DynamicalSystem(ones, zeros, ones, torch.full((4, 1), 3.0)).map()[0], 3 * torch.eye(4))


def test_the_mixer_is_the_system_and_its_two_directions_share_the_diagonal(random):
    torch.manual_seed(0)
    mixer = DualityAttention(2, N).double()
    q, k = random(1, 2, L, N), random(1, 2, L, N)
    x = torch.einsum("bhld,hd->bhl", k, mixer.gate) + mixer.gate_bias.unsqueeze(1)
    system = duality_system(x, 1.0, k, q * mixer.scale)
    forward = attention_map(mixer, q, k, pattern=CS)
    assert_close(forward, system.map()[:, :, 0])
    both = attention_map(mixer, q, k, pattern=NS)
    assert_close(both.tril(), forward)
    assert both.triu(1).any()
