"""Attention as a recurrence: the merge of partial softmaxes, its limits, and long and masked sequences."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.mixer import CS
from voxelwave.kernels.attention.recurrent import (
    RecurrentAttention,
    both_directions,
    pooled_softmax,
    prefix_softmax,
)
from voxelwave.kernels.attention.softmax import attention, merge_attention

F64 = torch.float64


@pytest.fixture
def scores_and_values(generator):
    s = torch.randn(2, 3, 150, generator=generator, dtype=F64)
    return s, torch.randn(2, 3, 150, 4, generator=generator, dtype=F64)


def test_equals_causal_softmax_attention_with_equal_queries(generator):
    torch.manual_seed(0)
    mixer = RecurrentAttention(2, 4).double()
    q, k, v = torch.randn(3, 1, 2, 90, 4, generator=generator, dtype=F64).unbind()
    equal = mixer.query[None, :, None].expand(1, 2, 90, 4)
    out, lse = attention(equal, k, v, causal=True, return_lse=True)
    mixed = mixer(q, k, v, pattern=CS)
    assert_close(mixed.out, out)
    assert_close(mixed.lse, lse)


def test_a_prefix_is_the_merge_of_its_tokens(scores_and_values):
    s, v = scores_and_values
    out, lse, _ = prefix_softmax(s, v)
    for t in (1, 64, 65, 150):
        merged = merge_attention([(v[..., j : j + 1, :], s[..., j : j + 1]) for j in range(t)])
        assert_close((out[..., t - 1 : t, :], lse[..., t - 1 : t]), merged)


def test_first_output_is_the_first_value_and_equal_keys_give_the_running_mean(scores_and_values):
    s, v = scores_and_values
    assert_close(prefix_softmax(s, v)[0][..., 0, :], v[..., 0, :])
    mean = v.cumsum(-2) / torch.arange(1, 151, dtype=F64).unsqueeze(1)
    assert_close(prefix_softmax(torch.full_like(s, 7.0), v)[0], mean)


def test_a_masked_token_is_the_identity(scores_and_values):
    s, v = scores_and_values
    kept = torch.arange(150) % 3 != 0
    out, lse, state = prefix_softmax(s.masked_fill(~kept, -torch.inf), v)
    expected, expected_lse, expected_state = prefix_softmax(s[..., kept], v[..., kept, :])
    assert_close((out[..., kept, :], lse[..., kept]), (expected, expected_lse))
    assert_close(tuple(state), tuple(expected_state))
    assert not out[..., 0, :].any()


def test_scores_of_1e4_and_a_long_float32_sequence_stay_right(generator):
    s = 1e4 * torch.randn(1, 20_000, generator=generator)
    v = torch.randn(1, 20_000, 1, generator=generator)
    out, lse, _ = prefix_softmax(s, v)
    assert out.isfinite().all()
    assert_close(lse, torch.logcumsumexp(s, -1))
    flat, _, _ = prefix_softmax(0.1 * s / 1e4, v)
    exact, _, _ = prefix_softmax(0.1 * s.double() / 1e4, v.double())
    assert_close(flat.double(), exact, rtol=1e-4, atol=1e-5)


def test_both_directions_meet_in_the_total(scores_and_values):
    s, v = scores_and_values
    both = both_directions(s, v)
    total, _ = pooled_softmax(s, v)
    assert both.shape == (2, 3, 150, 8)
    assert_close(both[..., -1, :4], total[..., 0, :])
    assert_close(both[..., 0, 4:], total[..., 0, :])


def test_the_state_has_two_numbers_and_a_value_for_each_head(scores_and_values):
    _, _, state = prefix_softmax(*scores_and_values)
    assert sum(x[0, 0].numel() for x in state) == 2 + 4


def test_an_exported_program_computes_the_same(scores_and_values, monkeypatch):
    s, v = scores_and_values
    s[0, 0, :5] = s[1, 2] = -torch.inf
    out, lse, state = prefix_softmax(s, v)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    found, found_lse, found_state = prefix_softmax(s, v)
    assert_close(found, out)
    assert_close(found_lse, lse)
    assert_close(tuple(found_state), tuple(state))
