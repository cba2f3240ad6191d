"""Restore MR, CT and natural images: denoise, super-resolve, deblur, dehaze with MaIR."""

from typing import TYPE_CHECKING

from ..runs.public import public_names

if TYPE_CHECKING:
    from .inference import Refused as Refused
    from .mair import MaIR as MaIR
    from .mair_unet import MaIRUNet as MaIRUNet
    from .metrics import psnr as psnr
    from .metrics import ssim as ssim
    from .weights import load_weights as load_weights
    from .whole_image import restore as restore

__all__ = public_names(
    __name__,
    {
        "MaIR": "mair",
        "MaIRUNet": "mair_unet",
        "Refused": "inference",
        "load_weights": "weights",
        "psnr": "metrics",
        "restore": "whole_image",
        "ssim": "metrics",
    },
)
