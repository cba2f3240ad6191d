"""MaIR: super-resolution and denoising at one scale, for grey and colour images of any size.

Li et al., "MaIR: A Locality- and Continuity-Preserving Mamba for Image Restoration", CVPR 2025 (arXiv 2412.20066).
Parameters have the names and shapes of the published weights.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import arena
from .scan_block import BlockSequence, ScanBlock, normalise, on_channels_first
from .scan_order import scan_order
from .views import middle_channels

_RGB_MEAN = (0.4488, 0.4371, 0.4040)  # the mean of the DIV2K training images

_TINY = {"width": 60, "depths": (6,) * 4, "states": 1, "expansion": 1.1, "mlp_ratio": 1.6, "stripe_width": 8}
_SMALL = {"width": 60, "depths": (6,) * 4, "states": 16, "expansion": 1.4, "mlp_ratio": 1.6, "stripe_width": 4}
_CLASSICAL = {"width": 180, "depths": (6,) * 6, "states": 16, "expansion": 2.0, "mlp_ratio": 2.5, "stripe_width": 8}
_DENOISE = {"width": 180, "depths": (6,) * 6, "states": 16, "expansion": 1.3, "mlp_ratio": 2.0, "stripe_width": 4}

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"mair-t-x{scale}": {**_TINY, "scale": scale, "upsampler": "pixelshuffledirect"} for scale in (2, 3, 4)},
    **{f"mair-s-x{scale}": {**_SMALL, "scale": scale, "upsampler": "pixelshuffledirect"} for scale in (2, 3, 4)},
    **{f"mair-x{scale}": {**_CLASSICAL, "scale": scale, "upsampler": "pixelshuffle"} for scale in (2, 3, 4)},
    "mair-denoise": {**_DENOISE, "scale": 1, "upsampler": None},
}
"""Published configurations: tiny and small (lightweight super-resolution), classical super-resolution, denoising."""


class MaIR(nn.Module):
    """Image (B, in_channels, H, W) with values in [0, 1] -> restored image (B, out_channels, H * scale, W * scale).

    Any H and W work, without padding. A 3-D volume is restored slice by slice. With neighbouring slices as input
    channels (2.5-D), `in_channels` is the odd number of slices and `out_channels` is 1: the middle slice is restored.
    `arguments` holds the constructor's arguments as plain values, to be stored with the weights.

    Args:
        stripe_width: width in pixels of the stripes of the scan order, 4 or 8 in the published configurations. It has
            no default, because no parameter's shape depends on it and a wrong value gives wrong results silently.
        in_channels: 1 for grey, 3 for colour, an odd number of slices for 2.5-D.
        out_channels: channels of the result; None means `in_channels`. The result corresponds to the middle
            `out_channels` of the input channels, so `in_channels - out_channels` must be even.
        scale: the super-resolution factor: 2, 3, 4 or 8 with an upsampler, otherwise 1.
        upsampler: "pixelshuffledirect" (lightweight super-resolution), "pixelshuffle" (classical), or None for
            denoising, where the input is added to the result.
        width: channels C of the feature maps.
        depths: number of blocks in each residual group.
        states: states per channel of the selective scan.
        expansion: the inner width of the scan / `width`.
        mlp_ratio: the hidden width of the MLPs / `width`.
        resi_connection: the convolution that ends each group: "1conv", or the smaller "3conv".
        unshuffle: the factor r of a pixel unshuffle before the network (Zhang et al., FFDNet, IEEE TIP 2018): each
            square of r x r pixels becomes r**2 channels, and the result is shuffled back. The feature maps then have
            1 / r**2 of the pixels, and the time of the network falls as much. 1 in the published configurations; other
            factors are for denoising only.
        drop_path_rate: the probability that a sample skips the scan of the last block in training; it rises linearly
            from 0 at the first block.
        img_range: factor on the input before the network; the result is divided by it.
        mean: one value per input channel, subtracted before the network; the middle values are added to the result.
            None means the published RGB mean for 3 channels in and out, otherwise 0.
        continuous: scan order without the jumps at stripe borders (`scan_order`); published weights need False.
        checkpoint_blocks: recompute each block in the backward pass instead of storing its inner maps: a fraction of
            the memory for about a third more time.

    Raises:
        ValueError: the arguments do not fit together.

    Example:
        >>> model = MaIR(stripe_width=4, in_channels=1, scale=1, upsampler=None, width=12, depths=(1,), states=2)
        >>> model(torch.rand(1, 1, 9, 7)).shape
        torch.Size([1, 1, 9, 7])
    """

    def __init__(
        self,
        *,
        stripe_width: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        scale: int = 2,
        upsampler: Literal["pixelshuffle", "pixelshuffledirect"] | None = "pixelshuffledirect",
        width: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        states: int = 16,
        expansion: float = 1.5,
        mlp_ratio: float = 2.0,
        resi_connection: Literal["1conv", "3conv"] = "1conv",
        unshuffle: int = 1,
        drop_path_rate: float = 0.1,
        img_range: float = 1.0,
        mean: Sequence[float] | None = None,
        continuous: bool = False,
        checkpoint_blocks: bool = False,
    ):
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        if mean is None:
            mean = _RGB_MEAN if in_channels == out_channels == 3 else (0.0,) * in_channels
        self.arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "scale": scale,
            "upsampler": upsampler,
            "width": width,
            "depths": list(depths),
            "states": states,
            "expansion": expansion,
            "mlp_ratio": mlp_ratio,
            "stripe_width": stripe_width,
            "resi_connection": resi_connection,
            "unshuffle": unshuffle,
            "drop_path_rate": drop_path_rate,
            "img_range": img_range,
            "mean": list(mean),
            "continuous": continuous,
        }
        _check_arguments(self.arguments)
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale
        self.middle = middle_channels(in_channels, out_channels)
        self.stripe_width, self.continuous = stripe_width, continuous
        self.img_range, self.mean = img_range, tuple(mean)
        self.unshuffle = unshuffle

        self._add_body(width, depths, checkpoint_blocks)
        self.upsampler = upsampler
        self._add_head(width, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _add_body(self, width: int, depths: Sequence[int], checkpoint_blocks: bool) -> None:
        """The first convolution, the residual groups, and the convolution after them."""
        states, expansion, mlp_ratio, resi_connection, drop_path_rate = (
            self.arguments[name] for name in ("states", "expansion", "mlp_ratio", "resi_connection", "drop_path_rate")
        )
        self.conv_first = nn.Conv2d(self.unshuffle**2 * self.in_channels, width, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(width)})
        rates = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.layers = nn.ModuleList()
        for depth in depths:
            group_rates = [next(rates) for _ in range(depth)]
            blocks = [ScanBlock(width, states, expansion, mlp_ratio, rate, "conv_blk") for rate in group_rates]
            sequence = BlockSequence(blocks, checkpoint_blocks)
            self.layers.append(ResidualGroup(sequence, _group_conv(width, resi_connection)))
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = _group_conv(width, resi_connection)

    def _add_head(self, width: int, out_channels: int) -> None:
        """The layers after the body, which depend on the upsampler."""
        scale = self.scale
        if self.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(width, 64, 3, padding=1), nn.LeakyReLU(0.01))
            self.upsample = nn.Sequential(*_upsampling(64, scale))
            self.conv_last = nn.Conv2d(64, out_channels, 3, padding=1)
        elif self.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                nn.Conv2d(width, scale**2 * out_channels, 3, padding=1), nn.PixelShuffle(scale)
            )
        else:
            self.conv_last = nn.Conv2d(width, self.unshuffle**2 * out_channels, 3, padding=1)

    @classmethod
    def from_variant(cls, variant: str, **changes: Any) -> "MaIR":
        """Build a published configuration with random parameters.

        Args:
            variant: a name in `VARIANTS`, such as "mair-t-x2".
            changes: constructor arguments to replace, such as `in_channels=1`.
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        return cls(**{**VARIANTS[variant], **changes})

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [0, 1] -> (B, out_channels, H * scale, W * scale), not clamped."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"image must have shape (B, {self.in_channels}, H, W), got {tuple(image.shape)}")
        mean = image.new_tensor(self.mean).view(-1, 1, 1)
        scaled = (image - mean) * self.img_range
        inputs = self._unshuffled(scaled)
        height, width = inputs.shape[2:]
        size: dict[str, Any] = {
            "stripe_width": self.stripe_width,
            "continuous": self.continuous,
            "device": image.device,
        }
        plain = scan_order(height, width, **size)
        shifted = scan_order(height, width, shifted=True, **size)
        with arena.reused_for_inference():
            deep = self._deep(inputs, plain, shifted)
        return self._upsampled(deep.permute(0, 3, 1, 2), scaled) / self.img_range + mean[self.middle]

    def _unshuffled(self, scaled: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, in_channels * r**2, H / r, W / r), rounded up; the last pixels are repeated."""
        factor, (height, width) = self.unshuffle, scaled.shape[2:]
        if factor == 1:
            return scaled
        if height % factor or width % factor:
            scaled = F.pad(scaled, (0, -width % factor, 0, -height % factor), mode="replicate")
        return F.pixel_unshuffle(scaled, factor)

    def _deep(self, inputs: Tensor, plain: Tensor, shifted: Tensor) -> Tensor:
        """(B, channels of the first convolution, H, W) -> the features of the body (B, H, W, C)."""
        channels_last = inputs.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        shallow = on_channels_first(self.conv_first, channels_last)
        deep = normalise(self.patch_embed["norm"], shallow)
        for group in self.layers:
            deep = group(deep, plain, shifted)
        return on_channels_first(self.conv_after_body, normalise(self.norm, deep), added=shallow)

    def _upsampled(self, deep: Tensor, scaled: Tensor) -> Tensor:
        """(B, C, H, W) features and the scaled input -> the result before its range and mean are restored."""
        if self.upsampler == "pixelshuffle":
            restored: Tensor = self.conv_last(self.upsample(self.conv_before_upsample(deep)))
        elif self.upsampler == "pixelshuffledirect":
            restored = self.upsample(deep)
        else:
            noise = F.pixel_shuffle(self.conv_last(deep), self.unshuffle)
            restored = scaled[:, self.middle] + noise[..., : scaled.shape[2], : scaled.shape[3]]
        return restored


class ResidualGroup(nn.Module):
    """Blocks that alternate between plain and shifted stripes, then a convolution, inside one residual connection."""

    def __init__(self, blocks: BlockSequence, conv: nn.Module):
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": blocks})
        self.conv = conv

    def forward(self, features: Tensor, plain: Tensor, shifted: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); `plain` and `shifted` are scan orders of this size."""
        deep = self.residual_group["blocks"](features, plain, shifted)
        return on_channels_first(self.conv, deep, added=features)


