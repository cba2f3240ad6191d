"""Read a DICOM series as one `Volume`. The table lists the outcome for unusual input:

| input | outcome |
| --- | --- |
| colour images | error |
| a compressed image whose decoder is missing | error that names the package |
| a compressed image whose size differs from the header | error, before memory is allocated |
| a deflated file that fills the memory | error, before memory is taken |
| a file named .dcm or .ima without a DICOM header, or cut off | error |
| GE: slices or rows against the acquisition tags; PatientOrientation against the orientation | read, warned |
| files that are not DICOM images (DICOMDIR, reports, text) | left out, warned |
| fewer than three slices | read, warned: their spacing cannot be checked |
| gantry tilt | error; with `fix_tilt` straightened by one interpolation, warned |
| parallel stacks side by side, or with a gap between | error that lists them |
| slices that shift sideways unevenly | error |
| image size, pixel spacing or frame of reference differ | error |
| intensity inverted for display (MONOCHROME1) | the stored values are read, not inverted |
| more pixels than the free memory holds | error, before memory is taken |
| more than one orientation (localizer, mixed series) | error |
| more than one series | error that lists them |
| no position, orientation or pixel spacing | error |
| positions evenly spaced, but a multiple of the header's spacing | read, warned: slices may be missing |
| rescale slope 0 | error |
| rescale slope and intercept | applied, per image; whole numbers stay whole, else float32 |
| same image twice (same UID, same values) | one is left out, warned |
| same UID, other values | error |
| Siemens mosaic, UIH grid | one volume of its tiles; error if the private tags with their positions are missing |
| slice missing, or spacing uneven by more than 1 % and 0.03 mm | error with the places |
| several slices at each position, equally many (4-D) | volumes, ordered as in `dicom_order` |
| several slices at one position, in unequal numbers or indistinguishable | error |

The array and its affine equal those of dcm2niix for 2-D series: axes column, row, slice, with the rows flipped to
run upwards and the slices along the normal of the image plane.
"""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from .dicom_contradictions import note_contradictions
from .dicom_frames import Frame, frames_of
from .dicom_headers import one_series, read_headers, without_copies
from .dicom_pixels import values_of
from .dicom_stack import affine_of, check_alike, is_tilted, stack
from .tilt import straighten
from .volume import Volume


def read_series(path: Path, *, fix_tilt: bool = False) -> tuple[dict[Path, Dataset], list[list[Frame]]]:
    """The headers of one series, and its slices.

    Args:
        path: a folder with one DICOM series, or one DICOM file.
        fix_tilt: also accept slices of a tilted gantry.

    Returns:
        File -> header without pixels; and for each volume its slices, in order along the normal.

    Raises:
        ValueError: the files are not one series, or its slices do not form a volume.
    """
    headers = without_copies(path, one_series(path, read_headers(path)))
    return headers, stack(path, frames_of(headers), fix_tilt=fix_tilt)[0]


def read_dicom(path: Path, *, fix_tilt: bool = False) -> Volume:
    """Read a folder with one DICOM series, or one DICOM file, as a `Volume`; the table above lists unusual input.

    Args:
        path: the folder or file.
        fix_tilt: straighten slices of a tilted gantry, with one interpolation; without it they are refused.

    Returns:
        (columns, rows, slices) or (columns, rows, slices, volumes): int16 if the values fit, otherwise larger integers,
        or float32 if the rescale slope requires it.

    Raises:
        ValueError, OSError: the values of the series or its position in the world cannot be trusted; one line.
    """
    with warnings.catch_warnings(), _without_collector():
        # pydicom's warnings about odd value representations do not concern the image
        warnings.filterwarnings("ignore", module="pydicom")
        headers = one_series(path, read_headers(path))
        headers = without_copies(path, headers)
        frames = frames_of(headers)
        check_alike(path, headers, frames)
        volumes, step = stack(path, frames, fix_tilt=fix_tilt)
        values = values_of(path, headers, volumes)
    background = _background(headers[volumes[0][0].path])
    slices = volumes[0]
    note_contradictions(path, headers, slices)
    if fix_tilt and is_tilted(slices):
        outside = float(values.min()) if background is None else background
        values, slices = straighten(values, slices, step, outside)
    affine = affine_of(slices, step, rows=values.shape[2])
    # (volume, slice, row, column) in memory; rows are already flipped
    array = values.transpose(3, 2, 1, 0)
    return Volume(array if array.shape[3] > 1 else array[..., 0], affine, path, background)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause Python's search for circles of objects, which takes as long as the reading of thousands of elements."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _background(dataset: Dataset) -> float | None:
    """The rescaled padding value of a file, otherwise air (-1000 HU) for a CT; None if neither applies."""
    padding = dataset.get("PixelPaddingValue")
    rescale = [float(dataset.get(name) or default) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))]
    if isinstance(padding, int) and np.isfinite(rescale).all():
        return padding * rescale[0] + rescale[1]
    return -1000.0 if dataset.get("Modality") == "CT" else None


def holds_tilted(path: Path) -> bool:
    """Whether the slices of a DICOM series come from a tilted gantry."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return is_tilted(frames_of(one_series(path, read_headers(path))))
