"""Write the results of a registration of DICOM images: the moved series, and the transform as a DICOM object.

Both belong to the moving image's patient and study, and use the fixed image's frame of reference. The transform is a
Deformable Spatial Registration (DICOM PS3.3: A.39.2, C.20.3): a grid of vectors in LPS mm maps each point of the
registered (fixed) world to the corresponding point of the source (moving) world. That is the same pull-back as in
`transforms`, so nothing is inverted.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.base import SOPClass
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import DeformableSpatialRegistrationStorage, ExplicitVRLittleEndian

from ..runs.files import atomic_path
from ..runs.record import sha256
from .dicom import read_series
from .dicom_derived import (
    SERIES_OFFSET,
    atomic_folder,
    check_free,
    code_item,
    current_time,
    derive,
    derived_series_number,
    equipment,
    read_source,
    reference_item,
    uid_of,
    use_characters_of,
)
from .dicom_encode import encode, is_pet, same_maps, set_pixels
from .dicom_frames import Frame
from .dicom_groups import functional_groups, shared_groups, tags_of
from .dicom_headers import first_header
from .nifti import is_nifti_name
from .transforms import DisplacementField
from .volume import LPS, Volume, perpendicular_axes

_CONTENT_BASED = ("125024", "Image Content-based Alignment")
_SAME_FRAME = ("125021", "Frame of Reference Identity")
# attributes that apply only to the moving image's own grid
_UNTRUE_WHEN_MOVED = (
    "SliceLocation",
    "GantryDetectorTilt",
    "PatientOrientation",
    "PatientOrientationCodeSequence",
    "PatientGantryRelationshipCodeSequence",
    "InPlanePhaseEncodingDirection",
    "ReferencedImageSequence",
)
# PET always has these attributes, empty if they are unknown (PS3.3 C.8.4.6)
_EMPTY_IN_PET = ("PatientOrientationCodeSequence", "PatientGantryRelationshipCodeSequence")
_GEOMETRY_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, or a folder that holds at least one."""
    if path.is_dir():
        return any(_has_preamble(file) for file in sorted(path.iterdir()) if file.is_file())
    return not is_nifti_name(path) and path.is_file() and _has_preamble(path)


def _has_preamble(file: Path) -> bool:
    """Whether a file starts like a DICOM file: "DICM" after 128 bytes (PS3.10, 7.1)."""
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def common_frame_of_reference(moving: Path, fixed: Path) -> str:
    """The UID of the frame of reference for the results: the fixed image's, or a new one if it cannot be shared.

    A new one is needed if the fixed image has none, is not a DICOM image, or shows another person, since a frame of
    reference belongs to one patient. The same two images always get the same UID.
    """
    of_moving = first_header(moving)
    if not is_dicom(fixed):
        return str(uid_of("frame of reference", _series_uid(of_moving), sha256(fixed)))
    of_fixed = first_header(fixed)
    if of_fixed.get("FrameOfReferenceUID") and _same_person(of_moving, of_fixed):
        return str(of_fixed.FrameOfReferenceUID)
    return str(uid_of("frame of reference", _series_uid(of_moving), _series_uid(of_fixed)))


