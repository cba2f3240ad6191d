"""Warping, composing, integrating and inverting displacement fields."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from voxelwave.registration.warp import (
    compose,
    gradient,
    integrate,
    invert_displacement,
    jacobian_determinant,
    resize_displacement,
    voxel_grid,
    warp,
)
from voxelwave.runs.onnx_file import ROUNDING, Exportable, Size, write_onnx

SHAPES = [(7, 8, 9), (1, 6, 5), (2, 1, 4), (13, 5, 3)]


def smooth_field(shape, peak, generator, sigma=3.0):
    """A smooth random displacement whose longest vector has `peak` voxels, fading to 0 at the border."""
    noise = torch.randn(3, *shape, generator=generator).double().numpy()
    field = np.stack([gaussian_filter(component, sigma) for component in noise])
    for axis, n in enumerate(shape):
        field *= np.sin(np.pi * (np.arange(n) + 0.5) / n).reshape([-1 if a == axis else 1 for a in range(3)])
    return torch.from_numpy(field / np.linalg.norm(field, axis=0).max() * peak)[None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_zero_displacement_leaves_the_image(shape, mode, padding, generator):
    image = torch.rand(2, 3, *shape, generator=generator)
    # the coordinates pass through [-1, 1] in float32
    torch.testing.assert_close(
        warp(image, torch.zeros(2, 3, *shape), mode=mode, padding=padding), image, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_voxel_along_an_axis_reads_the_next_voxel_of_that_axis(axis, generator):
    image = torch.rand(1, 1, 5, 6, 7, generator=generator, dtype=torch.float64)
    displacement = torch.zeros(1, 3, 5, 6, 7, dtype=torch.float64)
    displacement[:, axis] = 1
    expected = torch.roll(image, -1, dims=axis + 2)
    expected.select(axis + 2, -1).zero_()
    torch.testing.assert_close(warp(image, displacement), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("padding", "scipy_mode"), [("zeros", "grid-constant"), ("border", "nearest")])
def test_warp_agrees_with_scipy(shape, padding, scipy_mode, generator):
    image = torch.rand(1, 1, *shape, generator=generator, dtype=torch.float64)
    displacement = 4 * torch.randn(1, 3, *shape, generator=generator, dtype=torch.float64)
    points = (voxel_grid(shape, dtype=torch.float64) + displacement)[0].numpy()
    expected = map_coordinates(image[0, 0].numpy(), points, order=1, mode=scipy_mode)
    torch.testing.assert_close(warp(image, displacement, padding=padding)[0, 0], torch.from_numpy(expected))


def test_threads_do_not_change_the_result(generator):
    image = torch.rand(1, 2, 9, 8, 7, generator=generator)
    displacement = torch.randn(1, 3, 11, 8, 7, generator=generator)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(warp(image, displacement))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0)
    torch.testing.assert_close(results[2], results[0], atol=0, rtol=0)


def test_warp_is_the_adjoint_of_its_gradient(generator):
    image = torch.rand(1, 1, 6, 7, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    displacement = torch.randn(1, 3, 6, 7, 8, generator=generator, dtype=torch.float64)
    weights = torch.rand(1, 1, 6, 7, 8, generator=generator, dtype=torch.float64)
    warped = warp(image, displacement)
    (splatted,) = torch.autograd.grad((warped * weights).sum(), image)
    torch.testing.assert_close((splatted * image).sum(), (warped * weights).sum())


def test_gradient_with_respect_to_the_displacement_is_right(generator):
    image = torch.rand(1, 1, 4, 5, 6, generator=generator, dtype=torch.float64)
    displacement = torch.randn(1, 3, 4, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: warp(image, u), displacement)


def test_labels_keep_their_numbers_and_type(generator):
    labels = torch.randint(0, 2**31 - 1, (1, 1, 6, 6, 6), generator=generator, dtype=torch.int32)
    warped = warp(labels, torch.randn(1, 3, 6, 6, 6, generator=generator), mode="nearest", padding="border")
    assert warped.dtype == torch.int32
    assert set(warped.unique().tolist()) <= set(labels.unique().tolist())


def test_moving_may_have_another_size_than_the_fixed_grid():
    moving = torch.arange(10.0).view(1, 1, 1, 1, 10)
    displacement = torch.zeros(1, 3, 1, 1, 4)
    displacement[:, 2] = 3
    torch.testing.assert_close(warp(moving, displacement).flatten(), torch.tensor([3.0, 4.0, 5.0, 6.0]))


def test_half_precision_images_are_sampled_at_full_precision(generator):
    image = torch.rand(1, 1, 4, 4, 200, generator=generator).half()
    displacement = torch.full((1, 3, 4, 4, 200), 0.25)
    expected = warp(image.float(), displacement).half()
    torch.testing.assert_close(warp(image, displacement), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("moving", "displacement", "options", "message"),
    [
        (
            (1, 1, 4, 4, 4),
            (1, 2, 4, 4, 4),
            {},
            r"displacement must have shape \(B, 3, D, H, W\), got \(1, 2, 4, 4, 4\)",
        ),
        ((2, 1, 4, 4, 4), (3, 3, 4, 4, 4), {}, "with the batch of displacement"),
        ((4, 4, 4), (1, 3, 4, 4, 4), {}, "moving must have shape"),
        ((1, 1, 4, 4, 4), (1, 3, 4, 4, 4), {"mode": "cubic"}, 'mode must be "bilinear" or "nearest", got "cubic"'),
        ((1, 1, 4, 4, 4), (1, 3, 4, 4, 4), {"padding": "wrap"}, 'padding must be "zeros" or "border", got "wrap"'),
    ],
)
def test_wrong_arguments_are_named(moving, displacement, options, message):
    with pytest.raises(ValueError, match=message):
        warp(torch.zeros(moving), torch.zeros(displacement), **options)


def test_labels_are_not_interpolated():
    with pytest.raises(TypeError, match="floating-point"):
        warp(torch.zeros(1, 1, 4, 4, 4, dtype=torch.int32), torch.zeros(1, 3, 4, 4, 4))


def test_compose_applies_inner_first_and_outer_to_the_result():
    shape = (1, 1, 12)
    doubling = voxel_grid(shape) * torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1)  # x -> 2 x
    shift = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, *shape)  # x -> x + 1
    x = torch.arange(4.0)
    torch.testing.assert_close((x + compose(doubling, shift)[0, 2, 0, 0, :4]), 2 * (x + 1))
    torch.testing.assert_close((x + compose(shift, doubling)[0, 2, 0, 0, :4]), 2 * x + 1)


def test_warping_twice_equals_warping_once_by_the_composition(generator):
    shape = (20, 22, 24)
    outer, inner = smooth_field(shape, 2.0, generator), smooth_field(shape, 2.0, generator)
    image = 0.3 * voxel_grid(shape, dtype=torch.float64).sum(
        1, keepdim=True
    )  # interpolation of a linear image is exact
    inside = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(warp(warp(image, outer), inner)[inside], warp(image, compose(outer, inner))[inside])


def test_integral_of_the_opposite_velocity_is_the_inverse(generator):
    velocity = smooth_field((24, 26, 28), 2.5, generator, sigma=4.0)
    forward, backward = integrate(velocity), integrate(-velocity)
    # trilinear interpolation of the field loses curvature: a few hundredths of a voxel
    assert compose(forward, backward).norm(dim=1).max() < 0.1
    assert forward.norm(dim=1).max() > 1.5


def test_integral_of_a_linear_velocity_is_the_exponential():
    centre = voxel_grid((17, 17, 17), dtype=torch.float64) - 8
    displacement = integrate(0.2 * centre, steps=10)
    inside = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    expected = (np.exp(0.2) - 1) * centre
    # (1 + 0.2 / 1024)^1024 differs from exp(0.2) by a fraction of 2e-5
    torch.testing.assert_close(displacement[inside], expected[inside], rtol=1e-3, atol=1e-9)


def test_integral_has_no_folds_where_the_velocity_itself_folds(generator):
    velocity = smooth_field((24, 24, 24), 6.0, generator, sigma=2.0)
    assert jacobian_determinant(velocity).min() < 0
    assert jacobian_determinant(integrate(velocity)).min() > 0


def test_inverse_returns_each_point(generator):
    displacement = smooth_field((24, 26, 28), 2.5, generator, sigma=4.0)
    inverse, residual = invert_displacement(displacement)
    assert residual.max() <= 0.01
    assert compose(displacement, inverse).norm(dim=1).max() <= 0.01
    torch.testing.assert_close(compose(displacement, inverse).norm(dim=1, keepdim=True), residual)
    assert compose(inverse, displacement).norm(dim=1).max() < 0.1  # both fields are interpolated


def test_inverse_of_a_stretch_beyond_two_converges():
    # d/dx of the displacement is 1.5 there: the plain fixed-point iteration would diverge
    stretch = 1.5 * (voxel_grid((1, 1, 31), dtype=torch.float64) - 15) * torch.tensor([0, 0, 1.0]).view(1, 3, 1, 1, 1)
    inverse, residual = invert_displacement(stretch, iterations=60, tolerance=1e-3)
    x = torch.arange(31.0, dtype=torch.float64) - 15
    assert residual.max() <= 1e-3
    torch.testing.assert_close(x + inverse[0, 2, 0, 0], x / 2.5, atol=1e-3, rtol=0)


def test_gradient_agrees_with_numpy(generator):
    field = torch.rand(2, 3, 5, 6, 7, generator=generator, dtype=torch.float64)
    expected = np.stack(np.gradient(field.numpy(), axis=(2, 3, 4)), axis=2)
    torch.testing.assert_close(gradient(field), torch.from_numpy(expected))


def test_determinant_of_a_linear_map_is_that_of_its_matrix(generator):
    matrix = 0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    displacement = torch.einsum("ij,bjdhw->bidhw", matrix, voxel_grid((4, 5, 6), dtype=torch.float64))
    expected = torch.linalg.det(torch.eye(3, dtype=torch.float64) + matrix).expand(1, 1, 4, 5, 6)
    torch.testing.assert_close(jacobian_determinant(displacement), expected)


def test_determinant_of_a_flip_is_negative():
    flip = voxel_grid((3, 3, 3)) * torch.tensor([-2.0, 0, 0]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(jacobian_determinant(flip), torch.full((1, 1, 3, 3, 3), -1.0))


@pytest.mark.parametrize("shape", [(9, 11, 13), (5, 6, 7), (9, 1, 7)])
def test_resized_field_is_the_same_map_in_the_new_voxels(shape):
    old = (5, 6, 7)
    factors = torch.tensor([(new - 1) / (o - 1) for new, o in zip(shape, old, strict=True)]).view(1, 3, 1, 1, 1)
    # a linear field is interpolated exactly: u(x) = 0.1 x on the old grid is 0.1 x' on the new one
    resized = resize_displacement(0.1 * voxel_grid(old), shape)
    assert resized.shape == (1, 3, *shape)
    torch.testing.assert_close(
        resized, torch.where(factors > 0, 0.1 * voxel_grid(shape), torch.zeros(1)), atol=1e-5, rtol=0
    )


def test_resizing_there_and_back_keeps_a_smooth_field(generator):
    field = smooth_field((16, 18, 20), 2.0, generator, sigma=4.0)
    back = resize_displacement(resize_displacement(field, (31, 35, 39)), (16, 18, 20))
    torch.testing.assert_close(back, field)


def test_resize_names_a_bad_shape():
    with pytest.raises(ValueError, match="shape must be three positive lengths"):
        resize_displacement(torch.zeros(1, 3, 4, 4, 4), (4, 4))


@pytest.mark.slow
def test_an_exported_program_integrates_and_warps_volumes_of_any_size(tmp_path):
    pytest.importorskip("onnxruntime", reason='needs pip install "voxelwave[export]"')
    pytest.importorskip("onnxscript", reason='needs pip install "voxelwave[export]"')
    from voxelwave.registration.onnx_operators import translations

    class Integrated(torch.nn.Module):
        def forward(self, image, velocity):
            displacement = integrate(velocity)
            return warp(image, displacement), displacement

    def example(sizes):
        shape = sizes["depth"], 5, 7
        generator = torch.Generator().manual_seed(0)
        return torch.rand(1, 1, *shape, generator=generator), 2 * torch.randn(1, 3, *shape, generator=generator)

    exportable = Exportable(
        network=Integrated(),
        inputs={"image": (1, 1, "depth", 5, 7), "velocity": (1, 3, "depth", 5, 7)},
        outputs=("warped", "displacement"),
        sizes={"depth": Size(least=2)},
        example=example,
        tried=({"depth": 4}, {"depth": 9}),
        preprocessing={},
        translations=translations,
    )
    difference = write_onnx(tmp_path / "w.onnx", exportable).difference
    assert difference is not None
    assert difference < ROUNDING
