"""Explanation of a trained network: integrated gradients by channel and band, occlusion, filters, last features.

Use it on windows of people on whom the network was not trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adhdeepnet import ADHDeepNet
from .features import BANDS

_AT_ONCE = 128  # windows per pass


@dataclass(frozen=True, eq=False)
class Attribution:
    """Integrated gradients of some windows.

    Args:
        x: (n, channels, times) the windows.
        gradient: (n, channels, times) mean gradient of the margin along the path from an all-zero window.
        margin: (n,) logit of the positive class minus that of the negative class.
        at_zero: the margin of an all-zero window.
    """

    x: np.ndarray
    gradient: np.ndarray
    margin: np.ndarray
    at_zero: float

    @property
    def values(self) -> np.ndarray:
        """(n, channels, times) attributions, which sum to the change of the margin from an all-zero window."""
        return np.asarray(self.x * self.gradient)

    @property
    def completeness_error(self) -> float:
        """Mean |sum - (f(x) - f(0))| relative to the mean |f(x) - f(0)|; 0 means exact."""
        expected = self.margin - self.at_zero
        error = np.abs(self.values.sum(axis=(1, 2)) - expected).mean()
        return float(error / max(np.abs(expected).mean(), np.finfo(float).tiny))


def integrated_gradients(network: nn.Module, x: Tensor, *, steps: int = 24) -> Attribution:
    """Attribute the margin between the classes to the samples (Sundararajan et al. 2017), from a baseline of zeros.

    The path integral is a Gauss-Legendre sum, which needs fewer points than equal steps.

    Args:
        network: a network in evaluation mode that returns logits (n, 2).
        x: (n, channels, times), scaled as in training.
        steps: number of points in the sum.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> found = integrated_gradients(linear, torch.tensor([[[1.0, 2.0]]]))
        >>> bool(abs(found.values.sum() - found.margin[0]) < 1e-6)
        True
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    gradients, margins = [], []
    for part in x.split(_AT_ONCE):
        gradient = torch.zeros_like(part, dtype=torch.float64)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            point = (part * float(node)).requires_grad_()
            (slope,) = torch.autograd.grad(_margin(network, point).sum(), point)
            gradient += float(weight) * slope.double()
        gradients.append(gradient.numpy())
        with torch.no_grad():
            margins.append(_margin(network, part).double().numpy())
    with torch.no_grad():
        at_zero = float(_margin(network, torch.zeros_like(x[:1])))
    return Attribution(x.numpy(), np.concatenate(gradients), np.concatenate(margins), at_zero)


