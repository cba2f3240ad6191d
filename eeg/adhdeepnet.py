"""ADHDeepNet (Amini et al., arXiv 2509.08779), which maps windows of raw EEG to class scores.

The layers are the published ones, with the semantics of Keras. Every convolution before a batch norm is linear, so the
forward pass can reorder them; its results differ only by rounding:

- the spatial filters are applied before the temporal ones (256 mixed channels instead of 64 x 19); the statistics of
  the first batch norm are computed from lagged products of the input, because the signals that it normalises are never
  computed;
- the average pools at the end of towers a, b and d are applied first: a filter with a pool is a longer filter with
  stride 2;
- long filters of single channels are products with Toeplitz matrices.

`adhdeepnet_reference.LiteralADHDeepNet` has the same parameters and computes layer by layer; the tests compare the two.
Inside, tensors are (channels, batch, times): a 1 x 1 convolution is then one matrix product.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import signal_layers
from .fast_layers import (
    batch_norm_elu,
    dropout,
    drops,
    even_and_mean,
    filter_channels,
    filtered_moments,
    keep_statistics,
    norm_arguments,
    pooled_taps,
    running,
    toeplitz,
    update_running,
)

_TOWER_KERNELS = 128, 256  # samples at half the rate of the input
_LAST_KERNEL = 64
_BLOCK = 32  # samples of output per Toeplitz product in the first block; 16 to 64 measured alike, 128 slower


class ADHDeepNet(nn.Module):
    """Temporal and spatial filters, four towers, squeeze-and-excitation, one dense layer.

    The defaults are the published ones, with 174,626 parameters as Keras counts them. The input is (batch, n_chans,
    n_times) in any unit, since a batch norm follows; the output is (batch, n_outputs) logits, whose softmax is the
    output of the Keras model. If the number of samples before a pool is odd, the last sample is dropped, in every
    tower.

    Args:
        n_chans: number of electrodes.
        n_times: number of samples in a window, at least 4.
        n_outputs: number of classes.
        sfreq: sampling rate in Hz, which no layer needs but explanations do.
        F1: number of temporal filters.
        D: number of spatial filters for each temporal filter.
        kernel_length: samples of a temporal filter.
        se_nodes: width of the squeeze-and-excitation ("Dense_nodes").
        drop_prob: probability of both dropouts.
        max_norm: largest norm of a spatial filter and of the weights into an output; `constrain` applies it.

    Example:
        >>> model = ADHDeepNet().eval()
        >>> model(torch.zeros(2, 19, 512)).shape, model.keras_parameters
        (torch.Size([2, 2]), 174626)
    """

    def __init__(
        self,
        n_chans: int = 19,
        n_times: int = 512,
        n_outputs: int = 2,
        sfreq: float = 128.0,
        *,
        F1: int = 64,
        D: int = 4,
        kernel_length: int = 16,
        se_nodes: int = 16,
        drop_prob: float = 0.5,
        max_norm: float = 0.25,
    ):
        super().__init__()
        sizes = {"n_chans": n_chans, "F1": F1, "D": D, "kernel_length": kernel_length, "se_nodes": se_nodes}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if n_outputs < 2:
            raise ValueError(f"n_outputs must be at least 2, got {n_outputs}")
        if n_times < 4:
            raise ValueError(f"n_times must be at least 4 samples, since two pools halve it, got {n_times}")
        if not 0 <= drop_prob < 1:
            raise ValueError(f"drop_prob must be at least 0 and below 1, got {drop_prob}")
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}")
        self.n_chans, self.n_times, self.n_outputs, self.sfreq = n_chans, n_times, n_outputs, sfreq
        self.arguments: dict[str, Any] = {
            "n_chans": n_chans,
            "n_times": n_times,
            "n_outputs": n_outputs,
            "sfreq": sfreq,
            "F1": F1,
            "D": D,
            "kernel_length": kernel_length,
            "se_nodes": se_nodes,
            "drop_prob": drop_prob,
            "max_norm": max_norm,
        }
        self.drop_prob, self.max_norm = drop_prob, max_norm
        width = F1 * D
        self.temporal = nn.Conv2d(1, F1, (1, kernel_length), padding="same", bias=False)
        self.norm1 = _batch_norm(F1)
        self.spatial = nn.Conv2d(F1, width, (n_chans, 1), groups=F1, bias=False)
        self.norm2 = _batch_norm(width)
        self.tower_a = nn.ModuleList([_pointwise(width, 64), _depthwise(64, _TOWER_KERNELS[0]), _pointwise(64, 128)])
        self.tower_b = nn.ModuleList([_pointwise(width, 16), _depthwise(16, _TOWER_KERNELS[1]), _pointwise(16, 32)])
        self.tower_c = nn.Conv2d(width, 64, 1, stride=(1, 2), bias=False)
        self.tower_d = _pointwise(width, 32)
        self.norm3 = _batch_norm(256)
        self.excite1 = SqueezeExcite(256, se_nodes)
        self.last = nn.ModuleList([_depthwise(256, _LAST_KERNEL), _pointwise(256, 256)])
        self.norm4 = _batch_norm(256)
        self.excite2 = SqueezeExcite(256, se_nodes)
        self.classify = nn.Linear(256, n_outputs)
        for module in self.modules():
            glorot_uniform(module)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_outputs) of windows (batch, n_chans, n_times)."""
        logits: Tensor = self.classify(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """The 256 features (batch, 256) that are the input of the last layer."""
        return self.after_first_block(self.first_block(x))

    def first_block(self, x: Tensor) -> Tensor:
        """Steps 1 to 3 before dropout: (batch, n_chans, n_times) -> (F1 * D, batch, n_times // 2)."""
        self._check(x)
        taps, spatial = self.filters()
        if self.training:
            mean, variance = filtered_moments(x, taps)
            update_running(self.norm1, mean, variance, count=x.numel())
        else:
            mean, variance = running(self.norm1)
        gain = self.norm1.weight * torch.rsqrt(variance + self.norm1.eps)
        if self.training:  # the second norm cancels norm1.bias: its gradient is 0, but must exist
            gain = gain + 0 * self.norm1.bias
        # The first norm adds a constant to every mixed channel; the mean of the second norm contains and removes it.
        constant = ((self.norm1.bias - gain * mean).unsqueeze(1) * spatial.sum(-1)).flatten()
        if signal_layers.serves(x, constant, taps, spatial) and not x.requires_grad:
            mixing = (spatial * gain.view(-1, 1, 1)).flatten(0, 1)
            h, *found = signal_layers.filtered_block(x, mixing, taps, *norm_arguments(self.norm2, constant))
            keep_statistics(self.norm2, *found, count=x.shape[0] * x.shape[2], offset=constant)
            return h
        h = _filter_mixed(x, spatial * gain.view(-1, 1, 1), taps)
        if h.ndim == 4:
            return batch_norm_elu(h, self.norm2, offset=constant).view(h.shape[0], x.shape[0], -1)
        h = F.elu(self.norm2((h + constant.view(-1, 1, 1)).unsqueeze(0)))
        return F.avg_pool2d(h, (1, 2)).squeeze(0)

    def filters(self) -> tuple[Tensor, Tensor]:
        """Temporal filters (F1, kernel_length) and, for each, its spatial filters (F1, D, n_chans)."""
        taps = self.temporal.weight.flatten(1)
        return taps, self.spatial.weight.flatten(1).view(len(taps), -1, self.n_chans)

    def after_first_block(self, h: Tensor) -> Tensor:
        """The last features (batch, 256) from the output of `first_block`."""
        if signal_layers.serves(h, *self.parameters()):
            return self._compiled_after_first_block(h)
        h = dropout(h, self.drop_prob, self.training)
        h = batch_norm_elu(self._towers(h), self.norm3)
        h = h * self.excite1(h.mean(-1).T).T.unsqueeze(-1)
        depthwise, pointwise = self.last
        h = filter_channels(h, _taps(depthwise))
        h = batch_norm_elu(_mix(pointwise, h), self.norm4)
        # The second excitation scales whole channels, so it can be applied after the mean over time.
        scale: Tensor = self.excite2(h.mean(-1).T)
        return dropout(h, self.drop_prob, self.training).mean(-1).T * scale

    def _compiled_after_first_block(self, h: Tensor) -> Tensor:
        """The same by compiled kernels, which need fewer passes over the memory."""
        outputs = h.shape[-1] // 2
        h = self._compiled_towers(signal_layers.split_pairs(h, self._dropped(h)), outputs)
        h, mean, *found = signal_layers.norm_elu(h, *norm_arguments(self.norm3))
        keep_statistics(self.norm3, *found, count=h[0].numel())
        scale = self.excite1(mean.T).T
        depthwise, pointwise = self.last
        taps = _taps(depthwise)
        left = (taps.shape[1] - 1) // 2
        h = signal_layers.filter_channels(h.unsqueeze(1), taps.unsqueeze(1), scale, left=left, outputs=outputs)
        h = signal_layers.mix(_taps(pointwise), h)
        mean, kept, *found = signal_layers.norm_elu_means(h, *norm_arguments(self.norm4), self._dropped(h))
        keep_statistics(self.norm4, *found, count=h[0].numel())
        result: Tensor = kept.T * self.excite2(mean.T)
        return result

    def _dropped(self, h: Tensor) -> signal_layers.Dropped | None:
        return signal_layers.Dropped(h.shape, self.drop_prob) if self.training and drops(self.drop_prob) else None

    def _compiled_towers(self, h: Tensor, outputs: int) -> Tensor:
        """Step 4 as in `_towers`, from the even and odd samples that `signal_layers.split_pairs` returns."""
        first = torch.cat([_taps(self.tower_a[0]), _taps(self.tower_b[0]), _taps(self.tower_d)])
        both, even = signal_layers.mix_pairs(h, first, _taps(self.tower_c))
        a, b, d = both.split([64, 16, 32])
        towers = []
        for tower, part in ((self.tower_a, a), (self.tower_b, b)):
            taps, left = pooled_taps(_taps(tower[1]))
            filtered = signal_layers.filter_channels(part, taps, left=left, outputs=outputs)
            towers.append(signal_layers.mix(_taps(tower[2]), filtered))
        return torch.cat([*towers, d.mean(1)[..., :outputs], even[..., :outputs]])

    def _towers(self, h: Tensor) -> Tensor:
        """Step 4: (F1 * D, batch, times) -> (256, batch, times // 2), in the published order a, b, d, c."""
        first = torch.cat([_taps(self.tower_a[0]), _taps(self.tower_b[0])])
        a, b = _matmul(first, h).split([64, 16])
        even, mean = even_and_mean(h)
        return torch.cat(
            [
                _mix(self.tower_a[2], filter_channels(a, _taps(self.tower_a[1]), pool=True)),
                _mix(self.tower_b[2], filter_channels(b, _taps(self.tower_b[1]), pool=True)),
                _mix(self.tower_d, mean),
                _mix(self.tower_c, even),
            ]
        )

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale filters whose norm exceeds `max_norm` back to it, as Keras does after every optimizer step."""
        limit_norm(self.spatial.weight, dim=2, limit=self.max_norm)
        limit_norm(self.classify.weight, dim=1, limit=self.max_norm)

    @property
    def keras_parameters(self) -> int:
        """The number of values in the model, including running statistics."""
        return sum(tensor.numel() for tensor in self._keras_order())

    @torch.no_grad()
    def load_keras(self, arrays: Sequence[np.ndarray]) -> None:
        """Load weights of the published Keras model.

        Args:
            arrays: the 38 arrays of `model.get_weights()`, in that order (squeeze-and-excitation as dense layers).
                In the published data, output 0 is ADHD and output 1 control.

        Raises:
            ValueError: the number of arrays or a shape does not fit this model's arguments.
        """
        targets = self._keras_order()
        depthwise = {id(_weight(layer)) for layer in (self.spatial, self.tower_a[1], self.tower_b[1], self.last[0])}
        if len(arrays) != len(targets):
            raise ValueError(f"arrays must be the {len(targets)} of the Keras model, got {len(arrays)}")
        for i, (array, target) in enumerate(zip(arrays, targets, strict=True)):
            tensor = torch.as_tensor(np.asarray(array))
            if id(target) in depthwise and tensor.ndim == 4:
                tensor = tensor.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)  # (h, w, in, m) -> (in * m, 1, h, w)
            elif tensor.ndim == 4:
                tensor = tensor.permute(3, 2, 0, 1)  # (h, w, in, out) -> (out, in, h, w)
            elif tensor.ndim == 2:
                tensor = tensor.T
            if tensor.shape != target.shape:
                raise ValueError(
                    f"array {i} of the Keras weights must fit {tuple(target.shape)}, got {tuple(tensor.shape)} after "
                    "its axes were reordered as in PyTorch"
                )
            target.copy_(tensor)

    def _keras_order(self) -> list[Tensor]:
        a, b = self.tower_a, self.tower_b
        return [
            self.temporal.weight,
            *_norm_tensors(self.norm1),
            self.spatial.weight,
            *_norm_tensors(self.norm2),
            *(_weight(layer) for layer in (a[0], b[0], a[1], a[2], b[1], b[2])),
            *(self.tower_d.weight, self.tower_c.weight),
            *_norm_tensors(self.norm3),
            *self.excite1.parameters(),
            *(_weight(layer) for layer in self.last),
            *_norm_tensors(self.norm4),
            *self.excite2.parameters(),
            *self.classify.parameters(),
        ]

    def _check(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[1:] != (self.n_chans, self.n_times):
            raise ValueError(f"x must have shape (batch, {self.n_chans}, {self.n_times}), got {tuple(x.shape)}")


class SqueezeExcite(nn.Module):
    """A factor between 0 and 1 for every channel of every window (Hu et al. 2018), (batch, channels)."""

    def __init__(self, channels: int, nodes: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, nodes)
        self.excite = nn.Linear(nodes, channels)

    def forward(self, mean: Tensor) -> Tensor:
        """The factors from the channels' means over time."""
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))


