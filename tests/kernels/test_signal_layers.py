"""Compiled layers for signals, and products of a small matrix with a wide one, against PyTorch in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from voxelwave.kernels import native, signal_layers
from voxelwave.kernels.products import wide_product

pytestmark = pytest.mark.skipif(not signal_layers.serves(torch.ones(1)), reason="the compiled kernels were not built")
CLOSE = {"rtol": 1e-4, "atol": 2e-5}  # of sums of up to some hundred values in float32


def compare(fast, plain, tensors):
    """Results and gradients of both, for each build of the library."""
    doubles = [each.detach().double().requires_grad_() for each in tensors]
    expected = plain(*doubles)
    upstream = [torch.randn(each.shape, generator=torch.Generator().manual_seed(1)) for each in expected]
    wanted = torch.autograd.grad(expected, doubles, [each.double() for each in upstream])
    for level in native.levels():
        with native.use_level(level):
            singles = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in tensors]
            found = fast(*singles)
            grads = torch.autograd.grad(found, singles, upstream)
        for one, other in zip([*found, *grads], [*expected, *wanted], strict=True):
            assert_close(one, other.float(), **CLOSE)


@pytest.mark.parametrize(
    ("planes", "times", "taps", "left", "outputs"), [(1, 37, 8, 3, 37), (2, 21, 30, 15, 20), (2, 3, 1, 0, 3)]
)
def test_filters_of_single_channels_are_convolutions(planes, times, taps, left, outputs, generator):
    h = torch.randn(4, planes, 5, times, generator=generator).movedim(0, 2).transpose(0, 1)  # not contiguous
    weight, scale = torch.randn(5, planes, taps, generator=generator), torch.rand(5, 4, generator=generator)

    def fast(h, weight, scale):
        return (signal_layers.filter_channels(h, weight, scale, left=left, outputs=outputs),)

    def plain(h, weight, scale):
        rows = F.pad(h, (left, max(0, outputs + taps - 1 - left - times))).movedim(2, 0).flatten(1, 2)
        return (F.conv1d(rows, weight, groups=5)[..., :outputs].movedim(0, 1) * scale.unsqueeze(-1),)

    compare(fast, plain, [h, weight, scale])


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("times", [5, 32])
def test_batch_norm_elu_and_its_means(fixed, times, generator):
    h = torch.randn(3, 4, times, generator=generator) * 3 + 5
    weight, bias, mean = torch.randn(3, 3, generator=generator)
    variance = torch.rand(3, generator=generator) + 0.5
    dropped = signal_layers.Dropped(h.shape, 0.3)

    def plain(h, weight, bias, mean):
        known = (mean, variance.to(h.dtype)) if fixed else (h.mean((1, 2)), h.var((1, 2), correction=0))
        centre, spread = (each.view(-1, 1, 1) for each in known)
        result = F.elu((h - centre) * torch.rsqrt(spread + 1e-3) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1))
        return result, result.mean(-1), (result * dropped.mask(result)).mean(-1) + 0 * mean.sum()

    def fast(h, weight, bias, mean):
        known = (mean, variance) if fixed else (None, None)
        result, means, *found = signal_layers.norm_elu(h, weight, bias, *known, 1e-3)
        assert fixed or torch.allclose(found[1], h.var((1, 2), correction=0))
        same, kept, *_ = signal_layers.norm_elu_means(h, weight, bias, *known, 1e-3, dropped)
        assert_close(same, means)
        return result, means, kept + 0 * mean.sum()

    compare(fast, plain, [h, weight, bias, mean])


@pytest.mark.parametrize("times", [9, 32])
@pytest.mark.parametrize("drop_prob", [0, 0.5])
def test_dropout_and_the_even_and_odd_samples_apart(times, drop_prob, generator):
    h = torch.randn(2, times, 3, generator=generator).movedim(1, 2).movedim(0, 1)
    dropped = signal_layers.Dropped(h.shape, drop_prob) if drop_prob else None

    def plain(h):
        kept = F.pad(h if dropped is None else h * dropped.mask(h), (0, times % 2))
        return (torch.stack([kept[..., 0::2], kept[..., 1::2]], 1),)

    compare(lambda h: (signal_layers.split_pairs(h, dropped),), plain, [h])


def test_products_with_all_samples_and_with_the_even_ones(generator):
    h = torch.randn(5, 2, 3, 7, generator=generator)
    both, even = torch.randn(7, 5, generator=generator), torch.randn(2, 5, generator=generator)
    compare(
        signal_layers.mix_pairs,
        lambda h, both, even: (torch.einsum("nc,cpbt->npbt", both, h), torch.einsum("mc,cbt->mbt", even, h[:, 0])),
        [h, both, even],
    )
    compare(lambda w, h: (signal_layers.mix(w, h),), lambda w, h: (torch.einsum("mc,cbt->mbt", w, h),), [even, h[:, 1]])


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (13, 5, 33), (6, 64, 600), (29, 3, 270)])
def test_product_of_a_small_matrix_with_a_wide_one(rows, depth, columns, generator):
    small, wide = (
        torch.randn(depth, rows, generator=generator).T,
        torch.randn(depth, columns + 3, generator=generator)[:, 2:-1],
    )
    before = torch.randn(rows, columns + 1, generator=generator)[:, 1:]
    expected = small.double() @ wide.double()
    for level in native.levels():
        with native.use_level(level):
            assert_close(wide_product(small, wide), expected.float(), **CLOSE)
            sums = before.clone()
            assert wide_product(small, wide, add_to=sums) is sums
            assert_close(sums, (before.double() + expected).float(), **CLOSE)


def test_layers_serve_only_plain_float32_values_on_the_cpu():
    value = torch.ones(2)
    assert signal_layers.serves(value)
    assert not signal_layers.serves(value, value.double())
    assert not signal_layers.serves(torch.ones(2, device="meta"))
    with torch.autocast("cpu"):
        assert not signal_layers.serves(value)


def test_the_scratch_of_kernels_does_not_follow_the_default_type():
    small, wide = torch.ones(3, 5), torch.ones(5, 40)
    with torch.device("meta"):
        found = wide_product(small, wide)
    assert_close(found, torch.full((3, 40), 5.0))


@pytest.mark.parametrize(("small", "wide"), [((2, 5), (3, 4)), ((2, 5), (5,))])
def test_a_product_of_unfit_matrices_is_refused(small, wide):
    with pytest.raises((ValueError, IndexError)):
        wide_product(torch.ones(small), torch.ones(wide))
