"""The compiled depthwise convolution against PyTorch's, and its derivatives, in double precision."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels import native
from voxelwave.kernels.depthwise import depthwise_conv, plain_depthwise_conv

SIZES = [((40,), 7, 2), ((9, 11), 3, 1), ((5, 4, 19), 3, 1), ((6, 7, 9), 7, 3), ((3, 1, 2), 5, 2)]


needs_library = pytest.mark.skipif(not native.levels(), reason="the compiled kernels were not built")


def inputs(size, kernel, channels, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, 1, *[kernel] * len(size), generator=generator)
    return torch.randn(batch, *size, channels, generator=generator), weight, torch.randn(channels, generator=generator)


def exact(tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


@needs_library
@pytest.mark.parametrize("channels", [1, 16, 37])
@pytest.mark.parametrize(("size", "kernel", "dilation"), SIZES)
def test_values_and_derivatives_are_those_of_double_precision(size, kernel, dilation, channels):
    tensors = [tensor.requires_grad_() for tensor in inputs(size, kernel, channels)]
    upstream = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    doubles = exact(tensors)
    for level in native.levels():
        with native.use_level(level):
            out = depthwise_conv(*tensors, dilation=dilation)
            found = torch.autograd.grad(out, tensors, upstream)
        expected = plain_depthwise_conv(*doubles, dilation=dilation)
        assert_close(out, expected.float(), rtol=1e-4, atol=1e-4)
        wanted = torch.autograd.grad(expected, doubles, upstream.double())
        assert_close(found, tuple(each.float() for each in wanted), rtol=1e-3, atol=1e-3)


def test_a_kernel_of_one_tap_shifts_the_map():
    maps = torch.arange(5 * 6.0).reshape(1, 5, 6, 1)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 2] = 2.0  # the voxel above and to the right
    expected = torch.zeros_like(maps)
    expected[:, 1:, :-1] = 2 * maps[:, :-1, 1:]
    assert_close(depthwise_conv(maps, weight), expected, rtol=0, atol=0)


def test_a_number_that_is_not_finite_stays_in_its_reach_and_its_channel():
    maps, weight, bias = inputs((6, 7), 3, 4, batch=1)
    maps[0, 0, 6, 2] = torch.nan
    out = depthwise_conv(maps, weight, bias)
    expected = torch.zeros(6, 7, 4, dtype=torch.bool)
    expected[:2, 5:, 2] = True
    assert torch.equal(out[0].isnan(), expected)


def test_the_number_of_threads_does_not_change_the_result():
    maps, weight, bias = inputs((9, 8, 21), 3, 20)
    weight.requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = depthwise_conv(maps, weight, bias)
            found.append((out.detach(), *torch.autograd.grad(out.square().sum(), weight)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strided_maps_are_read_in_their_order():
    maps, weight, bias = inputs((5, 6, 7), 3, 8)
    strided = maps.movedim(-1, 1).contiguous().movedim(1, -1)
    assert_close(depthwise_conv(strided, weight, bias), depthwise_conv(maps, weight, bias), rtol=0, atol=0)


def test_other_types_use_the_plain_version():
    maps, weight, bias = (tensor.double() for tensor in inputs((5, 6), 3, 4))
    assert_close(depthwise_conv(maps, weight, bias), plain_depthwise_conv(maps, weight, bias), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(5, 1, 3, 3), (4, 2, 3, 3), (4, 1, 3), (4, 1, 2, 3)])
def test_a_weight_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"weight must have shape \(C, 1, \*kernel\) with C = 4"):
        depthwise_conv(torch.zeros(1, 5, 5, 4), torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_or_a_dilation_that_does_not_fit_is_refused(dtype):
    maps, weight = torch.zeros(1, 5, 5, 4, dtype=dtype), torch.zeros(4, 1, 3, 3, dtype=dtype)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(1,\)"):
        depthwise_conv(maps, weight, torch.zeros(1, dtype=dtype))
    with pytest.raises(ValueError, match="dilation must be at least 1, got 0"):
        depthwise_conv(maps, weight, dilation=0)


def test_functional_derivatives_are_those_of_autograd():
    maps, weight, bias = inputs((4, 5), 3, 3)
    leaf = weight.clone().requires_grad_()
    depthwise_conv(maps, leaf, bias).square().sum().backward()
    found = torch.func.grad(lambda w: depthwise_conv(maps, w, bias).square().sum())(weight)
    assert_close(found, leaf.grad, rtol=1e-4, atol=1e-4)
