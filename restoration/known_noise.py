"""Restoration of MR magnitudes whose noise level is known."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from ..runs.catalogue import Entry
from .images import Image, IntensityRange
from .inference import Refused, check_magnitudes
from .rician import rician_mean, without_rician_bias
from .weights import WeightsInfo

_STRONG = 3.0  # signals above this many sigma show how much was removed; there the noise is nearly Gaussian
_LEAST_PIXELS = 100  # fewer show nothing


@dataclass(frozen=True)
class NoiseHandling:
    """How weights take noise of a known level.

    Args:
        biased: whether their results are means of noisy magnitudes, whose bias must be removed, and not signals.
        strongest: the strongest noise that they are given, as a fraction of the intensity range; an image with stronger
            noise is scaled down to it for the network. None for any.
    """

    biased: bool = True
    strongest: float | None = None

    @classmethod
    def of(cls, entry: Entry | None, info: WeightsInfo | None) -> "NoiseHandling":
        """By the entry of the weights in the catalogue, otherwise by the degradation of their training."""
        if entry is not None:
            return cls(not entry.removes_rician_bias, entry.strongest_noise)
        return cls(biased=info is None or info.notes.get("degradation") != "rician")


@dataclass(frozen=True)
class KnownNoise:
    """What was done with a known noise level.

    Args:
        sigma: the level, in the unit of the image.
        share: the level as a fraction of the intensity range.
        bias_removed_by: "formula" or "network".
        scale: the factor of the image for the network.
        given_back: the fraction of the removed part that was added again, since it was more than the noise.
    """

    sigma: float
    share: float
    bias_removed_by: str
    scale: float
    given_back: float

    def as_dict(self) -> dict[str, float | str]:
        """Plain values, for a record."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A line of text for each fact."""
        lines = [
            f"noise level, given                {self.sigma:.4g} ({100 * self.share:.3g} % of the range)",
            f"Rician bias                       removed by the {self.bias_removed_by}",
        ]
        if self.scale < 1:
            lines.append(f"scaled for the network            by {self.scale:.2f}, because of the strong noise")
        if self.given_back > 0:
            lines.append(f"given back                        {100 * self.given_back:.0f} % of a difference above noise")
        return lines


def check_noise_level(image: Image, sigma: float, *, scale: int) -> None:
    """Refuse a noise level where it has no meaning: it is that of MR magnitudes, whose size does not change.

    Args:
        image: the image.
        sigma: the noise level, in the unit of the image.
        scale: the factor of super-resolution.

    Raises:
        Refused: the image is of another modality or holds negative values, or the weights enlarge it.
    """
    if scale != 1:
        raise Refused("sigma is for weights that keep the size of the image; leave it out for super-resolution")
    if image.modality not in (None, "MR"):
        raise Refused(f"sigma is the noise of MR magnitudes, got an image of modality {image.modality}; leave it out")
    check_magnitudes(image, "sigma", "leave it out")
    if not 0 < sigma < float(image.stack.max()):
        raise Refused(f"sigma must be above 0 and below the largest value, {image.stack.max():g}, got {sigma:g}")


def restore_image(
    network: Callable[[np.ndarray], np.ndarray],
    image: Image,
    sigma: float | None,
    *,
    intensity_range: IntensityRange,
    handling: NoiseHandling,
) -> tuple[np.ndarray, KnownNoise | None]:
    """Restore an image, as `restore_known_noise` does if its noise level is known.

    Args:
        network: as for `restore_known_noise`.
        image: the image, in its own unit.
        sigma: its noise level in this unit; None if it is unknown. `check_noise_level` has accepted it.
        intensity_range: the intensities that the network sees as 0 and 1.
        handling: how the weights take the noise.

    Returns:
        The restored image, scaled so that the ends of the range are 0 and 1, and what was done with the level.
    """
    unit = intensity_range.to_unit(image.stack)
    if sigma is None:
        return network(unit), None
    return restore_known_noise(network, unit, sigma, intensity_range=intensity_range, handling=handling)


def restore_known_noise(
    network: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    sigma: float,
    *,
    intensity_range: IntensityRange,
    handling: NoiseHandling,
) -> tuple[np.ndarray, KnownNoise]:
    """Restore MR magnitudes with Rician noise of a known level.

    An image with stronger noise than the network takes is scaled down for it. The bias of the magnitudes is removed if
    the network leaves it. Where the signal is strong, no more than the noise may be removed: if the variance of the
    removed part is larger, a fraction of this part is given back, so that it is that of the noise.

    Args:
        network: from an image to the restored image, both scaled so that the ends of the intensity range are 0 and 1.
        image: (N, C, H, W) or (C, H, W), scaled in this way.
        sigma: standard deviation of the noise in the real and in the imaginary part, in the unit of the image.
        intensity_range: the intensities that are 0 and 1.
        handling: how the weights take the noise.

    Returns:
        float32, the restored image, scaled in the same way, and what was done.
    """
    share, zero = sigma / intensity_range.span, intensity_range.low / intensity_range.span
    scale = 1.0 if handling.strongest is None else min(1.0, handling.strongest / share)
    signal = network(np.asarray(image, np.float32) * np.float32(scale)).astype(np.float64) / scale + zero
    if handling.biased:
        signal = without_rician_bias(signal, share)
    magnitude = np.asarray(image, np.float64) + zero
    given_back = _above_noise(magnitude, signal, share)
    if given_back > 0:
        signal = signal + given_back * (magnitude - rician_mean(np.maximum(signal, 0), share))
    by = "formula" if handling.biased else "network"
    return (signal - zero).astype(np.float32), KnownNoise(sigma, share, by, scale, given_back)


def _above_noise(magnitude: np.ndarray, signal: np.ndarray, sigma: float) -> float:
    """The fraction of the part removed from strong signals that is more than noise of this level, 0 to 1."""
    strong = signal > _STRONG * sigma
    if np.count_nonzero(strong) < _LEAST_PIXELS:
        return 0.0
    mean = rician_mean(signal[strong], sigma)
    expected = np.mean(2 * sigma**2 + np.square(signal[strong]) - np.square(mean))  # the second moment is exact
    removed = np.mean(np.square(magnitude[strong] - mean))
    return float(max(0.0, 1 - np.sqrt(expected / removed))) if removed > 0 else 0.0
