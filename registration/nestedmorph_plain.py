"""A plain form of the published NestedMorph, written from its description and without any code of `nestedmorph.py`.

It is slow and needs much memory, as each step is written in the most obvious way. Tests and the benchmark compare
`NestedMorph(official=True)` with it: same parameters, same results.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WIDTHS = (48, 96, 192, 384)
_HEADS = 2


class PlainNestedMorph(nn.Module):
    """The published network of 628 entries, called as the published one: `(moving, fixed) -> (warped, displacement)`.

    Each axis of the images must be a multiple of 32. On the CPU, the gradients of a single pair can be wrong, as
    PyTorch's BatchNorm3d is for some orders of memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unet = _PlainUNet()
        self.flow = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return warped (B, 1, D, H, W), and the displacement (B, 3, D, H, W) in voxels, ordered (d, h, w)."""
        moving, fixed = pair
        displacement = self.flow(self.unet(torch.cat([moving, fixed], dim=1)))
        sizes = moving.shape[2:]
        axes = [torch.arange(n, dtype=moving.dtype, device=moving.device) for n in sizes]
        identity = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        places = identity + displacement  # (B, 3, D, H, W)
        scaled = [2 * places[:, axis] / (n - 1) - 1 for axis, n in enumerate(sizes)]
        grid = torch.stack(scaled[::-1], dim=-1)  # grid_sample orders a point as (w, h, d)
        return F.grid_sample(moving, grid, mode="bilinear", padding_mode="zeros", align_corners=True), displacement


class _PlainUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = _PlainEncoder()
        self.decoder_3 = _PlainDualDecoder(_WIDTHS[3])
        self.decoder_2 = _PlainDualDecoder(_WIDTHS[2])
        self.decoder_1 = _PlainLKADecoder(_WIDTHS[1], 2)
        self.decoder_0 = _PlainLastDecoder(_WIDTHS[0])

    def forward(self, images: Tensor) -> Tensor:
        e1, e2, e3, e4 = self.backbone(images)
        tokens = self.decoder_3.layer_up(e4.flatten(2).transpose(1, 2), e4.shape[2:])  # nothing else of it is used
        tokens = self.decoder_2(tokens, e3)
        tokens = self.decoder_1(tokens, e2)
        result: Tensor = self.decoder_0(tokens, e1)
        return result


class _PlainEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        channels = 2
        for stage, width in enumerate(_WIDTHS, start=1):
            kernel, stride = (7, 4) if stage == 1 else (3, 2)
            setattr(self, f"patch_embed{stage}", _PlainEmbedding(channels, width, kernel, stride))
            setattr(self, f"block{stage}", nn.ModuleList([_PlainDual(width, _PlainSkipFFN)]))
            setattr(self, f"norm{stage}", nn.LayerNorm(width))
            channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for stage in range(1, 5):
            tokens, sizes = getattr(self, f"patch_embed{stage}")(x)
            tokens = getattr(self, f"block{stage}")[0](tokens, sizes)
            tokens = getattr(self, f"norm{stage}")(tokens)
            x = tokens.transpose(1, 2).reshape(len(x), -1, *sizes).contiguous()
            skips.append(x)
        return skips


class _PlainEmbedding(nn.Module):
    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2:]


class _PlainDual(nn.Module):
    """x + attention, x + feed-forward, x + channel gate, x + feed-forward; each of a normalised input."""

    def __init__(self, width: int, feed_forward: "type[_PlainSkipFFN] | type[_PlainFFN]") -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        self.attn = _PlainAttention(width)
        self.channel_attn = _PlainSqueeze(width)
        self.mlp1 = feed_forward(width)
        self.mlp2 = feed_forward(width)

    def forward(self, x: Tensor, sizes: torch.Size) -> Tensor:
        volume = self.norm1(x).transpose(1, 2).reshape(len(x), -1, *sizes)
        x = x + self.attn(volume).flatten(2).transpose(1, 2)
        x = x + self.mlp1(self.norm2(x), sizes)
        x = x + self.channel_attn(self.norm3(x))
        result: Tensor = x + self.mlp2(self.norm4(x), sizes)
        return result


class _PlainAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.keys, self.queries, self.values, self.reprojection = (nn.Conv3d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        keys, queries, values = (layer(x).flatten(2) for layer in (self.keys, self.queries, self.values))
        heads = []
        for k, q, v in zip(*(part.chunk(_HEADS, dim=1) for part in (keys, queries, values)), strict=True):
            context = k.softmax(dim=2) @ v.transpose(1, 2)  # (B, d, d)
            heads.append(context.transpose(1, 2) @ q.softmax(dim=1))
        result: Tensor = self.reprojection(torch.cat(heads, dim=1).reshape(x.shape))
        return result


class _PlainSqueeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        down, up = nn.Linear(width, width // 16, bias=False), nn.Linear(width // 16, width, bias=False)
        self.fc = nn.Sequential(down, nn.ReLU(), up, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.fc(x.mean(dim=1))[:, None, :]
        return result


class _PlainDepthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dwconv(x)
        return result


class _PlainFFN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = _PlainDepthwise(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def depthwise(self, hidden: Tensor, sizes: torch.Size) -> Tensor:
        volume = hidden.transpose(1, 2).reshape(len(hidden), -1, *sizes)
        result: Tensor = self.dwconv(volume).flatten(2).transpose(1, 2)
        return result

    def forward(self, x: Tensor, sizes: torch.Size) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.depthwise(self.fc1(x), sizes)))
        return result


class _PlainSkipFFN(_PlainFFN):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(4 * width) for _ in range(3))  # two are never used

    def forward(self, x: Tensor, sizes: torch.Size) -> Tensor:
        hidden = self.fc1(x)
        result: Tensor = self.fc2(F.gelu(self.norm1(self.depthwise(hidden, sizes) + hidden)))
        return result


class _PlainExpand(nn.Module):
    """Each token becomes a block of factor^3 tokens."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.channels = width if factor == 4 else width // 2
        self.expand = nn.Linear(width, factor**3 * self.channels, bias=False)
        self.norm = nn.LayerNorm(self.channels)

    def forward(self, tokens: Tensor, sizes: torch.Size) -> Tensor:
        r, (d, h, w) = self.factor, sizes
        x = self.expand(tokens).view(-1, d, h, w, r, r, r, self.channels)
        x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(tokens), -1, self.channels)
        result: Tensor = self.norm(x)
        return result


