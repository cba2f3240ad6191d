"""Dynamic hierarchical sparsity: budgets, exact top keys, boundaries and their labels."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.dynamic_sparse import (
    BoundaryPredictor,
    DynamicSparseAttention,
    boundary_gain,
    change_of_mean_keys,
    focal_loss,
)
from voxelwave.kernels.attention.mixer import CC, CS, NC, NS
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64
SMALL = {"block": 4, "local": 4, "longest": 4, "margin": 2, "radius": 2}


@pytest.fixture
def qkv(generator):
    return torch.randn(3, 1, 2, 30, 4, generator=generator, dtype=F64).unbind()


@pytest.mark.parametrize("pattern", [NS, CS, NC, CC])
def test_a_budget_over_all_keys_is_plain_attention(pattern, qkv):
    out = DynamicSparseAttention(budget=38, **SMALL)(*qkv, pattern=pattern).out
    assert_close(out, attention(*qkv, causal=pattern is CS))


def test_chunks_and_blocks_of_one_token_are_exact_attention_to_the_best_keys(qkv):
    q, k, v = qkv
    mixer = DynamicSparseAttention(budget=5, local=0, block=1, longest=1, per_head=True)
    best = torch.zeros(1, 2, 30, 30, dtype=torch.bool).scatter(-1, (q @ k.mT).topk(5).indices, True)
    for pattern in (NC, CC):
        assert_close(mixer(q, k, v, pattern=pattern).out, attention(q, k, v, mask=best))


def test_tokens_of_a_chunk_are_kept_in_order_up_to_the_budget(generator):
    x = torch.ones(1, 1, 12, 2, dtype=F64)
    kept = DynamicSparseAttention(budget=6, **SMALL)(x, x, x, pattern=NC).extras.kept
    assert kept[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_spread_of_chunk_scores_does_not_depend_on_the_length_of_the_chunk(generator):
    q = torch.randn(4000, 8, generator=generator, dtype=F64)
    spreads = []
    for length in (1, 4, 64):
        k = torch.randn(4000, length, 8, generator=generator, dtype=F64)
        spreads.append(((k.sum(1) * length**-0.5) * q).sum(-1).std())
    assert max(spreads) / min(spreads) < 1.1


def test_a_boundary_stands_where_the_keys_change(generator):
    k = torch.tensor([1.0, 0.0]).repeat(17, 1)
    k[7:] = torch.tensor([0.0, 1.0])
    k = k.view(1, 1, 17, 2).double()
    mixer = DynamicSparseAttention(budget=8, local=16, block=16, longest=16, margin=2, radius=2)
    boundaries = mixer(k, k, k, pattern=NC).extras.boundaries[0]
    assert boundaries.nonzero()[:, 0].tolist() == [0, 7, 16]


def test_one_chunk_and_sequences_shorter_than_the_windows(generator):
    q, k, v = torch.randn(3, 1, 2, 3, 4, generator=generator, dtype=F64).unbind()
    mixer = DynamicSparseAttention(budget=2, local=16, block=16, longest=16)
    mixed = mixer(q, k, v, pattern=NC)
    assert mixed.out.isfinite().all()
    assert_close(mixer(q, k, v, pattern=CS).out, attention(q, k, v, causal=True))  # all in one block


def test_labels_equal_the_sums_of_their_definition(generator):
    weights = torch.rand(2, 3, 14, 14, generator=generator, dtype=F64).tril().softmax(-1).tril()
    gain = boundary_gain(weights, margin=3)
    mean = weights.mean(1)
    for i in range(3, 11):
        later = mean[:, i + 3 :]
        a, b = later[:, :, i - 3 : i].sum((1, 2)), later[:, :, i : i + 3].sum((1, 2))
        assert_close(gain[:, i], (torch.maximum(a, b) + 1e-6) / (torch.minimum(a, b) + 1e-6))
    assert (gain[:, :3] == 1).all()
    assert (boundary_gain(weights[..., :5, :5], margin=3) == 1).all()


def test_a_predictor_learns_the_boundaries_of_planted_segments():
    torch.manual_seed(0)
    predictor = BoundaryPredictor(8, hidden=16, margin=2)
    segment = torch.randint(0, 2, (16, 1, 10, 1)).repeat_interleave(4, 2)
    k = torch.where(segment.bool(), 1.0, -1.0) * torch.ones(8) + 0.2 * torch.randn(16, 1, 40, 8)
    label = torch.zeros(16, 40)
    label[:, 1:] = (segment[:, 0, 1:, 0] != segment[:, 0, :-1, 0]).float()
    optimiser = torch.optim.Adam(predictor.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        focal_loss(predictor(k), label).backward()
        optimiser.step()
    found = predictor(k)[:, 2:-2] > 0.5
    assert (found == label[:, 2:-2].bool()).float().mean() > 0.97
    mixer = DynamicSparseAttention(budget=8, predict=predictor, threshold=0.5, **SMALL)
    assert mixer(k, k, k, pattern=NC).out.isfinite().all()


def test_focal_loss_without_focus_is_cross_entropy(generator):
    p = torch.rand(10, generator=generator)
    label = torch.rand(10, generator=generator).round()
    assert_close(focal_loss(p, label, 0.0), torch.nn.functional.binary_cross_entropy(p, label))


def test_change_of_equal_keys_is_0():
    assert change_of_mean_keys(torch.ones(1, 2, 9, 3, dtype=F64), 2)[0, 1:].abs().max() < 1e-12


def test_options_that_would_look_ahead_are_refused():
    with pytest.raises(ValueError, match="multiples of longest"):
        DynamicSparseAttention(block=100)
    with pytest.raises(ValueError, match="at least margin"):
        DynamicSparseAttention(local=64, radius=70)
    x = torch.zeros(1, 1, 9, 2)
    with pytest.raises(ValueError, match="multiple of block"):
        DynamicSparseAttention(**SMALL)(x[:, :, :1], x, x, pattern=CS, q_start=6)
