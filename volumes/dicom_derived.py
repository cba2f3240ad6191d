"""Parts shared by all derived DICOM objects: references, equipment, dates, pixels and shared attributes."""

import hashlib
import os
import secrets
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
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

_LOSSY = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000}
_RESAMPLED, _SMOOTHED = ("113085", "Spatial resampling"), ("113087", "Smoothing")
SERIES_OFFSET = 1000  # added to the series number, so that derived series sort behind those of the scanner
# true of the source's pixels or bytes only
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
)

# enhanced MR images have these only while their pixels are as they were measured (PS3.3 C.8.13.4)
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
    """A UID that follows from words alone, by hashing (ITU-T X.667, version 5)."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def current_time() -> datetime:
    """The time; that of SOURCE_DATE_EPOCH, seconds since 1970, where files are to be the same each time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now()


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already, or a file of that name."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must not exist or be empty, got {folder}")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed onto it when the block ends well and removed when it does not."""
    temporary = folder.parent / f".{secrets.token_hex(4)}.{folder.name}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def encode(planes: np.ndarray, frames: list[Any], header: Dataset) -> tuple[np.ndarray, dict[str, float | int]]:
    """Stored whole numbers for real values, and how they are to be read."""
    low, high = float(planes.min()), float(planes.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("volume must hold finite values, got NaN or infinite ones")
    whole = planes.dtype.kind in "iu"
    signed = int(header.get("PixelRepresentation", 0))
    finest = min(frames, key=lambda frame: abs(frame.slope))  # images of one series may have slopes of their own
    slope, intercept = finest.slope, finest.intercept
    tries = [(slope, intercept, signed), (slope, intercept, 1 - signed)]
    if whole:
        tries += [(1.0, 0.0, 1), (1.0, 0.0, 0)]
    for m, b, representation in tries:
        dtype = np.dtype(np.int16 if representation else np.uint16)
        limits = np.iinfo(dtype)
        exact = not whole or (m == 1 and b == round(b))
        if exact and limits.min <= round((low - b) / m) and round((high - b) / m) <= limits.max:
            break
    else:
        # a decimal string has at most 16 characters: use the rounded values that are written
        m, b = float(f"{max(high - low, 1e-6) / 65534:.10g}"), float(f"{low:.10g}")
        representation, dtype = 0, np.dtype(np.uint16)
    stored = np.clip(np.rint((planes.astype(np.float64) - b) / m), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return stored.astype(dtype), {"slope": m, "intercept": b, "signed": representation}


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
    """Make the header one of a derived image in a new series.

    Args:
        dataset: the header of the image that it was made from, or of one of them.
        description: what was done.
        series_uid: of the new series.
        now: when.
        sources: references to all images that it was made from, of the series of `dataset`.
        resampled: the pixels lie elsewhere than those of the sources.
        moved: and the anatomy does too.
    """
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
    # what was done is SECONDARY, but enhanced images know PRIMARY alone (PS3.3 C.8.16.1.2)
    rank = "PRIMARY" if "PerFrameFunctionalGroupsSequence" in dataset else "SECONDARY"
    dataset.ImageType = _derived(dataset.get("ImageType"), rank)
    for group in functional_groups(dataset):
        for element in group:
            if element.VR == "SQ" and element.value and "FrameType" in element.value[0]:
                element.value[0].FrameType = _derived(element.value[0].FrameType, rank)
    dataset.SeriesInstanceUID = series_uid
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.SeriesNumber = int(dataset.get("SeriesNumber") or 0) + SERIES_OFFSET
    dataset.SeriesDescription = description[:64]
    dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = now.strftime("%H%M%S")
    dataset.SeriesDate, dataset.SeriesTime = dataset.InstanceCreationDate, dataset.InstanceCreationTime
    dataset.ContributingEquipmentSequence = [*dataset.get("ContributingEquipmentSequence", []), equipment()]
    if flag == "01":
        dataset.LossyImageCompression = flag
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _set_derivation_group(dataset: Dataset, sources: list[Dataset], code: Dataset, description: str) -> None:
    """What an enhanced image came from: once for all its frames, or for each where the source has it so."""
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
    """One image, by class and UID, from a header or from another reference."""
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.get("SOPClassUID") or image.ReferencedSOPClassUID
    reference.ReferencedSOPInstanceUID = image.get("SOPInstanceUID") or image.ReferencedSOPInstanceUID
    return reference


def _derived(image_type: Any, rank: str) -> list[str]:
    rest = [str(value) for value in image_type or []][2:]
    return ["DERIVED", rank, *rest]


def functional_groups(dataset: Dataset) -> list[Dataset]:
    """All functional groups of an enhanced image, those of each frame and those of all."""
    return [*(dataset.get("PerFrameFunctionalGroupsSequence") or []), *shared_groups(dataset)]


def shared_groups(dataset: Dataset) -> list[Dataset]:
    return list(dataset.get("SharedFunctionalGroupsSequence") or [])


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


def set_pixels(dataset: Dataset, stored: np.ndarray, encoding: dict[str, float | int]) -> None:
    """(frames, rows, columns) and how to read them."""
    signed = int(encoding["signed"])
    if signed != int(dataset.get("PixelRepresentation", 0)):
        # their type follows the pixels': written for the other one, they would be misread
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            if keyword in dataset:
                del dataset[keyword]
    dataset.PixelRepresentation = signed
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.SamplesPerPixel = 1
    if dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        dataset.PhotometricInterpretation = "MONOCHROME2"
    slope, intercept = f"{encoding['slope']:.10g}", f"{encoding['intercept']:.10g}"
    _set_rescale(dataset, slope, intercept)
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    dataset["PixelData"].VR = "OW"


def _set_rescale(dataset: Dataset, slope: str, intercept: str) -> None:
    """Where the source has its rescale, else at the top if one is needed."""
    found = False
    for holder in functional_groups(dataset):
        for inner in holder.get("PixelValueTransformationSequence") or []:
            inner.RescaleSlope, inner.RescaleIntercept = slope, intercept
            found = True
    if "RescaleSlope" in dataset or (not found and (float(slope), float(intercept)) != (1, 0)):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        if "RescaleType" not in dataset:
            dataset.RescaleType = "HU" if dataset.get("Modality") == "CT" else "US"
