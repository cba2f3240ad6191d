"""Reading and writing of files for the registration commands (label maps, b-vectors, DICOM results), and notes."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from ...registration.diffusion import rotate_bvecs, write_bvecs
from ...registration.result import Registration
from ...registration.series import gradients_of, sidecar
from ...restoration.bitmaps import read_bitmap
from ...restoration.suffixes import BITMAP_SUFFIXES
from ...runs.files import atomic_path
from ...volumes import Volume, VolumeWarning, read_volume, resample
from ...volumes.dicom import holds_tilted
from ...volumes.dicom_derived import check_source
from ...volumes.dicom_gradients import holds_mosaic
from ...volumes.dicom_registered import (
    common_frame_of_reference,
    is_dicom,
    write_deformable_registration,
    write_registered_series,
)

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue, ITU-R BT.601
_FEW_LABELS, _LEAST_EQUAL = 32, 0.25  # a map of so few labels may be scattered; the neighbours that have one label
WARPED_DICOM, REGISTRATION_DICOM = "warped_dicom", "registration.dcm"


def write_rotated_bvecs(moving: Path, series: Volume, output: Path, result: Registration) -> None:
    """Write warped.bval and warped.bvec, with rotated gradients, if the series has gradients."""
    bvals, bvecs = gradients_of(moving) or (None, None)
    if bvals is None or bvecs is None:
        return
    rotated = rotate_bvecs(bvecs, result.affine, moving_affine=series.affine, fixed_affine=result.warped.affine)
    with atomic_path(output / "warped.bvec") as temporary:
        write_bvecs(temporary, rotated)
    with atomic_path(output / "warped.bval") as temporary:
        beside = sidecar(moving, ".bval")
        if beside.is_file():
            shutil.copyfile(beside, temporary)
        else:
            np.savetxt(temporary, bvals[None], fmt="%g")


def writes_dicom(moving: Path, fixed: Path, *, always: bool, fix_tilt: bool = False) -> bool:
    """Whether a registration writes DICOM results: if both images are DICOM, or with `always` if MOVING is.

    Raises:
        ValueError: with `always`, MOVING is not a DICOM image, or no DICOM image can be derived from it.
    """
    if always and not is_dicom(moving):
        raise ValueError(f"--dicom needs a DICOM series as MOVING, since the result takes its headers, got {moving}")
    wanted = is_dicom(moving) and (always or is_dicom(fixed))
    mosaics = [path for path in (moving, fixed) if is_dicom(path) and holds_mosaic(path)] if wanted else []
    if mosaics and always:
        raise ValueError(f"--dicom cannot write for a mosaic ({mosaics[0]}): run without it for the NIfTI results")
    wanted = wanted and not mosaics
    if wanted and fix_tilt and any(holds_tilted(path) for path in (moving, fixed) if is_dicom(path)):
        if always:
            text = "--dicom cannot write what --fix-tilt straightens: run without --dicom for the NIfTI results"
            raise ValueError(text)
        return False
    if wanted:
        check_source(moving)
    return wanted


def write_dicom(
    output: Path, warped: Volume, moving: Path, fixed: Path, result: Registration, *, description: str
) -> None:
    """Write the warped scan as a derived series and the transform as a Deformable Spatial Registration object."""
    reference = fixed if is_dicom(fixed) else None
    frame = common_frame_of_reference(moving, fixed)
    write_registered_series(
        output / WARPED_DICOM,
        warped,
        moving,
        description,
        frame_of_reference=frame,
        fixed=reference,
        linear=result.affine,
    )
    write_deformable_registration(
        output / REGISTRATION_DICOM,
        result.forward,
        moving=moving,
        fixed=reference,
        frame_of_reference=frame,
        description=description,
    )


def is_picture(path: Path) -> bool:
    """Whether a file is a picture such as .png or .tif, which has no position in a patient."""
    return path.is_file() and path.suffix.lower() in BITMAP_SUFFIXES


def read_scan(path: Path, *, fix_tilt: bool = False) -> Volume:
    """Read a scan or a picture; a picture becomes a single slice of grey values, 1 mm per pixel.

    Args:
        path: any format of `read_volume`, or a picture such as .png or .tif.
        fix_tilt: straighten the slices of a tilted gantry.
    """
    if not is_picture(path):
        return read_volume(path, fix_tilt=fix_tilt)
    stack = read_bitmap(path)
    if len(stack) != 1:
        raise ValueError(
            f"{path} must hold one picture, got {len(stack)} pages; save the page to align as its own file"
        )
    equal = stack.shape[1] == 1 or bool((stack[0] == stack[0, :1]).all())  # grey, perhaps stored in three channels
    grey = stack[0, 0] if equal else np.tensordot(_LUMINANCE, stack[0].astype(np.float32), axes=1)
    # rows go down, and y goes up
    return Volume(np.ascontiguousarray(grey.T)[:, :, None], np.diag([1.0, -1.0, 1.0, 1.0]), path)


def read_labels(path: Path | None, *, meaning: str = "one for each structure") -> Volume | None:
    """Read a label map as int32; None gives None.

    Args:
        path: the file.
        meaning: the meaning of its numbers, for the message.

    Raises:
        ValueError: the map is not 3-D, holds fractions, or is an image of intensities.
    """
    if path is None:
        return None
    labels = read_scan(path)
    if labels.array.ndim != 3:
        raise ValueError(f"{path} must be 3-D, got shape {labels.array.shape}")
    rounded = np.round(labels.array)
    if not np.array_equal(rounded, labels.array):
        raise ValueError(f"{path} must hold whole numbers, {meaning}, got fractions")
    if _looks_like_intensities(rounded):
        raise ValueError(
            f"{path} must be a label map, {meaning}, got {len(np.unique(rounded))} values that change from voxel to"
            " voxel, like those of an image of intensities"
        )
    return labels.with_array(rounded.astype(np.int32))


def _looks_like_intensities(array: np.ndarray) -> bool:
    """Whether an array has many values and hardly two neighbours of the same one: labels form regions."""
    content = array != 0
    if len(np.unique(array[content][:: max(1, array.size // 2_000_000)])) <= _FEW_LABELS:
        return False
    pairs = [(array[1:], array[:-1]), (array[:, 1:], array[:, :-1]), (array[:, :, 1:], array[:, :, :-1])]
    inner = [(one != 0) & (other != 0) for one, other in pairs]
    count = sum(int(where.sum()) for where in inner)
    equal = sum(int(((one == other) & where).sum()) for (one, other), where in zip(pairs, inner, strict=True))
    return count > 0 and equal / count < _LEAST_EQUAL


def read_mask(path: Path | None, image: Volume) -> Volume | None:
    """Read a mask and bring it to the grid of an image, if it is on another one, such as with its axes reversed.

    Raises:
        ValueError: the mask is not 3-D or holds fractions.
    """
    mask = read_labels(path, meaning="0 for the voxels to leave out")
    if mask is None or (mask.shape == image.shape and np.allclose(mask.affine, image.affine, atol=1e-3)):
        return mask
    return resample(mask, image, order="nearest")


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """Collect the warnings about files within the block for the record, each once; they are also shown, once."""
    notes: list[str] = []
    show = warnings.showwarning

    def keep(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, VolumeWarning):
            if str(message) in notes:
                return
            notes.append(str(message))
        show(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():  # it restores showwarning at the end
        warnings.simplefilter("always", VolumeWarning)
        warnings.showwarning = keep
        yield notes
