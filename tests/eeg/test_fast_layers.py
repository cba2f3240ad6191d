"""Fast layers compared with the standard layers of PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from voxelwave.eeg.fast_layers import (
    batch_norm_elu,
    dropout,
    even_and_mean,
    filter_channels,
    filtered_moments,
    toeplitz,
)


@pytest.mark.parametrize(("times", "length", "pool"), [(9, 4, False), (10, 25, True), (7, 3, True), (700, 31, True)])
def test_filter_is_a_depthwise_convolution_and_a_pool(times, length, pool, generator):
    h = torch.randn(3, 2, times, generator=generator, dtype=torch.float64)
    taps = torch.randn(3, length, generator=generator, dtype=torch.float64)
    left = (length - 1) // 2
    plain = F.conv1d(F.pad(h.transpose(0, 1), (left, length - 1 - left)), taps.unsqueeze(1), groups=3)
    plain = F.avg_pool1d(plain, 2) if pool else plain
    torch.testing.assert_close(filter_channels(h, taps, pool=pool).transpose(0, 1), plain)


def test_gradient_of_toeplitz_matrices(generator):
    taps = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    for arguments in ((4, 1), (6, 3), (3, 6)):
        torch.autograd.gradcheck(lambda t, a=arguments: toeplitz(t, *a, left=2, stride=2), taps)


@pytest.mark.parametrize("length", [1, 2, 8, 33])
def test_moments_are_those_of_the_filtered_signals(length, generator):
    x = torch.randn(3, 2, 20, generator=generator, dtype=torch.float64) + 5
    taps = torch.randn(4, length, generator=generator, dtype=torch.float64)
    left = (length - 1) // 2
    filtered = F.conv1d(F.pad(x.reshape(6, 1, 20), (left, length - 1 - left)), taps.unsqueeze(1))
    mean, variance = filtered_moments(x, taps)
    torch.testing.assert_close(mean, filtered.mean((0, 2)))
    torch.testing.assert_close(variance, filtered.var((0, 2), correction=0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3, 7), (5, 3, 2, 4)])
def test_gradients_of_batch_norm_elu(training, shape, generator):
    norm = torch.nn.BatchNorm2d(5, eps=1e-3).double().train(training)
    norm.running_mean = torch.randn(5, generator=generator, dtype=torch.float64)
    h = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda value: batch_norm_elu(value, norm), h)


def test_even_samples_and_means_of_pairs(generator):
    h = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    even, mean = even_and_mean(h)
    torch.testing.assert_close(even, h[..., 0:6:2])
    torch.testing.assert_close(mean, F.avg_pool1d(h, 2))
    torch.autograd.gradcheck(even_and_mean, h)


def test_dropout_keeps_its_share_and_the_mean():
    torch.manual_seed(0)
    kept = dropout(torch.ones(400_001), 0.3, training=True)
    share = float((kept > 0).double().mean())
    assert abs(share - 0.7) < 0.004  # five standard deviations
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 1 / 0.7]), rtol=1e-4, atol=0)
    assert dropout(kept, 0.3, training=False) is kept


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_norm_of_a_traced_program_is_the_same(pairs, training, generator, monkeypatch):
    norm = torch.nn.BatchNorm2d(3).double().train(training)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(3, generator=generator) + 0.5)
    h = torch.randn(3, 4, 2, 6, generator=generator, dtype=torch.float64)
    h = h if pairs else h.flatten(2)
    results = []
    for traced in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda traced=traced: traced)
        same, inputs = copy.deepcopy(norm), h.clone().requires_grad_()
        result = batch_norm_elu(inputs, same, offset=torch.arange(3.0))
        result.square().sum().backward()
        results.append((result, inputs.grad, same.weight.grad, same.bias.grad, same.state_dict()))
    torch.testing.assert_close(results[1], results[0])


def test_the_filters_and_pairs_of_a_traced_program_are_the_same(generator, monkeypatch):
    h = torch.randn(3, 2, 9, generator=generator, dtype=torch.float64)
    taps = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    expected = toeplitz(taps, 9, 5, left=1, stride=2), *even_and_mean(h)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close((toeplitz(taps, 9, 5, left=1, stride=2), *even_and_mean(h)), expected)
    torch.manual_seed(0)
    kept = dropout(torch.ones(400_001), 0.3, training=True)
    assert abs(float((kept > 0).double().mean()) - 0.7) < 0.004  # five standard deviations
