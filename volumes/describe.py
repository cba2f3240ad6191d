"""The geometry of images and transforms, in words."""

import numpy as np

from .transforms import CompositeTransform, DisplacementField, Transform
from .volume import Volume

Facts = dict[str, str]


def describe_volume(volume: Volume) -> Facts:
    """Size, type, spacing, orientation, origin and range of values of an image.

    Example:
        >>> describe_volume(Volume(np.zeros((2, 3, 4), np.int16), np.diag([1.0, 2.0, 3.0, 1.0])))["orientation"]
        'RAS'
    """
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    tilt = float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), -1, 1)).max()))
    finite = volume.array[np.isfinite(volume.array)]
    facts = {
        "size": " x ".join(map(str, volume.array.shape)) + f" {volume.array.dtype}",
        "spacing": " x ".join(f"{mm:.4g}" for mm in volume.spacing) + " mm",
        "orientation": volume.orientation,
        "oblique by": f"{tilt:.1f} degrees",
        "origin": ", ".join(f"{mm:.4g}" for mm in volume.origin) + " mm (RAS+)",
        "values": f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "none is finite",
    }
    lost = volume.array.size - finite.size
    return facts | ({"not finite": f"{lost} values"} if lost else {})


def describe_transform(transform: Transform) -> Facts:
    """The kind of a transform, its rotation, scaling and translation, or the size of its displacements.

    Example:
        >>> from voxelwave.volumes import AffineTransform
        >>> describe_transform(AffineTransform(np.diag([1.1, 1.0, 1.0, 1.0])))["scaling"]
        '1.1, 1, 1'
    """
    if isinstance(transform, CompositeTransform):
        parts = [describe_transform(part) for part in transform.parts]
        return {f"part {k}, {name}": value for k, part in enumerate(parts, 1) for name, value in part.items()}
    if isinstance(transform, DisplacementField):
        lengths = np.linalg.norm(transform.vectors_mm, axis=-1)
        spacing = np.linalg.norm(transform.affine[:3, :3], axis=0)
        return {
            "form": "displacement field",
            "grid": " x ".join(map(str, transform.shape)) + ", " + " x ".join(f"{mm:.4g}" for mm in spacing) + " mm",
            "displacement": f"{lengths.mean():.2f} mm on average, {lengths.max():.2f} mm at most",
        }
    left, scales, right = np.linalg.svd(transform.matrix[:3, :3])
    rotation = left @ right
    mirrored = np.linalg.det(rotation) < 0
    cosine = (np.trace(-rotation if mirrored else rotation) - 1) / 2
    return {
        "form": "rigid" if np.allclose(scales, 1, atol=1e-4) else "affine",
        "rotation": f"{np.degrees(np.arccos(np.clip(cosine, -1, 1))):.2f} degrees" + (", mirrored" if mirrored else ""),
        "scaling": ", ".join(f"{scale:.4g}" for scale in scales),
        "translation": ", ".join(f"{mm:.2f}" for mm in transform.matrix[:3, 3]) + " mm (RAS+)",
        "matrix": "; ".join(" ".join(f"{value:.6g}" for value in row) for row in transform.matrix[:3]),
    }
