"""Read and write bitmaps: PNG, TIFF and other pictures with 8 or 16 bits or float pixels, without losing values."""

import math
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from ..runs.files import atomic_path
from ..runs.memory import check_inflated, check_memory
from ..volumes import VolumeWarning

BITMAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".webp", ".pgm", ".ppm")
TIFF_SUFFIXES = (".tif", ".tiff")
_COPIES = 16  # bytes of memory that a pixel takes while it is decoded and copied


def read_bitmap(path: Path) -> np.ndarray:
    """Read a bitmap file as (N, C, H, W) in its own dtype; C is 1 or 3, and an alpha channel is left out.

    Raises:
        ValueError, OSError, MemoryError: the file is damaged, too large, or cannot be read without losing values.
    """
    array, axes = _read_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else _read_pillow(path)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path} must hold real numbers, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{path} holds NaN or infinite values")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if axes.endswith("S"):
        if array.shape[-1] in (2, 4):
            warnings.warn(f"{path} has an alpha channel, which was left out", VolumeWarning, stacklevel=3)
            array = array[..., :-1]
        array = np.moveaxis(array, -1, -3)
    else:
        array = array[..., None, :, :]
    stack = array.reshape(-1, *array.shape[-3:])
    if stack.shape[1] not in (1, 3):
        raise ValueError(f"{path} must have 1 or 3 channels, got {stack.shape[1]}")
    return stack


def _read_pillow(path: Path) -> tuple[np.ndarray, str]:
    try:
        with Pillow.open(path) as picture:
            _check_size(path, picture)
            if picture.format == "PNG":
                _check_sums(path)
            if picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                converted = picture.convert("RGB")
            else:
                if _png_bits(path) == 16 and not picture.mode.startswith("I"):
                    raise ValueError(
                        f"{path} is a colour PNG with 16 bits, of which 8 would be lost in reading; save it as TIFF"
                    )
                converted = picture.copy()
    except OSError as error:
        if isinstance(error, UnidentifiedImageError):
            raise ValueError(f"{path} is not a readable image: its first bytes are those of no known format") from error
        raise OSError(f"{path} is damaged or cut off: {' '.join(str(error).split())}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins fail in many ways on damaged data
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} is not a readable image: {' '.join(str(error).split())[:200]}") from error
    array = np.asarray(converted)
    if converted.mode == "I":  # Pillow keeps 16-bit PNGs as int32
        array = array.astype(np.uint16 if _png_bits(path) == 16 else np.int32)
    return array, "YXS" if array.ndim == 3 else "YX"


def _check_size(path: Path, picture: Pillow.Image) -> None:
    """Refuse an image that is too large for its file or for the memory."""
    pixels = picture.width * picture.height
    if picture.format == "PNG":
        check_inflated(path, pixels * (_png_bits(path) or 8) // 8, path.stat().st_size)
    check_memory(path, _COPIES * pixels)


def _check_sums(path: Path) -> None:
    """Refuse a PNG with a damaged chunk; Pillow does not verify the checksums of pixels."""
    with path.open("rb") as stream:
        stream.seek(8)
        name = b""
        while name != b"IEND":
            length, name = struct.unpack(">I4s", stream.read(8))
            if length > path.stat().st_size:
                raise ValueError(f"{path} is damaged or cut off: one of its chunks claims {length} bytes")
            content, found = stream.read(length), stream.read(4)
            if found != zlib.crc32(name + content).to_bytes(4):
                raise ValueError(f"{path} is damaged or cut off: the checksum of its chunk {name!r} is wrong")


def _png_bits(path: Path) -> int | None:
    with path.open("rb") as stream:
        head = stream.read(25)
    return head[24] if head.startswith(b"\x89PNG") and len(head) == 25 else None


def _read_tiff(path: Path) -> tuple[np.ndarray, str]:
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            _check_pages(path, series)
            array, axes = series.asarray(), series.axes
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged data
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} is not a readable TIFF file: {' '.join(str(error).split())[:200]}") from error
    if axes.startswith("S") and array.ndim == 3:  # colour planes one after the other
        array, axes = np.moveaxis(array, 0, -1), "YXS"
    if not re.fullmatch(r"[A-RT-Z]*YXS?", axes):
        raise ValueError(f"{path} must have axes ...YX or ...YXS, got {axes} with shape {array.shape}")
    return array, axes


def _check_pages(path: Path, series: tifffile.TiffPageSeries) -> None:
    """Refuse an image with missing parts, which would be read as zeros, or one that is too large for the memory."""
    stored = path.stat().st_size
    for page in series.pages:
        if page is None:
            raise ValueError(f"{path} is cut off: one of its pages is missing")
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if offset <= 0 or count <= 0 or offset + count > stored:
                raise ValueError(f"{path} is cut off: {count} bytes at {offset} are missing")
    check_memory(path, _COPIES * math.prod(series.shape))


def write_bitmap(path: Path, stack: np.ndarray) -> None:
    """Write (N, C, H, W) into a bitmap that can hold it, see `images.check_target`."""
    planes = stack[:, 0] if stack.shape[1] == 1 else np.moveaxis(stack, 1, -1)
    if path.suffix.lower() in TIFF_SUFFIXES:
        with atomic_path(path) as temporary:
            tifffile.imwrite(
                temporary,
                planes if len(planes) > 1 else planes[0],
                photometric="rgb" if stack.shape[1] == 3 else "minisblack",
                metadata=None,
            )
        return
    with atomic_path(path) as temporary:
        Pillow.fromarray(np.ascontiguousarray(planes[0])).save(temporary)