def write_registered_series(
    folder: str | os.PathLike[str],
    volume: Volume,
    moving: str | os.PathLike[str],
    description: str,
    *,
    frame_of_reference: str,
    fixed: Path | None = None,
    linear: np.ndarray | None = None,
) -> Path:
    """Write a DICOM series that was resampled to the grid of another image, as a derived series of its own study.

    Each new slice has the header of the moving slice of the same rank, with the position and size of the new grid;
    classic images stay one per slice, enhanced ones multi-frame. Private elements are left out, since some describe the
    old grid. UIDs depend on the source and the values, as in `write_derived_series`. The folder appears complete or not
    at all.

    Args:
        folder: the folder to write; must not exist, or be empty.
        volume: (D, H, W) or (D, H, W, T), the moving image on the new grid, in its own intensity unit.
        moving: the moving series or multi-frame file.
        description: a description of the processing.
        frame_of_reference: UID of the frame of reference of the new grid.
        fixed: the DICOM image that defines the grid, if there is one; it gives the patient's position on the table.
        linear: (4, 4), fixed world -> moving world, RAS mm, by which the diffusion gradients are rotated.

    Returns:
        The folder.

    Raises:
        ValueError: the volume is sheared, has another number of volumes than the series, or the folder is not empty.
    """
    folder, moving = Path(folder), Path(moving)
    check_free(folder)
    if not perpendicular_axes(volume.affine):
        raise ValueError(f"the axes of {volume.source or 'the fixed image'} must be perpendicular to be kept in DICOM")
    headers, stacks = read_series(moving)
    array = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    if array.shape[3] != len(stacks):
        raise ValueError(f"volume must have {len(stacks)} volumes to match {moving}, got {array.shape[3]}")
    planes = array.transpose(3, 2, 1, 0)[:, :, ::-1]  # (volume, slice, rows downwards, columns)
    stored, encoding = encode(planes, [f for stack in stacks for f in stack], next(iter(headers.values())))
    position = None if fixed is None else first_header(fixed).get("PatientPosition")
    keep_maps = same_maps(list(headers.values()), [f for stack in stacks for f in stack])
    rotation = None if linear is None else _rotation(linear)

    digest = hashlib.sha256(stored.tobytes()).hexdigest()
    place = [f"{value:.10g}" for value in volume.affine.ravel()]
    source_uid = _series_uid(next(iter(headers.values())))
    series_uid = uid_of(source_uid, frame_of_reference, description, digest, json.dumps(encoding._asdict()), *place)
    now = current_time()
    with atomic_folder(folder) as temporary:
        for number, (file, chosen) in enumerate(_new_files(headers, stacks, array.shape[2])):
            dataset = read_source(file)
            parts = {frame.path for t in {t for t, _, _ in chosen} for frame in stacks[t]}
            sources = [reference_item(headers[path]) for path in sorted(parts)]
            dataset.remove_private_tags()
            enhanced = "PerFrameFunctionalGroupsSequence" in dataset
            if enhanced:
                _choose_frames(dataset, chosen, uid_of(series_uid, "dimensions"), several=len(stacks) > 1)
            derive(dataset, description, series_uid, now, sources=sources, resampled=True, moved=True)
            dataset.SOPInstanceUID = uid_of(series_uid, str(number))
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            _place(dataset, volume, [k for _, k, _ in chosen])
            dataset.FrameOfReferenceUID = frame_of_reference
            dataset.PatientPosition = position or ""
            dataset.InstanceNumber = number + 1
            if "ImageIndex" in dataset:  # of PET
                dataset.ImageIndex, dataset.NumberOfSlices = number + 1, array.shape[2]
            if rotation is not None:
                _turn_gradients(dataset, rotation)
            likes = [_like(stacks[t], k, array.shape[2]) for t, k, _ in chosen]
            pixels = np.stack([stored[t, k] for t, k, _ in chosen])
            set_pixels(dataset, pixels, encoding, likes, keep_maps=keep_maps)
            dataset.save_as(temporary / f"{number + 1:05d}.dcm", enforce_file_format=True)
    return folder


def write_deformable_registration(
    path: str | os.PathLike[str],
    field: DisplacementField,
    *,
    moving: str | os.PathLike[str],
    fixed: Path | None,
    frame_of_reference: str,
    description: str,
) -> Path:
    """Write a displacement field as a DICOM Deformable Spatial Registration object.

    The grid's vectors hold the whole map; the matrices before and after them, which some readers require, are unit
    matrices.

    Args:
        path: the .dcm to write.
        field: fixed world -> moving world.
        moving: the moving DICOM series or file, which gives patient and study.
        fixed: the fixed DICOM image; None if it is not a DICOM image or shows another person.
        frame_of_reference: UID of the fixed world, see `common_frame_of_reference`.
        description: a description of the processing.

    Returns:
        The path.

    Raises:
        ValueError: the field's grid is sheared.
    """
    path, moving = Path(path), Path(moving)
    if not perpendicular_axes(field.affine):
        raise ValueError(f"affine must have perpendicular axes to be kept in DICOM, got {field.affine.tolist()}")
    images = [*read_series(moving)[0].values()]
    of_fixed = [] if fixed is None else [*read_series(fixed)[0].values()]
    of_fixed = [image for image in of_fixed if str(image.get("FrameOfReferenceUID")) == frame_of_reference]
    dataset = _registration_object(images[0], field, frame_of_reference, description)
    header = images[0]
    own_frame = header.get("FrameOfReferenceUID") or uid_of("frame of reference", _series_uid(header))
    moved = _registration_item(images, own_frame, _CONTENT_BASED)
    moved.PreDeformationMatrixRegistrationSequence = [_unit_matrix()]
    moved.PostDeformationMatrixRegistrationSequence = [_unit_matrix()]
    moved.DeformableRegistrationGridSequence = [_grid(field)]
    stays = [_registration_item(of_fixed, frame_of_reference, _SAME_FRAME)] if of_fixed else []
    dataset.DeformableRegistrationSequence = [moved, *stays]
    _set_common_references(dataset, [*images, *of_fixed])
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return path


