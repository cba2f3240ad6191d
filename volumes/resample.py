"""Resampling of an image to the grid of another image, with one interpolation."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from scipy.ndimage import map_coordinates, spline_filter

from ..kernels import transforms
from .sampling import apply_affine, inside, sample_linear, sample_nearest, slabs, voxel_blocks
from .transforms import AffineTransform, CompositeTransform, Transform
from .volume import Volume
from .warning import VolumeWarning

Order = Literal["linear", "nearest", "cubic"]
_SLAB = 1 << 22  # voxels that are read at once
_AIR = -900.0  # HU; an image with a lower minimum is taken for a CT


def resample(
    volume: Volume,
    like: Volume,
    transform: Transform | None = None,
    *,
    order: Order = "linear",
) -> Volume:
    """The image on the grid of `like`, interpolated once from the original: out[x] = volume[transform(x)].

    Points outside `volume` get its background: the value given in its file, air for a CT, otherwise 0. If none is
    known, a minimum of -900 or less is taken for the air of a CT, with a warning (not with "nearest"). Points outside
    the grid of a displacement field also get the background, with a warning. A 4-D image is resampled volume by volume.
    Memory in addition to the result is limited to some hundred MB.

    Args:
        volume: the moving image, (D, H, W) or (D, H, W, T).
        like: an image on the fixed grid (shape and affine); its values are not used.
        transform: transform from the fixed world to the moving world; None if both are the same.
        order: "linear" for intensities, "nearest" for labels, "cubic" for intensities by cubic B-splines, which are
            sharper, but can exceed the range of the image at edges.

    Returns:
        The image on the fixed grid. "nearest" keeps the dtype; the others return float32, or float64 if the image has
        float64 or integers of 32 bits and more.

    Example:
        >>> from nibabel.affines import from_matvec
        >>> image = Volume(np.arange(5.0).reshape(5, 1, 1), np.eye(4))
        >>> between = Volume(np.zeros((3, 1, 1)), from_matvec(np.eye(3), [0.5, 0, 0]))
        >>> resample(image, between).array.ravel().tolist()
        [0.5, 1.5, 2.5]
    """

    if order not in get_args(Order):
        raise ValueError(f'order must be "linear", "nearest" or "cubic", got "{order}"')
    if order == "cubic" and not np.isfinite(volume.array).all():
        raise ValueError("cubic interpolation needs finite values, got NaN or infinity: use linear")
    series = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    dtype = series.dtype if order == "nearest" else _linear_dtype(series.dtype)
    # volumes are stored one after the other, as in NIfTI files
    outside = _background(volume, guess=order != "nearest")
    resampled = np.full((*like.shape, series.shape[3]), outside, dtype, order="F")
    source = _source(volume, like, transform)
    if source is not None and (order == "nearest" or (order == "linear" and dtype == np.float32)):
        lost = _read_compiled(source, series, outside, order == "nearest", resampled)
    else:
        lost = _read_plain(volume, like, transform, outside, order, resampled)
    if lost:
        warnings.warn(
            f"{lost} of {np.prod(like.shape)} voxels lie outside the displacement field's grid and get the value"
            f" {outside:g}",
            VolumeWarning,
            stacklevel=2,
        )
    return Volume(
        resampled if volume.array.ndim == 4 else resampled[..., 0],
        like.affine,
        background=volume.background,
        header=volume.header,
    )


def _source(volume: Volume, like: Volume, transform: Transform | None) -> transforms.Source | None:
    """How the compiled kernels read `volume`; None without them, or for more than one displacement field."""
    parts = transform.parts if isinstance(transform, CompositeTransform) else () if transform is None else (transform,)
    if not transforms.available():
        return None
    start, end, field = like.affine, np.eye(4), None
    for part in parts:
        if isinstance(part, AffineTransform):
            start, end = (part.matrix @ start, end) if field is None else (start, part.matrix @ end)
        elif field is None:
            field = part
        else:
            return None
    end = np.linalg.inv(volume.affine) @ end
    if field is None:
        return transforms.Source(like.shape, start, end)
    return transforms.Source(like.shape, start, end, field.vectors_mm, np.linalg.inv(field.affine))


def _read_compiled(
    source: transforms.Source, series: np.ndarray, outside: float, nearest: bool, out: np.ndarray
) -> int:
    """Fill `out`, (D, H, W, T), from `series`, (D', H', W', T); return the number of voxels outside the field."""
    parts = list(_parts(source))
    if nearest:
        lost = 0
        for slab, part in parts:
            index, outside_field = part.nearest(series.shape[:3])
            known = index >= 0
            out[slab][known] = series[np.unravel_index(index[known], series.shape[:3])]
            lost += outside_field
        return lost
    for number in range(series.shape[3]):
        image = np.ascontiguousarray(series[..., number], dtype=np.float32)
        lost = 0
        for slab, part in parts:
            out[slab, ..., number], outside_field = part.linear(image, outside)
            lost += outside_field
    return lost


def _parts(source: transforms.Source) -> Iterator[tuple[slice, transforms.Source]]:
    """The grid in slabs along its first axis, which bound the memory."""
    for slab in slabs(source.shape, _SLAB):
        shift = np.eye(4)
        shift[0, 3] = slab.start
        shape = (slab.stop - slab.start, *source.shape[1:])
        yield slab, replace(source, shape=shape, start=source.start @ shift)


def _read_plain(
    volume: Volume, like: Volume, transform: Transform | None, outside: float, order: Order, out: np.ndarray
) -> int:
    """The same in slabs of points, for every type, order and any chain of transforms."""
    series = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    if order == "cubic":  # the coefficients of the splines, once for each volume
        volumes = [
            spline_filter(series[..., k].astype(np.float64), order=3, mode="mirror") for k in range(series.shape[3])
        ]
        series = np.stack(volumes, axis=3)
    to_voxel = np.linalg.inv(volume.affine)
    lost = 0
    for slab, voxels in voxel_blocks(like.shape):
        points = apply_affine(like.affine, voxels)
        moved = points if transform is None else transform.map(points)
        known = ~np.isnan(moved[:, 0])
        lost += len(moved) - int(np.count_nonzero(known))
        read = apply_affine(to_voxel, np.where(known[:, None], moved, 0.0))
        read_from = known & inside(volume.shape, read)
        if not read_from.any():
            continue
        for number in range(series.shape[3]):
            values = np.full(len(read), outside, out.dtype)
            if order == "cubic":
                values[read_from] = map_coordinates(
                    series[..., number], read[read_from].T, order=3, mode="mirror", prefilter=False
                )
            elif order == "nearest":
                values[read_from] = sample_nearest(series[..., number], read[read_from])
            else:
                channel = torch.from_numpy(np.ascontiguousarray(series[..., number], dtype=out.dtype))[None]
                values[read_from] = sample_linear(channel, read[read_from])[:, 0]
            out[slab, ..., number] = values.reshape(out[slab, ..., number].shape)
    return lost


def _background(volume: Volume, *, guess: bool) -> float:
    """The background value of an image, in the range of its dtype."""
    if volume.background is not None:
        found = volume.background
    elif guess and volume.array.dtype.kind in "if" and volume.array.size and (low := float(volume.array.min())) <= _AIR:
        warnings.warn(
            f"{volume.source or 'the image'} has values down to {low:g}, as a CT has; outside it reads {low:g}",
            VolumeWarning,
            stacklevel=3,
        )
        found = low
    else:
        found = 0.0
    if volume.array.dtype.kind in "iu":
        limits = np.iinfo(volume.array.dtype)
        return float(min(max(round(found), limits.min), limits.max))
    return found


def _linear_dtype(dtype: np.dtype) -> np.dtype:
    wide = (dtype.kind == "f" and dtype.itemsize > 4) or (dtype.kind in "iu" and dtype.itemsize >= 4)
    return np.dtype(np.float64 if wide else np.float32)
