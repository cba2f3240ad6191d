"""NestedMorph (Kumar et al., WACV 2025, arXiv 2410.02550): one network pass from two volumes to a displacement.

From (moving, fixed), each (B, 1, D, H, W) in [0, 1], the network computes warped (B, 1, D, H, W) and displacement
(B, 3, D, H, W) in voxels. A four-stage encoder of convolutional embeddings and efficient attention reads both images
together; the decoder upsamples by patch expansion, and at each stage a gate weights the encoder's features per voxel.
`nestedmorph_files.py` reads and writes weight files.

Inside the network, volumes are channel-last maps, (B, D, H, W, C); tokens, (B, N, C), are the same memory.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..kernels.attention.baselines import EfficientAttention
from ..kernels.attention.layer import EditableHeads, ResidualPoint
from ..kernels.attention.softmax import linear_attention
from ..kernels.convolution import Conv3d
from ..kernels.depthwise import depthwise_conv
from .choices import FLOW_HEADS, NORMS, FlowHead, Norm
from .cross_attention import COARSE, CrossAttention, ImageBranch, Searched, Tokens
from .warp import integrate, warp

WIDTHS = (48, 96, 192, 384)
HEADS = 2
MULTIPLE = 32  # the encoder divides each axis by 4 * 2 * 2 * 2

Size = tuple[int, int, int]
Widths = tuple[int, int, int, int]  # channels of the four stages


class NestedMorph(nn.Module):
    """The registration network. Its parameters have the published names.

    Args:
        official: compute the same as the published code, for weights that were trained with it. This has two effects.
            First, the two fine decoder stages reinterpret the row-major memory of their tokens (B, N, C) as
            (B, C, D, H, W) without a transpose, so channel c of voxel n is element c * N + n of the memory, and the
            skip connections are added at shuffled positions. Second, the 10.7 million parameters that the published
            model allocates but never uses are present (see `keep_unused`), so that its state_dict loads strictly. The
            default transposes, as is right for a new training; weights of one layout are useless in the other.
        keep_unused: whether the unused parameters are present (21,958,433 parameters in all) or not (11,221,402); by
            default the value of `official`. They get no gradient.
        diffeomorphic: treat the network's output as a stationary velocity and integrate it by scaling and squaring.
            The published model does not do this; its output is the displacement itself.
        flow_head: "published" computes the output at full resolution, by 3 x 3 x 3 filters of one channel to which the
            decoder is projected. "quarter" computes it at a quarter of the resolution, by 3 x 3 x 3 filters of all
            channels of the decoder, and enlarges it by trilinear interpolation; it has no last patch expansion, which
            takes most of the memory. There is no published model with this head, so `official` excludes it.
        mixer: mechanism by which tokens of the fixed image attend to those of the moving image at the two coarse stages
            of the encoder, such as "bilevel(regions=4, top=4)", in the notation of `mixer_of`. It replaces the
            attention over tokens of both images together, and each image gets a branch of its own. None: as published.
        width: channels of the first stage, an even number from 16; the next stages have 2, 4 and 8 times as many. None:
            48, as published.
        norm: "batch" normalises the maps of the gates over the batch, as published; "group" normalises them over groups
            of channels of each item (Wu and He, ECCV 2018), which does not depend on the size of the batch.
        expand_chunk: number of tokens that the last patch expansion processes at once; None for all tokens. It limits
            the memory and does not change the result.

    Example:
        >>> model = NestedMorph().eval()
        >>> moving, fixed = torch.rand(2, 1, 1, 20, 33, 32)
        >>> with torch.inference_mode():
        ...     warped, displacement = model(moving, fixed)
        >>> tuple(warped.shape), tuple(displacement.shape)
        ((1, 1, 20, 33, 32), (1, 3, 20, 33, 32))
    """

    def __init__(
        self,
        *,
        official: bool = False,
        keep_unused: bool | None = None,
        diffeomorphic: bool = False,
        flow_head: FlowHead = "published",
        mixer: str | None = None,
        width: int | None = None,
        norm: Norm = "batch",
        expand_chunk: int | None = 512,
    ):
        super().__init__()
        if flow_head not in FLOW_HEADS:
            raise ValueError(f"flow_head must be one of {', '.join(FLOW_HEADS)}, got {flow_head!r}")
        if official and flow_head != "published":
            raise ValueError(f'flow_head must be "published" if official is True, got {flow_head!r}')
        if official and mixer is not None:
            raise ValueError(f"mixer must be None if official is True, got {mixer!r}")
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if width is not None and (width < 16 or width % 2):
            raise ValueError(f"width must be an even number from 16, got {width}")
        if official and (width is not None or norm != "batch"):
            raise ValueError(f'width must be None and norm "batch" if official is True, got {width} and {norm!r}')
        self.official = official
        self.keep_unused = official if keep_unused is None else keep_unused
        self.diffeomorphic = diffeomorphic
        self.flow_head = flow_head
        self.mixer = mixer
        self.width = width
        self.norm = norm
        widths = WIDTHS if width is None else (width, 2 * width, 4 * width, 8 * width)
        self.unet = _UNet(widths, official, self.keep_unused, flow_head, mixer, expand_chunk)
        if norm == "group":
            _use_group_norms(self.unet)
        self.flow = Conv3d(1 if flow_head == "published" else widths[0], 3, 3, padding=1)
        nn.init.normal_(self.flow.weight, std=1e-5)  # training starts from the identity
        assert self.flow.bias is not None
        nn.init.zeros_(self.flow.bias)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor arguments, as plain values for a file."""
        config = {"official": self.official, "keep_unused": self.keep_unused, "diffeomorphic": self.diffeomorphic}
        # files of version 0.1.0 have none of these entries, and those of published parts stay as they were
        added = {
            "flow_head": self.flow_head if self.flow_head != "published" else None,
            "mixer": self.mixer,
            "width": self.width,
            "norm": self.norm if self.norm != "batch" else None,
        }
        return config | {name: value for name, value in added.items() if value is not None}

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Register `moving` to `fixed`.

        Args:
            moving: (B, 1, D, H, W) in [0, 1].
            fixed: the same shape, on the same grid. Images of any size are padded with 0 to multiples of 32, and the
                displacement is cropped to the original size; nothing is resampled.

        Returns:
            warped: (B, 1, D, H, W), the moving image on the fixed grid; 0 if x + displacement[x] is outside the image.
            displacement: (B, 3, D, H, W) in voxels, ordered (d, h, w): warped[x] = moving[x + displacement[x]].
        """
        output = self.network_output(moving, fixed)
        displacement = integrate(output) if self.diffeomorphic else output
        return warp(moving, displacement), displacement

    def network_output(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The output of the flow head, (B, 3, D, H, W) voxels: the displacement, or the velocity if `diffeomorphic`."""
        if moving.ndim != 5 or moving.shape[1] != 1 or 0 in moving.shape:
            raise ValueError(f"moving must have shape (B, 1, D, H, W), got {tuple(moving.shape)}")
        if fixed.shape != moving.shape:
            raise ValueError(f"fixed must have shape {tuple(moving.shape)} to match moving, got {tuple(fixed.shape)}")
        size = moving.shape[2:]
        images, before = _padded(torch.cat([moving, fixed], 1))
        flow = self.flow(self.unet(images).movedim(-1, 1))
        if self.flow_head == "quarter":  # in voxels of the images already, so that only the grid changes
            flow = F.interpolate(flow, scale_factor=4, mode="trilinear")
        for axis, (start, n) in enumerate(zip(before, size, strict=True), start=2):
            flow = flow.narrow(axis, start, n)
        result: Tensor = flow.contiguous()
        return result

    def searched_regions(self, moving: Tensor, fixed: Tensor) -> list[Searched]:
        """The regions of the moving image that each region of the fixed image attended to, at the two coarse stages.

        Args:
            moving: as for `forward`. Regions are counted from the first voxel of the padded images.
            fixed: as for `forward`.

        Returns:
            An entry for each stage, the finer one first; none if the mixer chooses no regions.
        """
        images, _ = _padded(torch.cat([moving, fixed], 1))
        return self.unet.backbone.searched_regions(images)

    def attended_displacements(self, moving: Tensor, fixed: Tensor) -> list[Tensor]:
        """The displacement that attention from the fixed into the moving image shows, for a loss that trains it.

        Args:
            moving: as for `forward`.
            fixed: as for `forward`.

        Returns:
            A tensor (B, d, h, w, 3) in voxels for each of the two coarse stages, with a token per 16 and per 32 voxels
            of the padded images; none without a `mixer`.
        """
        images, _ = _padded(torch.cat([moving, fixed], 1))
        return self.unet.backbone.attended_displacements(images)


