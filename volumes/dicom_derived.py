"""Parts shared by all derived DICOM objects: references, equipment, dates, pixels and shared attributes."""

import hashlib
import os
import re
import secrets
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    generate_uid,
)

from ..runs.words import one_line
from .dicom import read_series
from .dicom_encode import Encoding, is_pet, set_pixels
from .dicom_groups import functional_groups, shared_groups

_LOSSY = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000}
_RESAMPLED, _SMOOTHED = ("113085", "Spatial resampling"), ("113087", "Smoothing")
_LONGEST_LO, _ORIGINAL_WORDS = 64, 40  # characters of a DICOM long string, and of it for the original's words
_LARGEST_IS = 2**31 - 1
_LOOKED_AT = 16  # number of files of a series whose headers are checked before the computation
_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}  # bytes of a number in binary values
SERIES_OFFSET = 1000  # added to the series number, so that derived series are sorted after those of the scanner
# attributes that apply only to the source's pixels or bytes
_UNTRUE = (
    "ModalityLUTSequence",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "IconImageSequence",
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "DataSetTrailingPadding",
    "PixelDataProviderURL",
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
)

# enhanced MR images may have these attributes only if their pixels are as measured (PS3.3 C.8.13.4)
_MR_PULSE_SEQUENCE = (
    "PulseSequenceName",
    "MRAcquisitionType",
    "EchoPulseSequence",
    "MultipleSpinEcho",
    "MultiPlanarExcitation",
    "PhaseContrast",
    "TimeOfFlightContrast",
    "ArterialSpinLabelingContrast",
    "SteadyStatePulseSequence",
    "EchoPlanarPulseSequence",
    "SaturationRecovery",
    "SpectrallySelectedSuppression",
    "OversamplingPhase",
    "GeometryOfKSpaceTraversal",
    "RectilinearPhaseEncodeReordering",
    "SegmentedKSpaceTraversal",
    "CoverageOfKSpace",
    "NumberOfKSpaceTrajectories",
)


def uid_of(*words: str) -> UID:
    """A UID derived from words by hashing (ITU-T X.667, version 5)."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def current_time() -> datetime:
    """The current time, or SOURCE_DATE_EPOCH (seconds since 1970) if it is set, for reproducible files."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now().astimezone()


def in_zone_of(now: datetime, header: Dataset) -> datetime:
    """A time in the time zone of a header; unchanged if the header has none."""
    found = re.fullmatch(r"([+-])(\d\d)(\d\d)", str(header.get("TimezoneOffsetFromUTC") or "").strip())
    if found is None:
        return now
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return now.astimezone(timezone(-offset if found[1] == "-" else offset))


def check_free(folder: Path) -> None:
    """Refuse a folder that is not empty, or an existing file with that name."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must not exist or be empty, got {folder}")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to it if the block succeeds and removed if it fails."""
    temporary = folder.parent / f".{secrets.token_hex(4)}.{folder.name}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def derive(
    dataset: Dataset,
    description: str,
    series_uid: str,
    now: datetime,
    *,
    sources: list[Dataset],
    resampled: bool,
    moved: bool = False,
) -> None:
    """Turn the header of a source image into that of a derived image in a new series.

    Args:
        dataset: the header of the source image, or of one of them; it is changed in place.
        description: a description of the processing.
        series_uid: UID of the new series.
        now: time of the derivation.
        sources: references to all source images in the series of `dataset`.
        resampled: whether the pixels have other positions than those of the sources.
        moved: whether the anatomy has another position, too.
    """
    description = one_line(description).replace("\\", "/")  # a backslash separates values in DICOM
    use_characters_of(dataset, description)
    # JPEG 2000 may be lossless; its header then states it
    flag = dataset.get("LossyImageCompression") or ("01" if dataset.file_meta.TransferSyntaxUID in _LOSSY else "00")
    code = code_item(*_RESAMPLED) if resampled else code_item(*_SMOOTHED)
    for source in sources:
        source.PurposeOfReferenceCodeSequence = [code_item("121322", "Source image for image processing operation")]
    if "PerFrameFunctionalGroupsSequence" in dataset:  # an enhanced image records it in its functional groups
        _set_derivation_group(dataset, sources, code, description)
    else:
        for source in sources:
            source.SpatialLocationsPreserved = "NO" if moved else "YES"
        dataset.SourceImageSequence = sources
        dataset.DerivationDescription = description[:1024]
    enhanced_mr = dataset.SOPClassUID == EnhancedMRImageStorage
    for keyword in _UNTRUE + (_MR_PULSE_SEQUENCE if enhanced_mr else ()):
        if keyword in dataset:
            del dataset[keyword]
    _set_image_types(dataset)
    dataset.SeriesInstanceUID = series_uid
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    number = derived_series_number(dataset, SERIES_OFFSET)
    if "SeriesNumber" in dataset:  # text that is no number cannot be replaced
        del dataset["SeriesNumber"]
    dataset.SeriesNumber = number
    dataset.SeriesDescription = series_description(str(dataset.get("SeriesDescription") or ""), description)
    now = in_zone_of(now, dataset)
    dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = now.strftime("%H%M%S")
    if dataset.get("Modality") != "PT":  # PET values are corrected for the decay since the time of the series
        dataset.SeriesDate, dataset.SeriesTime = dataset.InstanceCreationDate, dataset.InstanceCreationTime
    dataset.ContributingEquipmentSequence = [*dataset.get("ContributingEquipmentSequence", []), equipment()]
    if flag == "01":
        dataset.LossyImageCompression = flag
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _set_image_types(dataset: Dataset) -> None:
    """Mark the image and its frames as derived."""
    # a derived image is SECONDARY, but enhanced images and PET allow only PRIMARY (PS3.3 C.8.16.1.2, C.8.9.4.1.1)
    enhanced = "PerFrameFunctionalGroupsSequence" in dataset
    rank = "PRIMARY" if enhanced or is_pet(dataset) else "SECONDARY"
    dataset.ImageType = _derived(dataset.get("ImageType"), rank)
    for group in functional_groups(dataset):
        for element in group:
            if element.VR == "SQ" and element.value and "FrameType" in element.value[0]:
                element.value[0].FrameType = _derived(element.value[0].FrameType, rank)


