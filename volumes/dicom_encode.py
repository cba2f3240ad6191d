"""The pixels of derived DICOM images: 16-bit integers, and the attributes that define their meaning."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import PositronEmissionTomographyImageStorage

from .dicom_frames import Frame
from .dicom_groups import functional_groups, shared_groups, tags_of

_MAPS = "RealWorldValueMappingSequence"
_PHILIPS_SCALE = (0x09, 0x0A, 0x0D, 0x0E)  # in "Philips MR Imaging DD 001": rescale and scale of the stored numbers


class Encoding(NamedTuple):
    """The meaning of stored numbers: value = slope * stored + intercept; `signed` is 1 for signed integers."""

    slope: float
    intercept: float
    signed: int


def encode(planes: np.ndarray, frames: Sequence[Frame], header: Dataset) -> tuple[np.ndarray, Encoding]:
    """Encode real values as stored integers; returns these and their encoding."""
    low, high = float(planes.min()), float(planes.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("volume must hold finite values, got NaN or infinite ones")
    whole = planes.dtype.kind in "iu"
    signed = int(header.get("PixelRepresentation", 0))
    finest = min(frames, key=lambda frame: abs(frame.slope))  # images of one series may have different slopes
    tries = []
    if whole or not _holds_fractions(header):
        tries += [(finest.slope, finest.intercept, signed), (finest.slope, finest.intercept, 1 - signed)]
    if whole:
        tries += [(1.0, 0.0, 1), (1.0, 0.0, 0)]
    for m, b, representation in tries:
        dtype = np.dtype(np.int16 if representation else np.uint16)
        limits = np.iinfo(dtype)
        exact = not whole or (m == 1 and b == round(b))
        fitting = not is_pet(header) or b == 0
        if exact and fitting and limits.min <= round((low - b) / m) and round((high - b) / m) <= limits.max:
            break
    else:
        m, b, representation = _own_scale(low, high, header)
        dtype = np.dtype(np.int16 if representation else np.uint16)
    stored = np.clip(np.rint((planes.astype(np.float64) - b) / m), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return stored.astype(dtype), Encoding(m, b, representation)


def _own_scale(low: float, high: float, header: Dataset) -> tuple[float, float, int]:
    """Slope, intercept and sign of pixels that cover a range; rounded to fit a decimal string of 16 characters."""
    if is_pet(header):  # the intercept of PET is always 0 (PS3.3 C.8.9.4)
        signed = int(low < 0)
        largest = max(abs(low), abs(high)) or 1.0
        return float(f"{largest / (32767 if signed else 65534):.10g}"), 0.0, signed
    return float(f"{((high - low) or 1e-6) / 65534:.10g}"), float(f"{low:.10g}"), 0


def _holds_fractions(header: Dataset) -> bool:
    """Whether the source's values are not multiples of a slope: float pixels, or a look-up table."""
    floats = int(header.get("BitsAllocated", 16)) >= 32 and "PixelRepresentation" not in header
    return floats or "ModalityLUTSequence" in header


def is_pet(header: Dataset) -> bool:
    """Whether an image is a classic PET image, in which the standard fixes some values."""
    return bool(header.get("SOPClassUID") == PositronEmissionTomographyImageStorage)


def set_pixels(
    dataset: Dataset, stored: np.ndarray, encoding: Encoding, sources: Sequence[Frame], *, keep_maps: bool = True
) -> None:
    """Set the pixels of an image and the attributes of their encoding.

    Args:
        dataset: the image.
        stored: (frames, rows, columns), integers.
        encoding: the encoding of `stored`.
        sources: for each frame, the source frame whose header it has.
        keep_maps: fit real-world value maps to the new pixels; otherwise remove them.
    """
    signed = encoding.signed
    _fit_maps(dataset, encoding, sources if keep_maps else [])
    if any((frame.slope, frame.intercept) != (encoding.slope, encoding.intercept) for frame in sources):
        _remove_philips_scale(dataset)
    if signed != int(dataset.get("PixelRepresentation", 0)):
        # their type depends on the sign of the pixels; with the other sign, they would be misread
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            if keyword in dataset:
                del dataset[keyword]
    dataset.PixelRepresentation = signed
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.SamplesPerPixel = 1
    if dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        dataset.PhotometricInterpretation = "MONOCHROME2"
    slope, intercept = f"{encoding.slope:.10g}", f"{encoding.intercept:.10g}"
    _set_rescale(dataset, slope, intercept)
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    dataset["PixelData"].VR = "OW"


