"""The slices described by DICOM headers, as one `Frame` each, for classic and enhanced images."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from .dicom_groups import value_of
from .dicom_headers import damaged_header
from .mosaic import is_mosaic, read_mosaic

# the attributes of enhanced images that distinguish volumes, in the order of sorting
_PHASES = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase"),
    ("MRModifierSequence", "InversionTimes"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("MRVelocityEncodingSequence", "VelocityEncodingMaximumValue"),
)
# of classic images; by each of them volumes can be distinguished, if their numbers cannot
_TIMES = ("NominalPercentageOfCardiacPhase", "TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime")
_SPATIAL = {
    Tag(keyword) for keyword in ("StackID", "InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient")
}

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: its position in the file, in space and in the series."""

    path: Path
    index: int  # frame number in the file
    position: np.ndarray  # (3,) LPS mm
    orientation: np.ndarray  # (6,) row direction, column direction, LPS
    spacing: tuple[float, float]  # between rows, between columns, mm
    thickness: float | None  # centre to centre if the header gives it, else slice thickness, mm
    gap_known: bool  # whether `thickness` is a spacing between slices
    number: int | None
    slope: float
    intercept: float
    groups: tuple[Dataset, ...]  # where its values are found: the frame's own groups, the shared ones, the header
    enhanced: bool = False
    dimensions: tuple[int, ...] = ()  # indices in the dimensions of an enhanced image that are not spatial
    descending: bool = False  # the slices of a mosaic run against the normal of the image plane

    # what tells volumes apart is decoded only for a series of several

    @cached_property
    def kind(self) -> tuple[Hashable, ...]:
        """Echo, b-value, direction, temporal position, segment, image type: equal in a volume."""
        return self._decoded(_kind)

    @cached_property
    def phase(self) -> tuple[float, ...]:
        """Temporal position, trigger delay, inversion time, echo and so on; -inf if missing."""
        return self._decoded(_phase)

    @cached_property
    def times(self) -> tuple[float | None, ...]:
        """Of a classic image: those of `_TIMES`."""
        return self._decoded(lambda groups: tuple(_number(value_of(groups[-1], name)) for name in _TIMES))

    def _decoded(self, values: Callable[[tuple[Dataset, ...]], _T]) -> _T:
        try:
            return values(self.groups)
        except Exception as error:  # pydicom decodes a value on access
            raise damaged_header(self.path, error) from error


def frames_of(headers: dict[Path, Dataset]) -> list[Frame]:
    """All slices of a series.

    Raises:
        ValueError: a header does not give the position of its slices.
    """
    frames = []
    for file, header in headers.items():
        try:
            frames += _tiles(file, header) if is_mosaic(header) else _frames(file, header)
        except Exception as error:  # pydicom decodes a value on access
            raise damaged_header(file, error) from error
    return frames


