"""Images as arrays with a voxel -> world affine (RAS+ mm), and the readers and writers of image files."""

from typing import TYPE_CHECKING

from ..runs.public import public_names

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
    from .itk import read_transform as read_transform
    from .itk import write_transform as write_transform
    from .read import read_volume as read_volume
    from .read import write_volume as write_volume
    from .resample import resample as resample
    from .transforms import AffineTransform as AffineTransform
    from .transforms import CompositeTransform as CompositeTransform
    from .transforms import DisplacementField as DisplacementField
    from .transforms import Transform as Transform
    from .transforms import compose_to_field as compose_to_field
    from .transforms import invert as invert
    from .volume import Volume as Volume
    from .warning import VolumeWarning as VolumeWarning

_LIBRARIES = ("ants", "monai", "nibabel", "sitk", "torchio")
__all__ = public_names(
    __name__,
    {
        **{f"{way}_{name}": "convert" for way in ("from", "to") for name in _LIBRARIES},
        "AffineTransform": "transforms",
        "CompositeTransform": "transforms",
        "DisplacementField": "transforms",
        "Transform": "transforms",
        "Volume": "volume",
        "VolumeWarning": "warning",
        "compose_to_field": "transforms",
        "invert": "transforms",
        "read_transform": "itk",
        "read_volume": "read",
        "resample": "resample",
        "write_transform": "itk",
        "write_volume": "read",
    },
)
