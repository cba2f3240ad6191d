"""Read and write images in their own unit, and choose the range of intensities that is mapped to 0 to 1 for a network.

PNG, TIFF and other bitmaps with 8 or 16 bits or float pixels, NIfTI and MGH volumes and DICOM series are read as an
`Image`, a stack of slices in the file's own unit. `write_image` writes restored values to a file of the same kind, with
the same pixel type, intensity scale and position in the world. Values are not rescaled or reduced to 8 bits in between.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.multival import MultiValue

from ..runs.json_files import read_json
from ..volumes import Volume, VolumeWarning, read_volume, write_volume
from ..volumes.dicom_headers import first_header
from ..volumes.nifti import MGH_SUFFIXES, NIFTI_SUFFIXES, is_nifti_name
from .bitmaps import read_bitmap, top_value, write_bitmap
from .contrast import contrast_of_name, contrast_of_types
from .suffixes import BITMAP_SUFFIXES, TIFF_SUFFIXES, VOLUME_SUFFIXES

_OTHER_PICTURES = (".gif", ".jp2", ".j2k", ".jxl", ".pbm", ".pam", ".pfm", ".heic", ".heif", ".avif", ".exr", ".svg")
_WRITTEN = NIFTI_SUFFIXES + MGH_SUFFIXES
_LITTLE_USED = 1 / 16  # as a fraction of the range; a 12-bit image in 16-bit pixels just reaches it

LUMA = np.array([0.299, 0.587, 0.114])  # the weights of R, G and B in the luminance, ITU-R BT.601


@dataclass(frozen=True)
class IntensityRange:
    """The intensities that are mapped to 0 and 1 for a network; values outside this range are not clipped.

    Args:
        low: the intensity that is mapped to 0.
        high: the intensity that is mapped to 1.
        unit: "HU" for a fixed window of CT numbers, "relative" if the numbers have a meaning in one image only.
        origin: description of how the range was chosen.

    Example:
        >>> window = IntensityRange(-1000, 1000, unit="HU")
        >>> window.to_unit(np.array([0.0, 1500.0])).tolist()
        [0.5, 1.25]
    """

    low: float
    high: float
    unit: str = "relative"
    origin: str = "given"

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise ValueError(f"range must be two finite numbers, the lower one first, got {self.low} and {self.high}")

    @property
    def span(self) -> float:
        """high - low, the data_range of the image in its own unit."""
        return self.high - self.low

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """float32 values of the intensities, with `low` mapped to 0 and `high` to 1."""
        return ((np.asarray(values, np.float64) - self.low) / self.span).astype(np.float32)

    def from_unit(self, values: np.ndarray) -> np.ndarray:
        """float64 intensities of values from `to_unit`."""
        return np.asarray(values, np.float64) * self.span + self.low

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit != "relative" else ""
        return f"{self.low:g} to {self.high:g}{unit} ({self.origin})"


@dataclass(frozen=True, eq=False)
class Image:
    """The image of a file as a stack of slices.

    Args:
        stack: (N, C, H, W) in the file's dtype and unit; N is 1 for a plain image, C is 1 (grey) or 3 (RGB).
        path: the file or folder.
        kind: "bitmap", "volume" (NIfTI, MGH, NRRD) or "dicom".
        groups: the number of volumes that are stacked along N (the time points of a 4-D series).
        volume: the array and affine of a volume or a DICOM series; None for a bitmap.
        slice_axis: the axis of the volume along which the slices lie.
        modality: DICOM's "CT", "MR" and so on, if known from the DICOM headers or from the .json beside a volume.
        contrast: the contrast of an MR image by the BIDS suffix of its name, such as T1w, or "phase" or "dwi" by its
            DICOM headers; None if they do not state it.
        top: the value of white, if it is not the largest of the dtype (a bitmap of 9 to 15 bits).
    """

    stack: np.ndarray
    path: Path
    kind: str
    groups: int = 1
    volume: Volume | None = None
    slice_axis: int = 2
    modality: str | None = None
    contrast: str | None = None
    top: int | None = None

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return int(self.stack.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The pixel type of the file."""
        return self.stack.dtype


