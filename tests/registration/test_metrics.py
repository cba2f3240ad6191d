"""Metrics compared with phantoms of known results, and with SciPy and scikit-image."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage
from skimage.metrics import structural_similarity

from voxelwave.registration.jacobian import non_positive_jacobian_fraction, sdlogj
from voxelwave.registration.metrics import dice, hd95_mm
from voxelwave.registration.ssim import ssim
from voxelwave.registration.warp import voxel_grid


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def cube(start, stop, size=24):
    mask = np.zeros((size, size, size), np.int16)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 1
    return mask


def linear_field(*factors, size=10):
    """The displacement of the map x -> factor x along each axis."""
    return voxel_grid((size, size, size)) * (torch.tensor(factors).view(1, 3, 1, 1, 1) - 1)


def test_ssim_of_equal_images_is_1(rng):
    image = rng.random((12, 13, 14))
    assert ssim(image, image, data_range=1.0) == pytest.approx(1)


def test_ssim_agrees_with_scikit_image(rng):
    clean = ndimage.gaussian_filter(rng.random((24, 25, 26)), 2)
    clean = (clean - clean.min()) / np.ptp(clean)
    noisy = clean + 0.1 * rng.standard_normal(clean.shape)
    for data_range in (1.0, 2.0):
        # sigma 1.5 and truncation 3.5 give scikit-image's window of 11; it averages over the same windows
        expected = structural_similarity(
            clean, noisy, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        # its mean leaves out the same border of 5 voxels
        assert ssim(noisy, clean, data_range=data_range) == pytest.approx(expected, abs=1e-5)  # MONAI sums in float32


def test_ssim_depends_on_the_data_range(rng):
    a, b = rng.random((2, 12, 12, 12))
    assert ssim(a, b, data_range=2.0) > ssim(a, b, data_range=1.0) + 0.01


def test_dice_of_shifted_cubes():
    a, b = cube((2, 2, 2), (10, 10, 10)), cube((4, 2, 2), (12, 10, 10))
    assert dice(a, b, label_list=[1]) == {1: pytest.approx(6 / 8)}
    assert dice(a, a, label_list=[1]) == {1: 1.0}


def test_dice_of_a_label_absent_from_one_map_is_nan_and_background_is_not_scored():
    a, b = cube((2, 2, 2), (10, 10, 10)), 2 * cube((2, 2, 2), (10, 10, 10))
    scores = dice(a, b, label_list=[1, 2, 7])
    assert list(scores) == [1, 2, 7]
    assert all(math.isnan(score) for score in scores.values())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64, ">i2"])
def test_label_maps_of_any_type_serve(dtype):
    a = cube((2, 2, 2), (10, 10, 10)).astype(dtype)
    assert dice(a, a, label_list=[1]) == {1: 1.0}
    assert hd95_mm(a, a, label_list=[1], spacing=(1, 1, 1)) == {1: 0.0}


@pytest.mark.parametrize(("axis", "spacing"), [(0, (1, 1, 1)), (0, (2.5, 1, 1)), (2, (1, 1, 0.4))])
def test_hd95_of_a_shifted_plate_is_the_shift_in_mm(axis, spacing):
    # A plate one voxel thick, so that every surface voxel is as far from the other plate.
    start, stop = [4, 4, 4], [14, 14, 14]
    stop[axis] = 5
    a = cube(start, stop)
    b = np.roll(a, 3, axis)
    assert hd95_mm(a, b, label_list=[1], spacing=spacing)[1] == pytest.approx(3 * spacing[axis], rel=1e-6)


def test_hd95_agrees_with_scipy_on_irregular_surfaces(rng):
    a, b = (ndimage.gaussian_filter(rng.random((20, 22, 24)), 2) > 0.5 for _ in range(2))
    spacing = (1.2, 0.8, 3.0)

    def surface(mask):
        return mask & ~ndimage.binary_erosion(mask)

    directed = []
    for first, second in ((a, b), (b, a)):
        distance = ndimage.distance_transform_edt(~surface(second), sampling=spacing)
        directed.append(np.percentile(distance[surface(first)], 95))
    found = hd95_mm(a.astype(int), b.astype(int), label_list=[1], spacing=spacing)[1]
    assert found == pytest.approx(max(directed), rel=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
def test_hd95_equals_monai(rng):
    smooth = ndimage.gaussian_filter(rng.normal(size=(24, 26, 22)), 2)
    a = np.digitize(smooth, [-0.02, 0.02, 0.05])
    b = np.digitize(smooth + 0.4 * ndimage.gaussian_filter(rng.normal(size=smooth.shape), 2), [-0.02, 0.02, 0.05])
    spacing = (1.1, 0.7, 2.4)
    for label, found in hd95_mm(a, b, label_list=[1, 2, 3], spacing=spacing).items():
        masks = (torch.from_numpy(labels == label).float()[None, None] for labels in (a, b))
        expected = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=list(spacing))
        assert found == pytest.approx(float(expected), rel=1e-6)


def test_hd95_of_a_label_absent_from_one_map_is_nan():
    a = cube((2, 2, 2), (10, 10, 10))
    assert math.isnan(hd95_mm(a, 0 * a, label_list=[1], spacing=(1, 1, 1))[1])


def test_hd95_does_not_see_one_stray_voxel_among_many():
    a = cube((4, 4, 4), (16, 16, 16))
    b = a.copy()
    b[22, 22, 22] = 1
    assert hd95_mm(a, b, label_list=[1], spacing=(1, 1, 1))[1] == 0


@pytest.mark.parametrize("learn2reg", [True, False])
def test_sdlogj_of_an_affine_map_is_0(learn2reg):
    assert sdlogj(linear_field(1.1, 0.9, 1.3), learn2reg=learn2reg) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("learn2reg", [True, False])
def test_sdlogj_of_two_halves_is_half_the_difference_of_their_logarithms(learn2reg):
    # d -> d on one half and d -> 2 d on the other; the mask leaves out the two rows with differences across the crease.
    d = torch.arange(12.0)
    displacement = torch.zeros(1, 3, 12, 8, 8)
    displacement[0, 0] = torch.clamp(d - 6, min=0).view(-1, 1, 1)
    mask = np.zeros((12, 8, 8), bool)
    mask[3:6, 2:-2, 2:-2] = mask[7:10, 2:-2, 2:-2] = True
    low, high = (math.log(4), math.log(5)) if learn2reg else (0, math.log(2))
    assert sdlogj(displacement, learn2reg=learn2reg, mask=mask) == pytest.approx((high - low) / 2)


def test_sdlogj_agrees_with_the_learn2reg_definition_written_in_numpy(rng):
    u = ndimage.gaussian_filter(rng.standard_normal((3, 14, 15, 16)), (0, 2, 2, 2)) * 20
    jacobian = np.stack([np.stack(np.gradient(component)) for component in u]) + np.eye(3)[:, :, None, None, None]
    determinant = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))[2:-2, 2:-2, 2:-2]
    field = torch.from_numpy(u)[None]
    assert sdlogj(field) == pytest.approx(np.log(np.clip(determinant + 3, 1e-9, 1e9)).std(), rel=1e-9)
    assert non_positive_jacobian_fraction(field) == pytest.approx((determinant <= 0).mean())
    assert 0 < non_positive_jacobian_fraction(field) < 1


def test_a_shift_has_no_folds_and_a_flip_only_folds():
    assert non_positive_jacobian_fraction(torch.full((1, 3, 8, 8, 8), 2.5)) == 0
    assert non_positive_jacobian_fraction(linear_field(-1, 1, 1)) == 1
    assert non_positive_jacobian_fraction(linear_field(0, 1, 1)) == 1  # determinant 0


def test_folds_at_the_border_count_only_without_cropping():
    displacement = torch.zeros(1, 3, 10, 10, 10)
    displacement[0, 0, 0] = 3.0  # the first plane jumps over its neighbours
    assert non_positive_jacobian_fraction(displacement) == 0
    # one-sided on the first plane: 1 - 3 < 0; central on the second: 1 - 1.5 < 0
    assert non_positive_jacobian_fraction(displacement, border=0) == pytest.approx(0.2)


def test_what_does_not_fit_is_named():
    a = np.zeros((12, 12, 12))
    with pytest.raises(
        ValueError, match=r"reference must have shape \(12, 12, 12\) to match image, got \(12, 12, 11\)"
    ):
        ssim(a, a[..., :11], data_range=1.0)
    with pytest.raises(ValueError, match="data_range must be above 0, got 0"):
        ssim(a, a, data_range=0.0)
    with pytest.raises(ValueError, match=r"image must be at least 11 voxels along each axis, got \(10, 12, 12\)"):
        ssim(a[:10], a[:10], data_range=1.0)
    with pytest.raises(ValueError, match=r"labels must have shape \(D, H, W\), got \(12, 12\)"):
        dice(a[0], a[0], label_list=[1])
    with pytest.raises(ValueError, match=r"spacing must be three positive numbers in mm, got \(1, 1\)"):
        hd95_mm(a, a, label_list=[1], spacing=(1, 1))
    with pytest.raises(ValueError, match=r"displacement must have shape \(B, 3, D, H, W\), got \(1, 2, 8, 8, 8\)"):
        sdlogj(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"longer than 4 voxels along each axis.*got \(8, 4, 8\)"):
        sdlogj(torch.zeros(1, 3, 8, 4, 8))
    with pytest.raises(ValueError, match=r"mask must have shape \(8, 8, 8\) to match displacement, got \(7, 8, 8\)"):
        sdlogj(torch.zeros(1, 3, 8, 8, 8), mask=np.ones((7, 8, 8)))