def _registration_object(
    header: Dataset, field: DisplacementField, frame_of_reference: str, description: str
) -> Dataset:
    """A Deformable Spatial Registration object for the patient and study of a header, still without content."""
    now, tool = current_time(), equipment()
    digest = hashlib.sha256(_grid(field).VectorGridData).hexdigest()
    place = [f"{value:.10g}" for value in field.affine.ravel()]
    instance_uid = uid_of(_series_uid(header), frame_of_reference, description, digest, *place)
    dataset = SOPClass(
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=uid_of(instance_uid, "series"),
        series_number=derived_series_number(header, 2 * SERIES_OFFSET),
        sop_instance_uid=instance_uid,
        sop_class_uid=DeformableSpatialRegistrationStorage,
        instance_number=1,
        modality="REG",
        manufacturer=tool.Manufacturer,
        manufacturer_model_name=tool.Manufacturer,
        device_serial_number="none",
        software_versions=tool.SoftwareVersions,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=description[:64],
        content_date=now.date(),
        content_time=now.time(),
        series_date=now.date(),
        series_time=now.time(),
    )
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = dataset.ContentDate, dataset.ContentTime
    dataset.copy_patient_and_study_information(header)
    if header.get("SpecificCharacterSet"):  # of the patient's name
        dataset.SpecificCharacterSet = header.SpecificCharacterSet
    use_characters_of(dataset, description)
    for keyword in ("BodyPartExamined", "Laterality"):
        if header.get(keyword):
            setattr(dataset, keyword, header[keyword].value)
    if "BodyPartExamined" not in dataset:
        dataset.Laterality = ""  # unknown
    dataset.FrameOfReferenceUID = frame_of_reference
    dataset.PositionReferenceIndicator = ""
    dataset.ContentLabel, dataset.ContentDescription = "REGISTRATION", description[:64]
    dataset.ContentCreatorName = ""
    return dataset


# the source images


def _series_uid(header: Dataset) -> str:
    return str(header.get("SeriesInstanceUID") or header.get("SOPInstanceUID") or "")


def _same_person(one: Dataset, other: Dataset) -> bool:
    keys = ("PatientID", "IssuerOfPatientID") if one.get("PatientID") or other.get("PatientID") else ("PatientName",)
    return all(str(one.get(key) or "") == str(other.get(key) or "") for key in keys)


# the moved series


def _new_files(
    headers: dict[Path, Dataset], stacks: list[list[Frame]], slices: int
) -> list[tuple[Path, list[tuple[int, int, int]]]]:
    """For each file to write: the source of its header, and its images (volume, slice, frame of the source file)."""
    images = []
    for t, stack in enumerate(stacks):
        for k in range(slices):
            like = _like(stack, k, slices)
            images.append((like.path, (t, k, like.index)))
    if "PerFrameFunctionalGroupsSequence" not in next(iter(headers.values())):
        return [(path, [image]) for path, image in images]
    files: dict[Path, list[tuple[int, int, int]]] = defaultdict(list)
    for path, image in images:
        files[path].append(image)
    return list(files.items())


def _like(stack: list[Frame], k: int, slices: int) -> Frame:
    """The source slice whose header is used for the k-th new slice."""
    return stack[round(k * (len(stack) - 1) / max(1, slices - 1))]