def read_image(path: str | os.PathLike[str], *, slice_axis: int = 2, fix_tilt: bool = False) -> Image:
    """Read a bitmap file, a NIfTI or MGH file, a folder with one DICOM series, or one DICOM file.

    Args:
        path: the file or folder.
        slice_axis: the array axis of a volume along which its slices lie; DICOM series are read with slices on axis 2.
        fix_tilt: straighten the slices of a CT with a tilted gantry, see `read_volume`.

    Raises:
        ValueError, OSError: the file cannot be read, or not without losing values; one line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_file() and path.suffix.lower() in BITMAP_SUFFIXES:
        stack = read_bitmap(path)
        return Image(stack, path, "bitmap", top=top_value(path))
    if path.is_file() and path.suffix.lower() in _OTHER_PICTURES:
        raise ValueError(f"{path.name} is a picture in a format that is not read; save it as PNG or TIFF")
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis}")
    volume = read_volume(path, fix_tilt=fix_tilt)
    one_file = path.is_file() and path.name.lower().endswith(VOLUME_SUFFIXES)
    modality, contrast = (
        (_modality_beside(path), contrast_of_name(path.name)) if one_file else _modality_and_contrast(path)
    )
    groups = volume.array.shape[3] if volume.array.ndim == 4 else 1
    return Image(
        stack=to_slices(volume.array, slice_axis),
        path=path,
        kind="volume" if one_file else "dicom",
        groups=groups,
        volume=volume,
        slice_axis=slice_axis,
        modality=modality,
        contrast=contrast,
    )


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """List the images of a folder, sorted: its bitmaps, its volumes, and its sub-folders with DICOM files.

    If `path` is a file or a folder that holds DICOM files, the list contains only `path` itself.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the folder holds no image.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_file():
        return [path]
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    files = [p for p in inside if p.is_file() and p.name.lower().endswith(BITMAP_SUFFIXES + VOLUME_SUFFIXES)]
    if not files and _has_dicom(path):
        return [path]
    series = [p for p in inside if p.is_dir() and _has_dicom(p)]
    if not files and not series:
        raise ValueError(
            f"{path} must hold images (PNG, TIFF, NIfTI) or a DICOM series, got {len(inside)} other entries"
        )
    return sorted(files + series)


def choose_range(image: Image, how: str | Sequence[float]) -> IntensityRange:
    """Choose the intensity range of an image.

    Args:
        image: the image, of which the pixel type and, for percentiles, the values are used.
        how: two numbers; or "LOW,HIGH"; "hu:LOW,HIGH" for CT numbers; "dtype" for all values of an integer type;
            "percentiles:LOW,HIGH" of the values of this image, in percent; "auto": dtype for integer bitmaps, 0 to 1
            for float bitmaps, percentiles 0.1 and 99.9 for volumes.

    Returns:
        The range. A `VolumeWarning` reports the range that "auto" chose for a volume, and an image that uses only a
        small part of the range.

    Raises:
        ValueError: `how` is unknown or does not apply to the image.

    Example:
        >>> grey = Image(np.zeros((1, 1, 4, 4), np.uint8), Path("a.png"), "bitmap")
        >>> str(choose_range(grey, "auto"))
        '0 to 255 (all values of uint8)'
    """
    if not isinstance(how, str):
        low, high = how
        return IntensityRange(float(low), float(high))
    name, _, numbers = how.strip().partition(":") if ":" in how else (how.strip(), "", "")
    if name == "auto":
        chosen = _automatic_range(image)
    elif name == "dtype":
        chosen = _dtype_range(image.dtype)
    elif name == "percentiles":
        chosen = _percentile_range(image, *_two_numbers(numbers, how))
    elif name.lower() == "hu":
        low, high = _two_numbers(numbers, how)
        chosen = IntensityRange(low, high, unit="HU", origin="window of CT numbers")
    else:
        chosen = IntensityRange(*_two_numbers(how, how))
    used = float(image.stack.max()) - float(image.stack.min())
    if 0 < used < _LITTLE_USED * chosen.span:
        _warn(f"{image.path} spans {used:g} of the range {chosen}; give its own range with --range")
    return chosen


