"""Variants of attention that lack one property, and the cases in which they equal other mechanisms."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.baselines import SoftmaxAttention
from voxelwave.kernels.attention.deconstructed import (
    FixedMapAttention,
    GatedUnit,
    KeyScoredAttention,
    UniformAttention,
    place_variant,
)
from voxelwave.kernels.attention.layer import MixingLayer
from voxelwave.kernels.attention.mixer import CS, NC, NS
from voxelwave.kernels.attention.recurrent import prefix_softmax
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


@pytest.fixture
def qkv(generator):
    return torch.randn(3, 1, 2, 9, 4, generator=generator, dtype=F64).unbind()


def test_key_scores_are_the_recurrent_kernel_with_the_silu_of_the_query(qkv):
    q, k, v = qkv
    scores = 0.5 * (torch.nn.functional.silu(q) * k).sum(-1)
    assert_close(KeyScoredAttention()(q, k, v, pattern=CS).out, prefix_softmax(scores, v)[0])


def test_uniform_attention_is_attention_with_scale_0(qkv):
    for pattern in (NS, CS, NC):
        assert_close(UniformAttention()(*qkv, pattern=pattern).out, attention(*qkv, causal=pattern is CS, scale=0.0))


def test_a_fixed_map_of_the_own_tokens_is_plain_attention_and_ignores_others(qkv):
    q, k, v = qkv
    mixer = FixedMapAttention(q[0], k[0])
    assert_close(mixer(q, k, v, pattern=CS).out, attention(q, k, v, causal=True))
    assert_close(mixer(-q, 2 * k, v).out, attention(q, k, v))


def test_a_sequence_longer_than_the_stored_one_is_an_error(qkv):
    with pytest.raises(ValueError, match="at most 8 tokens, as the stored sequence, got 9"):
        FixedMapAttention.random(2, 8, 4)(*qkv)


def test_stored_tokens_are_not_trained_and_travel_with_the_model():
    mixer = FixedMapAttention.random(2, 8, 4, seed=3)
    assert not list(mixer.parameters())
    assert set(mixer.state_dict()) == {"query", "key"}
    assert torch.equal(mixer.query, FixedMapAttention.random(2, 8, 4, seed=3).query)


def test_static_embeddings_give_queries_and_keys_and_the_layer_the_values(generator):
    torch.manual_seed(0)
    layer = MixingLayer(8, 2, SoftmaxAttention()).double()
    x, embedding = torch.randn(2, 1, 5, 8, generator=generator, dtype=F64).unbind()
    q, k, v = (
        f(t).unflatten(-1, (2, 4)).transpose(1, 2)
        for f, t in ((layer.query, embedding), (layer.key, embedding), (layer.value, x))
    )
    expected = layer.output(attention(q, k, v, causal=True).transpose(1, 2).flatten(2))
    assert_close(layer(x, pattern=CS, addresses=embedding).out, expected)
    with pytest.raises(ValueError, match="addresses need self attention"):
        layer(x, x, addresses=embedding)


@pytest.mark.parametrize("dim", [12, 96])
def test_the_gated_unit_has_as_many_weights_as_attention_and_mixes_no_tokens(dim, generator):
    unit = GatedUnit(dim)
    layer = MixingLayer(dim, 2, SoftmaxAttention())
    weights = [sum(p.numel() for p in m.parameters() if p.dim() > 1) for m in (unit, layer)]
    assert weights[0] == weights[1]
    x = torch.randn(1, 5, dim, generator=generator)
    assert_close(unit(x)[:, :2], unit(x[:, :2]))


def test_variants_stand_in_odd_layers_of_a_hybrid():
    def build(where):
        return place_variant(4, lambda: "variant", lambda: "softmax", where)

    assert build("everywhere") == ["variant"] * 4
    assert build("hybrid") == ["variant", "softmax"] * 2
    assert build("skip") == [None, "softmax"] * 2
    with pytest.raises(ValueError, match="where must be"):
        build("nowhere")
