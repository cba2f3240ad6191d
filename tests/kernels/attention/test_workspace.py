"""Workspace attention: the two limits, the rank of its weights, and the separation of slots."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.mixer import attention_map
from voxelwave.kernels.attention.softmax import attention
from voxelwave.kernels.attention.workspace import SlotVerifier, WorkspaceAttention, verifier_loss

F64 = torch.float64


@pytest.fixture
def qkv(generator):
    return torch.randn(3, 1, 2, 12, 16, generator=generator, dtype=F64).unbind()


def made(**options):
    torch.manual_seed(0)
    return WorkspaceAttention(2, 16, **options).double()


def test_a_slot_for_each_key_is_exactly_plain_attention(qkv):
    q, k, v = qkv
    mixer = made(slots=12, top=1)
    mixer.slots.data = torch.linalg.pinv(k[0]).mT  # slot s scores 1 with key s and 0 with the other keys
    assert_close(mixer(q, k, v).out, attention(q, k, v))


def test_one_slot_over_all_keys_is_one_attention_pooling_for_all(qkv):
    q, k, v = qkv
    mixer = made(slots=1, top=12)
    pooled = attention(mixer.slots.unsqueeze(0), k, v)
    assert_close(mixer(q, k, v).out, pooled.expand(1, 2, 12, 16))


def test_more_keys_wanted_than_there_are_takes_all(qkv):
    assert_close(made(slots=2, top=99)(*qkv).out, made(slots=2, top=12)(*qkv).out)


def test_weights_have_few_columns_a_low_rank_and_rows_that_sum_to_1(qkv):
    weights = attention_map(made(slots=3, top=2), *qkv[:2])
    assert (weights.any(2).sum(-1) <= 6).all()
    assert (torch.linalg.matrix_rank(weights) <= 3).all()
    assert_close(weights.sum(-1), torch.ones(1, 2, 12, dtype=F64))


def test_tied_slots_overlap_and_the_diversity_loss_parts_them(qkv):
    mixer = made(slots=2, top=12)
    mixer.slots.data[:, 1] = mixer.slots.data[:, 0]
    assert_close(mixer(*qkv).extras.diversity, torch.tensor(1.0, dtype=F64))
    mixer.slots.data[:, 1] += 0.1
    optimiser = torch.optim.Adam(mixer.parameters(), 0.1)
    for _ in range(30):
        optimiser.zero_grad()
        loss = mixer(*qkv).extras.diversity
        loss.backward()
        optimiser.step()
    assert loss < 0.7


def test_straight_through_changes_the_gradient_and_not_the_output(qkv):
    plain, straight = made(slots=2, top=1), made(slots=2, top=1, straight_through=True)
    outs = [mixer(*qkv).out for mixer in (plain, straight)]
    assert_close(*outs)
    gradients = [
        torch.autograd.grad(out.square().sum(), m.slots)[0] for out, m in zip(outs, (plain, straight), strict=True)
    ]
    assert not gradients[0].any()  # with one key, the weights are constant
    assert gradients[1].any()


def test_the_verifier_learns_which_slots_belong_together():
    torch.manual_seed(0)
    first = torch.randn(64, 1, 4)
    values = torch.cat([first, first, -first], 1)
    verifier = SlotVerifier(4, 3)
    optimiser = torch.optim.Adam(verifier.parameters(), 0.02)
    start = verifier_loss(verifier, values).item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = verifier_loss(verifier, values)
        loss.backward()
        optimiser.step()
    assert loss < start / 2


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="slots and top"):
        made(slots=0)
    with pytest.raises(ValueError, match="order must be"):
        SlotVerifier(4, 3, order=4)
