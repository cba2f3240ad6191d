"""Landmark attention: the limits in which it equals softmax attention, and the use of landmarks."""

import math

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.landmark import LandmarkAttention, reference
from voxelwave.kernels.attention.mixer import CS, NC, NS, attention_map
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


@pytest.fixture
def qkv(generator):
    return torch.randn(3, 1, 2, 22, 4, generator=generator, dtype=F64).unbind()


def test_a_short_sequence_is_plain_causal_attention(qkv):
    assert_close(LandmarkAttention(block=22)(*qkv, pattern=CS).out, attention(*qkv, causal=True))


def test_rows_sum_to_1(qkv):
    for pattern in (NS, CS):
        weights = attention_map(LandmarkAttention(block=4, top=2), *qkv[:2], pattern=pattern)
        assert_close(weights.sum(-1), torch.ones(1, 2, 22, dtype=F64))


def test_exact_landmark_scores_give_softmax_attention_with_its_log_sum_exp(qkv):
    mixed = LandmarkAttention(block=4, score="exact")(*qkv, pattern=CS)
    out, lse = attention(*qkv, causal=True, return_lse=True)
    assert_close(mixed.out, out)
    assert_close(mixed.lse, lse)


def test_as_many_kept_blocks_as_there_are_prune_nothing(qkv):
    every = LandmarkAttention(block=4)(*qkv, pattern=CS).out
    for top in (5, 6, 100):
        assert_close(LandmarkAttention(block=4, top=top)(*qkv, pattern=CS).out, every)


def test_mean_score_is_a_lower_bound_of_the_exact_one_and_tight_for_equal_keys(qkv):
    q, k, v = qkv
    mean = LandmarkAttention(block=4)(q, k, v, pattern=CS).extras.scores
    exact = LandmarkAttention(block=4, score="exact")(q, k, v, pattern=CS).extras.scores
    assert (mean <= exact).all()
    equal = k[:, :, ::4].repeat_interleave(4, 2)[:, :, :22]
    assert_close(LandmarkAttention(block=4)(q, equal, v).out, attention(q, equal, v))


def test_landmark_keys_of_the_caller_take_part_in_the_output_and_its_gradients(qkv, generator):
    q, k, v = qkv
    landmarks = torch.randn(1, 2, 6, 4, generator=generator, dtype=F64, requires_grad=True)
    mixer = LandmarkAttention(block=4, top=2)
    for pattern in (CS, NC):
        out = mixer(q, k, v, pattern=pattern, landmarks=landmarks).out
        expected = reference(mixer, q, k, v, pattern=pattern, landmarks=landmarks)
        assert_close(out, expected)
        upstream = torch.randn(out.shape, generator=generator, dtype=F64)
        assert_close(*(torch.autograd.grad(x, landmarks, upstream) for x in (out, expected)))


def test_the_landmark_of_the_own_block_is_never_visible(qkv):
    q, k, v = qkv
    landmarks = torch.zeros(1, 2, 6, 4, dtype=F64)
    plain = LandmarkAttention(block=4)(q, k, v, pattern=CS, landmarks=landmarks).out
    landmarks[:, :, 3] = 50.0
    changed = LandmarkAttention(block=4)(q, k, v, pattern=CS, landmarks=landmarks).out
    assert_close(changed[:, :, :16], plain[:, :, :16])  # block 3 ends with token 15
    assert not torch.allclose(changed[:, :, 16:], plain[:, :, 16:])


def test_queries_that_start_in_the_middle_of_a_block(qkv):
    q, k, v = qkv
    mixer = LandmarkAttention(block=4, top=2)
    whole = mixer(q, k, v, pattern=CS).out
    assert_close(mixer(q[:, :, 6:19], k, v, pattern=CS, q_start=6).out, whole[:, :, 6:19])


def test_heads_and_tokens_can_agree_on_their_blocks(qkv):
    for agree, axes in (("heads", (1,)), ("tokens", (1, 2))):
        chosen = LandmarkAttention(block=4, top=2, agree=agree)(*qkv).extras.chosen
        assert (chosen == chosen.amax(axes, keepdim=True)).all()
    assert CS not in LandmarkAttention(agree="tokens").patterns


def test_the_block_that_holds_the_wanted_key_is_reached(generator):
    k = torch.randn(1, 1, 64, 8, generator=generator, dtype=F64)
    k[:, :, 42] *= 5  # differs clearly from the mean of its block
    mixed = LandmarkAttention(block=8, top=1)(20 * k[:, :, 42:43], k, k, pattern=NC)
    assert mixed.extras.chosen.item() == 42 // 8
    assert_close(mixed.out, k[:, :, 42:43], atol=0.05, rtol=0)


def test_all_blocks_hidden_leaves_the_own_block(qkv):
    out = LandmarkAttention(block=4, group_dropout=1.0)(*qkv, pattern=CS).out
    block = torch.arange(22) // 4
    assert_close(out, attention(*qkv, causal=True, mask=block.unsqueeze(1) == block))


def test_landmarks_of_another_shape_are_refused(qkv):
    with pytest.raises(ValueError, match=r"landmarks must have shape \(1, 2, 6, 4\)"):
        LandmarkAttention(block=4)(*qkv, landmarks=torch.zeros(1, 2, 5, 4, dtype=F64))


def test_log_of_the_count_makes_a_longer_block_weigh_more():
    zeros = torch.zeros(1, 1, 6, 2, dtype=F64)
    scores = LandmarkAttention(block=4)(zeros, zeros, zeros).extras.scores
    assert_close(scores[0, 0, 0], torch.tensor([math.log(4), math.log(2)], dtype=F64))
