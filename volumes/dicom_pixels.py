"""The pixels of a DICOM series, decoded and rescaled."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..runs.memory import check_memory
from ..runs.words import one_line
from .codestream import image_size, is_whole
from .dicom_frames import Frame
from .mosaic import is_mosaic, tiles

_HUGE_RATIO = 10_000  # no lossless compression reaches this ratio
_COPIES = 16  # bytes per pixel while it is decoded, scaled and copied


def values_of(path: Path, headers: dict[Path, Dataset], volumes: list[list[Frame]]) -> np.ndarray:
    """(volumes, slices, rows flipped, columns) of rescaled values."""
    places = {(f.path, f.index): (t, k) for t, volume in enumerate(volumes) for k, f in enumerate(volume)}
    frames = {(f.path, f.index): f for volume in volumes for f in volume}
    exact = all(f.slope == 1 and f.intercept == round(f.intercept) for f in frames.values())
    values: np.ndarray | None = None
    check_memory(path, sum(_check_size(file, header) for file, header in headers.items()))
    for file, header in headers.items():
        stored, lookup = _pixels(file, header)
        if is_mosaic(header):
            stored = tiles(file, header, stored[0])
        for index, image in enumerate(stored):
            frame = frames[file, index]
            if lookup is not None:
                scaled = np.asarray(lookup(image), dtype=np.float32)
            elif image.dtype.kind == "f" or not exact:
                with np.errstate(over="ignore"):  # infinite values are refused below
                    scaled = (image.astype(np.float64) * frame.slope + frame.intercept).astype(np.float32)
            else:
                scaled = image.astype(np.int64 if image.dtype.itemsize > 2 else np.int32) + int(frame.intercept)
            if values is None:
                values = np.empty((len(volumes), len(volumes[0]), *scaled.shape), scaled.dtype)
            if scaled.dtype != values.dtype:
                values = values.astype(np.promote_types(values.dtype, scaled.dtype))
            values[places[file, index]] = scaled[::-1]
    assert values is not None  # there is at least one frame
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{path}: some rescaled values are not finite; check RescaleSlope and RescaleIntercept")
    return _narrow(values)


def _narrow(values: np.ndarray) -> np.ndarray:
    """Integers as int16 if they fit, otherwise as the next larger type."""
    if values.dtype.kind == "f":
        return values
    low, high = int(values.min()), int(values.max())
    fits = (t for t in (np.int16, np.uint16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return values.astype(next(fits, np.int64))


def _check_size(file: Path, header: Dataset) -> int:
    """Check that the file holds all its pixels; return the number of bytes that reading them needs."""
    frames, rows, columns = int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)
    pixels = frames * rows * columns
    expected = -(-pixels * int(header.get("BitsAllocated", 16)) // 8)  # segmentations have one bit for each
    stored, syntax = file.stat().st_size, header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_transfer_syntax:
        raise ValueError(f"{file} has an unknown transfer syntax ({syntax.name}); convert it with gdcmconv --raw")
    compressed = syntax is not None and (syntax.is_compressed or syntax.is_deflated)
    if stored * (_HUGE_RATIO if compressed else 1) < expected:
        raise ValueError(
            f"{file} is cut off: {frames} x {rows} x {columns} pixels need {expected} bytes, the file has {stored};"
            " get the file again"
        )
    return _COPIES * pixels


def _pixels(file: Path, header: Dataset) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray] | None]:
    """The stored (frames, rows, columns) of a file, and its modality look-up table if it has one."""
    frames, rows, columns = int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)
    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        dataset = _whole(file)
        if syntax is not None and syntax.is_compressed:
            _check_streams(dataset, frames)
        pixels = np.asarray(dataset.pixel_array)
    except (RuntimeError, NotImplementedError) as error:
        name = syntax.name if syntax is not None else "an unknown transfer syntax"
        if "missing dependencies" in str(error):
            raise ValueError(
                f"{file} is compressed as {name}, for which no decoder is installed: pip install pylibjpeg"
                " pylibjpeg-libjpeg pylibjpeg-openjpeg pylibjpeg-rle"
            ) from error
        raise ValueError(
            f"{file}: its pixels ({name}) cannot be decoded: {one_line(error)}; get the file again"
        ) from error
    except (OSError, MemoryError):
        raise
    except BaseException as error:  # decoders fail in many ways on damaged data
        # the decoder of RLE panics, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{file}: its pixels are damaged or cut off: {one_line(error)}; get the file again") from error
    if pixels.size != frames * rows * columns:
        raise ValueError(
            f"{file}: expected {frames} x {rows} x {columns} pixels, got {pixels.shape}; get the file again"
        )
    lookup = None
    if dataset.get("ModalityLUTSequence"):
        lookup = partial(_look_up, dataset=dataset)
    return pixels.reshape(frames, rows, columns), lookup


def _whole(file: Path) -> Dataset:
    """The header and the pixels of a file."""
    try:
        dataset = pydicom.dcmread(file)
        if "TransferSyntaxUID" not in dataset.file_meta:  # files from before DICOM had a preamble are not compressed
            implicit, little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        return dataset
    except MemoryError as error:  # the file itself fits, see `check_memory`
        raise ValueError("an element claims more bytes than the file has") from error


def _check_streams(dataset: Dataset, frames: int) -> None:
    """Refuse compressed images that are cut off or differ in size from the header, since decoders do not check this."""
    if "PixelData" not in dataset:
        raise ValueError("it holds no pixels")
    count = 0
    for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
        count += 1
        found = image_size(frame)
        if found is None:
            continue
        if found != (int(dataset.Columns), int(dataset.Rows)):
            raise ValueError(
                f"the compressed image has {found[0]} x {found[1]} pixels, the header gives"
                f" {dataset.Columns} x {dataset.Rows}"
            )
        if not is_whole(frame):
            raise ValueError("the compressed image has no end")
    if count != frames:
        raise ValueError(f"it holds {count} compressed images, the header gives {frames}")


def _look_up(image: np.ndarray, *, dataset: Dataset) -> np.ndarray:
    return apply_modality_lut(image, dataset)
