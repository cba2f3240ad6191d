"""One geometry for every image: arrays with a voxel -> world affine (RAS+ mm), and the files they live in."""

from .read import read_volume, write_volume
from .transforms import AffineTransform, DisplacementField, Transform, read_transform, write_transform
from .volume import Volume
from .warning import VolumeWarning

__all__ = [
    "AffineTransform",
    "DisplacementField",
    "Transform",
    "Volume",
    "VolumeWarning",
    "read_transform",
    "read_volume",
    "write_transform",
    "write_volume",
]
