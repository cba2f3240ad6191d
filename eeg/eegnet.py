"""EEGNet (Lawhern et al. 2018, J. Neural Eng. 15 056013; fourth version of arXiv 1611.08024)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

_MOMENTUM, _EPS = 0.01, 1e-3  # of batch normalisation; the defaults of Keras, with which the network was published
_SPATIAL_MAX_NORM, _OUTPUT_MAX_NORM = 1.0, 0.25
_SEPARABLE_S = 16  # samples
_POOL_1, _POOL_2 = 4, 8  # samples


class EEGNet(nn.Sequential):
    """Temporal filters, spatial filters for each of them, a separable convolution, and one linear layer.

    The input is (n, channels, times); the output is logits (n, outputs). The norms of the spatial filters and of the
    weights of each output are limited. Parameters and initial weights are those of braindecode's EEGNet, so its weight
    files load.

    Args:
        n_chans: number of channels.
        n_times: number of samples in a window.
        n_outputs: number of classes.
        sfreq: sampling rate in Hz; the temporal filters last half a second, as in the paper.
        F1: number of temporal filters.
        D: number of spatial filters per temporal filter.
        drop_prob: probability of both dropouts.

    Raises:
        ValueError: the windows are too short for the two poolings.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        n_outputs: int,
        sfreq: float,
        *,
        F1: int = 8,
        D: int = 2,
        drop_prob: float = 0.25,
    ) -> None:
        super().__init__()
        kernel, maps = max(1, round(sfreq / 2)), F1 * D
        self.dimshuffle = _AsImage()
        self.conv_temporal = nn.Conv2d(1, F1, (1, kernel), bias=False, padding=(0, kernel // 2))
        self.bnorm_temporal = nn.BatchNorm2d(F1, momentum=_MOMENTUM, eps=_EPS)
        self.conv_spatial = nn.Conv2d(F1, maps, (n_chans, 1), bias=False, groups=F1)
        nn.init.xavier_uniform_(self.conv_spatial.weight)
        register_parametrization(self.conv_spatial, "weight", MaxNorm(_SPATIAL_MAX_NORM))
        self.bnorm_1 = nn.BatchNorm2d(maps, momentum=_MOMENTUM, eps=_EPS)
        self.elu_1 = nn.ELU()
        self.pool_1 = nn.AvgPool2d((1, _POOL_1))
        self.drop_1 = nn.Dropout(drop_prob)
        padding = (0, _SEPARABLE_S // 2)
        self.conv_separable_depth = nn.Conv2d(maps, maps, (1, _SEPARABLE_S), bias=False, groups=maps, padding=padding)
        self.conv_separable_point = nn.Conv2d(maps, maps, 1, bias=False)
        self.bnorm_2 = nn.BatchNorm2d(maps, momentum=_MOMENTUM, eps=_EPS)
        self.elu_2 = nn.ELU()
        self.pool_2 = nn.AvgPool2d((1, _POOL_2))
        self.drop_2 = nn.Dropout(drop_prob)
        self.final_layer = nn.Sequential()
        self.final_layer.add_module("flatten", nn.Flatten())
        self.final_layer.add_module("linearconstraint", nn.Linear(self._count_features(n_chans, n_times), n_outputs))
        output = self.final_layer.get_submodule("linearconstraint")
        register_parametrization(output, "weight", MaxNorm(_OUTPUT_MAX_NORM))
        nn.init.zeros_(output.get_parameter("bias"))

    def _count_features(self, n_chans: int, n_times: int) -> int:
        """Number of features of a window, found by a pass of zeros in training mode.

        As in braindecode, the pass draws random numbers and updates the running averages of the batch norms; without
        it, a training with the same seed would give other weights than before.
        """
        added = 1 - self.conv_temporal.kernel_size[1] % 2  # samples that the padding of an even filter adds
        least = _POOL_1 * (_POOL_2 - 1) - added
        if n_times < least:
            raise ValueError(f"EEGNet needs windows of at least {least} samples, got {n_times}")
        with torch.inference_mode():
            features: Tensor = self(torch.zeros(1, n_chans, n_times))
        return features.numel()


class MaxNorm(nn.Module):
    """Parametrization that limits the Euclidean norm of each slice of a weight along its first dimension."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, with the slices that exceed the norm scaled back to it."""
        return weight.renorm(p=2, dim=0, maxnorm=self.limit)


class _AsImage(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, times) as (n, 1, channels, times)."""
        return x[:, None]
