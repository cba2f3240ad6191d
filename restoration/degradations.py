"""Seeded degradations: noise of cameras, MR magnitudes and CT numbers, blur, and MATLAB's bicubic downsampling.

The plain functions work in the unit of their image. `make_degradation` builds a degradation from its name and
parameters in a configuration file; it works on images scaled so that the ends of the intensity range are 0 and 1.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .borders import mirrored
from .images import IntensityRange

Degrade = Callable[[Tensor, torch.Generator, IntensityRange], Tensor]
"""Function of a clean image (C, H, W) from 0 to 1, a generator and the intensity range; returns the degraded image."""

Level = float | Sequence[float]
"""One number, or (low, high), between which a number is drawn for each image."""

WATER_PER_MM = 0.0193  # linear attenuation of water at 70 keV, the mean energy of a 120 kV beam (NIST tables)
_TRUNCATE = 4.0  # the radius of a Gaussian kernel in standard deviations
_MOST_NEGATIVE = -0.05  # as a fraction of the range; an image with lower values does not hold magnitudes


def gaussian_noise(clean: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add independent Gaussian noise of standard deviation `sigma`, in the unit of the image."""
    return clean + sigma * torch.randn(clean.shape, generator=generator)


def rician_noise(clean: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """The magnitude of an MR signal with Gaussian noise in its real and its imaginary part: |clean + n1 + i n2|.

    Without signal, the result follows a Rayleigh distribution with mean sigma * sqrt(pi / 2); if the signal is much
    stronger than the noise, the result is nearly Gaussian (Gudbjartsson and Patz 1995).

    Args:
        clean: magnitudes, 0 for no signal.
        sigma: standard deviation of n1 and of n2, in the unit of `clean`.
        generator: the source of randomness.

    Example:
        >>> noise = rician_noise(torch.zeros(200, 200), 1.0, torch.Generator().manual_seed(0))
        >>> round(float(noise.mean()), 2)
        1.25
    """
    real, imaginary = sigma * torch.randn(2, *clean.shape, generator=generator)
    return torch.hypot(clean + real, imaginary)


def ct_noise(
    hu: Tensor,
    photons: float,
    generator: torch.Generator,
    *,
    path_mm: float = 100.0,
    cutoff: float | None = None,
) -> Tensor:
    """Add the noise of counted photons to CT numbers.

    Each pixel is treated as a ray through `path_mm` of the pixel's own material: mu = WATER_PER_MM (1 + HU / 1000),
    counts ~ Poisson(photons exp(-mu path_mm)), and the measured mu' = -ln(counts / photons) / path_mm.
    For many counts the noise has the standard deviation 1000 / (WATER_PER_MM path_mm sqrt(expected counts)) HU: dense
    material is noisier, and four times the dose halves the noise. The model is local. In a scanner the rays through a
    pixel cross the whole body, so the noise in air beside a bone is stronger than here, and there are streaks.

    Args:
        hu: (..., H, W) CT numbers. Below -1000 HU they attenuate as -1000 HU and keep their value.
        photons: number of photons that enter each ray.
        generator: the source of randomness.
        path_mm: the length of the ray; the longer, the more the noise depends on the material.
        cutoff: None for independent pixels; or the frequency in cycles per pixel at which the reconstruction kernel
            reaches 0; the noise then has the power spectrum f A(f)^2 of filtered back-projection (Riederer et al. 1978)
            with a Hann window A, and the same mean variance.

    Example:
        >>> water = torch.zeros(200, 200)
        >>> noisy = ct_noise(water, 20_000, torch.Generator().manual_seed(0))
        >>> expected = 1000 / (1.93 * (20_000 * math.exp(-1.93)) ** 0.5)
        >>> round(float(noisy.std()), 1), round(expected, 1)
        (9.6, 9.6)
    """
    if photons <= 0 or path_mm <= 0:
        raise ValueError(f"photons and path_mm must be above 0, got {photons} and {path_mm}")
    attenuation = (WATER_PER_MM * path_mm) * (1 + hu.double() / 1000).clamp(min=0)
    counts = torch.poisson(photons * torch.exp(-attenuation), generator=generator)
    measured = -torch.log(counts.clamp(min=1) / photons)  # a ray without a photon would be infinitely dense
    noise = (measured - attenuation) * (1000 / (WATER_PER_MM * path_mm))
    if cutoff is not None:
        noise = _back_projected(noise, cutoff)
    return hu + noise.to(hu.dtype)


def gaussian_blur(image: Tensor, sigma_px: float) -> Tensor:
    """Convolve (..., H, W) with a Gaussian of `sigma_px` pixels, cut off at 4 sigma and mirrored beyond the border.

    Example:
        >>> round(float(gaussian_blur(torch.eye(9)[4:5].T @ torch.eye(9)[4:5], 1.0)[4, 4]), 4)
        0.1592
    """
    if sigma_px < 0:
        raise ValueError(f"sigma_px must be at least 0, got {sigma_px}")
    if sigma_px == 0:
        return image.clone()
    radius = _gaussian_radius(sigma_px)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return _separable(image, torch.softmax(-0.5 * (offset / sigma_px) ** 2, 0))


def box_blur(image: Tensor, size_px: int) -> Tensor:
    """Average (..., H, W) over `size_px` x `size_px` pixels, an odd number, mirrored beyond the border."""
    if size_px < 1 or size_px % 2 == 0:
        raise ValueError(f"size_px must be an odd number, got {size_px}")
    return _separable(image, torch.full((size_px,), 1 / size_px, dtype=torch.float64))


def bicubic_resize(image: Tensor, factor: float) -> Tensor:
    """Resize (..., H, W) as MATLAB's imresize does: Keys' cubic kernel (1981, a = -0.5), antialiased.

    For downsampling, the kernel is stretched by 1 / factor. Pixel centres are at half-integer positions, weights sum
    to 1, and the image is mirrored beyond its border (the border pixel is repeated). The size is rounded up.

    Args:
        image: floating point, any unit; values are neither rounded nor clipped.
        factor: new size / old size; 0.5 halves the size.

    Example:
        >>> bicubic_resize(torch.arange(8.0).expand(8, 8), 0.5)[0]  # a ramp remains a ramp, except at its ends
        tensor([0.4492, 2.4883, 4.5117, 6.5508])
    """
    if factor <= 0:
        raise ValueError(f"factor must be above 0, got {factor}")
    return _resize_axis(_resize_axis(image, -2, factor), -1, factor)


_MOST_PX = 1000  # the widest blur


def make_degradation(kind: str | None = None, **parameters: Any) -> Degrade:
    """Build a degradation from its name and parameters in a configuration file.

    Args:
        kind: "gaussian", "rician", "ct", "gaussian-blur" or "box-blur".
        parameters: each a number, or (low, high), between which one is drawn for each patch.
            gaussian, rician: `sigma`, as a fraction of the intensity range (25 of 255 is 0.098). `logarithmic: true`
            draws it uniformly on a logarithmic scale, so that weak noise occurs more often. For Rician noise, the range
            defines the position of the image's own 0.
            ct: `photons` (drawn uniformly on a logarithmic scale), and the fixed numbers `path_mm` and `cutoff` of
            `ct_noise`. The range must be in HU.
            gaussian-blur: `sigma_px`; box-blur: `size_px`, a fixed number. Both also take the `sigma` of Gaussian noise
            that is added after the blur.

    Raises:
        ValueError: the kind or a parameter is unknown or missing.

    Example:
        >>> degrade = make_degradation("rician", sigma=[0.02, 0.2])
        >>> degrade(torch.zeros(1, 4, 4), torch.Generator().manual_seed(0), IntensityRange(0, 900)).shape
        torch.Size([1, 4, 4])
    """
    if not isinstance(kind, str) or kind not in _DEGRADATIONS:
        raise ValueError(f"degradation must be one of {', '.join(_DEGRADATIONS)}, got {kind!r}")
    function = _DEGRADATIONS[kind]
    try:
        inspect.signature(function).bind(None, None, None, **parameters)
    except TypeError as error:
        given = ", ".join(parameters) or "nothing"
        raise ValueError(f"degradation {kind} takes {_parameter_names(kind)}, got {given} ({error})") from None
    for name, value in parameters.items():
        _check_parameter(kind, name, value)
    if kind == "ct" or parameters.get("logarithmic"):
        _check_above_0(kind, "photons" if kind == "ct" else "sigma", parameters)
    return partial(function, **parameters)


def degradation_margin(kind: str | None = None, **parameters: Any) -> int:
    """The number of pixels around a patch that a degradation of `make_degradation` depends on.

    Example:
        >>> degradation_margin("gaussian-blur", sigma_px=[0.5, 1.5]), degradation_margin("gaussian", sigma=0.1)
        (6, 0)

    Raises:
        ValueError: the kind is unknown, or a width of a blur is not a finite number of 0 or more.
    """
    if not isinstance(kind, str) or kind not in _DEGRADATIONS:
        raise ValueError(f"degradation must be one of {', '.join(_DEGRADATIONS)}, got {kind!r}")
    width = {"gaussian-blur": "sigma_px", "box-blur": "size_px"}.get(kind)
    if width is not None:
        _check_width(width, parameters.get(width))
    if kind == "gaussian-blur":
        sigma_px = parameters["sigma_px"]
        return _gaussian_radius(sigma_px if isinstance(sigma_px, (int, float)) else max(sigma_px))
    if kind == "box-blur":
        return int(parameters["size_px"]) // 2
    return 0


def _check_width(name: str, width: Any) -> None:
    ends = list(width) if isinstance(width, (list, tuple)) else [width]
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    if not (numbers and ends and all(0 <= end <= _MOST_PX for end in ends)):
        raise ValueError(f"{name} must be a number of pixels from 0 to {_MOST_PX}, or two of them, got {width!r}")


def known_sigma(kind: str, **parameters: Any) -> float | None:
    """The noise level as a fraction of the range, if it is one number for all pixels and images; otherwise None."""
    sigma = parameters.get("sigma")
    return float(sigma) if kind in ("gaussian", "rician") and isinstance(sigma, (int, float)) else None


def _gaussian(
    clean: Tensor, generator: torch.Generator, _: IntensityRange, *, sigma: Level, logarithmic: bool = False
) -> Tensor:
    return gaussian_noise(clean, _level(sigma, generator, logarithmic=logarithmic), generator)


def _rician(
    clean: Tensor,
    generator: torch.Generator,
    intensity_range: IntensityRange,
    *,
    sigma: Level,
    logarithmic: bool = False,
) -> Tensor:
    zero = intensity_range.low / intensity_range.span
    if zero < _MOST_NEGATIVE:
        raise ValueError(f"degradation rician needs magnitudes, so a range that begins at 0, got {intensity_range}")
    return rician_noise(clean + zero, _level(sigma, generator, logarithmic=logarithmic), generator) - zero


def _ct(
    clean: Tensor,
    generator: torch.Generator,
    intensity_range: IntensityRange,
    *,
    photons: Level,
    path_mm: float = 100.0,
    cutoff: float | None = None,
) -> Tensor:
    if intensity_range.unit != "HU":
        raise ValueError(f"degradation ct needs a range in HU, such as hu:-1000,2000, got {intensity_range}")
    drawn = _level(photons, generator, logarithmic=True)
    hu = clean * intensity_range.span + intensity_range.low
    noisy = ct_noise(hu, drawn, generator, path_mm=path_mm, cutoff=cutoff)
    return (noisy - intensity_range.low) / intensity_range.span


def _gaussian_blur(
    clean: Tensor, generator: torch.Generator, _: IntensityRange, *, sigma_px: Level, sigma: Level = 0.0
) -> Tensor:
    blurred = gaussian_blur(clean, _level(sigma_px, generator))
    return gaussian_noise(blurred, _level(sigma, generator), generator)


def _box_blur(
    clean: Tensor, generator: torch.Generator, _: IntensityRange, *, size_px: int, sigma: Level = 0.0
) -> Tensor:
    return gaussian_noise(box_blur(clean, size_px), _level(sigma, generator), generator)


_DEGRADATIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian": _gaussian,
    "rician": _rician,
    "ct": _ct,
    "gaussian-blur": _gaussian_blur,
    "box-blur": _box_blur,
}


