"""Conversion of images from and to the classes of other libraries, which are imported when they are needed.

| library | its geometry | kept |
| --- | --- | --- |
| nibabel | affine, RAS+ | array, affine |
| SimpleITK, ANTs | spacing, direction and origin, LPS+; no shear | array, affine |
| MONAI | MetaTensor, channel first; affine, RAS+ | array, affine |
| TorchIO | ScalarImage or LabelMap, channel first; affine, RAS+ | array, affine |

A 4-D series has its time points as the fourth axis here, as channels in MONAI and TorchIO, and as the fourth axis in
nibabel and SimpleITK.
"""

from typing import Any

import nibabel as nib
import numpy as np

from ..runs.extras import load_optional
from .volume import LPS, Volume, perpendicular_axes


def to_nibabel(volume: Volume) -> nib.Nifti1Image:
    """As an image of nibabel.

    Example:
        >>> to_nibabel(Volume(np.zeros((2, 3, 4), np.int16), np.eye(4))).shape
        (2, 3, 4)
    """
    return nib.Nifti1Image(_numbers(volume), volume.affine)


def from_nibabel(image: Any) -> Volume:
    """From an image of nibabel; values are scaled as its header says.

    Raises:
        ValueError: the image is not 3-D or 4-D, or has no usable affine.
    """
    slope, intercept = getattr(image.dataobj, "slope", 1), getattr(image.dataobj, "inter", 0)
    plain = slope in (1, None) and intercept in (0, None)
    return Volume(np.asarray(image.dataobj) if plain else image.get_fdata(dtype=np.float32), image.affine)


def to_sitk(volume: Volume) -> Any:
    """As an image of SimpleITK.

    Raises:
        ValueError: the axes are not perpendicular, which SimpleITK cannot hold.
    """
    sitk = load_optional("SimpleITK", "an image of SimpleITK")
    spacing, direction, origin = _itk_geometry(volume)
    array = _numbers(volume)
    parts = [array] if array.ndim == 3 else [array[..., k] for k in range(array.shape[3])]
    images = [sitk.GetImageFromArray(np.ascontiguousarray(part.T)) for part in parts]
    for image in images:
        image.SetSpacing(spacing)
        image.SetDirection(direction.ravel().tolist())
        image.SetOrigin(origin)
    return images[0] if array.ndim == 3 else sitk.JoinSeries(images)


def from_sitk(image: Any) -> Volume:
    """From a 3-D or 4-D image of SimpleITK with one value per voxel.

    Raises:
        ValueError: the image has other dimensions, or several values per voxel.
    """
    sitk = load_optional("SimpleITK", "an image of SimpleITK")
    if image.GetDimension() not in (3, 4) or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"image must be 3-D or 4-D with one value per voxel, got {image.GetDimension()}-D")
    size = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
    return Volume(
        sitk.GetArrayFromImage(image).T,
        _from_itk_geometry(np.array(image.GetSpacing()[:3]), direction, np.array(image.GetOrigin()[:3])),
    )


def to_ants(volume: Volume) -> Any:
    """As a 3-D image of ANTs.

    Raises:
        ValueError: the volume is 4-D, or its axes are not perpendicular.
    """
    ants = load_optional("ants", "an image of ANTs")

    if volume.array.ndim != 3:
        raise ValueError(f"volume must be 3-D for ANTs, got shape {volume.array.shape}")
    spacing, direction, origin = _itk_geometry(volume)
    array = _numbers(volume)
    array = array if array.dtype in (np.uint8, np.uint32, np.float32, np.float64) else array.astype(np.float32)
    return ants.from_numpy(array, origin=origin, spacing=spacing, direction=direction)


def from_ants(image: Any) -> Volume:
    """From a 3-D image of ANTs with one value per voxel.

    Raises:
        ValueError: the image has other dimensions, or several values per voxel.
    """
    if image.dimension != 3 or image.has_components:
        raise ValueError(f"image must be 3-D with one value per voxel, got {image.dimension}-D")
    geometry = (np.array(image.spacing), np.array(image.direction), np.array(image.origin))
    return Volume(image.numpy(), _from_itk_geometry(*geometry))


def to_monai(volume: Volume) -> Any:
    """As a MetaTensor of MONAI, (C, D, H, W): one channel, or one for each time point."""
    import torch

    return load_optional("monai", "a MetaTensor").data.MetaTensor(
        torch.from_numpy(_channels(volume)), affine=torch.from_numpy(volume.affine.copy())
    )


def from_monai(tensor: Any) -> Volume:
    """From a MetaTensor of MONAI, (C, D, H, W); several channels become a series.

    Raises:
        ValueError: the tensor has another number of axes.
    """
    return _of_channels(tensor.detach().cpu().numpy(), np.asarray(tensor.affine.cpu(), dtype=np.float64))


def to_torchio(volume: Volume, *, labels: bool = False) -> Any:
    """As a ScalarImage of TorchIO, or with `labels` as a LabelMap."""
    import torch

    torchio = load_optional("torchio", "an image of TorchIO")
    kind = torchio.LabelMap if labels else torchio.ScalarImage
    return kind(tensor=torch.from_numpy(_channels(volume)), affine=volume.affine)


def from_torchio(image: Any) -> Volume:
    """From an image of TorchIO; several channels become a series."""
    return _of_channels(image.data.numpy(), np.asarray(image.affine, dtype=np.float64))


def _numbers(volume: Volume) -> np.ndarray:
    """The array; bool becomes uint8, which the other libraries hold."""
    return volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array


def _channels(volume: Volume) -> np.ndarray:
    array = _numbers(volume)
    return np.ascontiguousarray(array[None] if array.ndim == 3 else np.moveaxis(array, 3, 0))


def _of_channels(array: np.ndarray, affine: np.ndarray) -> Volume:
    if array.ndim != 4:
        raise ValueError(f"the tensor must have shape (C, D, H, W), got {array.shape}")
    return Volume(array[0] if len(array) == 1 else np.moveaxis(array, 0, 3), affine)


def _itk_geometry(volume: Volume) -> tuple[list[float], np.ndarray, list[float]]:
    """Spacing, direction (3, 3) and origin in LPS."""
    if not perpendicular_axes(volume.affine):
        raise ValueError(f"the axes must be perpendicular for ITK, got the affine {volume.affine.tolist()}")
    affine = LPS @ volume.affine
    spacing = list(volume.spacing)
    return spacing, affine[:3, :3] / np.array(spacing), affine[:3, 3].tolist()


def _from_itk_geometry(spacing: np.ndarray, direction: np.ndarray, origin: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    found: np.ndarray = LPS @ affine
    return found
