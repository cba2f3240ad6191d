"""The compiled steps of a displacement field agree with the plain ones, for any shape, level and number of threads."""

import math

import numpy as np
import pytest
import torch

from voxelwave.kernels import fields, native
from voxelwave.registration.forces import CorrelationForce
from voxelwave.registration.levels import smooth
from voxelwave.registration.similarity import local_ncc_loss
from voxelwave.registration.warp import compose, gradient, jacobian_determinant, warp
from voxelwave.volumes import AffineTransform, Volume, resample

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled kernels were not built")

SHAPES = [(9, 10, 11), (1, 20, 33), (12, 1, 70), (5, 5, 5), (2, 3, 1), (24, 17, 40)]


@pytest.fixture(params=native.levels() or ("none",))
def level(request):
    with native.use_level(request.param):
        yield request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def displacement(shape, generator, size=2.0):
    return size * torch.randn(1, 3, *shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_fields_and_displacements_convert_both_ways(shape, generator):
    u = displacement(shape, generator)
    field = fields.interleaved(u)
    assert torch.equal(fields.planar(field), u)
    assert not field[..., 3].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_warping_agrees_with_the_plain_version_on_any_image_size(shape, level, generator):
    u = displacement(shape, generator, size=4.0)  # many points lie outside
    for size in (shape, (7, 2, 9)):
        image = torch.rand(1, 1, *size, generator=generator)
        expected = warp(image, u, padding="border")[0, 0]
        torch.testing.assert_close(fields.warp(image[0, 0], fields.interleaved(u)), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_resampling_by_a_matrix_agrees_with_the_volume_version(shape, level, generator):
    image = torch.rand(*shape, generator=generator)
    matrix = np.array([[0.9, 0.2, 0, -0.7], [-0.1, 1.1, 0.05, 0.6], [0, 0.1, 1.2, -1.3], [0, 0, 0, 1]])
    expected = resample(
        Volume(image.numpy(), np.eye(4)), Volume(np.zeros((6, 8, 9)), np.eye(4)), AffineTransform(matrix)
    )
    found = fields.resample(image, matrix, (6, 8, 9))
    torch.testing.assert_close(found, torch.from_numpy(np.ascontiguousarray(expected.array)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_composition_agrees_with_the_plain_version(shape, level, generator):
    outer, inner = displacement(shape, generator), displacement(shape, generator)
    found = fields.compose(fields.interleaved(outer), fields.interleaved(inner), 0.3)
    # float32 coordinates: an error of 1e-6 of the position, times differences of several voxels between neighbours
    torch.testing.assert_close(fields.planar(found), compose(outer, 0.3 * inner), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigmas", [(1.7, 0.5, 1.0), (0.0, 3.0, 0.0)])
def test_smoothing_agrees_with_the_plain_version_and_measures_the_longest_vector(shape, sigmas, level, generator):
    u, spacing = displacement(shape, generator), (1.0, 2.0, 3.0)
    expected = smooth(u, sigmas)
    found, longest = fields.Smoother(shape, sigmas, spacing)(fields.interleaved(u))
    torch.testing.assert_close(fields.planar(found), expected, rtol=0, atol=5e-4)  # the Gaussian ends at 4 sigma
    lengths = (expected * torch.tensor(spacing).view(1, 3, 1, 1, 1)).norm(dim=1)
    assert longest == pytest.approx(float(lengths.max()), rel=1e-3)


def test_the_longest_vector_is_measured_only_if_asked_for(generator):
    u = fields.interleaved(displacement((6, 7, 8), generator))
    measured, longest = fields.Smoother((6, 7, 8), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))(u)
    plain, unknown = fields.Smoother((6, 7, 8), (1.0, 1.0, 1.0))(u)
    assert torch.equal(measured, plain)
    assert longest > 0
    assert math.isnan(unknown)


@pytest.mark.parametrize("shape", SHAPES)
def test_local_correlation_agrees_with_the_plain_version_and_with_autograd(shape, level, generator):
    warped, fixed = torch.rand(2, 1, 1, *shape, generator=generator)
    mask = (torch.rand(1, 1, *shape, generator=generator) > 0.2).float()
    plain = CorrelationForce(fixed, mask)
    loss, slope = plain(warped)
    scale = (1.0, 0.5, 2.0)
    found, field = plain.compiled()(warped[0, 0], scale)
    assert found == pytest.approx(float(loss), rel=1e-4)
    share = float(mask.sum()) / mask.numel()  # the plain gradient is that of the mean, times the number of voxels
    expected = -share * slope * gradient(warped)[:, 0] * torch.tensor(scale).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(fields.planar(field), expected, rtol=1e-3, atol=2e-5)
    free = warped.clone().requires_grad_()
    value = local_ncc_loss(free, fixed, window=fields.WINDOW, mask=mask)
    assert float(value.detach()) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_determinants_and_descent_agree_with_the_plain_version(shape, level, generator):
    u = displacement(shape, generator)
    plain = jacobian_determinant(u.double())[0, 0].float()
    torch.testing.assert_close(fields.determinant(fields.interleaved(u)), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(jacobian_determinant(u)[0, 0], plain, rtol=1e-4, atol=1e-4)
    image, slope = torch.rand(2, *shape, generator=generator)
    field = fields.descent(image, slope, (1.0, 2.0, 0.5))
    expected = -slope * gradient(image[None, None])[:, 0] * torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(fields.planar(field), expected)


def test_results_do_not_depend_on_the_number_of_threads(generator):
    shape = (23, 9, 31)
    u = fields.interleaved(displacement(shape, generator))
    warped, fixed = torch.rand(2, 1, 1, *shape, generator=generator)
    force = CorrelationForce(fixed, torch.ones_like(fixed)).compiled()
    smooth = fields.Smoother(shape, (1.7, 1.7, 1.7), (1.0, 1.0, 1.0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            loss, field = force(warped[0, 0], (1.0, 1.0, 1.0))
            found.append((loss, field, *smooth(u), fields.compose(u, u, 0.2), fields.warp(warped[0, 0], u)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_only_float32_on_the_cpu_is_served():
    assert fields.serves(torch.zeros(1))
    assert not fields.serves(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