def _set_rescale(dataset: Dataset, slope: str, intercept: str) -> None:
    """Write the rescale at the position of the source's rescale, or at the top level if one is needed."""
    found = False
    for holder in functional_groups(dataset):
        for inner in holder.get("PixelValueTransformationSequence") or []:
            inner.RescaleSlope, inner.RescaleIntercept = slope, intercept
            found = True
    if "RescaleSlope" in dataset or (not found and (float(slope), float(intercept)) != (1, 0)):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        if "RescaleType" not in dataset:
            dataset.RescaleType = "HU" if dataset.get("Modality") == "CT" else "US"


def same_maps(headers: Sequence[Dataset], frames: Sequence[Frame]) -> bool:
    """Whether all frames of a series have the same map to real-world values, which then also applies to mixtures."""
    scales = {(frame.slope, frame.intercept) for frame in frames}
    holders = [holder for header in headers for holder in [header, *functional_groups(header)] if _MAPS in holder]
    maps = {tuple(str(item) for item in holder[_MAPS].value or []) for holder in holders}
    return len(scales) == 1 and len(maps) == 1


def _fit_maps(dataset: Dataset, encoding: Encoding, sources: Sequence[Frame]) -> None:
    """Fit linear maps from stored numbers to real-world values to the new numbers; others are left out."""
    frames = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    holders: list[tuple[Dataset, Sequence[Frame]]] = [
        (holder, sources) for holder in [dataset, *shared_groups(dataset)]
    ]
    holders += [(group, sources[k : k + 1]) for k, group in enumerate(frames)]
    for holder, of in holders:
        if _MAPS not in holder:
            continue
        scales = {(frame.slope, frame.intercept) for frame in of}
        items = list(holder[_MAPS].value or [])
        ranges = {
            (item.get("RealWorldValueFirstValueMapped"), item.get("RealWorldValueLastValueMapped")) for item in items
        }
        linear = all("RealWorldValueSlope" in item and "RealWorldValueIntercept" in item for item in items)
        if len(scales) == 1 and len(ranges) == 1 and linear:
            slope, intercept = scales.pop()
            for item in items:
                _fit_map(item, slope, intercept, encoding)
        else:
            del holder[_MAPS]


def _fit_map(item: Dataset, slope: float, intercept: float, encoding: Encoding) -> None:
    of_value = float(item.RealWorldValueSlope) / slope
    item.RealWorldValueIntercept = float(item.RealWorldValueIntercept) + (encoding.intercept - intercept) * of_value
    item.RealWorldValueSlope = encoding.slope * of_value
    limits = np.iinfo(np.int16 if encoding.signed else np.uint16)
    for end in ("First", "Last"):
        if f"DoubleFloatRealWorldValue{end}ValueMapped" in item:
            del item[f"DoubleFloatRealWorldValue{end}ValueMapped"]
        tag = Tag(f"RealWorldValue{end}ValueMapped")
        value = int(limits.min if end == "First" else limits.max)
        item[tag] = DataElement(tag, "SS" if encoding.signed else "US", value)


def _remove_philips_scale(dataset: Dataset) -> None:
    """Remove the private scale of the old numbers, in the image and in its private groups."""
    private = [tag for tag in tags_of(dataset) if tag.group == 0x2005 and tag.is_private]
    for tag in private:
        if tag.element >= 0x1000 and tag.element & 0xFF in _PHILIPS_SCALE:
            del dataset[tag]
    for holder in functional_groups(dataset):
        for tag in [tag for tag in tags_of(holder) if tag.group == 0x2005 and tag.element & 0xFF == 0x0F]:
            if holder[tag].VR == "SQ":
                for item in holder[tag].value:
                    _remove_philips_scale(item)