def to_pixels(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Convert values in an image's unit to its pixel type; integers are rounded and clipped to the type's limits.

    Example:
        >>> to_pixels(np.array([-3.0, 1.6, 300.0]), np.dtype(np.uint8)).tolist()
        [0, 2, 255]
    """
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        rounded: np.ndarray = np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
        return rounded
    return np.asarray(values).astype(dtype)


def write_image(
    path: str | os.PathLike[str], stack: np.ndarray, like: Image, *, scale: int = 1, description: str = ""
) -> Path:
    """Write restored values into a file of the same kind as that of `like`, completely or not at all.

    Args:
        path: the file; for a DICOM series the folder, or a .nii.gz file to write a NIfTI.
        stack: (N, C, H * scale, W * scale) in the unit of `like`; rounded to its dtype.
        like: the image that was restored; its dtype, geometry and headers are used.
        scale: factor of the in-plane size; the spacing shrinks by it and the field of view stays the same.
        description: description of the processing, for DICOM's DerivationDescription.

    Returns:
        The path that was written.

    Raises:
        ValueError: the path or the shape of the stack does not fit `like`.
    """
    path = Path(path)
    check_target(path, like)
    n, channels, height, width = like.stack.shape
    if stack.shape != (n, channels, height * scale, width * scale):
        raise ValueError(
            f"stack must have shape {(n, channels, height * scale, width * scale)} to match {like.path} at scale"
            f" {scale}, got {stack.shape}"
        )
    pixels = to_pixels(stack, like.dtype)
    if like.kind == "bitmap":
        write_bitmap(path, pixels)
        return path
    assert like.volume is not None
    affine = _scaled_affine(like.volume.affine, like.slice_axis, scale)
    volume = Volume(from_slices(pixels, like), affine, like.path, header=like.volume.header)
    if _as_series(path, like):
        from ..volumes.dicom_write import write_derived_series  # highdicom takes a second to load; only for DICOM

        write_derived_series(path, volume, like.path, description)
    else:
        write_volume(path, volume)
    return path


def check_target(path: Path, like: Image) -> None:
    """Refuse a path to which `write_image` cannot write, before the restoration starts.

    Raises:
        ValueError: the file is of another kind than that of `like`, it would lose values, or the folder is not empty.
    """
    suffix = path.suffix.lower()
    if _as_series(path, like):
        from ..volumes.dicom import holds_tilted  # as above
        from ..volumes.dicom_derived import check_free, check_source  # as above
        from ..volumes.dicom_gradients import holds_mosaic  # as above

        check_free(path)
        if holds_mosaic(like.path):
            raise ValueError(f"{like.path} holds mosaics, whose result cannot be a DICOM series: give a .nii.gz output")
        if holds_tilted(like.path):
            raise ValueError(
                f"{like.path} had a tilted gantry, so its result cannot be a DICOM series: give a .nii.gz output"
            )
        check_source(like.path)
    elif like.kind != "bitmap":
        if not is_nifti_name(path):
            raise ValueError(f"output of {like.path} must end in {', '.join(_WRITTEN)}, got {path.name}")
    elif suffix in (".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{path.name} would lose values; write .png or .tiff")
    elif suffix not in BITMAP_SUFFIXES:
        raise ValueError(f"output of {like.path} must end in .png, .tif, .tiff, .bmp, .pgm or .ppm, got {path.name}")
    elif suffix not in TIFF_SUFFIXES:
        n, channels = like.stack.shape[:2]
        deep = like.dtype == np.uint16 and channels == 1 and suffix == ".png"
        if n > 1 or not (like.dtype == np.uint8 or deep):
            raise ValueError(
                f"{path.name} cannot hold {n} image(s) of {channels} channel(s) of {like.dtype} without loss;"
                " write .tiff"
            )


def _as_series(path: Path, like: Image) -> bool:
    """Whether `path` is to become a folder with a DICOM series."""
    return like.kind == "dicom" and not is_nifti_name(path)


def to_slices(array: np.ndarray, axis: int) -> np.ndarray:
    """Arrange (D, H, W) or (D, H, W, T) as (N, 1, rows, columns), one time point after the other."""
    series = array[..., None] if array.ndim == 3 else array
    ordered = np.moveaxis(series, (3, axis), (0, 1))  # (T, slices, rows, columns)
    return ordered.reshape(-1, 1, *ordered.shape[2:])


def from_slices(stack: np.ndarray, like: Image) -> np.ndarray:
    """Arrange slices (N, 1, rows, columns) as the array of the volume of `like`, of another size if they are."""
    ordered = stack.reshape(like.groups, -1, *stack.shape[2:])
    series = np.moveaxis(ordered, (0, 1), (3, like.slice_axis))
    assert like.volume is not None
    return series[..., 0] if like.volume.array.ndim == 3 else series


def _scaled_affine(affine: np.ndarray, slice_axis: int, scale: int) -> np.ndarray:
    """The affine of a grid with `scale` times the pixels in each slice, over the same field of view."""
    grid = np.eye(4)
    for axis in {0, 1, 2} - {slice_axis}:
        grid[axis, axis] = 1 / scale
        grid[axis, 3] = (1 / scale - 1) / 2  # the first small pixel is left of the large one's centre
    return affine @ grid


def _automatic_range(image: Image) -> IntensityRange:
    if image.top is not None:
        return IntensityRange(0, image.top, origin=f"all values of {image.top.bit_length()} bits")
    if image.kind == "bitmap":
        return _dtype_range(image.dtype) if image.dtype.kind in "iu" else IntensityRange(0, 1, origin="float pixels")
    chosen = _percentile_range(image, 0.1, 99.9)
    _warn(f"{image.path}: no intensity range was given; using {chosen}")
    return chosen


def _dtype_range(dtype: np.dtype[Any]) -> IntensityRange:
    if dtype.kind not in "iu":
        raise ValueError(f"range dtype needs whole-number pixels, got {dtype}; give the range as LOW,HIGH")
    limits = np.iinfo(dtype)
    return IntensityRange(float(limits.min), float(limits.max), origin=f"all values of {dtype.name}")


def _percentile_range(image: Image, low: float, high: float) -> IntensityRange:
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles must be two numbers from 0 to 100, the lower one first, got {low} and {high}")
    bottom, top = (float(v) for v in np.percentile(image.stack, (low, high)))
    if bottom == top:
        raise ValueError(f"{image.path}: the percentiles {low:g} and {high:g} are both {top:g}; give the range")
    return IntensityRange(bottom, top, origin=f"percentiles {low:g} and {high:g} of this image")


def _two_numbers(text: str, how: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f'range must be "auto", "dtype", "LOW,HIGH", "hu:LOW,HIGH" or "percentiles:LOW,HIGH", got {how!r}'
        ) from None
    return low, high


def _modality_beside(path: Path) -> str | None:
    """The modality that dcm2niix wrote into the .json beside a NIfTI file."""
    suffix = next(end for end in VOLUME_SUFFIXES if path.name.lower().endswith(end))
    beside = path.with_name(path.name[: -len(suffix)] + ".json")
    content = read_json(beside) if beside.is_file() else None
    modality = content.get("Modality") if isinstance(content, dict) else None
    return str(modality) if modality else None


def _modality_and_contrast(path: Path) -> tuple[str | None, str | None]:
    """The modality and the contrast in the first header of a DICOM series."""
    header = first_header(path)
    types = header.get("ImageType") or []
    kinds = [str(kind) for kind in types] if isinstance(types, MultiValue) else [str(types)]
    return str(header.get("Modality", "")) or None, contrast_of_types(kinds)


def _has_dicom(folder: Path) -> bool:
    """Whether a folder holds a DICOM file, recognised by its suffix or by the mark in its first bytes."""
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        if file.suffix.lower() in (".dcm", ".ima", ".dicom"):
            return True
        with file.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return True
    return False


def _warn(text: str) -> None:
    warnings.warn(text, VolumeWarning, stacklevel=3)
