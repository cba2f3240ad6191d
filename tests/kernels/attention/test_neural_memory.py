"""Neural memory: the closed form of a chunk, exact recall, and the limits (the delta rule and linear attention)."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from voxelwave.kernels.attention.associative import AssociativeMemory
from voxelwave.kernels.attention.mixer import CS
from voxelwave.kernels.attention.neural_memory import MemoryGates, NeuralMemory, reference

F64 = torch.float64


def made(chunk, **options):
    torch.manual_seed(0)
    return NeuralMemory(2, 4, chunk=chunk, **options).double()


def constant(q, forget, momentum, rate):
    return MemoryGates(*(torch.full(q.shape[:3], x, dtype=F64) for x in (forget, momentum, rate)))


@pytest.fixture
def qkv(generator):
    return torch.randn(3, 1, 2, 19, 4, generator=generator, dtype=F64).unbind()


@pytest.mark.parametrize("chunk", [1, 2, 5, 19, 64])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_closed_form_is_the_recurrence_for_any_chunk(chunk, depth, qkv, generator):
    q, k, v = qkv
    gates = MemoryGates(*torch.rand(3, 1, 2, 19, generator=generator, dtype=F64))
    mixer = made(chunk, depth=depth)
    assert_close(mixer(q, k, v, gates=gates).out, reference(mixer, q, k, v, gates=gates))


def test_one_chunk_without_forgetting_and_momentum_is_linear_attention(qkv):
    q, k, v = qkv
    gates = constant(q, 0.0, 0.0, 0.3)
    out = made(19)(q, k, v, gates=gates).out
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    assert_close(out, 0.3 * (q @ k.mT).tril() @ v)


def test_chunk_1_is_the_delta_rule_which_recalls_the_pair_just_written(qkv):
    q, k, v = qkv
    gates = constant(q, 0.0, 0.0, 1.0)
    assert_close(made(1)(k, k, v, gates=gates).out, v)
    q = F.normalize(q, dim=-1)
    assert_close(made(1)(q, k, v, gates=gates).out, AssociativeMemory("identity", "delta")(q, k, v, pattern=CS).out)


def test_orthonormal_keys_are_all_recalled(generator):
    k = torch.linalg.qr(torch.randn(1, 2, 4, 4, generator=generator, dtype=F64)).Q
    v = torch.randn(1, 2, 4, 3, generator=generator, dtype=F64)
    state = made(1)(k, k, v, gates=constant(k, 0.0, 0.0, 1.0)).state
    assert_close(k @ state.memory[0].mT, v)


def test_full_forgetting_erases(qkv):
    q, k, v = qkv
    gates = constant(q, 0.0, 0.0, 1.0)
    gates.forget[..., 10] = 1.0
    gates.rate[..., 10] = 0.0
    mixed = made(1)(q[:, :, :11], k[:, :, :11], v[:, :, :11], gates=MemoryGates(*(g[..., :11] for g in gates)))
    assert not mixed.out[:, :, 10].any()
    assert not mixed.state.memory[0].any()


@pytest.mark.parametrize("depth", [1, 2])
def test_without_adaptation_a_memory_is_only_read(depth, qkv):
    q, k, v = qkv
    state = made(5, depth=depth)(q, k, v).state
    reader = made(5, depth=depth, adapts=False)
    mixed = reader(q, k, v, state=state._replace(surprise=tuple(torch.ones_like(s) for s in state.surprise)))
    assert_close(mixed.state.memory, state.memory)
    assert_close(mixed.out, reader(q, -k, 7 * v, state=state).out)


def test_the_memory_of_a_million_tokens_has_the_size_of_that_of_one(qkv):
    one, many = (made(5)(*(x[:, :, :n] for x in qkv)).state for n in (1, 19))
    assert [m.shape for m in one.memory + one.surprise] == [m.shape for m in many.memory + many.surprise]


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="depth must be 1 or 2"):
        made(4, depth=3)
