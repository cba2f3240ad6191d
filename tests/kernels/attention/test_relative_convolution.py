"""Relative convolutional attention: the identity at the start, the shift of relative terms, and the ends of filters."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.mixer import CC, CS, NC, NS
from voxelwave.kernels.attention.relative_convolution import RelativeConvolutionAttention
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


@pytest.fixture
def qkv(generator):
    return torch.randn(3, 1, 2, 11, 4, generator=generator, dtype=F64).unbind()


@pytest.mark.parametrize("pattern", [NS, CS, NC, CC])
def test_identity_filters_without_relative_terms_are_plain_attention(pattern, qkv):
    mixer = RelativeConvolutionAttention(2, 4, reach=16).double()
    if pattern in (NS, NC):
        mixer.centre()
    if pattern is CC:
        for taps in mixer.filters[1:]:
            taps.data = taps.data.roll(-1, 1)  # the filters of keys are centred, those of queries causal
    assert_close(mixer(*qkv, pattern=pattern).out, attention(*qkv, causal=pattern is CS))


def test_relative_terms_stand_where_the_shift_of_the_published_code_puts_them(qkv, generator):
    q, k, v = qkv
    mixer = RelativeConvolutionAttention(2, 4, reach=11).double()
    mixer.relative.data = torch.randn(22, 2, 4, generator=generator, dtype=F64)
    # Transformer-XL's shift: the terms of distances 0, 1, ... into the past, moved row by row
    past = torch.einsum("bhid,phd->bhip", q, mixer.relative[: 11 + 1].flip(0))[..., :11].flip(-1)  # distance 10 ... 0
    shifted = torch.cat([past.new_zeros(1, 2, 11, 1), past], -1).view(1, 2, 12, 11)[:, :, 1:]
    bias = 0.5 * shifted
    assert_close(mixer(q, k, v, pattern=CS).out, attention(q, k, v, bias=bias, causal=True))


def test_far_distances_take_the_outermost_terms(qkv, generator):
    q, k, v = qkv
    near, far = (RelativeConvolutionAttention(2, 4, reach=reach).double() for reach in (3, 11))
    near.relative_bias.data = torch.randn(6, 2, generator=generator, dtype=F64)
    place = (torch.arange(22) - 11).clamp(-3, 2) + 3
    far.relative_bias.data = near.relative_bias.data[place]
    assert_close(near(q, k, v, pattern=CS).out, far(q, k, v, pattern=CS).out)


def test_a_filter_does_not_reach_over_padding(generator):
    mixer = RelativeConvolutionAttention(2, 4, reach=32).double()
    for taps in mixer.filters:
        taps.data = torch.randn(4, 3, generator=generator, dtype=F64)
    q, k, v = torch.randn(3, 1, 2, 20, 4, generator=generator, dtype=F64).unbind()
    mask = torch.ones(1, 1, 1, 20, dtype=torch.bool)
    mask[..., :10] = False  # tokens of another recording, and padding
    alone = mixer(q[:, :, 10:], k[:, :, 10:], v[:, :, 10:], pattern=CS).out
    assert_close(mixer(q, k, v, pattern=CS, mask=mask).out[:, :, 10:], alone)


def test_keys_may_begin_before_the_queries(qkv, generator):
    q, k, v = qkv
    mixer = RelativeConvolutionAttention(2, 4, reach=16).double()
    mixer.relative_bias.data = torch.randn(32, 2, generator=generator, dtype=F64)
    whole = mixer(q, k, v, pattern=CS).out
    assert_close(mixer(q[:, :, 4:], k, v, pattern=CS, q_start=4).out, whole[:, :, 4:])


def test_one_token_and_wrong_options(qkv):
    one = [x[:, :, :1] for x in qkv]
    assert_close(RelativeConvolutionAttention(2, 4, reach=4).double()(*one, pattern=CS).out, one[2])
    with pytest.raises(ValueError, match="kernel must be odd"):
        RelativeConvolutionAttention(2, 4, kernel=2)
