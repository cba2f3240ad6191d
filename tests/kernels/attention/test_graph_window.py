"""Graph windows: reach by hops, sequences in pieces, directions, and global tokens."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.graph_window import UNREACHED, GraphWindowAttention, hop_distance, within_hops
from voxelwave.kernels.attention.mixer import CS, NS, attention_map
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64
PATH = torch.diag(torch.ones(6), 1).bool()  # seven nodes in a row, directed edges


@pytest.fixture
def qkv(generator):
    return torch.randn(3, 2, 2, 7, 4, generator=generator, dtype=F64).unbind()


def test_no_hop_is_the_token_itself(qkv):
    assert_close(GraphWindowAttention(PATH, 0)(*qkv).out, qkv[2])


@pytest.mark.parametrize("pattern", [NS, CS])
@pytest.mark.parametrize("hops", [6, 7, 50, None])
def test_hops_from_the_diameter_on_are_plain_attention(pattern, hops, qkv):
    assert_close(GraphWindowAttention(PATH, hops)(*qkv, pattern=pattern).out, attention(*qkv, causal=pattern is CS))


@pytest.mark.parametrize("hops", [0, 1, 2, 3, 5])
def test_windows_are_the_powers_of_the_adjacency(hops, generator):
    graph = torch.rand(3, 9, 9, generator=generator) < 0.15
    step = graph.double() + graph.double().mT + torch.eye(9)
    assert torch.equal(within_hops(graph, hops), torch.linalg.matrix_power(step, hops) > 0)


def test_pieces_stay_apart_at_any_number_of_hops(qkv):
    graph = PATH.clone()
    graph[2, 3] = False
    weights = attention_map(GraphWindowAttention(graph, 50), *qkv[:2])
    assert not weights[:, :, :3, 3:].any()
    assert not weights[:, :, 3:, :3].any()
    assert (weights[:, :, :3, :3] > 0).all()


def test_an_isolated_node_sees_itself_only(qkv):
    out = GraphWindowAttention(torch.zeros(7, 7).bool(), 3)(*qkv).out
    assert_close(out, qkv[2])


def test_the_direction_of_an_edge_does_not_count(qkv):
    assert torch.equal(hop_distance(PATH), hop_distance(PATH.mT))
    assert_close(GraphWindowAttention(PATH, 2)(*qkv).out, GraphWindowAttention(PATH.mT, 2)(*qkv).out)


@pytest.mark.parametrize("longest", [0, 1, 3, 99])
def test_distances_up_to_a_longest_path_are_those_of_all_paths(longest):
    whole = hop_distance(PATH)
    expected = whole.masked_fill(whole > longest, UNREACHED)
    assert torch.equal(hop_distance(PATH, longest=longest), expected)


def test_a_class_token_sees_all_and_is_seen_by_all(qkv):
    weights = attention_map(GraphWindowAttention(PATH, 1, everywhere=(6,)), *qkv[:2])
    assert (weights[:, :, 6] > 0).all()
    assert (weights[:, :, :, 6] > 0).all()
    assert not weights[:, :, 0, 2:6].any()  # and it gives no short cut


def test_soft_windows_take_a_bias_for_each_hop(qkv):
    bias = -0.5 * (torch.arange(7)[:, None] - torch.arange(7)).abs().double()
    assert_close(GraphWindowAttention(PATH, None, softness=0.5)(*qkv).out, attention(*qkv, bias=bias))


def test_a_graph_for_each_batch_item(qkv):
    graphs = torch.stack([PATH, torch.zeros_like(PATH)])
    out = GraphWindowAttention(graphs, 2)(*qkv).out
    assert_close(out[0], GraphWindowAttention(PATH, 2)(*qkv).out[0])
    assert_close(out[1], qkv[2][1])


def test_graphs_that_do_not_fit_are_refused(qkv):
    with pytest.raises(ValueError, match="a node for each of 7 tokens, got 5"):
        GraphWindowAttention(PATH[:5, :5])(*qkv)
    with pytest.raises(ValueError, match="graph must have shape"):
        GraphWindowAttention(PATH[:5])
    with pytest.raises(ValueError, match="hops must not be negative"):
        GraphWindowAttention(PATH, -1)
