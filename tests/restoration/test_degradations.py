"""Distributions of noise; blur compared with SciPy, and bicubic resizing with MATLAB's definition."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.stats import kstest, rice

from voxelwave.restoration.degradations import (
    WATER_PER_MM,
    bicubic_resize,
    box_blur,
    ct_noise,
    degradation_margin,
    gaussian_blur,
    gaussian_noise,
    known_sigma,
    make_degradation,
    rician_noise,
)
from voxelwave.restoration.images import IntensityRange

_HU = IntensityRange(-1000, 2000, unit="HU")
_KINDS: dict[str, dict[str, Any]] = {
    "gaussian": {"sigma": 0.1},
    "rician": {"sigma": [0.05, 0.1]},
    "ct": {"photons": [3e3, 3e5], "cutoff": 0.5},
    "gaussian-blur": {"sigma_px": [0.5, 2.0], "sigma": 0.01},
    "box-blur": {"size_px": 3},
}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _picture(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=_generator(9))


@pytest.mark.parametrize("kind", _KINDS)
def test_degradations_repeat_with_the_seed_and_keep_shape_and_type(kind: str) -> None:
    degrade = make_degradation(kind, **_KINDS[kind])
    window = _HU if kind == "ct" else IntensityRange(0, 1)
    clean = _picture(3, 13, 10)
    before = clean.clone()
    first, again = (degrade(clean, _generator(1), window) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert first.shape == clean.shape
    assert first.dtype == clean.dtype
    torch.testing.assert_close(clean, before, rtol=0, atol=0)
    if kind != "box-blur":
        assert not torch.equal(first, degrade(clean, _generator(2), window))


@pytest.mark.parametrize("kind", _KINDS)
def test_a_patch_with_its_margin_is_degraded_as_the_whole_image(kind: str) -> None:
    if kind in ("gaussian", "rician", "ct"):
        assert degradation_margin(kind, **_KINDS[kind]) == 0
        return
    fixed: dict[str, Any] = {"sigma_px": 1.3} if kind == "gaussian-blur" else {"size_px": 5}
    margin = degradation_margin(kind, **fixed)
    degrade = make_degradation(kind, **fixed)
    clean = _picture(1, 40, 40)
    whole = degrade(clean, _generator(), IntensityRange(0, 1))
    part = degrade(clean[:, 15 - margin : 23 + margin, 15 - margin : 23 + margin], _generator(), IntensityRange(0, 1))
    torch.testing.assert_close(part[:, margin:-margin, margin:-margin], whole[:, 15:23, 15:23])


def test_gaussian_noise_is_normal() -> None:
    noise = gaussian_noise(torch.full((100, 100), 7.0), 3.0, _generator()) - 7
    assert kstest(noise.flatten().numpy() / 3, "norm").pvalue > 0.01


@pytest.mark.parametrize("signal", [0.0, 1.0, 5.0, 50.0])
def test_rician_noise_follows_the_rice_distribution(signal: float) -> None:
    sigma = 2.0
    noisy = rician_noise(torch.full((100, 100), signal), sigma, _generator())
    assert float(noisy.min()) >= 0
    assert kstest(noisy.flatten().numpy(), rice(signal / sigma, scale=sigma).cdf).pvalue > 0.01
    # the second moment is exact for every signal: E[m^2] = signal^2 + 2 sigma^2
    power, expected = float(noisy.double().square().mean()), signal**2 + 2 * sigma**2
    assert abs(power - expected) < 5 * math.sqrt(4 * sigma**4 + 4 * signal**2 * sigma**2) / 100


def test_rician_noise_uses_the_position_of_the_images_own_zero() -> None:
    intensities = 300 * _picture(1, 20, 20)
    window = IntensityRange(50, 250)
    unit = (intensities - window.low) / window.span
    noisy = make_degradation("rician", sigma=30 / window.span)(unit, _generator(), window)
    expected = rician_noise(intensities, 30, _generator())
    torch.testing.assert_close(noisy * window.span + window.low, expected, rtol=1e-5, atol=1e-3)
    with pytest.raises(ValueError, match="magnitudes"):
        make_degradation("rician", sigma=0.1)(unit, _generator(), IntensityRange(-100, 100))


@pytest.mark.parametrize("hu", [-1000.0, -100.0, 0.0, 800.0])
def test_ct_noise_has_the_deviation_of_counted_photons(hu: float) -> None:
    photons, path_mm = 50_000.0, 100.0
    noise = ct_noise(torch.full((200, 200), hu), photons, _generator(), path_mm=path_mm) - hu
    counts = photons * math.exp(-WATER_PER_MM * path_mm * (1 + hu / 1000))
    expected = 1000 / (WATER_PER_MM * path_mm * math.sqrt(counts))
    assert abs(float(noise.std()) / expected - 1) < 0.02  # 40,000 pixels: 0.35 % standard error
    # -ln of a mean count is biased by 1 / (2 counts), which is far below the noise itself
    assert abs(float(noise.mean())) < 5 * expected / 200 + 500 / (WATER_PER_MM * path_mm * counts)


def test_four_times_the_dose_halves_ct_noise_and_very_many_photons_leave_the_image() -> None:
    hu = 2000 * _picture(64, 64) - 1100  # some pixels lie below air
    low, high = (float((ct_noise(hu, n, _generator()) - hu).std()) for n in (20_000.0, 80_000.0))
    assert abs(low / high - 2) < 0.1
    torch.testing.assert_close(ct_noise(hu, 1e13, _generator()), hu, rtol=0, atol=0.01)
    assert torch.isfinite(ct_noise(torch.full((8, 8), 30_000.0), 10.0, _generator())).all()  # metal: no photon arrives


def test_correlated_ct_noise_has_the_spectrum_of_filtered_back_projection() -> None:
    hu = torch.zeros(64, 256, 256)
    white = ct_noise(hu, 20_000, _generator())
    noise = ct_noise(hu, 20_000, _generator(), cutoff=0.4)
    assert abs(float(noise.std() / white.std()) - 1) < 0.01
    power = torch.fft.fft2(noise.double()).abs().square().mean(0)
    frequency = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(256), torch.fft.fftfreq(256), indexing="ij"))
    at = [float(power[(frequency - f).abs() < 0.01].mean()) for f in (0.05, 0.1, 0.2, 0.45)]
    expected = [f * ((1 + math.cos(math.pi * f / 0.4)) / 2) ** 2 for f in (0.05, 0.1, 0.2)]
    np.testing.assert_allclose(np.array(at[:3]) / at[0], np.array(expected) / expected[0], rtol=0.05)
    assert at[3] < 1e-6 * at[0]


def test_ct_noise_refuses_a_range_that_is_not_in_hu() -> None:
    clean = torch.zeros(1, 8, 8)
    with pytest.raises(ValueError, match="HU"):
        make_degradation("ct", photons=1e4)(clean, _generator(), IntensityRange(-1000, 2000))
    noisy = make_degradation("ct", photons=1e4)(clean, _generator(), _HU)
    torch.testing.assert_close(noisy * 3000 - 1000, ct_noise(torch.full_like(clean, -1000), 1e4, _generator()))


@pytest.mark.parametrize("sigma_px", [0.4, 1.0, 2.7])
def test_gaussian_blur_agrees_with_scipy(sigma_px: float) -> None:
    image = _picture(2, 9, 31).double()  # the kernel is longer than the image
    expected = [gaussian_filter(plane, sigma_px, mode="reflect", truncate=4.0) for plane in image.numpy()]
    torch.testing.assert_close(gaussian_blur(image, sigma_px), torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("size_px", [1, 3, 7])
def test_box_blur_agrees_with_scipy(size_px: int) -> None:
    image = _picture(11, 14).double()
    expected = uniform_filter(image.numpy(), size_px, mode="reflect")
    torch.testing.assert_close(box_blur(image, size_px), torch.from_numpy(expected))


def test_blur_keeps_constants_and_means() -> None:
    image = _picture(1, 16, 24).double()
    for blur in (lambda x: gaussian_blur(x, 1.7), lambda x: box_blur(x, 5)):
        torch.testing.assert_close(blur(torch.full_like(image, 3.5)), torch.full_like(image, 3.5))
        # mirrored borders return the part that leaves the image
        torch.testing.assert_close(blur(image).mean(), image.mean())
    torch.testing.assert_close(gaussian_blur(image, 0.0), image, rtol=0, atol=0)


def _imresize_matrix(length: int, factor: float) -> np.ndarray:
    """The weights (new, old) by the definition, for one new pixel and one (perhaps mirrored) old pixel at a time."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    stretch = max(1 / factor, 1.0)
    matrix = np.zeros((round(length * factor), length))
    extended = list(range(length)) + list(reversed(range(length)))  # period of the mirrored image
    for new in range(len(matrix)):
        place = (new + 0.5) / factor - 0.5
        for old in range(math.floor(place - 2 * stretch) - 1, math.ceil(place + 2 * stretch) + 2):
            matrix[new, extended[old % (2 * length)]] += kernel((place - old) / stretch)
    return matrix / matrix.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("factor", "height", "width"),
    [(1 / 2, 12, 17 * 2), (1 / 3, 21, 9), (1 / 4, 4, 40), (1 / 8, 8, 64), (2.0, 7, 5), (3.0, 1, 8), (1.0, 6, 5)],
)
def test_bicubic_agrees_with_the_matrix_of_its_definition(factor: float, height: int, width: int) -> None:
    image = _picture(2, height, width).double()
    expected = _imresize_matrix(height, factor) @ image.numpy() @ _imresize_matrix(width, factor).T
    torch.testing.assert_close(bicubic_resize(image, factor), torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


def test_bicubic_halves_by_the_published_weights() -> None:
    """The 8 weights of imresize for a factor of one half, in 256ths: the kernel at odd quarters, divided by two."""
    impulse = torch.zeros(1, 16, dtype=torch.float64)
    weights = []
    for place in range(4, 12):
        impulse.zero_()[0, place] = 256
        weights.append(float(bicubic_resize(impulse.expand(16, 16), 0.5)[4, 3]))
    # new pixel 3 lies at 6.5: taps 3 .. 10, of which 4 .. 10 are compared here
    assert [round(w, 6) for w in weights] == [-9.0, 29.0, 111.0, 111.0, 29.0, -9.0, -3.0, 0.0]


@pytest.mark.parametrize("factor", [1 / 4, 1 / 3, 1 / 2, 2.0, 3.0])
def test_bicubic_keeps_constants_and_inner_ramps(factor: float) -> None:
    torch.testing.assert_close(
        bicubic_resize(torch.full((24, 24), 0.7), factor), torch.full((round(24 * factor),) * 2, 0.7)
    )
    ramp = torch.arange(48.0, dtype=torch.float64)
    resized = bicubic_resize(ramp.expand(48, 48), factor)[0]
    expected = (torch.arange(len(resized), dtype=torch.float64) + 0.5) / factor - 0.5
    inner = slice(math.ceil(2 * max(factor, 1)), -math.ceil(2 * max(factor, 1)))
    # a kernel that is stretched by 3 sums ramps exactly too: its taps lie symmetrically around the new pixel
    torch.testing.assert_close(resized[inner], expected[inner], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [1 / 4, 1 / 3, 1 / 2, 2.0])
def test_bicubic_agrees_with_torch_away_from_the_border(factor: float) -> None:
    image = _picture(1, 1, 48, 48)
    ours = bicubic_resize(image, factor)
    theirs = torch.nn.functional.interpolate(image, scale_factor=factor, mode="bicubic", antialias=True)
    cut = 4 if factor > 1 else 2
    torch.testing.assert_close(ours[..., cut:-cut, cut:-cut], theirs[..., cut:-cut, cut:-cut], rtol=0, atol=2e-6)
    assert float((ours - theirs).abs().max()) > 1e-4  # at the border, torch omits weights


def test_bicubic_commutes_with_mirroring_and_transposing() -> None:
    image = _picture(24, 36)
    small = bicubic_resize(image, 1 / 3)
    for rows, columns in itertools.product((False, True), repeat=2):
        axes = [axis for axis, flip in ((0, rows), (1, columns)) if flip]
        torch.testing.assert_close(bicubic_resize(image.flip(axes), 1 / 3), small.flip(axes))
    torch.testing.assert_close(bicubic_resize(image.T, 1 / 3), small.T)


def test_unknown_kinds_and_parameters_are_named() -> None:
    with pytest.raises(ValueError, match=r"one of gaussian, rician, ct.*got 'salt'"):
        make_degradation("salt")
    with pytest.raises(ValueError, match="rician takes sigma, logarithmic, got sigma_px"):
        make_degradation("rician", sigma_px=1.0)
    with pytest.raises(ValueError, match="takes photons, path_mm, cutoff, got nothing"):
        make_degradation("ct")
    for level in (-0.1, [0.2, 0.1], [0.1], "much", [0.1, None]):
        with pytest.raises(ValueError, match="sigma of degradation gaussian must be a number of at least 0 or two"):
            make_degradation("gaussian", sigma=level)
    with pytest.raises(ValueError, match="size_px of degradation box-blur must be a number of at least 0, got"):
        make_degradation("box-blur", size_px=[3, 5])
    for call, words in (
        (lambda: box_blur(torch.zeros(4, 4), 2), "odd"),
        (lambda: gaussian_blur(torch.zeros(4, 4), -1.0), "sigma_px"),
        (lambda: ct_noise(torch.zeros(4, 4), 0.0, _generator()), "photons"),
        (lambda: bicubic_resize(torch.zeros(4, 4), 0.0), "factor"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_level_is_known_if_it_is_one_number() -> None:
    assert known_sigma("rician", sigma=0.1) == 0.1
    assert known_sigma("gaussian", sigma=[0.1, 0.2]) is None
    assert known_sigma("gaussian-blur", sigma_px=1.0, sigma=0.1) is None


def test_noise_on_a_logarithmic_scale_has_half_its_levels_below_the_geometric_mean() -> None:
    degrade = make_degradation("gaussian", sigma=[0.01, 0.16], logarithmic=True)
    generator, clean = _generator(), torch.zeros(1, 24, 24)
    levels = torch.stack([degrade(clean, generator, IntensityRange(0, 1)).std() for _ in range(400)])
    assert float(levels.min()) > 0.009
    assert float(levels.max()) < 0.18
    assert float((levels < 0.04).float().mean()) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("ct", {"photons": 0}), ("ct", {"photons": [0, 100]}), ("rician", {"sigma": [0, 0.1], "logarithmic": True})],
)
def test_a_logarithmic_scale_cannot_begin_at_0(kind: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be above 0, since it is drawn on a logarithmic scale, got"):
        make_degradation(kind, **parameters)
