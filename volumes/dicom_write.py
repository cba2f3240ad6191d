"""Write values that were computed from a DICOM series as a derived series beside it.

Headers are those of the source images, so patient, study, acquisition and display stay. What the new pixels make untrue
is changed: identifiers of series and images, image type, size, spacing, stored type, rescale; and what they came from
is said (DICOM PS3.3: C.7.6.1 General Image, C.7.6.16.2.6 Derivation Image).
"""

import hashlib
import json
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
import pydicom
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

from .dicom import _frames, _headers, _one_series, _stack, _without_copies
from .volume import Volume

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LOSSY = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000}
_RESAMPLED, _SMOOTHED = ("113085", "Spatial resampling"), ("113087", "Smoothing")
_SERIES_OFFSET = 1000  # added to the series number, so that derived series sort behind those of the scanner
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


def write_derived_series(
    folder: str | os.PathLike, volume: Volume, source_folder: str | os.PathLike, description: str
) -> Path:
    """Write a volume that was computed from a DICOM series as a new, derived series of the same study.

    Image for image as the source: classic files stay one per slice, an enhanced multi-frame file stays one file.
    Stored uncompressed; whole numbers exactly where 16 bits hold them, else rounded to 1 / 65,534 of the values' span
    or, where the source's own rescale slope holds them all, to that slope. The same values from the same series get the
    same UIDs, so that sending them again doubles nothing; with SOURCE_DATE_EPOCH in the environment (seconds since
    1970, taken as the time) the files are the same too. The folder appears whole or not at all.

    Args:
        folder: to write into; must not exist, or be empty.
        volume: (columns, rows, slices) or (columns, rows, slices, volumes) as `read_volume` gives it for the source;
            values in the source's output unit (HU). In-plane size may differ; number and places of slices may not.
        source_folder: the series, or the multi-frame file, that the values come from.
        description: what was done; SeriesDescription gets its start, DerivationDescription all of it.

    Returns:
        The folder.

    Raises:
        ValueError: the volume does not lie on the source's slices, or the folder is not empty.
    """
    folder, source_folder = Path(folder), Path(source_folder)
    check_free(folder)
    headers = _without_copies(source_folder, _one_series(source_folder, _headers(source_folder)))
    frames = [frame for file, header in headers.items() for frame in _frames(file, header)]
    stacks, _ = _stack(source_folder, frames)
    array = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    _check_grid(volume, array.shape, stacks, source_folder)
    # (volume, slice, rows downwards, columns), as images are stored
    planes = array.transpose(3, 2, 1, 0)[:, :, ::-1]
    stored, encoding = _encode(planes, frames, next(iter(headers.values())))
    places = {(f.path, f.index): (t, k) for t, stack in enumerate(stacks) for k, f in enumerate(stack)}

    source_uid = str(next(iter(headers.values())).get("SeriesInstanceUID", ""))
    digest = hashlib.sha256(stored.tobytes()).hexdigest()
    series_uid = _uid_of(source_uid, description, digest, json.dumps(encoding), *map(str, volume.affine.ravel()))
    now = _now()
    with _atomic_folder(folder) as temporary:
        for number, file in enumerate(headers):
            dataset = pydicom.dcmread(file)
            image_uid = _uid_of(series_uid, str(dataset.get("SOPInstanceUID") or number))
            count = sum(path == file for path, _ in places)
            chosen = [places[file, index] for index in range(count)]
            resampled = (int(dataset.Columns), int(dataset.Rows)) != volume.shape[:2]
            _derive(dataset, description, series_uid, now, sources=[_reference(dataset)], resampled=resampled)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = image_uid
            _set_geometry(dataset, volume, [k for _, k in chosen])
            _set_pixels(dataset, np.stack([stored[place] for place in chosen]), encoding)
            name = file.name if file.suffix.lower() == ".dcm" else f"{number:05d}.dcm"
            dataset.save_as(temporary / name, enforce_file_format=True)
    return folder


def _uid_of(*words: str) -> UID:
    """A UID that follows from words alone, by hashing (ITU-T X.667, version 5)."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def _now() -> datetime:
    """The time; that of SOURCE_DATE_EPOCH, seconds since 1970, where files are to be the same each time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now()


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already, or a file of that name."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must not exist or be empty, got {folder}")


@contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
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


def _check_grid(volume: Volume, shape: tuple[int, ...], stacks: list[list[Any]], source: Path) -> None:
    """Refuse a volume whose slices are not the source's."""
    if shape[2:] != (len(stacks[0]), len(stacks)):
        raise ValueError(
            f"volume must have {len(stacks[0])} slices and {len(stacks)} volumes to match {source}, got {shape[2:]}"
        )
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    for k, frame in enumerate(stacks[0]):
        centre = volume.affine @ [(shape[0] - 1) / 2, (shape[1] - 1) / 2, k, 1]
        offset = (_LPS @ centre)[:3] - frame.position
        normal = np.cross(frame.orientation[:3], frame.orientation[3:])
        if abs(offset @ normal) > 0.1 * volume.spacing[2]:
            raise ValueError(
                f"volume does not lie on the slices of {source}: slice {k} is {offset @ normal:.2f} mm off"
            )
        if (_LPS[:3, :3] @ axes[:, 0]) @ frame.orientation[:3] < 0.99:
            raise ValueError(f"volume must have the axes that read_volume gives for {source}, got {volume.orientation}")


