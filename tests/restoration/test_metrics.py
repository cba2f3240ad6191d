"""PSNR, SSIM and the Y channel compared with scikit-image, with data range and border."""

import math

import numpy as np
import pytest

from voxelwave.restoration.metrics import psnr, ssim, y_channel


def _pair(*shape: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    clean = np.cumsum(rng.normal(size=shape), -1)
    clean = (clean - clean.min()) / np.ptp(clean)
    return scale * (clean + rng.normal(0, 0.05, shape)), scale * clean


@pytest.mark.parametrize("data_range", [1.0, 255.0, 3000.0])
@pytest.mark.parametrize("shape", [(32, 40), (11, 11), (1, 20, 17), (3, 24, 24)])
def test_both_agree_with_scikit_image(shape: tuple[int, ...], data_range: float) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    restored, clean = _pair(*shape, scale=data_range)
    np.testing.assert_allclose(
        psnr(restored, clean, data_range=data_range),
        metrics.peak_signal_noise_ratio(clean, restored, data_range=data_range),
    )
    expected = metrics.structural_similarity(
        restored,
        clean,
        data_range=data_range,
        channel_axis=0 if len(shape) == 3 else None,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    np.testing.assert_allclose(ssim(restored, clean, data_range=data_range), expected, rtol=1e-9)


def test_scores_do_not_depend_on_the_unit_if_the_data_range_is_in_it() -> None:
    restored, clean = _pair(24, 24)
    for metric in (psnr, ssim):
        np.testing.assert_allclose(
            metric(3000 * restored, 3000 * clean, data_range=3000), metric(restored, clean, data_range=1)
        )


def test_equal_images_are_perfect_and_ten_times_the_error_costs_20_db() -> None:
    restored, clean = _pair(16, 16)
    assert psnr(clean, clean, data_range=1) == math.inf
    assert ssim(clean, clean, data_range=1) == 1
    worse = clean + 10 * (restored - clean)
    assert psnr(restored, clean, data_range=1) - psnr(worse, clean, data_range=1) == pytest.approx(20)


def test_pixels_in_the_border_do_not_count() -> None:
    restored, clean = _pair(3, 24, 30)
    spoilt = restored.copy()
    spoilt[:, :2], spoilt[:, -2:], spoilt[:, :, :2], spoilt[:, :, -2:] = 9, 9, 9, 9
    for metric in (psnr, ssim):
        assert metric(spoilt, clean, data_range=1, border=2) == metric(restored, clean, data_range=1, border=2)
        inner = restored[:, 2:-2, 2:-2], clean[:, 2:-2, 2:-2]
        assert metric(restored, clean, data_range=1, border=2) == metric(*inner, data_range=1)
        assert metric(spoilt, clean, data_range=1, border=1) != metric(restored, clean, data_range=1, border=1)


def test_only_pixels_of_the_region_count() -> None:
    restored, clean = _pair(3, 24, 30)
    region = np.zeros((24, 30), bool)
    region[8:16, 9:20] = True
    assert psnr(restored, clean, data_range=1, border=2, region=region) == pytest.approx(
        psnr(restored[:, region][:, None], clean[:, region][:, None], data_range=1), abs=1e-12
    )
    spoilt = restored.copy()
    spoilt[:, :3], spoilt[..., -5:] = 9, 9  # further from the region than half a window
    for metric in (psnr, ssim):
        everywhere = np.ones_like(region)
        assert metric(restored, clean, data_range=1, region=everywhere) == metric(restored, clean, data_range=1)
        assert metric(spoilt, clean, data_range=1, region=region) == metric(
            restored, clean, data_range=1, region=region
        )
        with pytest.raises(ValueError, match="region must be bool, \\(24, 30\\), got bool \\(24, 29\\)"):
            metric(restored, clean, data_range=1, region=region[:, 1:])
        with pytest.raises(ValueError, match="region must hold a pixel"):
            metric(restored, clean, data_range=1, border=2, region=~everywhere)


def test_whole_numbers_do_not_overflow() -> None:
    black, white = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    assert psnr(white, black, data_range=255) == 0.0


def test_y_channel_agrees_with_scikit_image_and_pins_black_and_white() -> None:
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).random((3, 9, 8))
    expected = color.rgb2ycbcr(np.moveaxis(rgb, 0, -1))[..., 0]
    np.testing.assert_allclose(y_channel(rgb, data_range=1)[0] * 255, expected, rtol=1e-5)  # its constants are rounded
    np.testing.assert_allclose(y_channel(255 * rgb, data_range=255)[0], expected, rtol=1e-5)
    for value, y in ((0, 16), (255, 235)):
        np.testing.assert_allclose(y_channel(np.full((3, 2, 2), value, np.uint8), data_range=255), y, rtol=1e-6)


def test_errors_name_what_does_not_fit() -> None:
    image = np.zeros((12, 12))
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="clean's shape"):
            metric(image, np.zeros((12, 13)), data_range=1)
        with pytest.raises(ValueError, match="data_range"):
            metric(image, image, data_range=0)
        with pytest.raises(ValueError, match="border"):
            metric(image, image, data_range=1, border=6)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(image, image, data_range=1, border=1)
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        y_channel(image, data_range=1)