def _check_parameter(kind: str, name: str, value: Any) -> None:
    """Refuse a value that is neither a number of at least 0 nor, for a parameter that is drawn, a pair (low, high)."""
    if name == "logarithmic":
        if not isinstance(value, bool):
            raise ValueError(f"logarithmic of degradation {kind} must be true or false, got {value!r}")
        return
    if value is None and name == "cutoff":
        return
    drawn = name in ("sigma", "sigma_px", "photons")
    numbers = list(value) if drawn and isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    fit = all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers)
    if not fit or numbers != sorted(numbers):
        wanted = "a number of at least 0" + (" or two of them, [low, high]" if drawn else "")
        raise ValueError(f"{name} of degradation {kind} must be {wanted}, got {value!r}")


def _check_above_0(kind: str, name: str, parameters: dict[str, Any]) -> None:
    """Refuse a parameter that is drawn on a logarithmic scale if it can be 0."""
    value = parameters[name]
    if 0 in (value if isinstance(value, (list, tuple)) else [value]):
        raise ValueError(
            f"{name} of degradation {kind} must be above 0, since it is drawn on a logarithmic scale, got {value!r}"
        )


def _parameter_names(kind: str) -> str:
    return ", ".join(list(inspect.signature(_DEGRADATIONS[kind]).parameters)[3:])


