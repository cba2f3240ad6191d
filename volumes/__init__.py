"""Images as arrays with a voxel -> world affine (RAS+ mm), and the readers and writers of image files."""

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

__all__ = [
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
