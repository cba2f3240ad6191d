"""NestedMorph as an exported program with dynamic sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.attention.choice import needs
from ..runs.onnx_file import Exportable, Size, Translations
from .nestedmorph import MULTIPLE, NestedMorph


def exportable(
    network: NestedMorph,
    *,
    size: tuple[int, int, int] | None,
    training: Mapping[str, Any] | None = None,
    weights: Path | None = None,
) -> Exportable:
    """The network with the description that its export needs.

    The exported program takes one pair of images whose sizes are multiples of 32: pad them with 0 and cut the results.
    Dynamic sizes take two to three times as long to trace as fixed ones.

    Args:
        network: in evaluation mode.
        size: depth, height and width of the images, in voxels; None for dynamic sizes, from 64 voxels.
        training: the options of the training, see `nestedmorph_files.read_training_options`.
        weights: the weight file.

    Raises:
        ValueError: a size is no multiple of 32, or the network attends to regions, whose number depends on the size.
    """
    if size is not None and any(n < MULTIPLE or n % MULTIPLE for n in size):
        raise ValueError(f"size must be three multiples of {MULTIPLE}, got {', '.join(map(str, size))}")
    if size is None and network.mixer is not None and needs(network.mixer) & {"grid", "length"}:
        raise ValueError(f"size must be given for a mixer that depends on the size of the images: {network.mixer}")
    names = ("depth", "height", "width")
    dynamic = Size(least=2 * MULTIPLE, multiple=MULTIPLE, meaning="voxels along an axis of both images")

    def example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        shape = (1, 1, *(size or [sizes[name] for name in names]))
        return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)

    axes = (1, 1, *(size or names))
    return Exportable(
        network=network,
        inputs={"moving": axes, "fixed": axes},
        outputs=("warped", "displacement"),
        sizes={} if size else dict.fromkeys(names, dynamic),
        example=example,
        tried=({"depth": 64, "height": 64, "width": 96}, {"depth": 96, "height": 64, "width": 64}),
        preprocessing={
            "moving, fixed": (
                "two images on one grid, aligned by an affine map, scaled to 0..1, padded with 0 to the size"
            ),
            "spacing_mm": (training or {}).get("spacing_mm"),
            "orientation": (training or {}).get("orientation"),
            "warped": "the moving image on the grid of the fixed one",
            "displacement": "voxels, ordered (depth, height, width): warped[x] = moving[x + displacement[x]]",
        },
        card={"network": network.config, "training": dict(training or {})},
        weights=weights,
        translations=_translations,
    )


def _translations() -> Translations:
    from .onnx_operators import translations

    return translations()