def _group_conv(width: int, resi_connection: str) -> nn.Module:
    if resi_connection == "1conv":
        return nn.Conv2d(width, width, 3, padding=1)
    narrow = width // 4
    return nn.Sequential(
        nn.Conv2d(width, narrow, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, narrow, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, width, 3, padding=1),
    )


def _upsampling(width: int, scale: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    for factor in factors:
        layers += [nn.Conv2d(width, factor**2 * width, 3, padding=1), nn.PixelShuffle(factor)]
    return layers


def _check_arguments(arguments: dict[str, Any]) -> None:
    in_channels = arguments["in_channels"]
    middle_channels(in_channels, arguments["out_channels"])
    if len(arguments["mean"]) != in_channels:
        raise ValueError(f"mean must have {in_channels} values, one per input channel, got {arguments['mean']}")
    upsampler, scale = arguments["upsampler"], arguments["scale"]
    if upsampler not in ("pixelshuffle", "pixelshuffledirect", None):
        raise ValueError(f'upsampler must be "pixelshuffle", "pixelshuffledirect" or None, got {upsampler!r}')
    scales = (1,) if upsampler is None else (2, 3, 4, 8)
    if scale not in scales:
        raise ValueError(f"scale must be one of {scales} with upsampler {upsampler!r}, got {scale}")
    if arguments["resi_connection"] not in ("1conv", "3conv"):
        raise ValueError(f'resi_connection must be "1conv" or "3conv", got {arguments["resi_connection"]!r}')
    unshuffle = arguments["unshuffle"]
    if unshuffle < 1 or (unshuffle > 1 and upsampler is not None):
        raise ValueError(
            f"unshuffle must be at least 1, and 1 with an upsampler, got {unshuffle} with upsampler {upsampler!r}"
        )
    if arguments["stripe_width"] < 1:
        raise ValueError(f"stripe_width must be at least 1, got {arguments['stripe_width']}")
    if not arguments["img_range"] > 0:
        raise ValueError(f"img_range must be above 0, got {arguments['img_range']}")
    if not isinstance(arguments["continuous"], bool):
        raise ValueError(f"continuous must be true or false, got {arguments['continuous']!r}")