def _encode(planes: np.ndarray, frames: list[Any], header: Dataset) -> tuple[np.ndarray, dict[str, float | int]]:
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
        # a decimal string has 16 characters, so what will be written is what is used here
        m, b = float(f"{max(high - low, 1e-6) / 65534:.10g}"), float(f"{low:.10g}")
        representation, dtype = 0, np.dtype(np.uint16)
    stored = np.clip(np.rint((planes.astype(np.float64) - b) / m), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return stored.astype(dtype), {"slope": m, "intercept": b, "signed": representation}


def _derive(
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
    # JPEG 2000 may be without loss; its header then says so
    flag = dataset.get("LossyImageCompression") or ("01" if dataset.file_meta.TransferSyntaxUID in _LOSSY else "00")
    code = _code(*_RESAMPLED) if resampled else _code(*_SMOOTHED)
    for source in sources:
        source.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    if "PerFrameFunctionalGroupsSequence" in dataset:  # an enhanced image says it in its functional groups
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
    for group in _groups(dataset):
        for element in group:
            if element.VR == "SQ" and element.value and "FrameType" in element.value[0]:
                element.value[0].FrameType = _derived(element.value[0].FrameType, rank)
    dataset.SeriesInstanceUID = series_uid
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.SeriesNumber = int(dataset.get("SeriesNumber") or 0) + _SERIES_OFFSET
    dataset.SeriesDescription = description[:64]
    dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = now.strftime("%H%M%S")
    dataset.SeriesDate, dataset.SeriesTime = dataset.InstanceCreationDate, dataset.InstanceCreationTime
    dataset.ContributingEquipmentSequence = [*dataset.get("ContributingEquipmentSequence", []), _equipment()]
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
    frames, shared = list(dataset.PerFrameFunctionalGroupsSequence), _shared(dataset)
    by_frame = not shared or any("DerivationImageSequence" in frame for frame in frames)
    for group in frames if by_frame else shared:
        group.DerivationImageSequence = [derivation]
    series = Dataset()
    series.SeriesInstanceUID = dataset.SeriesInstanceUID
    series.ReferencedSOPSequence = [_reference(source) for source in sources]
    study = Dataset()
    study.StudyInstanceUID = dataset.StudyInstanceUID
    study.ReferencedSeriesSequence = [series]
    dataset.SourceImageEvidenceSequence = [study]


def _reference(image: Dataset) -> Dataset:
    """One image, by class and UID, from a header or from another reference."""
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.get("SOPClassUID") or image.ReferencedSOPClassUID
    reference.ReferencedSOPInstanceUID = image.get("SOPInstanceUID") or image.ReferencedSOPInstanceUID
    return reference


def _derived(image_type: Any, rank: str) -> list[str]:
    rest = [str(value) for value in image_type or []][2:]
    return ["DERIVED", rank, *rest]


def _groups(dataset: Dataset) -> list[Dataset]:
    """All functional groups of an enhanced image, those of each frame and those of all."""
    return [*(dataset.get("PerFrameFunctionalGroupsSequence") or []), *_shared(dataset)]


def _shared(dataset: Dataset) -> list[Dataset]:
    return list(dataset.get("SharedFunctionalGroupsSequence") or [])


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _equipment() -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_code("109103", "Modifying Equipment")]
    item.Manufacturer = "voxelwave"
    try:
        item.SoftwareVersions = version("voxelwave")
    except PackageNotFoundError:
        item.SoftwareVersions = "unknown"
    return item


def _set_geometry(dataset: Dataset, volume: Volume, slices: list[int]) -> None:
    """Size, spacing and first pixel, if the volume has another in-plane grid than the image."""
    columns, rows = volume.shape[:2]
    if (int(dataset.Columns), int(dataset.Rows)) == (columns, rows):
        return
    dataset.Columns, dataset.Rows = columns, rows
    spacing = [f"{volume.spacing[1]:.10g}", f"{volume.spacing[0]:.10g}"]
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    for holder in [dataset, *_shared(dataset), *groups]:
        for inner in [holder, *(holder.get("PixelMeasuresSequence") or [])]:
            if "PixelSpacing" in inner:
                inner.PixelSpacing = spacing
    for holder, k in zip(groups or [dataset], slices, strict=True):
        position = (_LPS @ volume.affine @ [0, rows - 1, k, 1])[:3]
        inner = holder["PlanePositionSequence"][0] if "PlanePositionSequence" in holder else holder
        inner.ImagePositionPatient = [f"{value:.10g}" for value in position]
    for element in [e for e in dataset if 0x6000 <= e.tag.group <= 0x60FF]:  # overlays of the old size
        del dataset[element.tag]


def _set_pixels(dataset: Dataset, stored: np.ndarray, encoding: dict[str, float | int]) -> None:
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
    for holder in _groups(dataset):
        for inner in holder.get("PixelValueTransformationSequence") or []:
            inner.RescaleSlope, inner.RescaleIntercept = slope, intercept
            found = True
    if "RescaleSlope" in dataset or (not found and (float(slope), float(intercept)) != (1, 0)):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        if "RescaleType" not in dataset:
            dataset.RescaleType = "HU" if dataset.get("Modality") == "CT" else "US"
