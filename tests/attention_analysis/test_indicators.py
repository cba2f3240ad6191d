"""Sections 1 and 4: indicators and strength by distance of maps whose values are known."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.handmade import block_map, lag_map, sink_map, uniform_map
from voxelwave.attention_analysis.indicators import (
    causal_keys,
    concentration,
    diversity,
    entropy,
    first_key_share,
    graph_rings,
    grid_rings,
    indicator_table,
    local_focus,
    ring_strength,
    row_entropy,
)

F64 = torch.float64
LENGTH = 13
SEEN = causal_keys(LENGTH)


def test_uniform_causal_attention_has_entropy_1_and_a_harmonic_sink():
    a = uniform_map(LENGTH)
    assert_close(entropy(a, SEEN), torch.tensor(1.0, dtype=F64))
    harmonic = sum(1 / n for n in range(1, LENGTH + 1))
    assert_close(first_key_share(a), torch.tensor(harmonic / LENGTH, dtype=F64))
    assert_close(entropy(uniform_map(LENGTH, causal=False)), torch.tensor(1.0, dtype=F64))


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_a_fixed_lag_has_local_focus_1_and_entropy_0(lag):
    a = lag_map(LENGTH, lag)
    assert local_focus(a, lag) == 1
    assert entropy(a, SEEN) == 0
    others = [local_focus(a, other) for other in range(4) if other != lag]
    assert max(others) <= 1 / (LENGTH - 3)  # only the first rows, which have no token at this lag


def test_identical_heads_have_diversity_0_and_others_do_not():
    a = torch.rand(LENGTH, LENGTH, dtype=F64).tril()
    assert diversity(torch.stack([a, a, a]), SEEN) == 0
    pair = torch.stack([lag_map(LENGTH, 0), sink_map(LENGTH, 0)])
    # in each row but the first, two entries differ by 1: their standard deviation is 1/2
    assert_close(diversity(pair, SEEN), torch.tensor((LENGTH - 1) * 2 / (LENGTH * (LENGTH + 1)), dtype=F64))


def test_a_column_sink_has_sink_1_and_the_largest_concentration():
    a = sink_map(LENGTH, 0)
    assert first_key_share(a) == 1
    assert_close(concentration(a), torch.tensor(LENGTH**0.5, dtype=F64))
    assert_close(concentration(a, rows=True), torch.ones(LENGTH, dtype=F64))


def test_rows_with_one_visible_key_do_not_count():
    assert row_entropy(uniform_map(3), causal_keys(3)).isnan().tolist() == [True, False, False]


def test_the_table_lists_every_head():
    maps = torch.stack([uniform_map(LENGTH), lag_map(LENGTH, 2)]).expand(3, 4, 2, LENGTH, LENGTH)
    table = indicator_table(maps, causal=True)
    assert len(table) == 3 * 2 * 8
    found = {(row.layer, row.head, row.indicator): row.value for row in table}
    assert found[2, 1, "lag 2"] == 1
    assert found[1, 0, "entropy"] == pytest.approx(1)


@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
@pytest.mark.parametrize("shape", [(9,), (4, 5), (3, 2, 3)])
def test_uniform_attention_grows_with_the_ring_and_is_constant_per_token(shape, metric):
    rings = grid_rings(shape, metric)
    length = len(rings)
    found = ring_strength(uniform_map(length, causal=False), rings)
    sizes = torch.stack([(rings == r).sum(1).double().mean() for r in range(int(rings.max()) + 1)])
    assert_close(found.total, sizes / length)
    assert_close(found.per_token, torch.full_like(found.per_token, 1 / length))


def test_block_local_attention_is_0_beyond_the_block():
    found = ring_strength(block_map(12, 4), grid_rings((12,)))
    assert found.total[4:].abs().max() == 0
    assert (found.total[:4] > 0).all()


def test_rings_and_class_token_share_all_attention(generator):
    a = torch.rand(2, 3, 21, 21, generator=generator, dtype=F64).softmax(-1)
    found = ring_strength(a, grid_rings((4, 5)), class_tokens=1)
    assert_close(found.total.sum(-1) + found.class_share, torch.ones(2, 3, dtype=F64))
    with pytest.raises(ValueError, match="a must have shape"):
        ring_strength(a, grid_rings((4, 5)))


def test_hops_on_a_graph():
    edges = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    expected = torch.tensor([[0, 1, 2, -1], [1, 0, 1, -1], [2, 1, 0, -1], [-1, -1, -1, 0]])
    assert torch.equal(graph_rings(edges), expected)