def _padded(images: Tensor) -> tuple[Tensor, list[int]]:
    """Images of any size padded with 0 to multiples of 32, and the number of voxels before the first of each axis."""
    missing = [-n % MULTIPLE for n in images.shape[2:]]
    before = [n // 2 for n in missing]
    if any(missing):
        sides = [side for lack, low in zip(missing, before, strict=True) for side in (lack - low, low)]
        images = F.pad(images, sides[::-1])
    return images, before


class _UNet(nn.Module):
    def __init__(
        self,
        widths: Widths,
        official: bool,
        keep_unused: bool,
        flow_head: FlowHead,
        mixer: str | None,
        expand_chunk: int | None,
    ):
        super().__init__()
        self.backbone = _Encoder(widths, keep_unused, mixer)
        self.decoder_3 = _DeepestDecoder(widths[3], keep_unused)
        self.decoder_2 = _DualDecoder(widths[2])
        self.decoder_1 = _LKADecoder(widths[1], official)
        self.decoder_0 = (
            _LastDecoder(widths[0], official, expand_chunk)
            if flow_head == "published"
            else _QuarterDecoder(widths[0], official)
        )
        for decoder in (self.decoder_3, self.decoder_2, self.decoder_1, self.decoder_0):
            decoder.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        # (B, 2, D, H, W) -> (B, D, H, W, 1), or (B, D / 4, H / 4, W / 4, width) for the head at a quarter
        e1, e2, e3, e4 = self.backbone(images)
        tokens = self.decoder_3(e4)
        tokens = self.decoder_2(tokens, e3)
        tokens = self.decoder_1(tokens, e2)
        result: Tensor = self.decoder_0(tokens, e1)
        return result


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _Conv(Conv3d):
    """A convolution of channel-last maps, (B, D, H, W, C) -> (B, D', H', W', C')."""

    def forward(self, input: Tensor) -> Tensor:
        if self.kernel_size == (1, 1, 1):
            return F.linear(input, self.weight.flatten(1), self.bias)
        if self.groups > 1:
            return depthwise_conv(input, self.weight, self.bias, dilation=self.dilation[0])
        if self.stride[0] > 1 and torch.compiler.is_exporting():
            return self._without_end(input)
        return super().forward(input.movedim(-1, 1)).movedim(1, -1).contiguous()

    def _without_end(self, input: Tensor) -> Tensor:
        """The same for sizes that the stride divides, without the zeros after the last voxel, which no tap reads.

        The sizes of the result are then fractions of those of the input, which the tracer can simplify.
        """
        before = self.kernel_size[0] // 2
        padded = F.pad(input, (0, 0, before, 0, before, 0, before, 0)).movedim(-1, 1)
        return F.conv3d(padded, self.weight, self.bias, self.stride).movedim(1, -1).contiguous()


def _depthwise(width: int, kernel: int, *, dilation: int = 1) -> _Conv:
    return _Conv(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=width)


def _to_tokens(maps: Tensor) -> Tensor:  # (B, D, H, W, C) -> (B, N, C)
    return maps.flatten(1, 3)


def _to_maps(tokens: Tensor, size: Size) -> Tensor:  # (B, N, C) -> (B, D, H, W, C)
    result: Tensor = tokens.unflatten(1, size)
    return result


def _size(maps: Tensor) -> Size:
    return maps.shape[1], maps.shape[2], maps.shape[3]


class _Encoder(nn.Module):
    def __init__(self, widths: Widths, keep_unused: bool, mixer: str | None):
        super().__init__()
        self.patch_embed1 = _PatchEmbedding(2, widths[0], kernel=7, stride=4)
        self.patch_embed2 = _PatchEmbedding(widths[0], widths[1], kernel=3, stride=2)
        self.patch_embed3 = _PatchEmbedding(widths[1], widths[2], kernel=3, stride=2)
        self.patch_embed4 = _PatchEmbedding(widths[2], widths[3], kernel=3, stride=2)
        self.block1, self.block2, self.block3, self.block4 = (
            nn.ModuleList([_DualBlock(width, inner_skip=True, keep_unused=keep_unused, attention=attention)])
            for width, attention in zip(widths, _cross_attentions(widths, mixer), strict=True)
        )
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for width in widths)
        self.of_moving = self.of_fixed = None
        if mixer is not None:
            self.of_moving, self.of_fixed = ImageBranch(), ImageBranch()
            self.of_fixed.load_state_dict(self.of_moving.state_dict())  # training can set images of two contrasts apart

    def tokens_of_images(self, images: Tensor) -> dict[int, tuple[Tokens, Tokens]]:
        """Stage -> tokens of the fixed and of the moving image alone; empty without the branches."""
        if self.of_moving is None or self.of_fixed is None:
            return {}
        moving, fixed = images.split(1, 1)
        return dict(zip(COARSE, zip(self.of_fixed(fixed), self.of_moving(moving), strict=True), strict=True))

    def searched_regions(self, images: Tensor) -> list[Searched]:
        found = [attention.searched(*tokens) for attention, tokens in self._cross_attentions(images)]
        return [each for each in found if each is not None]

    def attended_displacements(self, images: Tensor) -> list[Tensor]:
        return [attention.attended_displacement(*tokens) for attention, tokens in self._cross_attentions(images)]

    def _cross_attentions(self, images: Tensor) -> Iterator[tuple[CrossAttention, tuple[Tokens, Tokens]]]:
        for stage, tokens in self.tokens_of_images(images).items():
            attention = (self.block1, self.block2, self.block3, self.block4)[stage][0].attn
            assert isinstance(attention, CrossAttention)
            yield attention, tokens

    def forward(self, images: Tensor) -> list[Tensor]:  # (B, 2, D, H, W) -> maps of the four stages
        of_images = self.tokens_of_images(images)
        stages = (
            (self.patch_embed1, self.block1, self.norm1),
            (self.patch_embed2, self.block2, self.norm2),
            (self.patch_embed3, self.block3, self.norm3),
            (self.patch_embed4, self.block4, self.norm4),
        )
        x, skips = images.movedim(1, -1), []
        for stage, (embed, blocks, norm) in enumerate(stages):
            tokens, size = embed(x)
            for block in blocks:
                tokens = block(tokens, size, *of_images.get(stage, ()))
            x = _to_maps(norm(tokens), size)
            skips.append(x)
        return skips


