"""Similarities of samples have the right derivatives, and a fit finds a known motion."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from voxelwave.registration.linear import (
    BINS,
    _compare,
    _interpolated,
    _mutual_information,
    coarsened,
    fit,
    samples_of,
    similarity,
    without_outliers,
)
from voxelwave.volumes import AffineTransform, Volume
from voxelwave.volumes.resample import resample


@pytest.fixture(scope="module")
def image() -> Volume:
    rng = np.random.default_rng(1)
    array = gaussian_filter(rng.standard_normal((26, 24, 22)), 2.0)
    return Volume((array / array.std()).astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))


def turned(degrees: float, shift: tuple[float, float, float], centre: np.ndarray) -> np.ndarray:
    a = np.deg2rad(degrees)
    world = np.eye(4)
    world[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    world[:3, 3] = centre - world[:3, :3] @ centre + shift
    return world


def centre_of(volume: Volume) -> np.ndarray:
    return volume.affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + volume.affine[:3, 3]


@pytest.mark.parametrize("metric", ["mi", "ncc"])
def test_the_derivative_by_the_map_is_that_of_the_similarity(image, metric):
    samples = samples_of(image, image, spacing_mm=4, count=6_000)
    samples.points[:] += 0.3  # away from the voxels, where a linear interpolation has two derivatives
    world = turned(4, (1.3, -2.1, 0.7), centre_of(image))
    _, _, slope = _compare(samples, torch.from_numpy(world), metric, with_slope=True)
    for axis in range(3):
        step = np.zeros((4, 4))
        step[axis, 3] = 0.02
        values = [
            _compare(samples, torch.from_numpy(world + sign * step), metric, with_slope=False)[0] for sign in (1, -1)
        ]
        assert float(slope[axis, 3]) == pytest.approx((values[0] - values[1]) / 0.04, rel=0.1, abs=2e-5)


def test_derivatives_of_mutual_information_by_values_and_weights():
    generator = torch.Generator().manual_seed(0)
    fixed = (BINS - 2) * torch.rand(300, generator=generator)
    moving = (0.5 * fixed + 8 * torch.rand(300, generator=generator)).double()
    weight = torch.rand(300, generator=generator).double()
    _, by_value, by_weight = _mutual_information(moving, fixed, weight)
    for i in (0, 17, 299):
        for changed, slope in ((moving, by_value), (weight, by_weight)):
            values = []
            for step in (1e-4, -1e-4):
                other = changed.clone()
                other[i] += step
                pair = (other, weight) if changed is moving else (moving, other)
                values.append(_mutual_information(pair[0], fixed, pair[1])[0])
            assert float(slope[i]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-3, abs=1e-8)


def test_interpolation_reads_voxels_exactly_and_its_derivative_is_their_difference():
    image = torch.arange(24.0).view(2, 3, 4) ** 2
    value, slope = _interpolated(image, torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.25, 1.5], [-3.0, 9.0, 3.0]]))
    assert float(value[0]) == float(image[0, 1, 2])
    assert float(value[2]) == float(image[0, 2, 3])  # outside the image, the border value
    h, w = 0.25, 0.5
    near, far = (
        (1 - h) * ((1 - w) * p[0, 1] + w * p[0, 2]) + h * ((1 - w) * p[1, 1] + w * p[1, 2])
        for p in (image[0], image[1])
    )
    assert float(slope[0, 1]) == pytest.approx(float(far - near))


def test_a_volume_of_one_slice_has_no_derivative_across_it():
    value, slope = _interpolated(torch.rand(1, 5, 6), torch.tensor([[0.0, 2.2, 3.3]]))
    assert float(slope[0, 0]) == 0
    assert value.isfinite().all()


def test_coarsening_keeps_constants_and_the_place_of_the_first_voxel():
    volume = Volume(np.full((12, 9, 3), 7.0, np.float32), np.diag([1.0, 1.5, 6.0, 1.0]))
    coarse = coarsened(volume, 3.0)
    assert coarse.shape == (4, 5, 3)
    np.testing.assert_allclose(coarse.array, 7.0, rtol=1e-6)
    np.testing.assert_allclose(coarse.affine, np.diag([3.0, 3.0, 6.0, 1.0]))


def test_similarity_is_largest_in_place_and_lowest_without_overlap(image):
    samples = samples_of(image, image, spacing_mm=4, count=4_000)
    there = similarity(samples, np.eye(4))
    assert there.overlap > 0.7  # samples near the border count in part
    assert there.value > similarity(samples, turned(10, (0, 0, 0), centre_of(image))).value + 0.1
    far = np.eye(4)
    far[0, 3] = 1e4
    assert similarity(samples, far) == similarity(samples, far @ far)
    assert similarity(samples, far).value == 1.0
    assert similarity(samples, far).overlap == 0.0


@pytest.mark.parametrize("metric", ["mi", "ncc"])
def test_a_rigid_fit_finds_a_motion_and_an_affine_fit_a_stretch(image, metric):
    true = turned(6, (3.0, -2.0, 4.0), centre_of(image))
    moving = resample(image, image, AffineTransform(np.linalg.inv(true)))
    samples = samples_of(moving, image, spacing_mm=4, count=10_000)
    corners = np.array([[x, y, z, 1.0] for x in (20, 80) for y in (20, 75) for z in (20, 68)]).T
    rigid = fit(samples, np.eye(4), "rigid", metric=metric)
    assert np.abs((rigid - true) @ corners).max() < 0.3
    np.testing.assert_allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3), atol=1e-9)
    stretched = true @ np.diag([1.05, 0.96, 1.0, 1.0])
    moving = resample(image, image, AffineTransform(np.linalg.inv(stretched)))
    affine = fit(samples_of(moving, image, spacing_mm=4, count=10_000), rigid, "affine", metric=metric)
    assert np.abs((affine - stretched) @ corners).max() < 0.5


def test_equal_seeds_give_equal_fits_and_masked_voxels_have_no_influence(image):
    mask = np.ones(image.shape, bool)
    mask[:8] = False
    changed = image.array.copy()
    changed[:7] = 50.0  # the neighbours of the mask's border are interpolated from voxels inside
    masks = {"moving_mask": image.with_array(mask), "fixed_mask": image.with_array(mask)}
    start = turned(3, (1.0, 1.0, 0.0), centre_of(image))
    found = []
    for array in (image.array, image.array, changed):
        volume = image.with_array(np.clip(array, -3, 3))
        found.append(fit(samples_of(volume, volume, spacing_mm=4, count=8_000, **masks), start, "rigid"))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[2] - found[0]).max() < 0.05


def test_a_few_bright_voxels_are_clipped():
    array = np.linspace(0, 1, 8000, dtype=np.float32).reshape(20, 20, 20)
    array[3, 3, 3] = 1e6
    assert without_outliers(Volume(array, np.eye(4))).array.max() <= 1.0
