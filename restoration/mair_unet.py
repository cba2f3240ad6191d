"""MaIRUNet: denoising of real photographs, motion deblurring and dehazing at four scales.

Li et al., "MaIR: A Locality- and Continuity-Preserving Mamba for Image Restoration", CVPR 2025 (arXiv 2412.20066).
Parameters have the names and shapes of the published weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .borders import mirrored
from .scan_block import BlockSequence, ScanBlock, on_channels_first
from .scan_order import scan_order
from .views import middle_channels

MULTIPLE = 8  # the size is halved three times

_REAL = {"width": 48, "depths": (4, 6, 6, 8), "refinement": 4, "expansion": 2.0, "stripe_width": 4}
_HAZE = {"width": 24, "depths": (2, 2, 3, 4), "refinement": 2, "expansion": 1.2, "stripe_width": 8}

VARIANTS: dict[str, dict[str, Any]] = {
    "mair-unet-denoise": {**_REAL, "first_mlp_ratio": 4.0, "mlp_ratio": 1.5},
    "mair-unet-deblur": {**_REAL, "first_mlp_ratio": 4.0, "mlp_ratio": 1.5},
    "mair-unet-dehaze": {**_HAZE, "first_mlp_ratio": 2.0, "mlp_ratio": 2.0},
}
"""The published configurations: denoising of real photographs (SIDD), motion deblurring (GoPro), dehazing (RESIDE)."""


class MaIRUNet(nn.Module):
    """Image (B, in_channels, H, W) with values in [0, 1] -> restored image (B, out_channels, H, W).

    Any H and W work: the image is padded at the bottom and at the right by reflection to multiples of 8, and the result
    is cropped. With neighbouring slices as input channels (2.5-D), `in_channels` is the odd number of slices and
    `out_channels` is 1: the middle slice is restored. `arguments` holds the constructor's arguments as plain values, to
    be stored with the weights.

    Args:
        stripe_width: width in pixels of the stripes of the scan order, the same at every level, 4 or 8 in the published
            configurations. It has no default, because no parameter's shape depends on it and a wrong value gives
            wrong results silently.
        in_channels: 1 for grey, 3 for colour, an odd number of slices for 2.5-D.
        out_channels: channels of the result; None means `in_channels`. The result is added to the middle `out_channels`
            of the input channels, so `in_channels - out_channels` must be even.
        width: channels of the feature maps at full size; doubled at each level below.
        depths: number of blocks at full, 1/2, 1/4 and 1/8 size, the same on the way down and up.
        refinement: number of blocks at full size after the last level.
        expansion: the inner width of the scan / the width of its level.
        first_mlp_ratio: the hidden width of the MLPs / the width in the first level on the way down.
        mlp_ratio: the same in all other levels.
        bias: whether the convolutions that reduce channels and the last one have biases.
        drop_path_rate: the probability that a sample skips the scan of the last block in training; it rises linearly
            from 0 at the first block.
        continuous: scan order without the jumps at stripe borders (`scan_order`); published weights need False.
        checkpoint_blocks: recompute each block in the backward pass instead of storing its inner maps: a fraction of
            the memory for about a third more time.

    Raises:
        ValueError: the arguments do not fit together.

    Example:
        >>> model = MaIRUNet(stripe_width=4, in_channels=1, width=8, depths=(1, 1, 1, 1), refinement=1)
        >>> model(torch.rand(1, 1, 17, 9)).shape
        torch.Size([1, 1, 17, 9])
    """

    def __init__(
        self,
        *,
        stripe_width: int,
        in_channels: int = 3,
        out_channels: int | None = None,
        width: int = 48,
        depths: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        expansion: float = 1.5,
        first_mlp_ratio: float = 2.0,
        mlp_ratio: float = 2.0,
        bias: bool = False,
        drop_path_rate: float = 0.0,
        continuous: bool = False,
        checkpoint_blocks: bool = False,
    ):
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "width": width,
            "depths": list(depths),
            "refinement": refinement,
            "expansion": expansion,
            "first_mlp_ratio": first_mlp_ratio,
            "mlp_ratio": mlp_ratio,
            "stripe_width": stripe_width,
            "bias": bias,
            "drop_path_rate": drop_path_rate,
            "continuous": continuous,
        }
        _check_arguments(self.arguments)
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, 1
        self.stripe_width, self.continuous = stripe_width, continuous
        self.middle = middle_channels(in_channels, out_channels)
        self._add_levels(width, [*depths, *reversed(depths[:3]), refinement], checkpoint_blocks)
        self.output = nn.Conv2d(2 * width, out_channels, 3, padding=1, bias=bias)

    def _add_levels(self, width: int, counts: list[int], checkpoint_blocks: bool) -> None:
        """Add four levels down, three up, and the refinement at full size; `counts` holds their numbers of blocks."""
        expansion, first_mlp_ratio, mlp_ratio, bias, drop_path_rate = (
            self.arguments[name] for name in ("expansion", "first_mlp_ratio", "mlp_ratio", "bias", "drop_path_rate")
        )
        rates = iter(np.linspace(0, drop_path_rate, sum(counts)).tolist())
        numbers = iter(counts)

        def level(level_width: int, states: int, ratio: float) -> BlockSequence:
            number = next(numbers)
            blocks = [ScanBlock(level_width, states, expansion, ratio, next(rates), "mlp") for _ in range(number)]
            return BlockSequence(blocks, checkpoint_blocks)

        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(self.in_channels, width, 3, padding=1, bias=False)})
        self.encoder_level1 = level(width, 4, first_mlp_ratio)
        self.down1_2 = _Downsample(width)
        self.encoder_level2 = level(2 * width, 8, mlp_ratio)
        self.down2_3 = _Downsample(2 * width)
        self.encoder_level3 = level(4 * width, 16, mlp_ratio)
        self.down3_4 = _Downsample(4 * width)
        self.latent = level(8 * width, 32, mlp_ratio)
        self.up4_3 = _Upsample(8 * width)
        self.reduce_chan_level3 = nn.Conv2d(8 * width, 4 * width, 1, bias=bias)
        self.decoder_level3 = level(4 * width, 16, mlp_ratio)
        self.up3_2 = _Upsample(4 * width)
        self.reduce_chan_level2 = nn.Conv2d(4 * width, 2 * width, 1, bias=bias)
        self.decoder_level2 = level(2 * width, 8, mlp_ratio)
        self.up2_1 = _Upsample(2 * width)
        self.decoder_level1 = level(2 * width, 8, mlp_ratio)
        self.refinement = level(2 * width, 8, mlp_ratio)

    @classmethod
    def from_variant(cls, variant: str, **changes: Any) -> "MaIRUNet":
        """Build a published configuration with random parameters.

        Args:
            variant: a name in `VARIANTS`, such as "mair-unet-dehaze".
            changes: constructor arguments to replace, such as `in_channels=1`.
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        return cls(**{**VARIANTS[variant], **changes})

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [0, 1] -> (B, out_channels, H, W), not clamped."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"image must have shape (B, {self.in_channels}, H, W), got {tuple(image.shape)}")
        height, width = image.shape[2:]
        image = pad_by_reflection(image, MULTIPLE)

        features = self.patch_embed["proj"](image.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        order1 = self._order(features)
        skip1 = self.encoder_level1(features, order1)  # (B, H, W, C)
        features = on_channels_first(self.down1_2, skip1)
        order2 = self._order(features)
        skip2 = self.encoder_level2(features, order2)
        features = on_channels_first(self.down2_3, skip2)
        order3 = self._order(features)
        skip3 = self.encoder_level3(features, order3)
        features = on_channels_first(self.down3_4, skip3)
        latent = self.latent(features, self._order(features))  # (B, H/8, W/8, 8C)

        joined = torch.cat([on_channels_first(self.up4_3, latent), skip3], dim=-1)
        features = self.decoder_level3(on_channels_first(self.reduce_chan_level3, joined), order3)
        joined = torch.cat([on_channels_first(self.up3_2, features), skip2], dim=-1)
        features = self.decoder_level2(on_channels_first(self.reduce_chan_level2, joined), order2)
        joined = torch.cat([on_channels_first(self.up2_1, features), skip1], dim=-1)
        features = self.refinement(self.decoder_level1(joined, order1), order1)
        restored: Tensor = self.output(features.permute(0, 3, 1, 2)) + image[:, self.middle]
        return restored[:, :, :height, :width]

    def _order(self, features: Tensor) -> Tensor:
        height, width = features.shape[1:3]  # the published network uses plain stripes only
        return scan_order(height, width, self.stripe_width, continuous=self.continuous, device=features.device)


def pad_by_reflection(image: Tensor, multiple: int) -> Tensor:
    """Extend (B, C, H, W) at the bottom and at the right to multiples of `multiple`, mirrored at the last pixel.

    An image smaller than its margin is mirrored several times, as by `numpy.pad`; a single pixel is repeated.
    """
    for axis in (2, 3):
        size = image.shape[axis]
        if size % multiple:
            position = torch.arange(size + -size % multiple, device=image.device)
            image = image.index_select(axis, mirrored(position, size))
    return image


class _Downsample(nn.Module):
    """Half the size, twice the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, features: Tensor) -> Tensor:
        resampled: Tensor = self.body(features)
        return resampled


class _Upsample(nn.Module):
    """Twice the size, half the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, features: Tensor) -> Tensor:
        resampled: Tensor = self.body(features)
        return resampled


def _check_arguments(arguments: dict[str, Any]) -> None:
    middle_channels(arguments["in_channels"], arguments["out_channels"])
    if len(arguments["depths"]) != 4:
        raise ValueError(f"depths must be four numbers, one per level, got {arguments['depths']}")
    if arguments["width"] % 2:
        raise ValueError(f"width must be even, got {arguments['width']}")
    if arguments["stripe_width"] < 1:
        raise ValueError(f"stripe_width must be at least 1, got {arguments['stripe_width']}")
    if not isinstance(arguments["continuous"], bool):
        raise ValueError(f"continuous must be true or false, got {arguments['continuous']!r}")