class _PlainDualDecoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.x1_linear = nn.Linear(width, width)
        self.ag_attn = _PlainGate(width)
        self.ag_attn_norm = nn.LayerNorm(width)
        self.layer_up = _PlainExpand(width, 2)
        self.tran_layer1 = _PlainDual(width, _PlainFFN)
        self.tran_layer2 = _PlainDual(width, _PlainFFN)

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:
        sizes = skip.shape[2:]
        volume = self.x1_linear(tokens).transpose(1, 2).reshape(skip.shape).contiguous()
        x = self.ag_attn_norm((volume + self.ag_attn(skip, volume)).flatten(2).transpose(1, 2))
        x = self.tran_layer2(self.tran_layer1(x, sizes), sizes)
        result: Tensor = self.layer_up(x, sizes)
        return result


class _PlainLKADecoder(nn.Module):
    """Its volumes are the memory of the tokens without a transpose, as published."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.x1_linear = nn.Linear(width, width)
        self.ag_attn = _PlainGate(width)
        self.ag_attn_norm = nn.LayerNorm(width)
        self.layer_up = _PlainExpand(width, factor)
        self.layer_lka_1 = _PlainLKA(width)
        self.layer_lka_2 = _PlainLKA(width)

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:
        volume = self.x1_linear(tokens).reshape(skip.shape)
        x = _over_channels(self.ag_attn_norm, volume + self.ag_attn(skip, volume))
        x = self.layer_lka_2(self.layer_lka_1(x)).reshape(tokens.shape)
        result: Tensor = self.layer_up(x, skip.shape[2:])
        return result


class _PlainLastDecoder(_PlainLKADecoder):
    def __init__(self, width: int) -> None:
        super().__init__(width, 4)
        self.last_layer = nn.Conv3d(width, 1, 1)

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:
        fine = super().forward(tokens, skip).transpose(1, 2)
        result: Tensor = self.last_layer(fine.unflatten(2, [4 * n for n in skip.shape[2:]]))
        return result


def _over_channels(norm: nn.Module, volume: Tensor) -> Tensor:
    result: Tensor = norm(volume.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3).contiguous()
    return result


class _PlainGate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        near = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1, groups=width),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.Conv3d(width, width, 3, padding=2, dilation=2),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        )
        local = nn.ModuleDict({"dconv": near, "proj": nn.Sequential(nn.Conv3d(width, width, 1), nn.BatchNorm3d(width))})
        global_ = nn.ModuleDict({"proj": nn.Sequential(nn.Conv3d(2, 1, 1), nn.BatchNorm3d(1))})
        self.multi = nn.ModuleDict({"local": local, "global_": global_, "bn": nn.BatchNorm3d(width)})
        self.selection = nn.Conv3d(width, 2, 1)
        self.proj = nn.Conv3d(width, width, 1)
        self.bn = nn.BatchNorm3d(width)
        self.bn_2 = nn.BatchNorm3d(width)
        self.conv_block = nn.Sequential(nn.Conv3d(width, width, 1))

    def forward(self, e: Tensor, d: Tensor) -> Tensor:
        near = e
        for name in ("local.dconv", "local.proj"):
            near = self.multi.get_submodule(name)(near)
        pooled = torch.cat([d.mean(dim=1, keepdim=True), d.amax(dim=1, keepdim=True)], dim=1)
        both = self.multi["bn"](near + self.multi.get_submodule("global_.proj")(pooled))
        weights = self.selection(both).softmax(dim=1)
        e_more, d_more = e + weights[:, :1] * e, d + weights[:, 1:] * d
        d_gated, e_gated = e_more.sigmoid() * d_more, d_more.sigmoid() * e_more
        passed = self.bn(self.proj(e_gated * d_gated)).sigmoid()
        result: Tensor = self.bn_2(self.conv_block(passed * e))
        return result


class _PlainLKA(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layer_scale_1 = nn.Parameter(0.01 * torch.ones(width))
        self.layer_scale_2 = nn.Parameter(0.01 * torch.ones(width))
        self.attn = _PlainLargeKernel(width)
        self.mlp = _PlainConvFFN(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1.view(-1, 1, 1, 1) * self.attn(_over_channels(self.norm1, x))
        result: Tensor = x + self.layer_scale_2.view(-1, 1, 1, 1) * self.mlp(_over_channels(self.norm2, x))
        return result


class _PlainLargeKernel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv3d(width, width, 1)
        self.spatial_gating_unit = nn.ModuleDict(
            {
                "conv0": nn.Conv3d(width, width, 5, padding=2, groups=width),
                "conv_spatial": nn.Conv3d(width, width, 7, padding=9, dilation=3, groups=width),
                "conv1": nn.Conv3d(width, width, 1),
            }
        )
        self.proj_2 = nn.Conv3d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gated = far = F.gelu(self.proj_1(x))
        for layer in self.spatial_gating_unit.values():
            far = layer(far)
        result: Tensor = x + self.proj_2(gated * far)
        return result


class _PlainConvFFN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(width, 4 * width, 1)
        self.dwconv = _PlainDepthwise(4 * width)
        self.fc2 = nn.Conv3d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(x))))
        return result
