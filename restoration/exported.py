"""MaIR and MaIRUNet as exported programs with dynamic sizes."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..runs.onnx_file import Exportable, Size, Translations
from .mair_unet import MULTIPLE, MaIRUNet
from .weights import Network, WeightsInfo


def exportable(model: Network, info: WeightsInfo, *, weights: Path | None = None) -> Exportable:
    """The network with the description that its export needs.

    Args:
        model: in evaluation mode.
        info: the description of its weights.
        weights: the weight file.
    """
    multiple = MULTIPLE if isinstance(model, MaIRUNet) else model.unshuffle
    side = Size(least=2 * multiple, multiple=multiple, meaning="pixels of the image along an axis")
    low, high = info.intensity_range

    def example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        shape = (sizes["batch"], model.in_channels, sizes["height"], sizes["width"])
        return (torch.rand(shape, generator=torch.Generator().manual_seed(0)),)

    unit = f"in {info.intensity_unit}" if info.intensity_unit != "relative" else "chosen for each image"
    return Exportable(
        network=model,
        inputs={"image": ("batch", model.in_channels, "height", "width")},
        outputs=("restored",),
        sizes={"batch": Size(meaning="images"), "height": side, "width": side},
        example=example,
        tried=({"batch": 2, "height": 16, "width": 24}, {"batch": 1, "height": 40, "width": 32}),
        preprocessing={
            "image": f"(intensity - low) / (high - low), with low and high {unit}",
            "low": low,
            "high": high,
            "channels": f"{info.slices} neighbouring slices" if info.slices > 1 else "grey or colour",
            "restored": f"in the same scale, {model.scale} times as large, not clamped",
        },
        card=asdict(info),
        weights=weights,
        translations=_translations,
    )


def _translations() -> Translations:
    from ..kernels.scan.onnx_operators import translations

    return translations()
