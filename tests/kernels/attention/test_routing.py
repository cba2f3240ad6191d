"""Routing attention: its limits, the update of its centroids, and the two defects of balanced clusters."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from voxelwave.kernels.attention.mixer import CS, NC, NS, UnsupportedPattern, attention_map
from voxelwave.kernels.attention.routing import RoutingAttention
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


def made(clusters, **options):
    torch.manual_seed(0)
    return RoutingAttention(2, 4, clusters, **options).double().eval()


@pytest.fixture
def qkv(generator):
    return torch.randn(3, 1, 2, 32, 4, generator=generator, dtype=F64).unbind()


@pytest.mark.parametrize("mixer", [made(1), made(1, mode="balanced"), made(4, mode="balanced", window=32)], ids=str)
def test_one_cluster_or_a_window_over_all_is_plain_attention(mixer, qkv):
    assert_close(mixer(*qkv).out, attention(*qkv))


def test_one_cluster_is_plain_causal_attention(qkv):
    assert_close(made(1)(*qkv, pattern=CS).out, attention(*qkv, causal=True))


def test_a_window_longer_than_the_sequence_takes_what_there_is(qkv):
    assert_close(made(4, mode="balanced", window=99)(*qkv).out, attention(*qkv))


def test_no_row_of_balanced_clusters_is_empty(qkv):
    mixer = made(4, mode="balanced", window=8)
    weights = attention_map(mixer, *qkv[:2])
    assert_close(weights.sum(-1), torch.ones(1, 2, 32, dtype=F64))


def test_balanced_clusters_are_not_offered_for_causal_attention(qkv):
    with pytest.raises(UnsupportedPattern, match="NS, NC, got CS"):
        made(4, mode="balanced")(*qkv, pattern=CS)


def test_a_token_always_sees_itself(qkv):
    weights = attention_map(made(8), *qkv[:2], pattern=CS)
    assert (weights.diagonal(dim1=2, dim2=3) > 0).all()


def test_weights_are_zero_between_clusters(qkv):
    q, k, v = qkv
    mixer = made(4)
    routes = mixer(q, k, v, pattern=NC).extras
    apart = routes.queries.unsqueeze(3) != routes.keys.unsqueeze(2)
    assert not attention_map(mixer, q, k, pattern=NC)[apart].any()


def test_equal_rows_all_go_to_the_first_of_equal_centroids():
    mixer = made(3)
    mixer.centroids.copy_(mixer.centroids[:, :1].expand(2, 3, 4).clone())
    x = torch.ones(1, 2, 6, 4, dtype=F64)
    assert not mixer(x, x, x).extras.queries.any()
    assert_close(mixer(x, x, x).out, x)


def test_update_is_the_weighted_sum_at_length_1_and_leaves_empty_clusters(generator):
    mixer = made(3, decay=0.9)
    mixer.placed.fill_(True)
    before = mixer.centroids.clone()
    before[:, 2] = -before[:, 0]
    mixer.centroids.copy_(before)
    unit = F.normalize(before[:, :1] + 0.1 * torch.randn(2, 5, 4, generator=generator, dtype=F64), dim=-1).unsqueeze(0)
    near = (unit @ before.mT).argmax(-1)
    seen = torch.ones(1, 5, dtype=torch.bool)
    mixer.update(unit, unit, seen, seen)
    for h in range(2):
        for c in range(3):
            members = unit[0, h, near[0, h] == c]
            expected = before[h, c]
            if len(members):
                expected = F.normalize(0.9 * before[h, c] + 0.05 * members.sum(0) + 0.05 * members.sum(0), dim=0)
            assert_close(mixer.centroids[h, c], expected)
    assert_close(mixer.centroids[:, 2], before[:, 2])


def test_training_finds_planted_clusters_and_padding_does_not_move_them(generator):
    mixer = made(2).train()
    directions = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=F64)
    x = directions.repeat(20, 1) + 0.05 * torch.randn(1, 2, 40, 4, generator=generator, dtype=F64)
    x[:, :, 30:] = torch.tensor([0.0, 0, 0, 9.0])
    mask = (torch.arange(40) < 30).view(1, 1, 1, 40)
    out = mixer(x, x, x, mask=mask)
    assert mixer.placed
    best = (mixer.centroids @ directions.mT).amax(1)
    assert (best > 0.99).all()
    assert mixer.centroids[..., 3].abs().max() < 0.05
    assert out.extras.commitment < 0.01
    fixed = mixer.centroids.clone()
    mixer.eval()(x, x, x)
    assert_close(mixer.centroids, fixed)


def test_the_commitment_loss_draws_tokens_to_their_centroids(qkv):
    q, k, v = (x.clone().requires_grad_() for x in qkv)
    mixer = made(4)
    loss = mixer(q, k, v, pattern=NS).extras.commitment
    gradient, *_ = torch.autograd.grad(loss, (q, k))
    with torch.no_grad():
        closer = mixer(q - gradient, k, v, pattern=NS).extras.commitment
    assert closer < loss
