"""The chunked recurrences equal their loops, also for gates of 0 and for sequences in pieces."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.gated_scan import (
    decaying_memory,
    decaying_memory_reference,
    gated_scan,
    gated_scan_reference,
)

F64 = torch.float64


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 37])
@pytest.mark.parametrize("gate_size", [1, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_equals_the_loop_with_all_gradients(length, gate_size, reverse, generator):
    a = torch.randn(2, length, gate_size, generator=generator, dtype=F64)  # also negative gates, and gates above 1
    a[:, length // 2] = 0
    b = torch.randn(2, length, 3, generator=generator, dtype=F64)
    h0 = torch.randn(2, 3, generator=generator, dtype=F64)
    inputs = [x.requires_grad_() for x in (a, b, h0)]
    h, last = gated_scan(a, b, h0=h0, reverse=reverse, chunk=4)
    expected, expected_last = gated_scan_reference(a, b, h0=h0, reverse=reverse)
    assert_close(h, expected)
    assert_close(last, expected_last)
    actual_gradients = torch.autograd.grad(h.sin().sum() + last.sum(), inputs)
    assert_close(actual_gradients, torch.autograd.grad(expected.sin().sum() + expected_last.sum(), inputs))


def test_scan_over_no_token_keeps_the_first_value():
    h, last = gated_scan(torch.ones(2, 0, 1), torch.ones(2, 0, 3), h0=torch.full((2, 3), 5.0))
    assert h.shape == (2, 0, 3)
    assert last.tolist() == [[5.0] * 3] * 2


def test_scan_refuses_gates_of_another_shape():
    with pytest.raises(ValueError, match="a must have shape"):
        gated_scan(torch.ones(2, 3, 2), torch.ones(2, 3, 4))


@pytest.mark.parametrize("length", [1, 4, 13])
@pytest.mark.parametrize("decays", [False, True])
def test_memory_equals_the_loop_with_all_gradients(length, decays, generator):
    q, k = torch.randn(2, 2, 3, length, 5, generator=generator, dtype=F64).unbind()
    v = torch.randn(2, 3, length, 2, generator=generator, dtype=F64)
    memory = torch.randn(2, 3, 5, 2, generator=generator, dtype=F64)
    inputs = [x.requires_grad_() for x in (q, k, v, memory)]
    log_decay = None
    if decays:
        log_decay = -3 * torch.rand(2, 3, length, generator=generator, dtype=F64)
        inputs.append(log_decay.requires_grad_())
    out, last = decaying_memory(q, k, v, log_decay, memory=memory, chunk=4)
    expected, expected_last = decaying_memory_reference(q, k, v, log_decay, memory=memory)
    assert_close(out, expected)
    assert_close(last, expected_last)
    upstream = torch.randn(out.shape, generator=generator, dtype=F64)
    total, expected_total = (out * upstream).sum() + last.sum(), (expected * upstream).sum() + expected_last.sum()
    assert_close(torch.autograd.grad(total, inputs), torch.autograd.grad(expected_total, inputs))


def test_memory_in_two_pieces_equals_one_call(generator):
    q, k, v = torch.randn(3, 1, 2, 20, 4, generator=generator, dtype=F64).unbind()
    log_decay = -torch.rand(1, 2, 20, generator=generator, dtype=F64)
    whole, last = decaying_memory(q, k, v, log_decay, chunk=8)
    first, state = decaying_memory(*(x[:, :, :7] for x in (q, k, v)), log_decay[..., :7], chunk=8)
    second, state = decaying_memory(*(x[:, :, 7:] for x in (q, k, v)), log_decay[..., 7:], memory=state, chunk=8)
    assert_close(torch.cat([first, second], 2), whole)
    assert_close(state, last)