def _frames(file: Path, header: Dataset) -> list[Frame]:
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise ValueError(
            f"{file} must hold grey values, got a colour image ({header.get('PhotometricInterpretation')})"
        )
    count = int(value_of(header, "NumberOfFrames") or 1)
    per_frame = value_of(header, "PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        if count != 1:
            raise ValueError(f"{file} has {count} frames but no place for each: convert it with dcm2niix first")
        return [_frame(file, 0, (header,))]
    if len(per_frame) != count:
        raise ValueError(f"{file} announces {count} frames but describes {len(per_frame)}; get the file again")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    # a value may be in the frame's own groups, in the shared ones, or (some manufacturers) at the top
    return [_frame(file, i, (frame, *shared, header)) for i, frame in enumerate(per_frame)]


def _tiles(file: Path, header: Dataset) -> list[Frame]:
    mosaic = read_mosaic(file, header)
    found = []
    for index, position in enumerate(mosaic.positions):
        place = Dataset()
        place.ImagePositionPatient = position.round(3).tolist()  # the header of a grid has no position
        frame = _frame(file, index, (place, header))
        found.append(replace(frame, position=position, gap_known=False, descending=mosaic.descending))
    return found


def _frame(file: Path, index: int, groups: tuple[Dataset, ...]) -> Frame:
    header = groups[-1]
    position, orientation, (rows, columns) = (
        _numbers(file, keyword, _find(groups, sequence, keyword), count)
        for sequence, keyword, count in (
            ("PlanePositionSequence", "ImagePositionPatient", 3),
            ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
            ("PixelMeasuresSequence", "PixelSpacing", 2),
        )
    )
    axes = orientation.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01:
        raise ValueError(
            f"{file}: ImageOrientationPatient must hold two perpendicular unit vectors, got {axes.tolist()}"
        )
    if min(rows, columns) <= 0:
        raise ValueError(f"{file}: PixelSpacing must be above 0 mm, got {rows} and {columns}")
    gap = _find(groups, "PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = _find(groups, "PixelMeasuresSequence", "SliceThickness")
    slope = _find(groups, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _find(groups, "PixelValueTransformationSequence", "RescaleIntercept")
    if slope is not None and float(slope) == 0:
        raise ValueError(f"{file}: RescaleSlope must not be 0, which makes all values equal; repair the header")
    if not all(math.isfinite(float(value or 0)) for value in (slope, intercept)):
        raise ValueError(f"{file}: RescaleSlope and RescaleIntercept must be finite, got {slope} and {intercept}")
    number = value_of(header, "InstanceNumber")
    return Frame(
        path=file,
        index=index,
        position=position,
        orientation=orientation,
        spacing=(float(rows), float(columns)),
        thickness=abs(float(gap or thickness)) if gap or thickness else None,
        gap_known=bool(gap),
        number=None if number in (None, "") else int(number),
        groups=groups,
        enhanced=groups[0] is not header and "PerFrameFunctionalGroupsSequence" in header,
        dimensions=_dimensions(groups[0], header),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def _find(groups: tuple[Dataset, ...], sequence: str, keyword: str) -> Any:
    """The first value of an element that is not empty, in a sequence of the groups or in the groups themselves."""
    for group in groups:
        inner = value_of(group, sequence)
        value = value_of(inner[0] if inner else group, keyword)
        if value not in (None, ""):
            return value
    return None


def _kind(groups: tuple[Dataset, ...]) -> tuple[Hashable, ...]:
    header = groups[-1]
    time = _find(groups, "FrameContentSequence", "TemporalPositionIndex")
    return (
        _plain(_find(groups, "MREchoSequence", "EffectiveEchoTime") or value_of(header, "EchoTime")),
        _plain(_find(groups, "MRDiffusionSequence", "DiffusionBValue")),
        _plain(_direction(groups)),
        _plain(time or value_of(header, "TemporalPositionIdentifier")),
        _plain(_find(groups, "SegmentIdentificationSequence", "ReferencedSegmentNumber")),
        _plain(_find(groups, "MRImageFrameTypeSequence", "FrameType") or value_of(header, "ImageType")),
    )


def _direction(groups: tuple[Dataset, ...]) -> Any:
    """The diffusion direction, which is nested one sequence deeper in enhanced files."""
    direction = _find(groups, "MRDiffusionSequence", "DiffusionGradientOrientation")
    for group in groups:
        for diffusion in value_of(group, "MRDiffusionSequence") or []:
            for inner in diffusion.get("DiffusionGradientDirectionSequence") or []:
                direction = inner.get("DiffusionGradientOrientation", direction)
    return direction


def _phase(groups: tuple[Dataset, ...]) -> tuple[float, ...]:
    """The times and settings by which the volumes of a series are ordered, the most important first."""
    header = groups[-1]
    if "PerFrameFunctionalGroupsSequence" in header:
        numbers = [_number(_find(groups, sequence, keyword)) for sequence, keyword in _PHASES]
    else:
        # other series have trigger times that differ from slice to slice
        cardiac = (_number(value_of(header, "CardiacNumberOfImages")) or 0) > 1
        names = (*(["TriggerTime"] if cardiac else []), "InversionTime", "FrameReferenceTime")
        numbers = [_number(value_of(header, name)) for name in names]
    return tuple(-np.inf if number is None else number for number in numbers)


def _dimensions(frame: Dataset, header: Dataset) -> tuple[int, ...]:
    content = value_of(frame, "FrameContentSequence")
    values = content[0].get("DimensionIndexValues") if content else None
    if values is None:
        return ()
    pointers = [item.get("DimensionIndexPointer") for item in header.get("DimensionIndexSequence") or []]
    values = [int(v) for v in (values if isinstance(values, Sequence) else [values])]
    if len(values) != len(pointers):
        return ()
    return tuple(v for v, pointer in zip(values, pointers, strict=True) if pointer not in _SPATIAL)


def _number(value: Any) -> float | None:
    """A finite number, or the first of a list; None if there is none."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _numbers(file: Path, keyword: str, value: Any, count: int) -> np.ndarray:
    if value is None:
        raise ValueError(f"{file} has no {keyword}, so its place in space is unknown (a report, photo or 2-D X-ray?)")
    try:
        numbers = np.array([float(v) for v in value], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {keyword} must hold {count} numbers, got {value}") from error
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{file}: {keyword} must hold {count} finite numbers, got {value}")
    return numbers


def _plain(value: Any) -> Hashable:
    """A header value in a comparable form: numbers are rounded, lists become tuples."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return tuple(_plain(v) for v in value)
    return round(float(value), 3)
