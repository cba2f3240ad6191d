"""Section 16: attention along a graph follows it, uniform attention does not."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.graph import compare, graph_fit, hop_profile, rewired, stripes, structure_test
from voxelwave.attention_analysis.handmade import lag_map, map_model, neighbour_map, ring_graph, uniform_map
from voxelwave.attention_analysis.indicators import graph_rings

F64 = torch.float64
NODES = 16
GRAPH = ring_graph(NODES, chords=4)


def test_attention_to_neighbours_fits_the_graph_exactly():
    found = graph_fit(neighbour_map(GRAPH), GRAPH)
    assert found.edge_auc == 1
    assert found.divergence == pytest.approx(0, abs=1e-12)
    assert found.nearness > 0.5


def test_uniform_attention_does_not_know_the_graph():
    found = graph_fit(uniform_map(NODES, causal=False), GRAPH)
    assert found.edge_auc == 0.5
    assert found.nearness != found.nearness
    assert found.divergence > 0.4


def test_the_hop_profile_of_neighbours_has_one_hop():
    profile = hop_profile(neighbour_map(GRAPH), GRAPH)
    assert profile[1] > 0
    assert profile[[0, *range(2, len(profile))]].abs().max() == 0


@pytest.mark.parametrize("lag", [3, 5, -4])
def test_a_planted_stripe_is_flagged_with_its_lag(lag):
    stripe = lag_map(NODES, lag) if lag > 0 else lag_map(NODES, -lag).flip(0, 1)
    a = 0.5 * uniform_map(NODES, causal=False) + 0.5 * stripe
    ring = ring_graph(NODES)
    assert stripes(a, ring) == [lag]
    assert stripes(uniform_map(NODES, causal=False), ring) == []
    assert stripes(neighbour_map(ring), ring) == []  # the stripes of a ring are edges


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_a_rewired_graph_keeps_its_number_of_edges(degree):
    found = rewired(GRAPH, degree, torch.Generator().manual_seed(2))
    assert torch.equal(found, found.mT)
    assert not torch.equal(found, GRAPH)
    assert sorted(found.sum(1).tolist()) == sorted(GRAPH.sum(1).tolist())


def test_only_a_model_that_reads_the_graph_changes_with_it(generator):
    x = torch.randn(1, NODES, 8, generator=generator, dtype=F64)
    reads = structure_test(lambda graph: map_model([neighbour_map(graph).expand(2, -1, -1)])(x), GRAPH)
    blind = structure_test(lambda graph: map_model([uniform_map(NODES).expand(2, -1, -1)])(x), GRAPH)
    assert set(blind.values()) == {0.0}
    assert min(reads.values()) > 0
    assert reads[4] > reads[1]


def test_groups_are_compared():
    first, second = torch.arange(20.0), torch.arange(20.0) + 30
    assert compare(first, second).kolmogorov_smirnov == 1
    assert compare(first, first).t == 0


def test_a_node_alone_attends_to_itself():
    edges = torch.zeros(3, 3, dtype=torch.bool)
    assert_close(neighbour_map(edges), torch.eye(3, dtype=F64))
    assert graph_rings(edges).max() == 0
