"""Sort the units of a trained MaIR by importance, so that its nested sizes keep the most important ones.

After Nemotron Elastic (2025, arXiv 2511.16664): channels are ranked by the outputs of the norms, neurons by their
values before the activation, inner channels of a scan by the sum of its input. The rank of the step sizes is ours: each
row counts by its values and the weights that read it. The function of the full network is unchanged.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attention.elastic import channel_importance, scan_ranking
from .mair import MaIR
from .scan_block import MLP, BlockSequence, ScanBlock, VisionScan
from .scan_order import DIRECTIONS


class _BlockOrder(NamedTuple):
    """Indices of the units of a block, the most important first."""

    inner: Tensor  # (d,)
    neurons: Tensor  # (hidden,)
    rank: Tensor  # (4, R), for each direction


@torch.no_grad()
def sort_units(network: MaIR, images: Tensor) -> None:
    """Sort the units of a network, the most important first.

    Args:
        network: a trained network of full size.
        images: (B, in_channels, H, W) in [0, 1], degraded images by whose activations the importance is measured.
    """
    seen = _activations(network, images)
    normed = [channel_importance(seen[norm]) for norm in _norms(network)]
    channels = _descending(torch.stack(normed).sum(0))
    orders = {block: _block_order(block, seen) for block in _blocks(network)}
    for block, order in orders.items():
        _sort_block(block, order, channels)
    for norm in (network.norm, network.patch_embed["norm"]):
        _permute(norm, channels)
    _permute(network.conv_first, channels)
    for conv in (*(group.get_submodule("conv") for group in network.layers), network.conv_after_body):
        first, last = (conv[0], conv[-1]) if isinstance(conv, nn.Sequential) else (conv, conv)
        _permute(first, None, channels)
        _permute(last, channels)
    if network.upsampler == "pixelshuffle":
        head = network.conv_before_upsample[0]
    else:
        head = network.conv_last if network.upsampler is None else network.upsample[0]
    _permute(head, None, channels)


def _blocks(network: MaIR) -> Iterator[ScanBlock]:
    for group in network.layers:
        blocks = group.get_submodule("residual_group.blocks")
        assert isinstance(blocks, BlockSequence)
        for block in blocks:
            assert isinstance(block, ScanBlock)
            yield block


def _norms(network: MaIR) -> list[nn.Module]:
    return [network.patch_embed["norm"], network.norm, *(n for b in _blocks(network) for n in (b.ln_1, b.ln_2))]


def _mlp(block: ScanBlock) -> MLP:
    mlp = block.conv_blk
    assert isinstance(mlp, MLP)
    return mlp


def _activations(network: MaIR, images: Tensor) -> dict[nn.Module, Tensor]:
    """Module -> its output, for the modules by which units are ranked."""
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _inputs: Any, out: Tensor) -> None:
        seen[module] = out

    watched = _norms(network) + [m for b in _blocks(network) for m in (_mlp(b).fc1, b.self_attention.conv2d)]
    handles = [module.register_forward_hook(keep) for module in watched]
    training = network.training
    network.eval()(images)
    network.train(training)
    for handle in handles:
        handle.remove()
    return seen


def _block_order(block: ScanBlock, seen: dict[nn.Module, Tensor]) -> _BlockOrder:
    scan = block.self_attention
    into = F.linear(seen[block.ln_1], scan.in_proj.weight.chunk(2)[0]).flatten(1, 2)  # (B, L, d)
    # one head, whose channels are the same in all directions
    _, inner = scan_ranking(into.unsqueeze(2), 1, into.shape[2])
    content = F.silu(seen[scan.conv2d]).flatten(2).mT  # (B, L, d)
    rows = torch.einsum("bld,krd->blkr", content, scan.x_proj_weight[:, : scan.rank]).abs().sum((0, 1))
    rank = rows * scan.dt_projs_weight.norm(dim=1)
    return _BlockOrder(inner, _descending(channel_importance(seen[_mlp(block).fc1])), _descending(rank))


def _descending(importance: Tensor) -> Tensor:
    return importance.argsort(dim=-1, descending=True, stable=True)


def _permute(module: nn.Module, rows: Tensor | None, columns: Tensor | None = None) -> None:
    """Reorder outputs (rows) and inputs (columns) of a linear layer, a convolution or a norm."""
    for name, parameter in module.named_parameters():
        new = parameter if rows is None else parameter[rows]
        if columns is not None and name == "weight":
            new = new[:, columns]
        parameter.copy_(new.clone())


def _sort_block(block: ScanBlock, order: _BlockOrder, channels: Tensor) -> None:
    for norm in (block.ln_1, block.ln_2):
        _permute(norm, channels)
    for skip in (block.skip_scale, block.skip_scale2):
        skip.copy_(skip[channels].clone())
    _permute(_mlp(block).fc1, order.neurons, channels)
    _permute(_mlp(block).fc2, channels, order.neurons)
    _sort_scan(block.self_attention, order.inner, order.rank, channels)


def _sort_scan(scan: VisionScan, inner: Tensor, rank: Tensor, channels: Tensor) -> None:
    both = torch.cat([inner, inner + len(inner)])  # content and gate
    _permute(scan.in_proj, both, channels)
    _permute(scan.out_proj, channels, inner)
    _permute(scan.conv2d, inner)
    _permute(scan.out_norm, inner)
    gates = (inner.unsqueeze(1) * DIRECTIONS + torch.arange(DIRECTIONS, device=inner.device)).flatten()
    _permute(scan.gating.gating[1], gates)
    along = (torch.arange(DIRECTIONS, device=inner.device).unsqueeze(1) * len(inner) + inner).flatten()
    for parameter in (scan.A_logs, scan.Ds):
        parameter.copy_(parameter[along].clone())
    scan.dt_projs_bias.copy_(scan.dt_projs_bias[:, inner].clone())
    x_weight, dt_weight = scan.x_proj_weight[..., inner], scan.dt_projs_weight[:, inner]
    for k, rows in enumerate(rank):
        scan.x_proj_weight[k] = torch.cat([x_weight[k, rows], x_weight[k, scan.rank :]])
        scan.dt_projs_weight[k] = dt_weight[k][:, rows]