def _level(values: Level, generator: torch.Generator, *, logarithmic: bool = False) -> float:
    """The value itself, or a value drawn from (low, high) uniformly, or uniformly on a logarithmic scale."""
    if isinstance(values, (int, float)):
        return float(values)
    if logarithmic:
        return math.exp(_level([math.log(value) for value in values], generator))
    low, high = values
    return float(low + (high - low) * torch.rand(1, generator=generator))


def _gaussian_radius(sigma_px: float) -> int:
    return int(_TRUNCATE * sigma_px + 0.5)


def _back_projected(noise: Tensor, cutoff: float) -> Tensor:
    """Give white noise the spectrum of filtered back-projection, at the same mean variance."""
    if cutoff <= 0:
        raise ValueError(f"cutoff must be above 0 cycles per pixel, got {cutoff}")
    height, width = noise.shape[-2:]
    rows = torch.fft.fftfreq(height, dtype=noise.dtype)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=noise.dtype)
    transfer = _fbp_amplitude(torch.hypot(rows, columns), cutoff)
    whole = _fbp_amplitude(torch.hypot(rows, torch.fft.fftfreq(width, dtype=noise.dtype)), cutoff)
    power = whole.square().mean()
    if power == 0:
        return noise  # a single pixel has only the frequency 0
    coloured: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * (transfer / power.sqrt()), s=(height, width))
    return coloured


