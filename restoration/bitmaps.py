"""Read and write bitmaps: PNG, TIFF and other pictures with 8 or 16 bits or float pixels, without losing values.

A picture is read as a viewer shows it. The pixels are changed as the header requires of a viewer:

| property of the file | outcome |
| --- | --- |
| an orientation (EXIF, TIFF) | the pixels are rotated |
| a palette | RGB, 8 bits |
| TIFF with 0 as white | inverted |
| TIFF with 1, 2 or 4 bits per pixel | scaled to 0 to 255 |
| PGM, PPM or TIFF with 9 to 15 bits | unscaled values as uint16; `top_value` gives the value of white |
| CMYK or YCbCr, in a JPEG | RGB |
| CMYK, CIELab, raw sensor pixels and other colours, in a TIFF | error |
| an alpha channel or a transparent colour | ignored, with a warning |
| an animation (PNG, WebP) | error |
| several pictures in a JPEG (MPO) | the first one is read, with a warning |
| TIFF with pages that differ in size or kind | error; thumbnails are ignored, with a warning |
"""

import math
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from ..runs.files import atomic_path
from ..runs.memory import check_inflated, check_memory
from ..volumes import VolumeWarning
from .suffixes import PNM_SUFFIXES, TIFF_SUFFIXES

_MOST_HEADER = 4096  # bytes of a PNM header with its comments
# value of TIFF tag 274 -> (swap rows and columns, reverse rows, reverse columns), applied in this order
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_COPIES = 16  # bytes of memory per pixel during decoding and copying


def read_bitmap(path: Path) -> np.ndarray:
    """Read a bitmap file as (N, C, H, W) in its own dtype; C is 1 or 3, and an alpha channel is ignored.

    Raises:
        ValueError, OSError, MemoryError: the file is damaged, too large, or cannot be read without losing values.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        array, axes = _read_tiff(path)
    elif path.suffix.lower() in PNM_SUFFIXES and (deep := _read_deep_pnm(path)) is not None:
        array, axes = deep
    else:
        array, axes = _read_pillow(path)
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


def top_value(path: Path) -> int | None:
    """The value of white in a bitmap of 9 to 15 bits (1023 for 10 bits); None if it is the largest of the dtype.

    Raises:
        ValueError, OSError: the header of the file is damaged.
    """
    if path.suffix.lower() in PNM_SUFFIXES:
        header = _pnm_header(path)
        return header[3] if header is not None and 255 < header[3] < 65535 else None
    if path.suffix.lower() in TIFF_SUFFIXES:
        with tifffile.TiffFile(path) as file:
            bits = _full_series(path, file).keyframe.bitspersample
        return (1 << bits) - 1 if isinstance(bits, int) and 8 < bits < 16 else None
    return None


def _pnm_header(path: Path) -> tuple[bytes, int, int, int, int] | None:
    """The magic number, width, height and largest value of a PGM or PPM file, and the offset of its pixels."""
    with path.open("rb") as stream:
        head = stream.read(_MOST_HEADER)
    gap = rb"(?:\s|#[^\n]*\n)+"
    found = re.match(rb"(P[2356])" + (gap + rb"(\d{1,9})") * 3 + rb"(?:#[^\n]*\n|\s)", head)
    if found is None:
        return None
    width, height, top = (int(number) for number in found.groups()[1:])
    return found.group(1), width, height, top, found.end()


def _read_deep_pnm(path: Path) -> tuple[np.ndarray, str] | None:
    """The unscaled values of a PGM or PPM file of more than 8 bits, as uint16; None for other files.

    Pillow rescales the values of such a PGM file and truncates those of a PPM file to 8 bits.
    """
    header = _pnm_header(path)
    if header is None or header[3] <= 255:
        return None
    mark, width, height, top, start = header
    channels = 3 if mark in (b"P3", b"P6") else 1
    count = width * height * channels
    if top > 65535 or count == 0:
        raise ValueError(f"{path} is damaged: {width} x {height} pixels of 0 to {top}")
    check_memory(path, _COPIES * count)
    if mark in (b"P5", b"P6"):
        if path.stat().st_size < start + 2 * count:
            raise ValueError(f"{path} is cut off: {width} x {height} pixels need {start + 2 * count} bytes")
        values = np.fromfile(path, ">u2", count, offset=start)
    else:
        words = path.read_bytes()[start:].split()
        if len(words) < count or not all(word.isdigit() and len(word) < 7 for word in words[:count]):
            raise ValueError(f"{path} is damaged or cut off: it needs {count} numbers, got {len(words)} words")
        values = np.array(words[:count], np.int64)
    if values.max() > top:
        raise ValueError(f"{path} is damaged: a pixel of {values.max()} where its header allows 0 to {top}")
    array = values.astype(np.uint16)
    return (array.reshape(height, width, 3), "YXS") if channels == 3 else (array.reshape(height, width), "YX")


def _read_pillow(path: Path) -> tuple[np.ndarray, str]:
    try:
        with Pillow.open(path) as picture:
            converted = ImageOps.exif_transpose(_pixels(path, picture))
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


def _pixels(path: Path, picture: Pillow.Image) -> Pillow.Image:
    """The decoded first picture of a file, in RGB if its mode is none of grey and RGB."""
    _check_size(path, picture)
    if picture.format == "PNG":
        _check_sums(path)
    pictures = getattr(picture, "n_frames", 1)
    if pictures > 1 and picture.format != "MPO":
        raise ValueError(f"{path} is an animation of {pictures} pictures; save each one as a separate file")
    if pictures > 1:
        text = f"{path} holds {pictures} pictures (MPO); the first was read"
        warnings.warn(text, VolumeWarning, stacklevel=5)
    if picture.mode == "PA" or (picture.mode not in ("LA", "RGBA") and "transparency" in picture.info):
        text = f"{path} has transparent colours, which were read as opaque"
        warnings.warn(text, VolumeWarning, stacklevel=5)
    if picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        return picture.convert("RGB")
    if _png_bits(path) == 16 and not picture.mode.startswith("I"):
        raise ValueError(f"{path} is a colour PNG with 16 bits, of which 8 would be lost in reading; save it as TIFF")
    return picture.copy()


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
    _check_directories(path)
    try:
        with tifffile.TiffFile(path) as file:
            series = _full_series(path, file)
            _check_pages(path, series)
            if len(file.series) > 1:
                text = f"{path} also holds {len(file.series) - 1} thumbnail(s), which were left out"
                warnings.warn(text, VolumeWarning, stacklevel=4)
            array, axes = series.asarray(), series.axes
            page = series.keyframe
            array, axes = _as_shown(path, page, array, axes)
            tag = page.tags.get("Orientation")
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
    return _turned(array, axes, 1 if tag is None else int(tag.value)), axes


def _check_directories(path: Path) -> None:
    """Refuse a TIFF whose directories do not fit into the file, because tifffile would visit each of their entries."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(16)
        order: Literal["little", "big"] = "big" if start[:2] == b"MM" else "little"
        big = int.from_bytes(start[2:4], order) == 43
        head, entry, link = (8, 20, 8) if big else (2, 12, 4)
        place = int.from_bytes(start[8:16] if big else start[4:8], order)
        seen: set[int] = set()
        while place and place not in seen:
            seen.add(place)
            stream.seek(place)
            count = int.from_bytes(stream.read(head), order)
            end = place + head + count * entry
            if count == 0 or end + link > size:
                raise ValueError(
                    f"{path} is not a readable TIFF file: its directory of {count} entries does not fit in"
                )
            stream.seek(end)
            place = int.from_bytes(stream.read(link), order)
        if place and len(seen) > 1:  # a single page that points to itself as the next page is accepted
            raise ValueError(f"{path} is not a readable TIFF file: its pages form a circle")


