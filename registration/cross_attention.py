"""Attention from the fixed image into the moving image, for the coarse stages of NestedMorph.

The encoder of NestedMorph reads both images together, so its tokens cannot tell at which place of the moving image the
content of a place of the fixed image lies. Here each image has a branch of its own, and tokens of the fixed image
attend to tokens of the moving image. The values also carry the positions of their tokens, so the result contains the
distance to the matching place, even if it is far away.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.attention.bilevel import BilevelAttention, RegionRoutes
from ..kernels.attention.choice import Place, mixer_of, needs
from ..kernels.attention.layer import EditableHeads
from ..kernels.attention.mixer import NC, Mixed, Mixer
from ..kernels.attention.relative_convolution import RelativeConvolutionAttention
from ..kernels.convolution import Conv3d

STRIDES = (4, 8, 16, 32)  # voxels between the tokens of each stage
COARSE = (2, 3)  # the stages of which a branch returns the tokens
CHANNELS = (24, 48, 96, 192)
_UNIT = 32.0  # voxels; positions are given to the network in this unit

Size = tuple[int, int, int]


class Tokens(NamedTuple):
    """Tokens of one image at one stage."""

    values: Tensor  # (B, N, C)
    size: Size  # number of tokens along each axis, N in all


class ImageBranch(nn.Module):
    """Tokens of one image at the two coarse stages, (B, 1, D, H, W) -> two `Tokens`, by strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (1, *CHANNELS[:-1])
        self.convolutions = nn.ModuleList(
            Conv3d(i, o, 7, 4, padding=3) if i == 1 else Conv3d(i, o, 3, 2, padding=1)
            for i, o in zip(inputs, CHANNELS, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in CHANNELS)

    def forward(self, image: Tensor) -> list[Tokens]:
        found, x = [], image
        for stage, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            volume = convolution(x).movedim(1, -1)
            tokens = norm(volume)
            if stage in COARSE:
                found.append(Tokens(tokens.flatten(1, 3), (volume.shape[1], volume.shape[2], volume.shape[3])))
            x = F.gelu(tokens.movedim(-1, 1))
        return found


class CrossAttention(EditableHeads):
    """Attention of the tokens of the fixed image to those of the moving image.

    Args:
        stage: which of the stages of `STRIDES`.
        width: channels of the result.
        heads: number of heads.
        mixer: the mechanism in the notation of `mixer_of`; it must support cross attention without causality. One that
            depends on the grid, such as `bilevel`, is made anew for each size of image.

    Raises:
        ValueError: the mechanism is unknown or does not fit.
    """

    def __init__(self, stage: int, width: int, heads: int, mixer: str) -> None:
        super().__init__()
        self.heads, self.stride, self.wanted = heads, STRIDES[stage], mixer
        channels = CHANNELS[stage]
        self.queries, self.keys, self.values = (nn.Linear(channels, width) for _ in range(3))
        self.keys.load_state_dict(self.queries.state_dict())  # equal content attends to itself from the start
        self.query_norm, self.key_norm = (nn.RMSNorm(width // heads) for _ in range(2))
        self.position = nn.Linear(3, width, bias=False)
        self.reprojection = nn.Linear(width, width)
        self._place = Place(heads, width // heads)
        made = self._made((2, 2, 2))
        if NC not in made.patterns:
            raise ValueError(f"mixer must support cross attention without causality, got {mixer}")
        self.mixer: Mixer | None = None if needs(mixer) & {"grid", "length"} else made
        if self.mixer is None and isinstance(made, nn.Module) and made.state_dict():
            raise ValueError(f"mixer must work with images of any size, got {mixer}, whose parameters fit one size")

    def forward(self, fixed: Tokens, moving: Tokens) -> Tensor:
        """Two sets of tokens on grids of one size -> (B, N, width)."""
        z = self.mixed(fixed, moving).out - self._heads(self._where(fixed))
        result: Tensor = self.reprojection(z.transpose(1, 2).flatten(2))
        return result

    def mixed(self, fixed: Tokens, moving: Tokens) -> Mixed[object, object]:
        """The result of the mixer before the projection: the values and positions that were found, for each head."""
        return self._attend(fixed, moving, self._heads(self.values(moving.values) + self._where(moving)))

    def attended_displacement(self, fixed: Tokens, moving: Tokens) -> Tensor:
        """Voxels from each token of the fixed image to the mean place that it attends to, (B, D, H, W, 3).

        This is the expectation of the difference of positions under the attention weights, averaged over the heads. A
        loss on it trains the search itself (Xu et al. 2022, GMFlow, arXiv 2111.13680, equation 5, reads it as flow).
        Both images have tokens on the same grid.

        Raises:
            ValueError: the mechanism has other weights for each channel, so no attention map.
        """
        if isinstance(self.mixer, RelativeConvolutionAttention):
            raise ValueError("mixer must have weights that all channels share, got relative_convolution")
        places = _UNIT * _positions(moving, self.stride)[None, None]
        found = self._attend(fixed, moving, places.expand(len(moving.values), self.heads, -1, -1)).out.mean(1)
        result: Tensor = (found - places[0]).unflatten(1, fixed.size)
        return result

    def _attend(self, fixed: Tokens, moving: Tokens, v: Tensor) -> Mixed[object, object]:
        q = self.query_norm(self._heads(self.queries(fixed.values)))
        k = self.key_norm(self._heads(self.keys(moving.values)))
        mixer = self._made(fixed.size) if self.mixer is None else self.mixer
        return self.mix_heads(mixer, q, k, v, pattern=NC)

    def searched(self, fixed: Tokens, moving: Tokens) -> "Searched | None":
        """The regions that were searched; None if the mixer does not choose regions."""
        mixer = self._made(fixed.size) if self.mixer is None else self.mixer
        routes = self.mixed(fixed, moving).extras
        if not isinstance(mixer, BilevelAttention) or not isinstance(routes, RegionRoutes):
            return None
        a, b, c = (side * self.stride for side in mixer.region)
        return Searched((a, b, c), routes.chosen)

    @property
    def output_weight(self) -> Tensor:
        return self.reprojection.weight

    def _made(self, grid: Size) -> Mixer:
        return mixer_of(self.wanted, replace(self._place, grid=grid, key_grid=grid, length=math.prod(grid)))

    def _heads(self, tokens: Tensor) -> Tensor:  # (B, N, width) -> (B, heads, N, width / heads)
        heads: Tensor = tokens.unflatten(2, (self.heads, -1))
        return heads.transpose(1, 2)

    def _where(self, tokens: Tokens) -> Tensor:  # (1, N, width)
        result: Tensor = self.position(_positions(tokens, self.stride))[None]
        return result


def _positions(tokens: Tokens, stride: int) -> Tensor:
    """The distances of tokens from the middle of the image, (N, 3) in units of `_UNIT` voxels."""
    axes = [
        (torch.arange(n, device=tokens.values.device) - (n - 1) / 2).to(tokens.values) * (stride / _UNIT)
        for n in tokens.size
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


class Searched(NamedTuple):
    """The regions of the moving image to which each region of the fixed image attended.

    Regions are boxes of equal size, numbered in the order of the grid of boxes (the last axis fastest), from the first
    voxel of the network's input; the last box of an axis may reach beyond it.
    """

    region: Size  # voxels along each axis
    chosen: Tensor  # (B, 1 or heads, regions, K), the best first
