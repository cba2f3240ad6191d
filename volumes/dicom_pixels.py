"""The pixels of a DICOM series, decoded and rescaled."""

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import data_element_generator
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..runs.memory import check_memory
from ..runs.words import one_line
from .codestream import image_size, is_whole
from .dicom_frames import Frame
from .dicom_groups import value_of
from .mosaic import is_mosaic, tiles

_HUGE_RATIO = 10_000  # no lossless compression reaches this ratio
_PIXELS = tuple(struct.pack("<HH", 0x7FE0, element) for element in (0x08, 0x09, 0x10))  # tags, little-endian
_COPIES = 16  # bytes per pixel while it is decoded, scaled and copied


def values_of(path: Path, headers: dict[Path, Dataset], volumes: list[list[Frame]]) -> np.ndarray:
    """(volumes, slices, rows flipped, columns) of rescaled values."""
    places = {(f.path, f.index): (t, k) for t, volume in enumerate(volumes) for k, f in enumerate(volume)}
    frames = {(f.path, f.index): f for volume in volumes for f in volume}
    exact = all(f.slope == 1 and f.intercept == round(f.intercept) for f in frames.values())
    values: np.ndarray | None = None
    low = high = 0  # of all whole numbers so far
    check_memory(path, sum(_check_size(file, header) for file, header in headers.items()))
    for file, header in headers.items():
        stored, lookup = _pixels(file, header)
        if is_mosaic(header):
            stored = tiles(file, header, stored[0])
        for index, image in enumerate(stored):
            frame = frames[file, index]
            shift = 0
            if lookup is not None:
                scaled = np.asarray(lookup(image), dtype=np.float32)
            elif image.dtype.kind == "f" or not exact:
                with np.errstate(over="ignore"):  # infinite values are refused below
                    scaled = (image.astype(np.float64) * frame.slope + frame.intercept).astype(np.float32)
            else:
                scaled, shift = image, int(frame.intercept)
                low, high = min(low, int(image.min()) + shift), max(high, int(image.max()) + shift)
            dtype = _narrowest(low, high) if scaled.dtype.kind != "f" else scaled.dtype
            if values is None:
                values = np.empty((len(volumes), len(volumes[0]), *scaled.shape), dtype)
            if values.dtype != dtype:
                values = values.astype(np.float64 if "f" in (values.dtype.kind, dtype.kind) else dtype, copy=False)
            if shift:
                _add(scaled[::-1], shift, out=values[places[file, index]])
            else:
                values[places[file, index]] = scaled[::-1]
    assert values is not None  # there is at least one frame
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{path}: some rescaled values are not finite; check RescaleSlope and RescaleIntercept")
    return values


def _add(image: np.ndarray, shift: int, *, out: np.ndarray) -> None:
    """Write image + shift into an array of whole numbers that holds the sums."""
    if (
        image.dtype.isnative and image.dtype.itemsize == out.dtype.itemsize
    ):  # modulo 2**bits, which takes a fraction of the time
        unsigned = np.dtype(f"u{out.dtype.itemsize}")
        modulus = 1 << 8 * out.dtype.itemsize
        np.add(image.view(unsigned), unsigned.type(shift % modulus), out=out.view(unsigned))
    else:
        wide = np.int64 if image.dtype.itemsize > 2 else np.int32
        np.add(image, wide(shift), out=out, casting="unsafe")


def _narrowest(low: int, high: int) -> np.dtype[Any]:
    """int16 if it holds these numbers, otherwise the next larger type."""
    fits = (t for t in (np.int16, np.uint16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return np.dtype(next(fits, np.int64))


def _check_size(file: Path, header: Dataset) -> int:
    """Check that the file holds all its pixels; return the number of bytes that reading them needs."""
    frames, rows, columns = _shape(header)
    pixels = frames * rows * columns
    bits = value_of(header, "BitsAllocated")
    expected = -(-pixels * (16 if bits is None else int(bits)) // 8)  # segmentations have one bit for each
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


def _shape(header: Dataset) -> tuple[int, int, int]:
    """Frames, rows and columns."""
    return int(value_of(header, "NumberOfFrames") or 1), int(value_of(header, "Rows")), int(value_of(header, "Columns"))


def _pixels(file: Path, header: Dataset) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray] | None]:
    """The stored (frames, rows, columns) of a file, and its modality look-up table if it has one."""
    frames, rows, columns = _shape(header)
    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        dataset = _with_pixels(file, header)
        pixels = _uncompressed(dataset, frames * rows * columns)
        if pixels is None:
            if syntax is not None and syntax.is_compressed:
                _check_streams(dataset, frames)
            decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
            pixels, _ = decoder.as_array(dataset)
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
    if value_of(header, "ModalityLUTSequence"):
        lookup = partial(_look_up, dataset=header)
    return pixels.reshape(frames, rows, columns), lookup


def _uncompressed(dataset: Dataset, count: int) -> np.ndarray | None:
    """The pixels of an uncompressed grey image without a copy of its bytes; None for those that pydicom must decode.

    pydicom also shifts the values back and forth, to clear unused bits; here only if any of them is used.
    """
    names = ("SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
    samples, allocated, stored, signed, interpretation = (value_of(dataset, name) for name in names)
    data = value_of(dataset, "PixelData")
    if (
        dataset.file_meta.TransferSyntaxUID not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
        or interpretation not in ("MONOCHROME1", "MONOCHROME2")
        or (samples, signed) not in ((1, 0), (1, 1))
        or allocated not in (8, 16, 32)
        or stored not in range(1, allocated + 1)
        or count < 1
        or not isinstance(data, bytes)
        or any(value_of(dataset, name) is not None for name in ("FloatPixelData", "DoubleFloatPixelData"))
        or len(data) not in (size := count * allocated // 8, size + size % 2)
    ):
        return None
    values = np.frombuffer(data, f"<{'i' if signed else 'u'}{allocated // 8}", count=count)
    if stored < allocated:
        least, most = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
        if values.max() > most or (signed and values.min() < least):
            values = values << allocated - stored >> allocated - stored
    return values


def _with_pixels(file: Path, header: Dataset) -> Dataset:
    try:
        return _rest(file, header) or _whole(file)
    except MemoryError as error:  # the file itself fits, see `check_memory`
        raise ValueError("an element claims more bytes than the file has") from error


def _rest(file: Path, header: Dataset) -> Dataset | None:
    """The header with the pixels, for which reading goes on where the header ends; None for a file to be read whole.

    These are deflated ones, big-endian ones, and those that are not encoded as their header says.
    """
    implicit, little = header.original_encoding
    if "TransferSyntaxUID" not in header.file_meta or not little:
        return None
    with file.open("rb") as stream:
        stream.seek(header.end_of_header)
        start = stream.read(6)
        if start[:4] not in _PIXELS or (start[4:] in (b"OB", b"OW", b"OF", b"OD")) == implicit:
            return None
        stream.seek(header.end_of_header)
        pixels = {element.tag: element for element in data_element_generator(stream, bool(implicit), True)}
    dataset = Dataset({**dict(header.items()), **pixels})
    dataset.set_original_encoding(implicit, little, header.original_character_set)
    dataset.file_meta = header.file_meta
    return dataset


def _whole(file: Path) -> Dataset:
    """The header and the pixels of a file."""
    dataset = pydicom.dcmread(file)
    if "TransferSyntaxUID" not in dataset.file_meta:  # files from before DICOM had a preamble are not compressed
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


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