def _full_series(path: Path, file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The only series of pages in a TIFF file, apart from thumbnails."""
    full = [series for series in file.series if not series.keyframe.is_reduced]
    if len(full) != 1:
        sizes = ", ".join(str(series.shape) for series in file.series[:4])
        raise ValueError(
            f"{path} must hold one picture, or pages of one size and kind, got {len(full)} kinds of pages ({sizes});"
            " save each one as a separate file"
        )
    return full[0]


def _as_shown(path: Path, page: tifffile.TiffPage, array: np.ndarray, axes: str) -> tuple[np.ndarray, str]:
    """Grey values with 0 as black, or RGB, of the stored pixels of a TIFF page."""
    kind, bits = page.photometric, page.bitspersample
    if "PhotometricInterpretation" not in page.tags:
        return array, axes
    if kind == tifffile.PHOTOMETRIC.YCBCR and page.compression in (6, 7):
        return array, axes  # the JPEG decoder gives RGB
    if kind == tifffile.PHOTOMETRIC.RGB:
        return array, axes
    if kind == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None and "S" not in axes:
        colours = np.asarray(page.colormap)
        colours = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)  # old writers used 8 bits
        return np.moveaxis(colours[:, array.astype(np.intp)], 0, -1), axes + "S"
    if kind not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE):
        name = getattr(kind, "name", str(kind))
        raise ValueError(f"{path} must hold grey, RGB or palette colours, got {name}; save it as RGB")
    if page.samplesperpixel > 2:  # the second may be an alpha channel
        raise ValueError(f"{path} must have 1 grey channel or be RGB, got {page.samplesperpixel} grey channels")
    if kind == tifffile.PHOTOMETRIC.MINISWHITE:
        if array.dtype.kind == "b":
            array = ~array
        elif array.dtype.kind == "u" and not page.extrasamples:
            array = (np.int64((1 << bits) - 1) - array).astype(array.dtype)
        else:
            raise ValueError(f"{path} gives 0 as white, which has no meaning for its {array.dtype} pixels")
    if array.dtype == np.uint8 and bits in (2, 4):
        array = array * np.uint8(255 // ((1 << bits) - 1))
    return array, axes


def _turned(array: np.ndarray, axes: str, orientation: int) -> np.ndarray:
    """The pixels as shown for the orientation of TIFF's tag 274."""
    rows = axes.index("Y")
    swap, up, left = _TURNS.get(orientation, (False, False, False))
    if swap:
        array = np.swapaxes(array, rows, rows + 1)
    if up:
        array = np.flip(array, rows)
    return np.flip(array, rows + 1) if left else array


def _check_pages(path: Path, series: tifffile.TiffPageSeries) -> None:
    """Refuse an image with missing parts, which would be read as zeros, and one that is too large for the memory."""
    stored = path.stat().st_size
    for page in series.pages:
        if page is None:
            raise ValueError(f"{path} is cut off: one of its pages is missing")
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if offset <= 0 or count <= 0 or offset + count > stored:
                raise ValueError(f"{path} is cut off: {count} bytes at {offset} are missing")
    page, pages = series.keyframe, len(series.pages)
    # a file that stores several pictures in one piece, as ImageJ does, lists only this piece
    parts = math.prod(page.chunked)
    if pages == len(series) and len(page.dataoffsets) not in (1 if page.is_contiguous else parts, parts):
        raise ValueError(f"{path} is cut off or damaged: it claims {parts} parts and lists {len(page.dataoffsets)}")
    check_memory(path, _COPIES * math.prod(series.shape))


def write_bitmap(path: Path, stack: np.ndarray) -> None:
    """Write (N, C, H, W) as a bitmap of a format that can hold it, see `images.check_target`."""
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