def _cross_attentions(widths: Widths, mixer: str | None) -> list[CrossAttention | None]:
    return [
        None if mixer is None or stage not in COARSE else CrossAttention(stage, width, HEADS, mixer)
        for stage, width in enumerate(widths)
    ]


class _PatchEmbedding(nn.Module):
    def __init__(self, channels: int, width: int, *, kernel: int, stride: int):
        super().__init__()
        self.proj = _Conv(channels, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, maps: Tensor) -> tuple[Tensor, Size]:
        maps = self.proj(maps)
        return self.norm(_to_tokens(maps)), _size(maps)


class _DualBlock(nn.Module):
    """Attention over tokens and over channels in turn, each followed by a feed-forward network; tokens (B, N, C)."""

    def __init__(
        self, width: int, *, inner_skip: bool, keep_unused: bool = False, attention: CrossAttention | None = None
    ):
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        if attention is not None:
            del self.norm1  # the tokens of the images alone have norms of their own
        self.attn = _EfficientAttention(width) if attention is None else attention
        self.mlp1 = _MixFFN(width, inner_skip=inner_skip, keep_unused=keep_unused)
        self.channel_attn = _ChannelGate(width)
        self.mlp2 = _MixFFN(width, inner_skip=inner_skip, keep_unused=keep_unused)
        self.before, self.between, self.after = ResidualPoint(), ResidualPoint(), ResidualPoint()

    def forward(self, x: Tensor, size: Size, *of_images: Tokens) -> Tensor:
        x = self.before(x)
        x = self.between(x + (self.attn(*of_images) if of_images else self.attn(self.norm1(x))))
        x = x + self.mlp1(self.norm2(x), size)
        x = x + self.channel_attn(self.norm3(x))
        result: Tensor = self.after(x + self.mlp2(self.norm4(x), size))
        return result