def _filter_mixed(x: Tensor, spatial: Tensor, taps: Tensor) -> Tensor:
    """Mix the electrodes with spatial filters (F1, D, n_chans), then filter in time with taps (F1, k), zero-padded.


    The input is cut into overlapping blocks before the mixing, while it has few channels. Where the blocks fit into
    the window, a block holds the first samples of all pairs, then the second samples.

    Returns:
        (F1 * D, batch * blocks, 2, block / 2), or (F1 * D, batch, n_times).
    """
    filters, length = taps.shape
    batch, channels, times = x.shape
    block = max(_BLOCK, 2 ** math.ceil(math.log2(length)))
    if 2 * block > times:
        block, span, left, pieces = times, times, (length - 1) // 2, x.transpose(0, 1)
    else:
        left, span = 0, 16 * math.ceil((block + length - 1) / 16)  # matrix products are fastest at multiples of 16
        before = (length - 1) // 2
        padded = F.pad(x.transpose(0, 1), (before, math.ceil(times / block) * block + span - block - before - times))
        pieces = padded.unfold(-1, span, block)
    mixed = (spatial.flatten(0, 1) @ pieces.reshape(channels, -1)).view(filters, -1, span)
    if times % block or block % 2:
        filtered = torch.bmm(mixed, toeplitz(taps, span, block, left=left).mT)
        return filtered.view(filters * spatial.shape[1], batch, -1)[..., :times]
    pairs = [toeplitz(taps, span, block // 2, left=left - second, stride=2) for second in (0, 1)]
    filtered = torch.bmm(mixed, torch.cat(pairs, dim=1).mT)
    return filtered.view(filters * spatial.shape[1], -1, 2, block // 2)


def _mix(layer: nn.Module, h: Tensor) -> Tensor:
    """A 1 x 1 convolution of (channels, batch, times)."""
    return _matmul(_taps(layer), h)


def _matmul(weight: Tensor, h: Tensor) -> Tensor:
    return (weight @ h.flatten(1)).view(-1, *h.shape[1:])


def _taps(layer: nn.Module) -> Tensor:
    return _weight(layer).flatten(1)


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight")


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _depthwise(channels: int, length: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, (1, length), groups=channels, padding="same", bias=False)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # Keras: 0.99 old + 0.01 new


def _norm_tensors(norm: nn.BatchNorm2d) -> list[Tensor]:
    return [norm.weight, norm.bias, *running(norm)]


def glorot_uniform(module: nn.Module) -> None:
    """Draw initial weights of a layer as Glorot and Bengio (2010) do.

    The fans are those of Keras, where a depthwise kernel is (h, w, in, multiplier).
    """
    if isinstance(module, nn.Conv2d):
        area = module.kernel_size[0] * module.kernel_size[1]
        multiplier = module.out_channels // module.groups
        fans = area * module.in_channels, area * (multiplier if module.groups > 1 else module.out_channels)
    elif isinstance(module, nn.Linear):
        fans = module.in_features, module.out_features
        nn.init.zeros_(module.bias)
    else:
        return
    limit = math.sqrt(6 / sum(fans))
    nn.init.uniform_(module.weight, -limit, limit)


def limit_norm(weight: Tensor, *, dim: int, limit: float) -> None:
    """Scale the vectors of a weight along `dim` whose norm exceeds the limit, in place, as Keras does."""
    norm = weight.square().sum(dim, keepdim=True).sqrt()
    weight.mul_(norm.clamp(0, limit) / (1e-7 + norm))
