"""The block of MaIR and MaIRUNet: a selective scan along four nested S-shaped paths, then an MLP.

All feature maps are channel-last, (B, H, W, C): linear layers, norms and the scan read them without a copy, and
`on_channels_first` passes them to convolutions without a copy. Symbols: C width of the block, d inner width, N states
per channel, R rank of the step sizes, K = 4 directions, L = H * W pixels. Parameters have the names and the order of
the published weights. Li et al., MaIR, CVPR 2025 (arXiv 2412.20066).
"""

import math
from collections.abc import Iterable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import pixel_layers
from ..kernels.scan.cpu import directional_low_rank
from ..kernels.scan.reference import DirectionalInputs, directional_forward
from ..kernels.scan.selective import directional_scan
from .scan_order import DIRECTIONS

_LEAST_OUTPUTS = 16  # of a compiled convolution, which computes 32 channels at a time


def on_channels_first(layer: nn.Module, features: Tensor, added: Tensor | None = None) -> Tensor:
    """Apply a convolution to a channel-last map: (B, H, W, C) -> (B, H', W', C'); `added` is added to the result."""
    if _is_small_filter(layer) and _are_compiled("vw_pixel_filter", layer, features, added):
        return pixel_layers.filter_map(features, layer.weight, layer.bias, added)
    mapped: Tensor = layer(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return mapped if added is None else mapped + added


def normalise(norm: nn.Module, features: Tensor) -> Tensor:
    """Apply a layer norm to a channel-last map: (B, H, W, C) -> (B, H, W, C)."""
    if type(norm) is nn.LayerNorm and _are_compiled("vw_pixel_norm", norm, features):
        return pixel_layers.normalise(features, norm.weight, norm.bias, norm.eps)
    normalised: Tensor = norm(features)
    return normalised


def _is_small_filter(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution of 3 x 3 pixels whose result has the size of the map."""
    return (
        type(layer) is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and (layer.padding, layer.padding_mode) == ((1, 1), "zeros")
        and layer.out_channels >= _LEAST_OUTPUTS
    )


def _are_compiled(function: str, layer: nn.Module, features: Tensor, added: Tensor | None = None) -> bool:
    """Whether a compiled function can take the place of a layer."""
    tensors = [features, *layer.parameters()] if added is None else [features, added, *layer.parameters()]
    return features.ndim == 4 and pixel_layers.serves(function, *tensors) and not _is_watched(layer)


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody replaced the forward method of a module, or hung a hook on it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class DropPath(nn.Module):
    """Skip a whole residual branch for some samples of the batch in training (Huang et al. 2016).

    Kept branches are scaled by 1 / (1 - rate), so that the mean stays the same.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        kept = torch.empty(branch.shape[0], 1, 1, 1, device=branch.device).bernoulli_(keep)
        return branch * (kept / keep).to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class MLP(nn.Module):
    """Two linear layers over the channels of each pixel, with the exact GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(features)))
        return result


class DirectionalScan(nn.Module):
    """The selective scan of a channel-last map along each path; it has no parameters.

    `plain` selects the reference, which runs the sequential scan in plain PyTorch on copies in scan order, without
    gradients.
    """

    plain = False

    def forward(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Tensor:
        """Same arguments and result as `kernels.scan.directional_scan`; delta_bias is added before the softplus."""
        if self.plain:
            with torch.no_grad():
                return directional_forward(DirectionalInputs(x, delta, A, B, C, order, D, delta_bias, True))[0]
        return directional_scan(x, delta, A, B, C, order, D, delta_bias, delta_softplus=True)


class _ShuffledMean(nn.Module):
    """The mean over all pixels, with the four directions of a channel side by side: (B, L, K, d) -> (B, d*K, 1, 1)."""

    def forward(self, scanned: Tensor) -> Tensor:
        return scanned.mean(dim=1).transpose(1, 2).flatten(1)[..., None, None]


class _DirectionMixing(nn.Conv2d):
    """A 1x1 convolution of 1x1 maps, (B, d*K, 1, 1), with one group for the four directions of each channel.

    It is computed as one batched product, because `conv2d` computes each group separately, which takes 1.2 ms instead
    of 0.03 ms for 84 channels.
    """

    def forward(self, means: Tensor) -> Tensor:
        weight = self.weight.view(self.groups, DIRECTIONS, DIRECTIONS)
        mixed = weight @ means.view(-1, self.groups, DIRECTIONS, 1)  # (B, d, K, 1)
        assert self.bias is not None
        return mixed.flatten(1, 2)[..., None] + self.bias.view(-1, 1, 1)


class SequenceShuffleAttention(nn.Module):
    """Sum the four directions of each channel, weighted by gates in (0, 1) from their means over the map.

    The gates depend on the whole map, so a tile of an image is not restored exactly as in the whole image.
    """

    def __init__(self, channels: int):
        super().__init__()
        mixed = DIRECTIONS * channels
        self.gating = nn.Sequential(
            _ShuffledMean(),
            _DirectionMixing(mixed, mixed, 1, groups=channels),
            nn.Sigmoid(),
        )

    def forward(self, scanned: Tensor) -> Tensor:
        """(B, L, K, d) -> (B, L, d)."""
        batch, _, directions, channels = scanned.shape
        gates = self.gating(scanned).view(batch, 1, channels, directions).transpose(2, 3).contiguous()
        # contiguous, so that the products below are vectorised, which halves the time of all four
        maps, weights = scanned.unbind(2), gates.to(scanned.dtype).unbind(2)  # one gradient of all directions, not four
        out: Tensor = maps[0] * weights[0]
        for k in range(1, directions):
            out = torch.addcmul(out, maps[k], weights[k])
        return out

    def of_means(self, means: Tensor) -> Tensor:
        """The gates (B, K, d) from the means of each direction and channel over the map (B, K, d)."""
        batch, directions, channels = means.shape
        gates: Tensor = self.gating[1:](means.transpose(1, 2).flatten(1)[..., None, None])
        return gates.view(batch, channels, directions).transpose(1, 2)


class VisionScan(nn.Module):
    """Mix the pixels of a map: depthwise convolution, selective scan in four directions, gates (VMM in the paper)."""

    def __init__(self, width: int, states: int, expansion: float):
        super().__init__()
        inner = int(expansion * width)
        self.rank = math.ceil(width / 16)
        self.states = states
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, self.rank + 2 * states, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * inner, states))  # row k*d + c
        self.Ds = nn.Parameter(torch.empty(DIRECTIONS * inner))
        self.scan = DirectionalScan()
        self.gating = SequenceShuffleAttention(inner)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        if (
            not self.A_logs.is_meta
        ):  # on the meta device, arithmetic computes nothing but loads a compiler, which takes seconds
            self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """Draw step sizes log-uniformly from 1e-3..0.1; states get decay rates 1..N (Gu and Dao 2023, section 3.6)."""
        nn.init.uniform_(
            self.x_proj_weight, -(self.x_proj_weight.shape[2] ** -0.5), self.x_proj_weight.shape[2] ** -0.5
        )
        nn.init.uniform_(self.dt_projs_weight, -(self.rank**-0.5), self.rank**-0.5)
        step = torch.empty_like(self.dt_projs_bias).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(min=1e-4)
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step
        self.A_logs.copy_(torch.arange(1, self.states + 1).log().expand_as(self.A_logs))
        self.Ds.fill_(1)

    def forward(self, features: Tensor, order: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C).

        Args:
            features: the feature map.
            order: (4, H*W), the pixels in the order of each direction, see `scan_order`.
        """
        batch, height, width, _ = features.shape
        content_weight, gate_weight = self.in_proj.weight.chunk(2)
        content = F.linear(features, content_weight)  # two products, so that each result is contiguous
        gate = F.linear(features, gate_weight)
        content = F.silu(on_channels_first(self.conv2d, content)).reshape(batch, height * width, -1)  # (B, L, d)
        # projections are per pixel, so they can precede the reordering by the scan
        projected = F.linear(content, self.x_proj_weight.flatten(0, 1)).unflatten(2, (DIRECTIONS, -1))
        step, B, C = projected.split([self.rank, self.states, self.states], dim=3)  # (B, L, K, R), (B, L, K, N) twice
        delta = (step.permute(2, 0, 1, 3) @ self.dt_projs_weight.mT[:, None]).permute(1, 2, 0, 3)  # (B, L, K, d)
        A = -torch.exp(self.A_logs.float() if self.A_logs.dtype != torch.float64 else self.A_logs)
        scanned = self.scan(content, delta, A, B, C, order, self.Ds, self.dt_projs_bias.flatten())  # (B, L, K, d)
        mixed = self.out_norm(self.gating(scanned)).view_as(gate) * F.silu(gate)
        result: Tensor = self.out_proj(mixed)
        return result


class ScanBlock(nn.Module):
    """The residual block: x * skip_scale + VisionScan(norm(x)), then x * skip_scale2 + MLP(norm(x)).

    Args:
        width: C.
        states: N, states per channel of the scan.
        expansion: d / C, rounded down to a whole d.
        mlp_ratio: hidden width of the MLP / C, rounded down.
        drop_path_rate: the probability that a sample skips the scan in training.
        mlp_name: the name of the MLP in the published weights: "conv_blk" in MaIR, "mlp" in MaIRUNet.
    """

    def __init__(
        self, width: int, states: int, expansion: float, mlp_ratio: float, drop_path_rate: float, mlp_name: str
    ):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.self_attention = VisionScan(width, states, expansion)
        self.drop_path = DropPath(drop_path_rate)
        self.skip_scale = nn.Parameter(torch.ones(width))
        self.ln_2 = nn.LayerNorm(width)
        self._mlp_name = mlp_name
        self.add_module(mlp_name, MLP(width, int(width * mlp_ratio)))
        self.skip_scale2 = nn.Parameter(torch.ones(width))

    def forward(self, features: Tensor, order: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); `order` as in `VisionScan`."""
        if self._compiled(features, order):
            return self._by_compiled_layers(features, order)
        mixed = self.drop_path(self.self_attention(self.ln_1(features), order))
        features = torch.addcmul(mixed, features, self.skip_scale)
        mlp = self.get_submodule(self._mlp_name)
        return torch.addcmul(mlp(self.ln_2(features)), features, self.skip_scale2)

    def _compiled(self, features: Tensor, order: Tensor) -> bool:
        """Whether compiled layers can take the place of the modules: nobody replaced one or hung a hook on it."""
        dropping = self.training and self.drop_path.rate > 0
        mixer, mlp = self.self_attention, self.get_submodule(self._mlp_name)
        if type(mlp) is not MLP:
            return False
        linear = (mixer.in_proj, mixer.out_proj, mlp.fc1, mlp.fc2)
        norms = (self.ln_1, self.ln_2, mixer.out_norm)
        return (
            not dropping
            and all(type(each) is nn.Linear for each in linear)
            and all(type(each) is nn.LayerNorm and each.eps == self.ln_1.eps for each in norms)
            and type(mixer.conv2d) is nn.Conv2d
            and features.ndim == 4
            and features.shape[3] == self.ln_1.weight.numel()
            and tuple(order.shape) == (DIRECTIONS, features.shape[1] * features.shape[2])
            and not self.self_attention.scan.plain
            and pixel_layers.serves("vw_pixel_leave", features, *self.parameters())
            and order.device.type == "cpu"
            and order.dtype == torch.int32
            and not any(_is_watched(module) for module in self.modules())
        )

    def _by_compiled_layers(self, features: Tensor, order: Tensor) -> Tensor:
        """The same with several layers in one pass; step sizes of the scan are not stored."""
        mixer, mlp = self.self_attention, self.get_submodule(self._mlp_name)
        assert isinstance(mlp, MLP)
        batch, height, width, _ = features.shape
        content_weight, gate_weight = mixer.in_proj.weight.chunk(2)
        norm = self.ln_1.weight, self.ln_1.bias
        content = pixel_layers.enter(features, *norm, content_weight, self.ln_1.eps)
        assert mixer.conv2d.bias is not None
        taps, bias = mixer.conv2d.weight, mixer.conv2d.bias
        content, projected = pixel_layers.convolve(content, taps, bias, mixer.x_proj_weight.flatten(0, 1))
        projected = projected.view(batch, height * width, DIRECTIONS, -1)
        step, B, C = projected.split([mixer.rank, mixer.states, mixer.states], dim=3)
        scanned, sums = directional_low_rank(
            content.view(batch, height * width, -1),
            step,
            mixer.dt_projs_weight.flatten(0, 1),
            -torch.exp(mixer.A_logs),
            B,
            C,
            order,
            mixer.Ds,
            mixer.dt_projs_bias.flatten(),
        )
        parameters = pixel_layers.Leaving(
            *norm,
            gate_weight,
            mixer.out_norm.weight,
            mixer.out_norm.bias,
            mixer.out_proj.weight,
            self.skip_scale,
            self.ln_2.weight,
            self.ln_2.bias,
            mlp.fc1.weight,
            mlp.fc1.bias,
            mlp.fc2.weight,
            mlp.fc2.bias,
            self.skip_scale2,
        )
        gates = mixer.gating.of_means(sums / (height * width))
        return pixel_layers.leave(features, scanned, gates, parameters, self.ln_1.eps)


class BlockSequence(nn.ModuleList):
    """A sequence of blocks.

    Args:
        blocks: blocks of one width.
        checkpoint_blocks: recompute each block in the backward pass instead of storing its inner maps.
    """

    def __init__(self, blocks: Iterable[ScanBlock], checkpoint_blocks: bool):
        super().__init__(blocks)
        self.checkpoint_blocks = checkpoint_blocks

    def forward(self, features: Tensor, *orders: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); the blocks alternate between the scan orders."""
        for number, block in enumerate(self):
            order = orders[number % len(orders)]
            if self.checkpoint_blocks and torch.is_grad_enabled():
                features = checkpoint(block, features, order, use_reentrant=False)
            else:
                features = block(features, order)
        return features


def use_plain_scan(model: nn.Module, plain: bool = True) -> None:
    """Switch every scan of a model to the step-by-step reference in plain PyTorch, or back to the fast scan."""
    for module in model.modules():
        if isinstance(module, DirectionalScan):
            module.plain = plain
