"""Small DICOM images, which the tests of this folder modify."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

ROWS, COLUMNS = 4, 5


def _header(sop_class: str) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.PatientID, image.PatientName, image.Modality, image.SeriesNumber = "p1", "Phantom", "MR", 3
    image.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    return image


def _holding(**values: object) -> list[Dataset]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def _write_classic(
    folder: Path, stored: np.ndarray, *, step: tuple[float, float, float] = (0, 0, 3), edit: Callable | None = None
) -> None:
    """A series of axial images (slices, rows, columns); `edit(header, number)` changes each one before it is saved."""
    folder.mkdir(parents=True)
    series, study, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    for k, pixels in enumerate(stored):
        image = _header(MRImageStorage)
        image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = series, study, frame_of_reference
        image.InstanceNumber = k + 1
        image.PixelSpacing, image.SliceThickness = [2.0, 1.5], 3.0
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = np.add([-10.0, -20.0, 5.0], np.multiply(k, step)).tolist()
        image.Rows, image.Columns = pixels.shape
        image.PixelData = pixels.tobytes()
        if edit:
            edit(image, k)
        image.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)


def _write_enhanced(
    path: Path,
    frames: list[tuple[int, int]],
    describe: Callable[[Dataset, int], None],
    *,
    dimension: str | None = None,
    edit: Callable | None = None,
) -> None:
    """An enhanced MR file with a frame for each (slice, time), whose values are 10 * slice + 1000 * time.

    `describe(groups, time)` adds what tells the time; `dimension` names its dimension index, if it has one.
    """
    image = _header(EnhancedMRImageStorage)
    image.SeriesInstanceUID, image.StudyInstanceUID = generate_uid(), generate_uid()
    image.FrameOfReferenceUID = generate_uid()
    image.NumberOfFrames, image.InstanceNumber = len(frames), 1
    shared = Dataset()
    shared.PixelMeasuresSequence = _holding(PixelSpacing=[2.0, 1.5], SliceThickness=3.0)
    shared.PlaneOrientationSequence = _holding(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    image.SharedFunctionalGroupsSequence = [shared]
    if dimension:
        pointers = ("StackID", "InStackPositionNumber", dimension)
        image.DimensionIndexSequence = [_holding(DimensionIndexPointer=Tag(p))[0] for p in pointers]
    groups = []
    for k, time in frames:
        group = Dataset()
        group.PlanePositionSequence = _holding(ImagePositionPatient=[-10.0, -20.0, 5.0 + 3 * k])
        group.FrameContentSequence = _holding(StackID="1", InStackPositionNumber=k + 1)
        if dimension:
            group.FrameContentSequence[0].DimensionIndexValues = [1, k + 1, time + 1]
        describe(group, time)
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence = groups
    pixels = np.array([np.full((ROWS, COLUMNS), 10 * k + 1000 * time, np.uint16) for k, time in frames])
    image.PixelData = pixels.tobytes()
    if edit:
        edit(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="session")
def write_classic() -> Callable[..., None]:
    """`write_classic(folder, stored, ...)` writes a small MR series into a new folder."""
    return _write_classic


@pytest.fixture(scope="session")
def write_enhanced() -> Callable[..., None]:
    """`write_enhanced(path, frames, describe, ...)` writes a small enhanced MR file."""
    return _write_enhanced


@pytest.fixture(scope="session")
def holding() -> Callable[..., list[Dataset]]:
    """`holding(Keyword=value, ...)` is a sequence with one item."""
    return _holding