def _fbp_amplitude(frequency: Tensor, cutoff: float) -> Tensor:
    window = (1 + torch.cos(math.pi * (frequency / cutoff).clamp(max=1))) / 2
    return frequency.sqrt() * window


def _separable(image: Tensor, weights: Tensor) -> Tensor:
    """Filter both axes with symmetric weights of odd length."""
    radius = len(weights) // 2
    for axis in (-2, -1):
        length = image.shape[axis]
        padded = image.index_select(axis, mirrored(torch.arange(-radius, length + radius), length, edge_twice=True))
        image = sum(
            (weight * padded.narrow(axis, k, length) for k, weight in enumerate(weights.tolist())),
            torch.zeros_like(image),
        )
    return image


def _resize_axis(image: Tensor, axis: int, factor: float) -> Tensor:
    length = image.shape[axis]
    size = math.ceil(length * factor - 1e-6)  # 21 * (1 / 3) must not become 8
    shrink = min(factor, 1.0)
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) / factor - 0.5
    first = torch.floor(centre - 2 / shrink)
    position = first[:, None] + torch.arange(math.ceil(4 / shrink) + 2)  # (size, taps)
    weights = _keys((centre[:, None] - position) * shrink)
    weights = (weights / weights.sum(1, keepdim=True)).to(image.dtype)
    index = mirrored(position.long(), length, edge_twice=True)
    shape = [1] * image.ndim
    shape[axis] = size
    resized = None
    for tap in range(index.shape[1]):
        part = image.index_select(axis, index[:, tap]) * weights[:, tap].view(shape)
        resized = part if resized is None else resized + part
    assert resized is not None
    return resized


def _keys(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