def _choose_frames(dataset: Dataset, chosen: list[tuple[int, int, int]], organization: str, *, several: bool) -> None:
    """Set the frames of an enhanced image for the new slices; each copies the description of its source frame."""
    source = dataset.PerFrameFunctionalGroupsSequence
    pointers = ["StackID", "InStackPositionNumber", *(["TemporalPositionIndex"] if several else [])]
    frames = []
    for t, k, index in chosen:
        frame = deepcopy(source[index])
        content = frame.FrameContentSequence[0] if frame.get("FrameContentSequence") else Dataset()
        content.StackID, content.InStackPositionNumber = "1", k + 1
        content.DimensionIndexValues = [1, k + 1, *([t + 1] if several else [])]
        if several:
            content.TemporalPositionIndex = t + 1
        frame.FrameContentSequence = [content]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames = len(frames)
    item = Dataset()
    item.DimensionOrganizationUID = organization
    dataset.DimensionOrganizationSequence = [item]
    dataset.DimensionIndexSequence = [_dimension(organization, keyword) for keyword in pointers]
    if "DimensionOrganizationType" in dataset:
        del dataset.DimensionOrganizationType


def _dimension(organization: str, keyword: str) -> Dataset:
    item = Dataset()
    item.DimensionOrganizationUID = organization
    item.DimensionIndexPointer = Tag(keyword)
    item.FunctionalGroupPointer = Tag("FrameContentSequence")
    return item


def _place(dataset: Dataset, volume: Volume, slices: list[int]) -> None:
    """Set size, spacing, orientation and position of the new grid, and remove attributes of the old one."""
    _remove_old_geometry(dataset)
    columns, rows = volume.shape[:2]
    dataset.Columns, dataset.Rows = columns, rows
    axes = LPS[:3, :3] @ volume.affine[:3, :3] / volume.spacing
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = _decimals([volume.spacing[1], volume.spacing[0]])
    measures.SliceThickness = _decimals([volume.spacing[2]])[0]
    orientation.ImageOrientationPatient = _decimals([*axes[:, 0], *-axes[:, 1]])  # rows run downwards in DICOM
    positions = []
    for k in slices:
        position = Dataset()
        position.ImagePositionPatient = _decimals((LPS @ volume.affine @ [0, rows - 1, k, 1])[:3])
        positions.append(position)
    if "PerFrameFunctionalGroupsSequence" in dataset:
        _place_frames(dataset, measures, orientation, positions)
        return
    for part in (measures, orientation, positions[0]):
        dataset.update(part)
    if "SpacingBetweenSlices" in dataset:
        dataset.SpacingBetweenSlices = measures.SliceThickness


def _remove_old_geometry(dataset: Dataset) -> None:
    """Remove attributes that apply only to the moving image's own grid."""
    pet = is_pet(dataset)
    old = [Tag(keyword) for keyword in _UNTRUE_WHEN_MOVED if not (pet and keyword in _EMPTY_IN_PET)]
    old += [tag for tag in tags_of(dataset) if 0x6000 <= tag.group <= 0x60FF]  # overlays
    for tag in old:
        if tag in dataset:
            del dataset[tag]
    for keyword in _EMPTY_IN_PET if pet else ():
        setattr(dataset, keyword, [])


def _place_frames(dataset: Dataset, measures: Dataset, orientation: Dataset, positions: list[Dataset]) -> None:
    """Write the position of the new grid into the functional groups of an enhanced image."""
    measures.SpacingBetweenSlices = measures.SliceThickness
    for group in functional_groups(dataset):
        for keyword in _GEOMETRY_GROUPS:
            if keyword in group:
                del group[keyword]
    frames = dataset.PerFrameFunctionalGroupsSequence
    for group in shared_groups(dataset) or frames:
        group.PixelMeasuresSequence, group.PlaneOrientationSequence = [measures], [orientation]
    for frame, position in zip(frames, positions, strict=True):
        frame.PlanePositionSequence = [position]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        if keyword in dataset:  # some manufacturers also write it here
            del dataset[keyword]


