"""Restoration of MR magnitudes whose noise level is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from voxelwave.restoration.degradations import rician_noise
from voxelwave.restoration.images import Image, IntensityRange
from voxelwave.restoration.inference import Refused
from voxelwave.restoration.known_noise import NoiseHandling, check_noise_level, restore_known_noise
from voxelwave.restoration.rician import rician_mean
from voxelwave.restoration.weights import WeightsInfo
from voxelwave.runs.catalogue import list_weights

RANGE = IntensityRange(0, 400)
SIGNAL = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(1, 1, 64, 64)
BLIND = NoiseHandling(biased=False)


def noisy(sigma: float) -> np.ndarray:
    return rician_noise(torch.from_numpy(SIGNAL), sigma, torch.Generator().manual_seed(0)).numpy()


def test_the_bias_of_a_mean_is_removed_in_the_background_too():
    mean = rician_mean(SIGNAL, 0.1)
    found, noise = restore_known_noise(
        lambda image: mean, noisy(0.1), 40.0, intensity_range=RANGE, handling=NoiseHandling()
    )
    assert mean[0, 0, 0, 0] > 0.12
    np.testing.assert_allclose(found, SIGNAL, atol=1e-3)
    assert (noise.sigma, noise.share, noise.bias_removed_by) == (40.0, 0.1, "formula")


def test_a_range_that_does_not_begin_at_0_is_counted_from_0():
    shifted = IntensityRange(40, 440)  # 0 of the image is -0.1 of the range
    mean = rician_mean(SIGNAL, 0.1) - 0.1
    found, _ = restore_known_noise(
        lambda image: mean, noisy(0.1) - 0.1, 40.0, intensity_range=shifted, handling=NoiseHandling()
    )
    np.testing.assert_allclose(found, SIGNAL - 0.1, atol=1e-3)


def test_strong_noise_is_scaled_to_what_the_network_knows():
    seen = []

    def network(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return image

    image, handling = noisy(0.2), NoiseHandling(biased=False, strongest=0.1)
    for sigma, scale in ((80.0, 0.5), (20.0, 1.0)):
        found, noise = restore_known_noise(network, image, sigma, intensity_range=RANGE, handling=handling)
        np.testing.assert_allclose(seen[-1], scale * image, rtol=1e-6)
        np.testing.assert_allclose(found, image, rtol=1e-5)
        assert noise.scale == scale
        assert ("because of the strong noise" in "".join(noise.lines())) == (scale < 1)


def test_no_more_than_the_noise_is_removed():
    image = noisy(0.01)
    texture = 0.02 * np.where(np.indices(image.shape).sum(0) % 2, 1, -1)  # a blind network takes it for noise
    found, noise = restore_known_noise(lambda _: SIGNAL, image + texture, 4.0, intensity_range=RANGE, handling=BLIND)
    strong = SIGNAL > 0.05
    assert noise.given_back == pytest.approx(1 - (0.01 / np.hypot(0.01, 0.02)), abs=0.01)
    assert np.std((found - image - texture)[strong]) == pytest.approx(0.01, rel=0.02)
    assert "55 %" in "\n".join(noise.lines())


def test_the_noise_itself_is_not_given_back():
    found, noise = restore_known_noise(lambda _: SIGNAL, noisy(0.05), 20.5, intensity_range=RANGE, handling=BLIND)
    assert noise.given_back == 0
    np.testing.assert_allclose(found, SIGNAL, atol=1e-6)


@pytest.mark.parametrize(
    ("modality", "low", "sigma", "scale", "message"),
    [
        ("CT", 0, 20, 1, "noise of MR magnitudes, got an image of modality CT"),
        ("MR", -200, 20, 1, "is for magnitudes, got 50 % negative values"),
        ("MR", 0, 500, 1, "below the largest value, 400, got 500"),
        (None, 0, 20, 2, "keep the size of the image"),
    ],
)
def test_a_level_without_meaning_is_refused(modality, low, sigma, scale, message, tmp_path):
    stack = np.linspace(low, low + 400, 400).reshape(1, 1, 20, 20)
    image = Image(stack, tmp_path / "scan.nii.gz", "volume", modality=modality)
    with pytest.raises(Refused, match=message):
        check_noise_level(image, sigma, scale=scale)


def test_weights_say_whether_they_remove_the_bias():
    info = WeightsInfo("MaIR", {}, "denoise", (0, 1), "relative")
    assert NoiseHandling.of(None, info) == NoiseHandling(biased=True)
    assert NoiseHandling.of(None, replace(info, notes={"degradation": "rician"})) == NoiseHandling(biased=False)
    entries = {entry.name: NoiseHandling.of(entry, info) for entry in list_weights("restoration")}
    assert entries["denoise-grey"] == NoiseHandling(biased=True)
    assert entries["denoise-mr"] == NoiseHandling(biased=False, strongest=0.12)