class _EfficientAttention(EditableHeads):
    heads = HEADS

    def __init__(self, width: int):
        super().__init__()
        self.keys, self.queries, self.values, self.reprojection = (_Conv(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            conv(x).unflatten(2, (HEADS, -1)).transpose(1, 2)  # (B, heads, N, C / heads)
            for conv in (self.queries, self.keys, self.values)
        )
        z = self.mix_heads(EfficientAttention(), q, k, v).out if self.touched else linear_attention(q, k, v)
        result: Tensor = self.reprojection(z.transpose(1, 2).flatten(2))
        return result

    @property
    def output_weight(self) -> Tensor:
        return self.reprojection.weight.flatten(1)


class _ChannelGate(nn.Module):
    """Squeeze and excitation: weights for the channels, computed from the mean over the tokens."""

    def __init__(self, width: int):
        super().__init__()
        hidden = width // 16
        self.fc = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.fc(x.mean(1, keepdim=True))
        return result


class _MixFFN(nn.Module):
    def __init__(self, width: int, *, inner_skip: bool, keep_unused: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = _DepthwiseConv(4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(4 * width) if inner_skip else None
        if inner_skip and keep_unused:
            self.norm2, self.norm3 = nn.LayerNorm(4 * width), nn.LayerNorm(4 * width)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        hidden = self.fc1(x)
        mixed = _to_tokens(self.dwconv(_to_maps(hidden, size)))
        if self.norm1 is not None:
            mixed = self.norm1(mixed + hidden)
        result: Tensor = self.fc2(F.gelu(mixed))
        return result


class _DepthwiseConv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dwconv = _depthwise(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dwconv(x)
        return result


class _DeepestDecoder(nn.Module):
    """The deepest stage has no skip, so only its patch expansion runs; `keep_unused` allocates the other layers."""

    def __init__(self, width: int, keep_unused: bool):
        super().__init__()
        if keep_unused:
            self.x1_linear = nn.Linear(width, width)
            self.ag_attn = _Gate(width)
            self.ag_attn_norm = nn.LayerNorm(width)
        self.layer_up = _PatchExpand(width, 2)
        if keep_unused:
            self.tran_layer1 = _DualBlock(width, inner_skip=False)
            self.tran_layer2 = _DualBlock(width, inner_skip=False)

    def forward(self, deepest: Tensor) -> Tensor:
        result: Tensor = self.layer_up(_to_tokens(deepest), _size(deepest))
        return result


class _DualDecoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.x1_linear = nn.Linear(width, width)
        self.ag_attn = _Gate(width)
        self.ag_attn_norm = nn.LayerNorm(width)
        self.layer_up = _PatchExpand(width, 2)
        self.tran_layer1 = _DualBlock(width, inner_skip=False)
        self.tran_layer2 = _DualBlock(width, inner_skip=False)

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:
        size = _size(skip)
        x = _to_maps(self.x1_linear(tokens), size)
        x = _to_tokens(x + self.ag_attn(skip, x))
        x = self.ag_attn_norm(x)
        x = self.tran_layer1(x, size)
        x = self.tran_layer2(x, size)
        result: Tensor = self.layer_up(x, size)
        return result


class _LKAStage(nn.Module):
    """A decoder stage of large-kernel attention.

    With `raw_layout`, the memory of its tokens is read as channel-first volumes, see `NestedMorph`.

    `factor` is that of its patch expansion; None if it has none.
    """

    def __init__(self, width: int, raw_layout: bool, *, factor: int | None):
        super().__init__()
        self.raw_layout = raw_layout
        self.x1_linear = nn.Linear(width, width)
        self.ag_attn = _Gate(width)
        self.ag_attn_norm = nn.LayerNorm(width)
        if factor is not None:
            self.layer_up = _PatchExpand(width, factor)
        self.layer_lka_1 = _LKABlock(width)
        self.layer_lka_2 = _LKABlock(width)

    def mix(self, tokens: Tensor, skip: Tensor) -> Tensor:  # (B, N, C) -> (B, N, C)
        tokens = self.x1_linear(tokens)
        x = self._maps(tokens, _size(skip))
        x = self.ag_attn_norm(x + self.ag_attn(skip, x))
        x = self.layer_lka_2(self.layer_lka_1(x))
        return x.movedim(-1, 1).reshape(tokens.shape) if self.raw_layout else _to_tokens(x)

    def _maps(self, tokens: Tensor, size: Size) -> Tensor:
        if not self.raw_layout:
            return _to_maps(tokens, size)
        volume = tokens.reshape(tokens.shape[0], tokens.shape[2], *size)
        return volume.movedim(1, -1).contiguous()


class _LKADecoder(_LKAStage):
    def __init__(self, width: int, raw_layout: bool):
        super().__init__(width, raw_layout, factor=2)

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.layer_up(self.mix(tokens, skip), _size(skip))
        return result


class _LastDecoder(_LKAStage):
    """The finest stage: expands by 4 to the full grid and projects to one channel, the input of the flow head."""

    def __init__(self, width: int, raw_layout: bool, expand_chunk: int | None):
        super().__init__(width, raw_layout, factor=4)
        self.expand_chunk = expand_chunk
        self.last_layer = _Conv(width, 1, 1)

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:  # -> (B, 4 D, 4 H, 4 W, 1)
        tokens = self.mix(tokens, skip)
        if torch.compiler.is_exporting():  # the number of chunks would fix the size of the images
            return self.layer_up.arrange(self._expand(tokens, *self._maps_of_blocks()), _size(skip))
        chunks = tokens.split(self.expand_chunk or tokens.shape[1], dim=1)
        train = torch.is_grad_enabled() and len(chunks) > 1
        # The 48 channels on the full grid would take most of the network's memory: they exist for one chunk at a
        # time, and in training they are recomputed in the backward pass.
        maps = self._maps_of_blocks()
        fine = [
            checkpoint(self._expand, chunk, *maps, use_reentrant=False, preserve_rng_state=False)
            if train
            else self._expand(chunk, *maps)
            for chunk in chunks
        ]
        return self.layer_up.arrange(torch.cat(fine, 1), _size(skip))

    def _maps_of_blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `_expand` needs: the expansion without its mean over channels, and the last layer after it.

        The norm subtracts the mean of the channels of each voxel, which is linear in the token, as is the last layer.
        """
        weight = self.layer_up.expand.weight.unflatten(0, (self.layer_up.factor**3, -1))  # (64, c, C)
        centred = weight - weight.mean(1, keepdim=True)
        last, norm = self.last_layer.weight.flatten(), self.layer_up.norm
        assert self.last_layer.bias is not None
        return centred, torch.einsum("pcw,c->pw", centred, last * norm.weight), last @ norm.bias + self.last_layer.bias

    def _expand(self, tokens: Tensor, centred: Tensor, along: Tensor, shift: Tensor) -> Tensor:
        """The last layer of the normalised voxels of each token, (B, n, C) -> (B, n, 64, 1)."""
        channels = F.linear(tokens, centred.flatten(0, 1)).unflatten(2, centred.shape[:2])
        wide = channels.to(torch.promote_types(channels.dtype, torch.float32))  # under autocast, as the norm is
        variance = torch.linalg.vector_norm(wide, dim=-1).square() / channels.shape[-1]
        values: Tensor = F.linear(tokens, along) * (variance + self.layer_up.norm.eps).rsqrt() + shift
        return values.unsqueeze(-1)


class _QuarterDecoder(_LKAStage):
    """The finest stage for a flow head that takes all its channels, on the grid of the tokens."""

    def __init__(self, width: int, raw_layout: bool):
        super().__init__(width, raw_layout, factor=None)

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:  # -> (B, D, H, W, C)
        return _to_maps(self.mix(tokens, skip), _size(skip))


class _PatchExpand(nn.Module):
    """Expands each token to a block of factor^3 voxels by a linear map, without interpolation."""

    def __init__(self, width: int, factor: int):
        super().__init__()
        self.factor = factor
        channels = width // 2 if factor == 2 else width
        self.expand = nn.Linear(width, factor**3 * channels, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:  # (B, N, C) -> (B, factor^3 N, c)
        return self.arrange(self.blocks(tokens), size).flatten(1, 3)

    def blocks(self, tokens: Tensor) -> Tensor:  # (B, n, C) -> (B, n, factor^3, c)
        result: Tensor = self.norm(self.expand(tokens).unflatten(2, (self.factor**3, -1)))
        return result

    def arrange(self, blocks: Tensor, size: Size) -> Tensor:  # (B, N, factor^3, c) -> (B, rD, rH, rW, c)
        r = self.factor
        x = blocks.unflatten(2, (r, r, r)).unflatten(1, size).permute(0, 1, 4, 2, 5, 3, 6, 7)
        result: Tensor = x.reshape(blocks.shape[0], *(r * n for n in size), blocks.shape[3])
        return result


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of channel-last maps.

    The voxels of all items become one axis. On the CPU, the backward pass of PyTorch 2.14 for volumes is silently wrong
    for batch 1 if the gradient is in channels-last order with stride C along the batch.
    """

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = super().forward(input.flatten(0, -2)).view_as(input)
        return result


class _GroupNorm(nn.GroupNorm):
    """Group normalisation of channel-last maps, in 8 groups of channels where their number allows."""

    def __init__(self, width: int):
        super().__init__(math.gcd(8, width), width)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(-1, 1)).movedim(1, -1).contiguous()


def _use_group_norms(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _GroupNorm(child.num_features))


class _Gate(nn.Module):
    """Multi-scale gated attention: weights the voxels of the encoder's features, given the decoder's."""

    def __init__(self, width: int):
        super().__init__()
        self.multi = _MultiScale(width)
        self.selection = _Conv(width, 2, 1)
        self.proj = _Conv(width, width, 1)
        self.bn = _BatchNorm(width)
        self.bn_2 = _BatchNorm(width)
        self.conv_block = nn.Sequential(_Conv(width, width, 1))

    def forward(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        share_encoder, share_decoder = self.selection(self.multi(encoder, decoder)).softmax(-1).split(1, -1)
        e = encoder + share_encoder * encoder
        d = decoder + share_decoder * decoder
        crossed = (d.sigmoid() * e) * (e.sigmoid() * d)
        passes = self.bn(self.proj(crossed)).sigmoid()
        result: Tensor = self.bn_2(self.conv_block(passes * encoder))  # the unchanged encoder features
        return result


class _MultiScale(nn.Module):
    """Local context of the encoder's features plus one global map from the decoder's features."""

    def __init__(self, width: int):
        super().__init__()
        self.local = _LocalContext(width)
        self.global_ = _GlobalMap()
        self.bn = _BatchNorm(width)

    def forward(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        result: Tensor = self.bn(self.local(encoder) + self.global_(decoder))
        return result


class _LocalContext(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dconv = nn.Sequential(
            _depthwise(width, 3),
            _BatchNorm(width),
            nn.ReLU(),
            _Conv(width, width, 3, padding=2, dilation=2),
            _BatchNorm(width),
            nn.ReLU(),
        )
        self.proj = nn.Sequential(_Conv(width, width, 1), _BatchNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.proj(self.dconv(x))
        return result


class _GlobalMap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Sequential(_Conv(2, 1, 1), _BatchNorm(1))

    def forward(self, x: Tensor) -> Tensor:  # (B, D, H, W, C) -> (B, D, H, W, 1)
        result: Tensor = self.proj(torch.cat([x.mean(-1, keepdim=True), x.amax(-1, keepdim=True)], -1))
        return result


class _LKABlock(nn.Module):
    """Large-kernel attention (Guo et al. 2023) and a convolutional feed-forward network; maps (B, D, H, W, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _LargeKernelAttention(width)
        self.mlp = _ConvFFN(width)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), 0.01))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.layer_scale_1, self.attn(self.norm1(x)))
        return torch.addcmul(x, self.layer_scale_2, self.mlp(self.norm2(x)))


class _LargeKernelAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj_1 = _Conv(width, width, 1)
        self.spatial_gating_unit = _SpatialGate(width)
        self.proj_2 = _Conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # the inner skip adds the normalised input, as published
        result: Tensor = x + self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x))))
        return result


class _SpatialGate(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv0 = _depthwise(width, 5)
        self.conv_spatial = _depthwise(width, 7, dilation=3)
        self.conv1 = _Conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.conv1(self.conv_spatial(self.conv0(x)))
        return result


class _ConvFFN(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = _Conv(width, 4 * width, 1)
        self.dwconv = _DepthwiseConv(4 * width)
        self.fc2 = _Conv(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(x))))
        return result
