"""Sampling of volumes in plain operators of ONNX, for `torch.onnx.export`, which translates that of images only."""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset20

op: Any = opset20  # its types fix each argument to one kind of number
_MODES, _PADDINGS = ("linear", "nearest", "cubic"), ("zeros", "border", "reflection")  # numbered as in PyTorch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table for `torch.onnx.export(custom_translation_table=...)`: operator -> function that writes its nodes."""
    return {
        operator.default: _grid_sampler for operator in (torch.ops.aten.grid_sampler, torch.ops.aten.grid_sampler_3d)
    }


def _grid_sampler(input, grid, interpolation_mode: int, padding_mode: int, align_corners: bool):  # type: ignore[no-untyped-def]
    """The node of `grid_sampler`."""
    return op.GridSample(
        input,
        grid,
        mode=_MODES[interpolation_mode],
        padding_mode=_PADDINGS[padding_mode],
        align_corners=int(align_corners),
    )
