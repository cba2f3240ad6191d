"""ShallowConvNet (Schirrmeister et al. 2017, Human Brain Mapping 38 5391), a network of filters and band power."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PUBLISHED_HZ = 250  # sampling rate to which the lengths in the paper refer
_FILTER, _POOL, _STRIDE = 25, 75, 15  # samples at that rate
_LEAST_POWER = 1e-6


class ShallowConvNet(nn.Module):
    """Temporal and spatial filters, the log of their power in overlapping stretches, and one convolution over time.

    The input is (n, channels, times); the output is logits (n, outputs). The lengths of filters and stretches,
    published for 250 Hz, scale with `sfreq`. Parameters and initial weights are those of braindecode's ShallowFBCSPNet,
    so its weight files load.

    Args:
        n_chans: number of channels.
        n_times: number of samples in a window.
        n_outputs: number of classes.
        sfreq: sampling rate in Hz.
        filters: number of temporal filters, and of spatial filters over all of them.
        drop_prob: probability of the dropout before the last layer.

    Raises:
        ValueError: the windows are shorter than a filter and a stretch together.
    """

    def __init__(
        self, n_chans: int, n_times: int, n_outputs: int, sfreq: float, *, filters: int = 40, drop_prob: float = 0.5
    ) -> None:
        super().__init__()
        length, pool, stride = (max(1, round(samples * sfreq / _PUBLISHED_HZ)) for samples in (_FILTER, _POOL, _STRIDE))
        stretches = (n_times - length + 1 - pool) // stride + 1
        if stretches < 1:
            raise ValueError(f"ShallowConvNet needs windows of at least {length + pool - 1} samples, got {n_times}")
        self.conv_time_spat = _TemporalSpatialFilters(n_chans, filters, length)
        self.bnorm = nn.BatchNorm2d(filters)
        self.pool = nn.AvgPool2d((pool, 1), (stride, 1))
        self.drop = nn.Dropout(drop_prob)
        self.final_layer = nn.Sequential()
        self.final_layer.add_module("conv_classifier", nn.Conv2d(filters, n_outputs, (stretches, 1)))
        self.final_layer.add_module("squeeze", nn.Flatten())
        output = self.final_layer.get_submodule("conv_classifier")
        for weight in (self.conv_time_spat.conv_time.weight, self.conv_time_spat.conv_spat.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.xavier_uniform_(output.get_parameter("weight"))
        for bias in (self.conv_time_spat.conv_time.get_parameter("bias"), output.get_parameter("bias")):
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, outputs) of windows (n, channels, times)."""
        filtered = self.bnorm(self.conv_time_spat(x.transpose(1, 2)[:, None]))  # (n, filters, times, 1)
        power = self.pool(filtered * filtered)
        logits: Tensor = self.final_layer(self.drop(torch.log(power.clamp(min=_LEAST_POWER))))
        return logits


class _TemporalSpatialFilters(nn.Module):
    """Temporal filters, directly followed by spatial filters over all of them, computed as one convolution."""

    def __init__(self, n_chans: int, filters: int, length: int) -> None:
        super().__init__()
        self.conv_time = nn.Conv2d(1, filters, (length, 1))
        self.conv_spat = nn.Conv2d(filters, filters, (1, n_chans), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, times, channels) -> (n, filters, times - length + 1, 1)."""
        spatial = self.conv_spat.weight  # (filters out, filters, 1, channels)
        both = (self.conv_time.weight * spatial.permute(1, 0, 2, 3)).sum(0)[:, None]  # (out, 1, length, channels)
        bias = (spatial[:, :, 0].sum(-1) @ self.conv_time.get_parameter("bias")[:, None])[:, 0]
        return F.conv2d(x, both, bias)