def _rotation(linear: np.ndarray) -> np.ndarray:
    """(3, 3), moving world -> fixed world, LPS, the rotation nearest to a pull-back (finite strain)."""
    left, _, right = np.linalg.svd(LPS[:3, :3] @ np.asarray(linear)[:3, :3] @ LPS[:3, :3])
    result: np.ndarray = (left @ right).T
    return result


def _turn_gradients(dataset: Dataset, rotation: np.ndarray) -> None:
    """Rotate all diffusion directions and b-matrices, which are given in the axes of the patient."""
    for element in dataset:
        if element.keyword == "DiffusionGradientOrientation" and element.value is not None:
            element.value = (rotation @ np.array(element.value, dtype=np.float64)).tolist()
        elif element.keyword == "DiffusionBMatrixSequence" and element.value:
            _turn_b_matrix(element.value[0], rotation)
        elif element.VR == "SQ":
            for item in element.value:
                _turn_gradients(item, rotation)


def _turn_b_matrix(item: Dataset, rotation: np.ndarray) -> None:
    names = (("XX", "XY", "XZ"), ("XY", "YY", "YZ"), ("XZ", "YZ", "ZZ"))
    matrix = np.array([[float(item[f"DiffusionBValue{name}"].value) for name in row] for row in names])
    turned = rotation @ matrix @ rotation.T
    for row, values in zip(names, turned, strict=True):
        for name, value in zip(row, values, strict=True):
            item[f"DiffusionBValue{name}"].value = float(value)


def _decimals(values: Sequence[float] | np.ndarray) -> list[str]:
    """Decimal strings of at most 16 characters; rounding errors around 0 become 0."""
    return [f"{0.0 if abs(value) < 1e-9 else float(value):.10g}" for value in values]


# the transform


def _registration_item(images: list[Dataset], frame_of_reference: Any, kind: tuple[str, str]) -> Dataset:
    item = Dataset()
    item.SourceFrameOfReferenceUID = frame_of_reference
    item.ReferencedImageSequence = [reference_item(image) for image in images]
    item.RegistrationTypeCodeSequence = [code_item(*kind)]
    return item


def _unit_matrix() -> Dataset:
    item = Dataset()
    item.FrameOfReferenceTransformationMatrix = [f"{value:g}" for value in np.eye(4).ravel()]
    item.FrameOfReferenceTransformationMatrixType = "RIGID"
    return item


def _grid(field: DisplacementField) -> Dataset:
    """The vectors in the order of stored pixels: x fastest, then y, then z, where z = x cross y."""
    affine, vectors = LPS @ field.affine, field.vectors_mm * np.diag(LPS)[:3].astype(np.float32)
    if np.linalg.det(affine[:3, :3]) < 0:  # the third axis is always the cross product of the others
        flip = np.diag([1.0, -1.0, 1.0, 1.0])
        flip[1, 3] = field.shape[1] - 1
        affine, vectors = affine @ flip, vectors[:, ::-1]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    grid = Dataset()
    grid.ImageOrientationPatient = _decimals((affine[:3, :2] / spacing[:2]).T.ravel())
    grid.ImagePositionPatient = _decimals(affine[:3, 3])
    grid.GridDimensions = list(field.shape)
    grid.GridResolution = spacing.tolist()
    grid.VectorGridData = np.ascontiguousarray(vectors.transpose(2, 1, 0, 3), dtype="<f4").tobytes()
    return grid


def _set_common_references(dataset: Dataset, images: list[Dataset]) -> None:
    """List all images that are referred to by study and series (PS3.3 C.12.2)."""
    studies: dict[str, dict[str, list[Dataset]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        studies[str(image.StudyInstanceUID)][str(image.SeriesInstanceUID)].append(reference_item(image))
    others = []
    for study, of_series in studies.items():
        series = []
        for uid, references in of_series.items():
            item = Dataset()
            item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, references
            series.append(item)
        if study == str(dataset.StudyInstanceUID):
            dataset.ReferencedSeriesSequence = series
        else:
            item = Dataset()
            item.StudyInstanceUID, item.ReferencedSeriesSequence = study, series
            others.append(item)
    if others:
        dataset.StudiesContainingOtherReferencedInstancesSequence = others
