"""Similarities between images and regularizers of displacements."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter

from voxelwave.registration.similarity import (
    bending_energy,
    box_sum,
    diffusion_energy,
    local_ncc_loss,
    mind_loss,
    mind_ssc,
    mutual_information_loss,
)
from voxelwave.registration.warp import voxel_grid

LOSSES = {
    "ncc": lambda w, f, mask=None: local_ncc_loss(w, f, window=5, mask=mask),
    "mi": lambda w, f, mask=None: mutual_information_loss(w, f, bins=8, mask=mask),
    "local mi": lambda w, f, mask=None: mutual_information_loss(w, f, bins=6, patch=6, mask=mask),
    "mind": lambda w, f, mask=None: mind_loss(w, f, radius=1, dilation=1, mask=mask),
}


def blobs(generator, shape=(12, 14, 13), batch=1):
    noise = torch.rand(batch, 1, *shape, generator=generator, dtype=torch.float64).numpy()
    smooth = np.stack([uniform_filter(n, (0, 3, 3, 3)) for n in noise])
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth))


def plain_ncc(warped, fixed, window=9):
    """The published loss, computed by convolution with ones."""
    ones = torch.ones(1, 1, window, window, window, dtype=warped.dtype)

    def s(x):
        return F.conv3d(x, ones, padding=window // 2)

    n = window**3
    mean_w, mean_f = s(warped) / n, s(fixed) / n
    cross = s(warped * fixed) - mean_w * s(fixed) - mean_f * s(warped) + mean_w * mean_f * n
    var_w = s(warped**2) - 2 * mean_w * s(warped) + mean_w**2 * n
    var_f = s(fixed**2) - 2 * mean_f * s(fixed) + mean_f**2 * n
    return -(cross**2 / (var_w * var_f + 1e-5)).mean()


@pytest.mark.parametrize("window", [1, 3, 5, 7, 9, 15, (3, 1, 5)])
def test_box_sum_is_a_convolution_with_ones(window, generator):
    image = torch.rand(2, 1, 8, 5, 9, generator=generator, dtype=torch.float64)
    widths = (window,) * 3 if isinstance(window, int) else window
    expected = F.conv3d(image, torch.ones(1, 1, *widths, dtype=torch.float64), padding=[w // 2 for w in widths])
    torch.testing.assert_close(box_sum(image, window), expected)


def test_box_sum_is_its_own_adjoint(generator):
    x, y = torch.rand(2, 1, 1, 7, 6, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((box_sum(x, 5) * y).sum(), (x * box_sum(y, 5)).sum())


@pytest.mark.parametrize("window", [3, 9])
def test_published_ncc_agrees_with_the_plain_version_forward_and_backward(window, generator):
    warped, fixed = blobs(generator, batch=2).requires_grad_(), blobs(generator, batch=2)
    loss = local_ncc_loss(warped.float(), fixed.float(), window=window, published=True)
    expected = plain_ncc(warped, fixed, window)
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=0)  # float32 variances of nearly flat windows
    (grad,) = torch.autograd.grad(loss, warped)
    (expected_grad,) = torch.autograd.grad(expected, warped)
    torch.testing.assert_close(grad, expected_grad, atol=1e-3 * float(expected_grad.abs().max()), rtol=0)


def test_gradient_of_ncc_agrees_with_autograd_for_both_images_and_a_mask(generator):
    warped, fixed = blobs(generator).float().requires_grad_(), blobs(generator).float().requires_grad_()
    mask = (torch.rand(1, 1, 12, 14, 13, generator=generator) > 0.3).float()
    w, f, n = warped * mask, fixed * mask, box_sum(mask, 5).clamp(min=1)
    covariance = box_sum(w * f, 5) - box_sum(w, 5) * box_sum(f, 5) / n
    variances = [box_sum(i * i, 5) - box_sum(i, 5) ** 2 / n for i in (w, f)]
    plain = -(mask * covariance**2 / (variances[0] * variances[1] + 1e-5)).sum() / mask.sum()
    loss = local_ncc_loss(warped, fixed, window=5, mask=mask)
    torch.testing.assert_close(loss, plain)
    for ours, expected in zip(
        torch.autograd.grad(loss, [warped, fixed]), torch.autograd.grad(plain, [warped, fixed]), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["ncc", "mi"])
def test_loss_of_a_masked_image_equals_that_of_the_cropped_one(name, generator):
    warped, fixed = blobs(generator).float(), blobs(generator).float()
    box = (..., slice(2, 9), slice(3, 12), slice(1, 11))
    mask = torch.zeros(1, 1, 12, 14, 13)
    mask[box] = 1
    warped_outside = torch.where(mask > 0, warped, 17.0).requires_grad_()
    cropped = warped[box].clone().requires_grad_()
    masked_loss, cropped_loss = LOSSES[name](warped_outside, fixed, mask), LOSSES[name](cropped, fixed[box])
    torch.testing.assert_close(masked_loss, cropped_loss)
    (masked_grad,) = torch.autograd.grad(masked_loss, warped_outside)
    (cropped_grad,) = torch.autograd.grad(cropped_loss, cropped)
    torch.testing.assert_close(masked_grad[box], cropped_grad, atol=1e-6, rtol=1e-3)
    assert (masked_grad[mask.expand_as(masked_grad) == 0] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_lowest_for_the_aligned_image(name, generator):
    image = blobs(generator).float()
    aligned = LOSSES[name](image, image)
    assert all(LOSSES[name](image.roll(1, dims=axis), image) > aligned for axis in (2, 3, 4))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_low_for_an_inverted_contrast(name, generator):
    image = blobs(generator).float()
    assert LOSSES[name](1 - image, image) < LOSSES[name](image.roll(1, dims=3), image)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_points_uphill(name, generator):
    warped, fixed = blobs(generator).requires_grad_(), blobs(generator)
    mask = torch.ones(1, 1, 12, 14, 13, dtype=torch.float64)
    mask[..., :2] = 0
    loss = LOSSES[name](warped, fixed, mask)
    (grad,) = torch.autograd.grad(loss, warped)
    # the lowest and the highest voxel set the bins of the histogram and are kept fixed
    direction = torch.randn(warped.shape, generator=generator, dtype=torch.float64)
    direction[(warped == warped.min()) | (warped == warped.max())] = 0
    inside = mask.expand_as(warped) > 0
    direction[(warped == warped[inside].min()) | (warped == warped[inside].max())] = 0
    step = 1e-6 if name == "mind" else 1e-3  # mind is float64 with kinks, where another pair becomes the most similar
    with torch.no_grad():
        plus = LOSSES[name](warped + step * direction, fixed, mask)
        minus = LOSSES[name](warped - step * direction, fixed, mask)
    slope = float((plus - minus) / (2 * step))
    assert slope == pytest.approx(float((grad * direction).sum()), rel=0.05, abs=2e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_flat_images_give_a_finite_loss_and_gradient(name):
    flat = torch.zeros(1, 1, 12, 12, 12, requires_grad=True)
    loss = LOSSES[name](flat, torch.zeros(1, 1, 12, 12, 12))
    (grad,) = torch.autograd.grad(loss, flat)
    assert math.isfinite(loss.detach())
    assert torch.isfinite(grad).all()


def test_mutual_information_agrees_with_a_histogram(generator):
    """With many voxels and few grey values, the spline window changes little."""
    fixed = torch.randint(0, 4, (1, 1, 20, 20, 20), generator=generator).float()
    independent = torch.rand(1, 1, 20, 20, 20, generator=generator)
    assert abs(mutual_information_loss(independent, fixed, bins=8)) < 0.01
    assert mutual_information_loss(3 - fixed, fixed, bins=32).item() == pytest.approx(-math.log(4), abs=0.01)


def test_local_mutual_information_of_one_patch_is_the_global_one(generator):
    warped, fixed = blobs(generator).float(), blobs(generator).float()
    local = mutual_information_loss(warped, fixed, bins=8, patch=20)
    torch.testing.assert_close(local, mutual_information_loss(warped, fixed, bins=8))


def test_mind_of_a_scaled_image_is_the_same(generator):
    image = blobs(generator)
    context = mind_ssc(image)
    assert context.shape == (1, 12, 12, 14, 13)
    torch.testing.assert_close(mind_ssc(5 - 1000 * image), context)
    assert (context.amax(dim=1) == 1).all()


def test_mind_of_a_mirrored_image_is_the_mirrored_context(generator):
    """Mirroring an axis exchanges its two neighbours: the channels are exchanged, and their sum is unchanged."""
    image = blobs(generator)
    torch.testing.assert_close(mind_ssc(image.flip(2)).sum(1), mind_ssc(image).sum(1).flip(1))


@pytest.mark.parametrize("energy", [diffusion_energy, bending_energy])
def test_energy_in_mm_does_not_depend_on_the_grid(energy):
    def sampled(shape, spacing):
        millimetres = voxel_grid(shape) * torch.tensor(spacing).view(1, 3, 1, 1, 1)
        field_mm = 0.01 * (millimetres**2).sum(1, keepdim=True).expand(1, 3, *shape)
        return field_mm / torch.tensor(spacing).view(1, 3, 1, 1, 1)

    coarse, fine = (11, 11, 11), (41, 21, 11)
    value = energy(sampled(coarse, (2.0, 2.0, 2.0)), spacing=(2.0, 2.0, 2.0))
    finer = energy(sampled(fine, (0.5, 1.0, 2.0)), spacing=(0.5, 1.0, 2.0))
    torch.testing.assert_close(finer, value, rtol=0.05, atol=0)  # forward differences lie half a voxel to the side


def test_bending_energy_of_an_affine_map_is_0(generator):
    matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    field = torch.einsum("ij,bjdhw->bidhw", matrix, voxel_grid((5, 6, 7), dtype=torch.float64))
    assert bending_energy(field) < 1e-20
    assert diffusion_energy(field) > 0.01


@pytest.mark.parametrize("energy", [diffusion_energy, bending_energy])
def test_energy_of_one_slice_is_that_of_its_plane(energy):
    assert torch.isfinite(energy(torch.rand(1, 3, 1, 6, 6)))
    assert energy(torch.zeros(1, 3, 1, 1, 1)) == 0


@pytest.mark.parametrize("loss", [local_ncc_loss, mutual_information_loss, mind_loss])
def test_wrong_shapes_are_named(loss):
    image = torch.zeros(1, 1, 6, 6, 6)
    with pytest.raises(ValueError, match="warped and fixed must have one shape"):
        loss(image[..., :5], image)
    with pytest.raises(ValueError, match="mask must have the shape of fixed"):
        loss(image, image, mask=torch.ones(6, 6, 6))


def test_wrong_options_are_named():
    image = torch.zeros(1, 1, 6, 6, 6)
    with pytest.raises(ValueError, match="window must be an odd width"):
        local_ncc_loss(image, image, window=4)
    with pytest.raises(ValueError, match="mask must be None with published=True"):
        local_ncc_loss(image, image, mask=image, published=True)
    with pytest.raises(ValueError, match="bins must be 5 or more"):
        mutual_information_loss(image, image, bins=3)
    with pytest.raises(ValueError, match="mask must hold at least one voxel"):
        mutual_information_loss(image, image, mask=image)