def series_description(original: str, description: str) -> str:
    """The description of a derived series: the original's words, then what was done, in 64 characters.

    Example:
        >>> series_description("t1_mprage_sag", "denoise by MaIR weights denoise-grey")
        't1_mprage_sag, denoise by MaIR weights denoise-grey'
    """
    original = one_line(original).strip()
    return f"{original[:_ORIGINAL_WORDS]}, {description}"[:_LONGEST_LO] if original else description[:_LONGEST_LO]


def derived_series_number(header: Dataset, offset: int) -> int:
    """The number of a derived series: the source's number (0 if none) plus `offset`, within the range of an IS."""
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError, OverflowError):  # text that is no number
        number = 0
    return min(number + offset, _LARGEST_IS)


def use_characters_of(dataset: Dataset, text: str) -> None:
    """Set a character set that can represent a text: the header's own if possible, otherwise Unicode."""
    if text.isascii():
        return
    names = dataset.get("SpecificCharacterSet") or []
    names = [names] if isinstance(names, str) else list(names)
    try:
        if not any(names):
            raise UnicodeEncodeError("ascii", text, 0, 1, "no character set")
        for encoding in convert_encodings(names)[:1]:
            text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"


def read_source(file: Path, *, pixels: bool = True) -> Dataset:
    """Read a source image, with its elements converted to little-endian byte order, in which we write."""
    dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not (syntax.is_transfer_syntax and not syntax.is_little_endian):
        return dataset
    turned = _little_endian(dataset)
    turned.file_meta = dataset.file_meta
    return turned


def _little_endian(dataset: Dataset) -> Dataset:
    turned = Dataset()
    for element in dataset:
        value = element.value
        if element.VR == "SQ":
            value = [_little_endian(item) for item in value]
        elif element.VR == "UN" or element.tag.group == 0x7FE0:  # unknown byte order; and pixels, which are replaced
            continue
        elif element.VR in _WORDS and isinstance(value, bytes):
            value = np.frombuffer(value, f">u{_WORDS[element.VR]}").byteswap().tobytes()
        turned.add_new(element.tag, element.VR, value)
    return turned


def check_source(source: Path) -> None:
    """Refuse a series whose headers cannot be used for derived images, before anything is computed.

    Args:
        source: the series, or the multi-frame file.

    Raises:
        ValueError: a header cannot be used; the message gives the file and the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading the series gives the warnings
        headers, stacks = read_series(source)
        files = list(headers)
        for file in files[:: max(1, len(files) // _LOOKED_AT)]:
            try:
                dataset = read_source(file, pixels=False)
                references = [reference_item(dataset)]
                derive(dataset, "check", "1.2", current_time(), sources=references, resampled=True)
                frames = [frame for stack in stacks for frame in stack if frame.path == file]
                set_pixels(dataset, np.zeros((1, 1, 1), np.uint16), Encoding(1.0, 0.0, 0), frames)
                dataset.save_as(BytesIO(), enforce_file_format=True)
            except Exception as error:  # pydicom decodes a value on access
                raise ValueError(
                    f"{file}: no derived DICOM image can be made of it ({one_line(error)}); write a NIfTI file instead"
                ) from error


def _set_derivation_group(dataset: Dataset, sources: list[Dataset], code: Dataset, description: str) -> None:
    """Record the sources of an enhanced image: once for all frames, or per frame if the source does so."""
    derivation = Dataset()
    derivation.DerivationDescription = description[:1024]
    derivation.DerivationCodeSequence = [code]
    derivation.SourceImageSequence = sources
    frames, shared = list(dataset.PerFrameFunctionalGroupsSequence), shared_groups(dataset)
    by_frame = not shared or any("DerivationImageSequence" in frame for frame in frames)
    for group in frames if by_frame else shared:
        group.DerivationImageSequence = [derivation]
    series = Dataset()
    series.SeriesInstanceUID = dataset.SeriesInstanceUID
    series.ReferencedSOPSequence = [reference_item(source) for source in sources]
    study = Dataset()
    study.StudyInstanceUID = dataset.StudyInstanceUID
    study.ReferencedSeriesSequence = [series]
    dataset.SourceImageEvidenceSequence = [study]


def reference_item(image: Dataset) -> Dataset:
    """A reference to an image by class and UID, from its header or from another reference."""
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.get("SOPClassUID") or image.ReferencedSOPClassUID
    reference.ReferencedSOPInstanceUID = image.get("SOPInstanceUID") or image.ReferencedSOPInstanceUID
    return reference


def _derived(image_type: Any, rank: str) -> list[str]:
    rest = [str(value) for value in image_type or []][2:]
    return ["DERIVED", rank, *rest]


def code_item(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def equipment() -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item("109103", "Modifying Equipment")]
    item.Manufacturer = "voxelwave"
    try:
        item.SoftwareVersions = version("voxelwave")
    except PackageNotFoundError:
        item.SoftwareVersions = "unknown"
    return item
