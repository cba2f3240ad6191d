"""The compiled running sums agree with the plain versions, at every instruction-set level."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels import native
from voxelwave.kernels.attention.gated_scan import decaying_memory, decaying_memory_reference
from voxelwave.kernels.attention.recurrent import PrefixState, prefix_softmax
from voxelwave.kernels.attention.reference import linear_attention_reference
from voxelwave.kernels.attention.running import (
    running_memory,
    running_softmax,
    serves,
    serves_memory,
    serves_softmax,
)
from voxelwave.kernels.attention.softmax import linear_attention

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled kernels were not built")


@pytest.fixture(params=native.levels() or ("none",), autouse=True)
def level(request):
    with native.use_level(request.param):
        yield request.param


@pytest.mark.parametrize(("features", "values"), [(8, 8), (5, 33), (3, 1), (32, 64)])
@pytest.mark.parametrize("decays", [False, True])
def test_the_memory_is_that_of_the_recurrence(features, values, decays, generator):
    q, k = torch.randn(2, 2, 3, 50, features, generator=generator)
    v, start = (
        torch.randn(2, 3, 50, values, generator=generator),
        torch.randn(2, 3, features, values, generator=generator),
    )
    decay = torch.rand(2, 3, 50, generator=generator) if decays else None
    given = start.clone()
    found = running_memory(q, k, v, decay, start)
    expected = decaying_memory_reference(
        q.double(), k.double(), v.double(), None if decay is None else decay.double().log(), memory=start.double()
    )
    assert_close(found, tuple(each.float() for each in expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(start, given)


def test_parts_of_a_sequence_give_the_whole(generator):
    q, k, v = torch.randn(3, 2, 3, 40, 8, generator=generator)
    whole, last = decaying_memory(q, k, v)
    first, state = decaying_memory(q[..., :13, :], k[..., :13, :], v[..., :13, :])
    rest, after = decaying_memory(q[..., 13:, :], k[..., 13:, :], v[..., 13:, :], memory=state)
    assert_close((torch.cat([first, rest], -2), after), (whole, last), rtol=0, atol=0)


@pytest.mark.parametrize("values", [1, 16, 33])
def test_the_softmax_is_that_of_the_tokens_so_far(values, generator):
    s, v = 30 * torch.randn(2, 3, 60, generator=generator), torch.randn(2, 3, 60, values, generator=generator)
    s[0, 0, :4], s[1, 2, 20:40] = -torch.inf, -torch.inf
    v[0, 0, 2] = torch.nan  # left out by its score
    out, lse, _ = prefix_softmax(s, v)
    later = torch.ones(60, 60, dtype=torch.bool).triu(1)
    scores = s.double().unsqueeze(-2).expand(2, 3, 60, 60).masked_fill(later, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0)
    assert_close(out, (weights @ v.double().nan_to_num(0)).float(), rtol=1e-5, atol=1e-5)
    assert_close(lse, scores.logsumexp(-1).float(), rtol=1e-5, atol=1e-5)


def test_the_state_of_the_softmax_continues_it_and_is_not_changed(generator):
    s, v = torch.randn(2, 50, generator=generator), torch.randn(2, 50, 8, generator=generator)
    whole = prefix_softmax(s, v)
    first = prefix_softmax(s[:, :20], v[:, :20])
    before = PrefixState(*(each.clone() for each in first[2]))
    rest = prefix_softmax(s[:, 20:], v[:, 20:], state=first[2])
    assert_close(torch.cat([first[0], rest[0]], 1), whole[0], rtol=0, atol=0)
    assert_close(rest[2], whole[2], rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(first[2], before, strict=True))


def test_a_score_that_is_not_a_number_reaches_later_tokens_only(generator):
    s, v = torch.randn(1, 9, generator=generator), torch.randn(1, 9, 4, generator=generator)
    s[0, 5] = torch.nan
    out, lse, _ = running_softmax(s, v, torch.full((1,), -torch.inf), torch.zeros(1), torch.zeros(1, 4))
    assert out[0, :5].isfinite().all()
    assert out[0, 5:].isnan().all()
    assert torch.equal(lse.isnan(), (torch.arange(9) >= 5)[None])


@pytest.mark.parametrize(("features", "values", "key_heads"), [(8, 8, 4), (5, 33, 2), (37, 64, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_causal_efficient_attention_is_its_definition(features, values, key_heads, masked, generator):
    q = torch.randn(2, 4, 50, features, generator=generator)
    k = 20 * torch.randn(2, key_heads, 50, features, generator=generator)
    v = torch.randn(2, key_heads, 50, values, generator=generator)
    mask = torch.rand(2, 1, 1, 50, generator=generator) < 0.7 if masked else None
    assert serves(q, k, v)
    out, state = linear_attention(q, k, v, mask=mask, causal=True, return_state=True)
    expected, _ = linear_attention_reference(q.double(), k.double(), v.double(), mask=mask, causal=True)
    assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)
    if mask is None:
        first, parts = linear_attention(*(x[:, :, :21] for x in (q, k, v)), causal=True, return_state=True)
        rest, after = linear_attention(*(x[:, :, 21:] for x in (q, k, v)), causal=True, state=parts, return_state=True)
        assert_close(torch.cat([first, rest], 2), out, rtol=0, atol=0)
        assert_close(after, state, rtol=0, atol=0)


def test_gradients_and_other_types_use_the_plain_form(generator):
    q, k, v = torch.randn(3, 2, 40, 8, generator=generator)
    assert serves(q, k, v)
    assert not serves(q.double(), k, v)
    q.requires_grad_()
    assert not serves(q, k, v)
    plain, state = decaying_memory(q, k, v)
    assert_close(decaying_memory(q.detach(), k, v), (plain.detach(), state.detach()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [10, 16])
def test_strided_values_and_memories_are_read_in_their_order(values, generator):
    q, k = torch.randn(2, 2, 3, 20, 8, generator=generator)
    v = torch.randn(2, 20, values, 3, generator=generator).permute(0, 3, 1, 2)
    memory = torch.randn(2, 8, values, 3, generator=generator).permute(0, 3, 1, 2)
    found = decaying_memory(q, k, v, memory=memory)
    assert_close(found, decaying_memory(q, k, v.contiguous(), memory=memory.contiguous()), rtol=0, atol=0)
    s = torch.randn(2, 3, 20, generator=generator)
    assert_close(prefix_softmax(s, v)[0], prefix_softmax(s, v.contiguous())[0], rtol=0, atol=0)
    assert_close(linear_attention(q, k, v, causal=True), linear_attention(q, k, v.contiguous(), causal=True))
    assert found[0].is_contiguous()


def test_shapes_that_do_not_fit_do_not_reach_the_library(generator):
    q, k, v = torch.randn(3, 2, 3, 10, 4, generator=generator)
    for memory in (torch.zeros(3, 4, 4), torch.zeros(4, 3, 4, 4)):
        assert not serves_memory(q, k, v, None, memory)
    start = torch.zeros(2, 3, 4, 4)
    assert serves_memory(q, k, v, -torch.rand(2, 3, 10), start)
    for log_decay in (-torch.rand(3, 10), -torch.rand(2, 3, 10).double(), -torch.rand(2, 3, 11)):
        assert not serves_memory(q, k, v, log_decay, start)
    top = torch.zeros(2, 3)
    assert serves_softmax(q[..., 0], v, top, top, torch.zeros(2, 3, 4))
    assert not serves_softmax(q[..., 0], v, torch.zeros(3, 3), top, torch.zeros(2, 3, 4))
    assert not serves_softmax(q[:1, :, :, 0], v, top, top, torch.zeros(2, 3, 4))


def test_a_decay_with_a_gradient_keeps_it(generator):
    q, k, v = torch.randn(3, 2, 3, 10, 4, generator=generator)
    log_decay = (-torch.rand(2, 3, 10, generator=generator)).requires_grad_()
    decaying_memory(q, k, v, log_decay)[0].sum().backward()
    assert log_decay.grad.abs().max() > 0


def test_traces_and_forward_derivatives_use_the_plain_form(generator):
    q, k, v = torch.randn(3, 1, 2, 10, 4, generator=generator)
    traced = torch.jit.trace(lambda *given: decaying_memory(*given)[0], (q, k, v), check_trace=False)
    assert_close(traced(k, q, v), decaying_memory(k, q, v)[0], rtol=1e-4, atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(v, torch.ones_like(v))
        tangent = torch.autograd.forward_ad.unpack_dual(decaying_memory(q, k, dual)[0]).tangent
    assert_close(tangent, decaying_memory(q, k, torch.ones_like(v))[0], rtol=1e-4, atol=1e-4)


def test_results_do_not_depend_on_the_number_of_threads(generator):
    q, k, v = torch.randn(3, 5, 40, 24, generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((*decaying_memory(q, k, v), *prefix_softmax(q[..., 0], v)[:2]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
