"""The compiled layers of channel-last maps against PyTorch's in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from voxelwave.kernels import arena, native, pixel_layers

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled kernels were not built")


# from 1,024 pixels on, and from 16 channels on, blocks of 2 x 2 results are computed together
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (9, 12), (33, 34), (37, 53)])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 20), (17, 33), (64, 64)])
@pytest.mark.parametrize("complete", [True, False])
def test_a_filter_of_3_x_3_pixels_equals_the_convolution(size, channels, outputs, complete):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, *size, generator=generator).permute(0, 2, 3, 1)  # not contiguous
    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    bias = torch.randn(outputs, generator=generator) if complete else None
    added = torch.randn(2, *size, outputs, generator=generator) if complete else None
    expected = F.conv2d(
        features.double().permute(0, 3, 1, 2), weight.double(), None if bias is None else bias.double(), padding=1
    ).permute(0, 2, 3, 1)
    expected = expected if added is None else expected + added.double()
    for level in native.levels():
        with native.use_level(level):
            found = pixel_layers.filter_map(features, weight, bias, added)
        assert_close(found, expected.float(), rtol=1e-5, atol=1e-4)


def test_a_filter_is_the_same_with_two_threads_and_in_reused_memory():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 130, 70, 32, generator=generator)
    weight, bias = torch.randn(40, 32, 3, 3, generator=generator), torch.randn(40, generator=generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = pixel_layers.filter_map(features, weight, bias)
        torch.set_num_threads(2)
        with arena.reused():
            arena.empty(*alone.shape).fill_(float("nan"))
            both = pixel_layers.filter_map(features, weight, bias)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone, both)


@pytest.mark.parametrize("channels", [1, 16, 37])
def test_a_norm_equals_the_layer_norm(channels):
    generator = torch.Generator().manual_seed(2)
    features = 5 + 3 * torch.randn(2, 7, 9, channels, generator=generator)
    weight, bias = torch.randn(2, channels, generator=generator)
    expected = F.layer_norm(features.double(), (channels,), weight.double(), bias.double(), 1e-5).float()
    for level in native.levels():
        with native.use_level(level):
            found = pixel_layers.normalise(features, weight, bias, 1e-5)
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
