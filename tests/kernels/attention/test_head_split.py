"""Different mechanisms in different heads: each head gives the result of its own mechanism."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.baselines import SoftmaxAttention
from voxelwave.kernels.attention.head_split import HeadSplit, SlidingWindowAttention
from voxelwave.kernels.attention.mixer import CS
from voxelwave.kernels.attention.routing import RoutingAttention
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


@pytest.fixture
def qkv(generator):
    q = torch.randn(1, 4, 20, 4, generator=generator, dtype=F64)
    k, v = torch.randn(2, 1, 2, 20, 4, generator=generator, dtype=F64).unbind()
    return q, k, v


def test_half_local_and_half_routed_as_in_the_routing_transformer(qkv):
    q, k, v = qkv
    routing = RoutingAttention(2, 4, 3).double().eval()
    mixer = HeadSplit([SlidingWindowAttention(5), routing], [2, 2])
    out = mixer(q, k, v, pattern=CS).out
    assert_close(out[:, :2], SlidingWindowAttention(5)(q[:, :2], k[:, :1], v[:, :1], pattern=CS).out)
    assert_close(out[:, 2:], routing(q[:, 2:], k[:, 1:], v[:, 1:], pattern=CS).out)
    assert "modules_inside.0.centroids" in mixer.state_dict()
    assert mixer.patterns == {CS}


def test_a_window_over_the_sequence_is_plain_causal_attention(qkv):
    assert_close(SlidingWindowAttention(20)(*qkv, pattern=CS).out, attention(*qkv, causal=True))


def test_a_group_of_query_heads_may_be_split(qkv):
    out = HeadSplit([SoftmaxAttention(), SoftmaxAttention()], [1, 3])(*qkv).out
    assert_close(out, attention(*qkv))


def test_heads_that_do_not_fit_are_refused(qkv):
    with pytest.raises(ValueError, match="q must have 5 heads"):
        HeadSplit([SoftmaxAttention(), SoftmaxAttention()], [2, 3])(*qkv)
    with pytest.raises(ValueError, match="positive number for each of 2"):
        HeadSplit([SoftmaxAttention(), SoftmaxAttention()], [4])
