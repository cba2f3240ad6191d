"""Images as arrays with a voxel -> world affine (RAS+ mm), and the readers and writers of image files."""

from typing import TYPE_CHECKING

from ..runs.public import public_names
from .itk import read_transform, write_transform
from .read import read_volume, write_volume
from .resample import resample
from .transforms import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Transform,
    compose_to_field,
    invert,
)
from .volume import Volume
from .warning import VolumeWarning

if TYPE_CHECKING:
    from .convert import from_ants as from_ants
    from .convert import from_monai as from_monai
    from .convert import from_nibabel as from_nibabel
    from .convert import from_sitk as from_sitk
    from .convert import from_torchio as from_torchio
    from .convert import to_ants as to_ants
    from .convert import to_monai as to_monai
    from .convert import to_nibabel as to_nibabel
    from .convert import to_sitk as to_sitk
    from .convert import to_torchio as to_torchio

_LIBRARIES = ("ants", "monai", "nibabel", "sitk", "torchio")
_CONVERSIONS = public_names(__name__, {f"{way}_{name}": "convert" for way in ("from", "to") for name in _LIBRARIES})

__all__ = [
    *_CONVERSIONS,
    "AffineTransform",
    "CompositeTransform",
    "DisplacementField",
    "Transform",
    "Volume",
    "VolumeWarning",
    "compose_to_field",
    "invert",
    "read_transform",
    "read_volume",
    "resample",
    "write_transform",
    "write_volume",
]