def _margin(network: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = network(x)
    return logits[:, 1] - logits[:, 0]


def by_band(attribution: Attribution, sfreq: float, bands: Mapping[str, tuple[float, float]] = BANDS) -> np.ndarray:
    """Divide integrated gradients among frequency bands.

    Integrated gradients are the product of the window and a mean gradient, sample by sample. By Parseval's theorem,
    their sum over time is a sum over frequencies of the product of both spectra; each band gets the terms of its
    frequencies, so the parts add up to the total.

    Args:
        attribution: the attribution of some windows.
        sfreq: sampling rate in Hz.
        bands: name -> (low, high) in Hz.

    Returns:
        (n, channels, bands + 1); the last is the remainder outside all bands, such as slow drifts.
    """
    x, gradient = attribution.x.astype(float), attribution.gradient
    product = np.fft.rfft(x, axis=-1) * np.fft.rfft(gradient, axis=-1).conj()
    times = x.shape[-1]
    twice = np.full(product.shape[-1], 2.0)  # for a real signal, rfft returns one of each pair of frequencies
    twice[0] = 1
    if times % 2 == 0:
        twice[-1] = 1
    parts = product.real * twice / times
    frequencies = np.fft.rfftfreq(times, 1 / sfreq)
    found = [parts[..., (frequencies >= low) & (frequencies < high)].sum(-1) for low, high in bands.values()]
    return np.stack([*found, parts.sum(-1) - np.sum(found, axis=0)], axis=-1)


def shares(parts: np.ndarray) -> np.ndarray:
    """Mean absolute attribution over windows (first axis), as shares whose sum is 1."""
    size = np.abs(parts).mean(axis=0)
    return np.asarray(size / max(size.sum(), np.finfo(float).tiny))


def occlude_channels(network: nn.Module, x: Tensor, label: Tensor) -> np.ndarray:
    """Increase of the cross-entropy (nats per window) if a channel is set to zero, (channels,)."""
    changed = []
    for channel in range(x.shape[1]):
        hidden = x.clone()
        hidden[:, channel] = 0
        changed.append(_loss(network, hidden, label))
    return np.array(changed) - _loss(network, x, label)


def occlude_bands(
    network: nn.Module, x: Tensor, label: Tensor, sfreq: float, bands: Mapping[str, tuple[float, float]] = BANDS
) -> np.ndarray:
    """Increase of the cross-entropy (nats per window) if a band is removed from all channels, (bands,)."""
    spectrum = torch.fft.rfft(x)
    frequencies = torch.fft.rfftfreq(x.shape[-1], 1 / sfreq)
    changed = []
    for low, high in bands.values():
        outside = (frequencies < low) | (frequencies >= high)
        changed.append(_loss(network, torch.fft.irfft(spectrum * outside, x.shape[-1]), label))
    return np.array(changed) - _loss(network, x, label)


@torch.inference_mode()
def _loss(network: nn.Module, x: Tensor, label: Tensor) -> float:
    logits = torch.cat([network(part) for part in x.split(_AT_ONCE)])
    return float(F.cross_entropy(logits.double(), label))


@torch.inference_mode()
def last_features(network: nn.Module, x: Tensor) -> np.ndarray:
    """Input of the last layer: (n, features)."""
    if isinstance(network, ADHDeepNet):
        return torch.cat([network.features(part) for part in x.split(_AT_ONCE)]).numpy()
    seen: list[Tensor] = []
    hook = network.get_submodule("final_layer").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for part in x.split(_AT_ONCE):
            network(part)
    finally:
        hook.remove()
    return torch.cat([part.flatten(1) for part in seen]).numpy()


@dataclass(frozen=True, eq=False)
class FilterTable:
    """The filters of ADHDeepNet's first block.

    Args:
        frequencies: (bins,) Hz.
        response: (F1, bins) magnitude response of each temporal filter, scaled to a largest value of 1.
        peak: (F1,) frequency of the largest response in Hz.
        band: (F1,) index into the bands, -1 for none.
        weight: (F1, D) share of each spatial filter in the margin's gradient times activation; the shares sum to 1.
        spatial: (F1, D, channels) spatial filters, the weights with which channels are summed to extract a source.
        pattern: (F1, D, channels) projection of that source to the channels (Haufe et al. 2014).
    """

    frequencies: np.ndarray
    response: np.ndarray
    peak: np.ndarray
    band: np.ndarray
    weight: np.ndarray
    spatial: np.ndarray
    pattern: np.ndarray


def first_filters(
    network: ADHDeepNet, x: Tensor, bands: Mapping[str, tuple[float, float]] = BANDS, *, bins: int = 257
) -> FilterTable:
    """Frequency responses of the temporal filters, spatial filters and their patterns, and the weight of each.

    A spatial filter is not a map of activity, but its pattern is one. The pattern is the covariance of the windows
    after the temporal filter, times the spatial filter, divided by the variance of the filter's output.

    Args:
        network: a trained network in evaluation mode.
        x: (n, channels, times).
        bands: name -> (low, high) in Hz.
        bins: number of frequencies from 0 to half the sampling rate.
    """
    taps, spatial = (tensor.detach() for tensor in network.filters())
    response = np.abs(np.fft.rfft(taps.numpy(), 2 * (bins - 1), axis=-1))
    response /= np.maximum(response.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    frequencies = np.linspace(0, network.sfreq / 2, bins)
    peak = frequencies[response.argmax(axis=1)]
    band = np.full(len(peak), -1)
    for number, (low, high) in enumerate(bands.values()):
        band[(peak >= low) & (peak < high)] = number
    patterns = []
    for taps_of_one, filters in zip(taps, spatial, strict=True):
        kernel = taps_of_one.expand(x.shape[1], 1, -1)
        filtered = F.conv1d(x, kernel, padding="same", groups=x.shape[1]).transpose(0, 1).flatten(1).double()
        covariance = torch.cov(filtered)
        source = filters.double() @ covariance  # (D, channels)
        variance = (source * filters).sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        patterns.append((source / variance).numpy())
    weight = _first_block_weight(network, x).reshape(len(taps), -1)
    return FilterTable(frequencies, response, peak, band, weight, spatial.numpy(), np.stack(patterns))


def _first_block_weight(network: ADHDeepNet, x: Tensor) -> np.ndarray:
    """(F1 * D,) mean over windows of |sum over time of activation times gradient of the margin|, as shares."""
    sizes = []
    for part in x.split(_AT_ONCE):
        with torch.no_grad():
            h = network.first_block(part)
        h.requires_grad_()
        logits = network.classify(network.after_first_block(h))
        (slope,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), h)
        sizes.append((h.detach() * slope).sum(-1).abs())  # (F1 * D, windows)
    size = torch.cat(sizes, dim=1).mean(1).numpy()
    return np.asarray(size / max(size.sum(), np.finfo(np.float32).tiny))
