"""PowerAttention: its reach, its number of links, and windows for which it equals full attention."""

import math

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention import parts
from voxelwave.kernels.attention.mixer import CS, NS, attention_map
from voxelwave.kernels.attention.power import PowerAttention, power_mask
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


def one_token_links(length):
    x = torch.zeros(1, 1, length, 2)
    return attention_map(PowerAttention(block=1, window=1, sink=0), x, x, pattern=CS)[0, 0] > 0


def test_after_n_layers_a_token_reaches_the_distances_with_at_most_n_ones_in_binary():
    links = one_token_links(64)
    reached = torch.eye(64, dtype=torch.bool)
    for layers in range(1, 7):
        reached = (reached.float() @ links.float()) > 0
        distances = [i for i in range(64) if reached[63, 63 - i]]
        assert distances == [d for d in range(64) if d.bit_count() <= layers]
        assert set(range(2**layers)) <= set(distances)
    assert reached.tril().sum() == 64 * 65 // 2  # ceil(log2 L) layers cover everything


@pytest.mark.parametrize("length", [2, 3, 17, 64, 100])
def test_a_token_has_at_most_log2_of_the_length_plus_2_links(length):
    assert one_token_links(length).sum(1).max() <= math.floor(math.log2(length - 1)) + 2


@pytest.mark.parametrize("length", [5, 8, 13])
@pytest.mark.parametrize("pattern", [NS, CS])
def test_a_window_over_the_sequence_is_plain_attention(length, pattern, generator):
    q, k, v = torch.randn(3, 1, 2, length, 4, generator=generator, dtype=F64).unbind()
    mixer = PowerAttention(block=3, window=math.ceil(length / 3))
    assert_close(mixer(q, k, v, pattern=pattern).out, attention(q, k, v, causal=pattern is CS))


@pytest.mark.parametrize("pattern", [NS, CS])
@pytest.mark.parametrize(("window", "sink"), [(1, 0), (2, 1), (3, 2), (5, 1)])
def test_weights_are_where_the_mask_of_the_paper_is(pattern, window, sink, generator):
    q, k = torch.randn(2, 1, 1, 61, 4, generator=generator, dtype=F64).unbind()
    weights = attention_map(PowerAttention(block=3, window=window, sink=sink), q, k, pattern=pattern)
    mask = power_mask(61, block=3, window=window, sink=sink, causal=pattern is CS)
    assert ((weights[0, 0] > 0) == mask).all()


def test_the_form_for_other_devices_equals_the_fused_one(generator, monkeypatch):
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 2, 2, 29, 4, generator=generator, dtype=F64).unbind())
    mixer = PowerAttention(block=4, window=2)
    mask = torch.rand(2, 1, 1, 29, generator=generator) < 0.7
    for given in (None, mask):
        fused = mixer(q, k, v, pattern=CS, mask=given).out
        gradients = torch.autograd.grad(fused.sin().sum(), (q, k, v))
        with monkeypatch.context() as patch:
            patch.setattr(parts, "_fuses", lambda q: False)
            plain = mixer(q, k, v, pattern=CS, mask=given).out
            assert_close(plain, fused)
            assert_close(torch.autograd.grad(plain.sin().sum(), (q, k, v)), gradients)


def test_blocks_of_no_token_are_refused():
    with pytest.raises(ValueError, match="block and window must be at least 1"):
        PowerAttention(block=0)
