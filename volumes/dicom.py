"""A DICOM series as one `Volume`: what each oddity leads to.

| found | outcome |
| --- | --- |
| colour images | error |
| a compressed image whose decoder is missing | error that names the package |
| a compressed image whose size differs from the header | error, before memory is allocated |
| a deflated file that fills the memory | error, before memory is taken |
| a file named .dcm or .ima without a DICOM header, or cut off | error |
| files that are no DICOM images (DICOMDIR, reports, text) | left out, warned |
| fewer than three slices | read, warned: their spacing cannot be checked |
| gantry tilt, or slices that shift sideways | error |
| image size, pixel spacing or frame of reference differ | error |
| intensity inverted for display (MONOCHROME1) | the stored values count, not inverted |
| more pixels than the free memory holds | error, before memory is taken |
| more than one orientation (localizer, mixed series) | error |
| more than one series | error that lists them |
| no position, orientation or pixel spacing | error |
| positions evenly spaced, but a multiple of the header's spacing | read, warned: slices may be missing |
| rescale slope and intercept | applied, per image; whole numbers stay whole, else float32 |
| same image twice (same UID, same values) | one is left out, warned |
| same UID, other values | error |
| Siemens mosaic, UIH grid | one volume of its tiles; error where the private tags that place them are missing |
| slice missing, or spacing uneven by more than 1 % and 0.03 mm | error with the places |
| slices at one place, equally many at each (4-D) | volumes in the order of their image numbers |
| several slices at one position, in unequal numbers or indistinguishable | error |

The array and its affine equal those of dcm2niix for 2-D series: axes column, row, slice, with the rows flipped to
run upwards and the slices along the normal of the image plane.
"""

import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom.spatial import get_volume_positions
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from ..runs.memory import check_memory, inflate_within_memory
from .codestream import image_size, is_whole
from .mosaic import is_mosaic, read_mosaic, tiles
from .volume import LPS, Volume
from .warning import VolumeWarning

_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
_SAME_PLACE_MM = 0.03  # scanners write positions to about 0.01 mm
_SAME_DIRECTION = 2e-3  # about 0.1 degrees
_SIDEWAYS_MM = 0.05
_HUGE_RATIO = 10_000  # no lossless image is compressed more
_COPIES = 16  # bytes that a pixel takes while it is decoded, scaled and put in its place


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: where it is in its file, in space and in the series."""

    path: Path
    index: int  # frame number in the file
    position: np.ndarray  # (3,) LPS mm
    orientation: np.ndarray  # (6,) row direction, column direction, LPS
    spacing: tuple[float, float]  # between rows, between columns, mm
    thickness: float | None  # centre to centre if the header gives it, else slice thickness, mm
    gap_known: bool  # whether `thickness` is a spacing between slices
    number: int | None
    kind: tuple[Hashable, ...]  # what distinguishes the volumes of one series: echo, b-value, time point
    slope: float
    intercept: float
    descending: bool = False  # the slices of a mosaic run against the normal of the image plane


def read_series(path: Path) -> tuple[dict[Path, Dataset], list[list[Frame]]]:
    """The headers of one series, and its slices.

    Args:
        path: a folder with one DICOM series, or one DICOM file.

    Returns:
        File -> header without pixels; and for each volume its slices, in order along the normal.

    Raises:
        ValueError: the files are not one series, or its slices form no volume.
    """
    headers = _without_copies(path, _one_series(path, read_headers(path)))
    return headers, _stack(path, _frames_of(headers))[0]


def read_dicom(path: Path) -> Volume:
    """A folder with one DICOM series, or one DICOM file, as a `Volume`; the table above lists odd input.

    Returns:
        (columns, rows, slices) or (columns, rows, slices, volumes): int16 where the values fit, other integers, or
        float32 where the rescale slope asks for it.

    Raises:
        ValueError, OSError: one line for a series whose values or place in the world cannot be trusted.
    """
    with warnings.catch_warnings():
        # pydicom's remarks on odd value representations say nothing about the image
        warnings.filterwarnings("ignore", module="pydicom")
        headers = _one_series(path, read_headers(path))
        headers = _without_copies(path, headers)
        frames = _frames_of(headers)
        _check_alike(path, headers, frames)
        volumes, step = _stack(path, frames)
        values = _values(path, headers, volumes)
    affine = _affine(volumes[0], step, rows=values.shape[2])
    # (volume, slice, row, column) in memory; rows are already flipped
    array = values.transpose(3, 2, 1, 0)
    background = _background(headers[volumes[0][0].path])
    return Volume(array if array.shape[3] > 1 else array[..., 0], affine, path, background)


def _background(dataset: Dataset) -> float | None:
    """The rescaled padding value of a file, else air (-1000 HU) for a CT; None if the file gives neither."""
    padding = dataset.get("PixelPaddingValue")
    rescale = [float(dataset.get(name, default)) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))]
    if isinstance(padding, int) and np.isfinite(rescale).all():
        return padding * rescale[0] + rescale[1]
    return -1000.0 if dataset.get("Modality") == "CT" else None


def read_headers(path: Path) -> dict[Path, Dataset]:
    """The headers of all images in a folder (not in its sub-folders), or of one file."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
    headers: dict[Path, Dataset] = {}
    left_out = []
    for file in files:
        header = _header(file, must_be_dicom=path.is_file() or file.suffix.lower() in _DICOM_SUFFIXES)
        if header is None or not _is_image(file, header):
            left_out.append(file.name)
        else:
            headers[file] = header
    if not headers:
        folders = "" if path.is_file() else _and_folders(path)
        raise ValueError(
            f"{path} must hold a DICOM series or be an image file (.nii, .nii.gz, .mgz), got none{folders}"
        )
    if left_out:
        _warn(f"{path}: {len(left_out)} files are no DICOM images and were left out: {_some(left_out)}")
    return headers


def _is_image(file: Path, header: Dataset) -> bool:
    if "Rows" in header and "Columns" in header:
        return True
    if not is_other_object(header):
        raise ValueError(f"{file} is cut off or damaged: it may be an image, but has no Rows and Columns")
    return False


def is_other_object(header: Dataset) -> bool:
    """Whether a header without an image's size is that of a report, a plan or the like, and not of a cut image."""
    # the file's own first lines outlive a cut best, but may be cut themselves
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    if kind is None or "Image Storage" in kind.name:
        return False
    return "SOPClassUID" in header or kind == MediaStorageDirectoryStorage


def _and_folders(path: Path) -> str:
    folders = sorted(p.name for p in path.iterdir() if p.is_dir())
    return f"; give one of its folders: {_some(folders)}" if folders else ""


def _header(file: Path, *, must_be_dicom: bool) -> Dataset | None:
    if file.stat().st_size == 0:
        if must_be_dicom:
            raise ValueError(f"{file} is empty (0 bytes); get the file again")
        return None
    try:
        check_deflated(file)
        return pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError as error:
        if not must_be_dicom:
            return None
        raise ValueError(
            f"{file} is not a DICOM, NIfTI (.nii, .nii.gz) or .mgz file, or its start is damaged"
        ) from error
    except OSError:  # no right to read, a bad disk: the system's own text is the clearest
        raise
    except Exception as error:  # a damaged header can break pydicom anywhere
        raise _damaged_header(file, error) from error


def _damaged_header(file: Path, error: Exception) -> ValueError:
    """What breaks on a damaged header, as a line about its file."""
    if isinstance(error, ValueError) and str(file) in str(error):
        return error
    return ValueError(f"{file} has a damaged DICOM header: {_one_line(error)}; get the file again")


def check_deflated(file: Path) -> None:
    """Refuse a deflated file that would fill the memory; pydicom inflates it whole.

    Raises:
        ValueError: it would.
    """
    meta = read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    with file.open("rb") as stream:
        stream.seek(132 + 12 + int(meta.get("FileMetaInformationGroupLength", 0)))
        inflate_within_memory(file, stream, wbits=-zlib.MAX_WBITS)


def _one_series(path: Path, headers: dict[Path, Dataset]) -> dict[Path, Dataset]:
    series: dict[str, list[Dataset]] = defaultdict(list)
    for header in headers.values():
        series[str(header.get("SeriesInstanceUID", ""))].append(header)
    if len(series) > 1:
        found = [f'"{h[0].get("SeriesDescription", "no description")}" ({len(h)} files)' for h in series.values()]
        raise ValueError(
            f"{path} must hold one series, got {len(series)}: {_some(found)}; put each into its own folder"
        )
    return headers


def _without_copies(path: Path, headers: dict[Path, Dataset]) -> dict[Path, Dataset]:
    """Leave out a file that holds the same image as another one."""
    first: dict[str, Path] = {}
    copies = []
    for file, header in headers.items():
        uid = str(header.get("SOPInstanceUID", "")) or str(file)
        if uid not in first:
            first[uid] = file
            continue
        if not _same_image(first[uid], file):
            raise ValueError(f"{path}: {first[uid].name} and {file.name} have one SOPInstanceUID but differ")
        copies.append(file.name)
    if copies:
        _warn(f"{path}: {len(copies)} files are copies of others and were left out: {_some(copies)}")
    return {file: headers[file] for file in first.values()}


def _same_image(first: Path, second: Path) -> bool:
    if first.read_bytes() == second.read_bytes():
        return True
    a, b = pydicom.dcmread(first), pydicom.dcmread(second)
    same_place = all(a.get(k) == b.get(k) for k in ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope"))
    return same_place and a.get("PixelData") == b.get("PixelData")


def _frames_of(headers: dict[Path, Dataset]) -> list[Frame]:
    """All slices of a series.

    Raises:
        ValueError: one line for a header that does not say where they are.
    """
    frames = []
    for file, header in headers.items():
        try:
            frames += _tiles(file, header) if is_mosaic(header) else _frames(file, header)
        except Exception as error:  # pydicom looks at a value when it is asked for
            raise _damaged_header(file, error) from error
    return frames


def _frames(file: Path, header: Dataset) -> list[Frame]:
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise ValueError(
            f"{file} must hold grey values, got a colour image ({header.get('PhotometricInterpretation')})"
        )
    if is_mosaic(header):
        raise ValueError(f"{file} is a mosaic (Siemens or UIH), which cannot be a source of DICOM results: write NIfTI")
    count = int(header.get("NumberOfFrames") or 1)
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        if count != 1:
            raise ValueError(f"{file} has {count} frames but no place for each: convert it with dcm2niix first")
        return [_frame(file, 0, [header], header)]
    if len(per_frame) != count:
        raise ValueError(f"{file} announces {count} frames but describes {len(per_frame)}; get the file again")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    # a value may be in the frame's own groups, in the shared ones, or (some manufacturers) at the top
    return [_frame(file, i, [frame, *shared, header], header) for i, frame in enumerate(per_frame)]


def _tiles(file: Path, header: Dataset) -> list[Frame]:
    mosaic = read_mosaic(file, header)
    found = []
    for index, position in enumerate(mosaic.positions):
        place = Dataset()
        place.ImagePositionPatient = position.round(3).tolist()  # for a grid, whose header has no place
        frame = _frame(file, index, [place, header], header)
        found.append(replace(frame, position=position, gap_known=False, descending=mosaic.descending))
    return found


def _frame(file: Path, index: int, groups: list[Dataset], header: Dataset) -> Frame:
    def find(sequence: str, keyword: str) -> Any:
        for group in groups:
            inner = group.get(sequence)
            for holder in [inner[0]] if inner else [group]:
                if holder.get(keyword) not in (None, ""):
                    return holder.get(keyword)
        return None

    position = _numbers(file, "ImagePositionPatient", find("PlanePositionSequence", "ImagePositionPatient"), 3)
    orientation = _numbers(
        file, "ImageOrientationPatient", find("PlaneOrientationSequence", "ImageOrientationPatient"), 6
    )
    rows, columns = _numbers(file, "PixelSpacing", find("PixelMeasuresSequence", "PixelSpacing"), 2)
    axes = orientation.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01:
        raise ValueError(
            f"{file}: ImageOrientationPatient must hold two perpendicular unit vectors, got {axes.tolist()}"
        )
    if min(rows, columns) <= 0:
        raise ValueError(f"{file}: PixelSpacing must be above 0 mm, got {rows} and {columns}")
    gap = find("PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = find("PixelMeasuresSequence", "SliceThickness")
    direction = find("MRDiffusionSequence", "DiffusionGradientOrientation")
    for group in groups:  # in enhanced files the direction is one sequence deeper
        for diffusion in group.get("MRDiffusionSequence") or []:
            for inner in diffusion.get("DiffusionGradientDirectionSequence") or []:
                direction = inner.get("DiffusionGradientOrientation", direction)
    kind: tuple[Hashable, ...] = (
        _plain(find("MREchoSequence", "EffectiveEchoTime") or header.get("EchoTime")),
        _plain(find("MRDiffusionSequence", "DiffusionBValue")),
        _plain(direction),
        _plain(find("FrameContentSequence", "TemporalPositionIndex") or header.get("TemporalPositionIdentifier")),
        _plain(find("MRImageFrameTypeSequence", "FrameType") or header.get("ImageType")),
    )
    slope = find("PixelValueTransformationSequence", "RescaleSlope")
    intercept = find("PixelValueTransformationSequence", "RescaleIntercept")
    number = header.get("InstanceNumber")
    return Frame(
        path=file,
        index=index,
        position=position,
        orientation=orientation,
        spacing=(float(rows), float(columns)),
        thickness=abs(float(gap or thickness)) if gap or thickness else None,
        gap_known=bool(gap),
        number=None if number in (None, "") else int(number),
        kind=kind,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def _numbers(file: Path, keyword: str, value: Any, count: int) -> np.ndarray:
    if value is None:
        raise ValueError(f"{file} has no {keyword}, so its place in space is unknown (a report, photo or 2-D X-ray?)")
    try:
        numbers = np.array([float(v) for v in value])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {keyword} must hold {count} numbers, got {value}") from error
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{file}: {keyword} must hold {count} finite numbers, got {value}")
    return numbers


def _plain(value: Any) -> Hashable:
    """A header value as something that can be compared: numbers are rounded, lists become tuples."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return tuple(_plain(v) for v in value)
    return round(float(value), 3)


def _check_alike(path: Path, headers: dict[Path, Dataset], frames: list[Frame]) -> None:
    """Refuse what cannot be one stack: other sizes, spacings, orientations or frames of reference."""
    _one_near(
        path,
        "slice orientations",
        [f.orientation for f in frames],
        tolerance=_SAME_DIRECTION,
        mend="; a localizer or two series in one folder: put each stack into its own folder",
    )
    _one(path, "image sizes (columns x rows)", {(int(h.Columns), int(h.Rows)) for h in headers.values()})
    _one(path, "frames of reference", {str(h.get("FrameOfReferenceUID", "")) for h in headers.values()})
    _one_near(path, "pixel spacings (mm)", [f.spacing for f in frames], tolerance=1e-3 * min(frames[0].spacing))


def _one(path: Path, what: str, found: set[Any]) -> None:
    if len(found) > 1:
        raise ValueError(
            f"{path} must hold one stack of slices, got {len(found)} {what}: {_some(sorted(map(str, found)))}"
        )


def _one_near(path: Path, what: str, values: list[Any], *, tolerance: float, mend: str = "") -> None:
    kinds: list[np.ndarray] = []
    for value in np.array(values, dtype=np.float64):
        if not any(np.abs(value - kind).max() <= tolerance for kind in kinds):
            kinds.append(value)
    if len(kinds) > 1:
        shown = _some([str(np.round(kind, 3).tolist()) for kind in kinds])
        raise ValueError(f"{path} must hold one stack of slices, got {len(kinds)} {what}: {shown}{mend}")


def _stack(path: Path, frames: list[Frame]) -> tuple[list[list[Frame]], np.ndarray]:
    """The frames as volumes of slices along the normal, and the (3,) step from slice to slice in LPS mm."""
    normal = _normal(frames)
    ordered = sorted(frames, key=lambda f: float(f.position @ normal))
    places: list[list[Frame]] = []
    for frame in ordered:
        if places and float((frame.position - places[-1][0].position) @ normal) < _SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    positions = np.array([np.mean([f.position for f in place], axis=0) for place in places])
    _check_straight(path, frames, positions, normal)
    spacing = _slice_spacing(path, frames[0], positions, normal)
    return _volumes(path, places, normal), spacing * normal


def _normal(frames: list[Frame]) -> np.ndarray:
    row, column = np.mean([f.orientation for f in frames], axis=0).reshape(2, 3)
    normal = np.cross(row, column)
    result: np.ndarray = normal / np.linalg.norm(normal)
    return -result if frames[0].descending else result


def _check_straight(path: Path, frames: list[Frame], positions: np.ndarray, normal: np.ndarray) -> None:
    """Refuse slices that shift sideways from one to the next (gantry tilt), beyond what rounding explains."""
    along = positions @ normal
    sideways = positions - positions[0] - np.outer(along - along[0], normal)
    allowed = _SIDEWAYS_MM + _SAME_DIRECTION * (along - along[0])
    if (np.linalg.norm(sideways, axis=1) > allowed).any():
        worst = int(np.argmax(np.linalg.norm(sideways, axis=1)))
        shift = float(np.linalg.norm(sideways[worst]))
        angle = np.degrees(np.arctan2(shift, along[worst] - along[0]))
        raise ValueError(
            f"{path}: the slices are not stacked at a right angle but tilted by {angle:.1f} degrees (gantry tilt);"
            " convert the series with dcm2niix, which straightens it, and give its NIfTI"
        )
    for frame in frames:
        place = int(np.argmin(np.abs(along - frame.position @ normal)))
        if np.linalg.norm(frame.position - positions[place]) > 2 * _SIDEWAYS_MM:
            raise ValueError(f"{path}: two images at one level lie side by side ({frame.path.name}); not one volume")


def _slice_spacing(path: Path, frame: Frame, positions: np.ndarray, normal: np.ndarray) -> float:
    if len(positions) == 1:
        if not frame.thickness:
            raise ValueError(f"{path} holds one slice without a thickness: give the folder with the whole series")
        _warn(f"{path} holds one slice; its thickness of {frame.thickness:g} mm is taken from the header")
        return frame.thickness
    along = np.sort(positions @ normal)
    mean = float(along[-1] - along[0]) / (len(along) - 1)
    spacing, _ = get_volume_positions(
        positions.tolist(), frame.orientation.tolist(), atol=max(_SAME_PLACE_MM, 0.01 * mean), perpendicular_tol=0.01
    )
    if spacing is None:
        raise ValueError(f"{path}: {_why_uneven(along)}")
    if len(positions) == 2:
        _warn(f"{path} has only two slices, so their spacing of {mean:.4g} mm cannot be checked")
    ratio = mean / frame.thickness if frame.thickness and frame.gap_known else 1.0
    if ratio > 1.5:
        _warn(
            f"{path}: the slices are {mean:.4g} mm apart, the header gives {frame.thickness:.4g} mm; some may be"
            " missing"
        )
    return float(spacing)


def _why_uneven(along: np.ndarray) -> str:
    """What is wrong with slice places (n,) in mm along the normal that are not evenly spaced."""
    steps = np.diff(along)
    least = float(steps.min())
    wide = np.flatnonzero(steps > 1.5 * least)
    if len(wide) and np.allclose(steps / least, np.round(steps / least), atol=0.05):
        missing = int(np.round(steps[wide] / least).sum()) - len(wide)
        where = _some([f"{along[i]:.2f} and {along[i + 1]:.2f} mm" for i in wide])
        return f"{missing} of {len(along) + missing} slices are missing, between {where}; get the whole series"
    usual = float(np.median(steps))
    worst = int(np.argmax(np.abs(steps - usual)))
    return (
        f"the slices are not evenly spaced: mostly {usual:.4g} mm apart, but {steps[worst]:.4g} mm after"
        f" {along[worst]:.2f} mm; resample the series with a tool for uneven slices"
    )


def _volumes(path: Path, places: list[list[Frame]], normal: np.ndarray) -> list[list[Frame]]:
    """Volumes of slices, from the frames found at each slice position."""
    counts = [len(place) for place in places]
    if len(set(counts)) > 1:
        usual = max(set(counts), key=counts.count)
        odd = [
            f"{count} at {float(place[0].position @ normal):.2f} mm"
            for count, place in zip(counts, places, strict=True)
            if count != usual
        ]
        raise ValueError(
            f"{path}: every position must have {usual} image(s), got {_some(odd)}; images are missing, or come twice"
        )
    if counts[0] == 1:
        return [[place[0] for place in places]]
    by_number = [sorted(place, key=lambda f: (f.number or 0, str(f.path), f.index)) for place in places]
    by_kind = [sorted(place, key=lambda f: (str(f.kind), f.number or 0, f.index)) for place in by_number]
    for stacks in (by_number, by_kind):
        # one kind throughout each volume, and nothing at one place that has the same number twice
        alike = all(len({place[i].kind for place in stacks}) == 1 for i in range(counts[0]))
        distinct = all(len({(f.number, f.index, f.kind) for f in place}) == counts[0] for place in stacks)
        if alike and distinct:
            volumes = [[place[i] for place in stacks] for i in range(counts[0])]
            _say_kinds(path, volumes)
            return sorted(volumes, key=lambda v: (v[0].number or 0, str(v[0].path), v[0].index))
    raise ValueError(
        f"{path} has {counts[0]} images at every position, but their echo times, b-values or image numbers do not"
        " distinguish the volumes; keep one volume per folder, or convert the series with dcm2niix"
    )


def _say_kinds(path: Path, volumes: list[list[Frame]]) -> None:
    echoes = {volume[0].kind[0] for volume in volumes}
    types = {volume[0].kind[-1] for volume in volumes}
    if len(echoes) > 1 or len(types) > 1:
        _warn(f"{path}: the {len(volumes)} volumes are of {len(echoes)} echo times and {len(types)} image types")


def _affine(slices: list[Frame], step: np.ndarray, *, rows: int) -> np.ndarray:
    """(4, 4) voxel -> RAS+ mm for axes (column, row upwards, slice)."""
    row, column = np.mean([f.orientation for f in slices], axis=0).reshape(2, 3)
    between_rows, between_columns = slices[0].spacing
    affine = np.eye(4)
    affine[:3, 0] = row / np.linalg.norm(row) * between_columns
    affine[:3, 1] = -column / np.linalg.norm(column) * between_rows
    affine[:3, 2] = step
    # where the first slice is, by all of them: single positions are rounded
    corner = np.mean([f.position - k * step for k, f in enumerate(slices)], axis=0)
    affine[:3, 3] = corner - (rows - 1) * affine[:3, 1]
    return LPS @ affine


def _values(path: Path, headers: dict[Path, Dataset], volumes: list[list[Frame]]) -> np.ndarray:
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
                with np.errstate(over="ignore"):  # what becomes infinite is refused below
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
    """Integers as int16 where they fit, else as the next type that holds them all."""
    if values.dtype.kind == "f":
        return values
    low, high = int(values.min()), int(values.max())
    fits = (t for t in (np.int16, np.uint16, np.int32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return values.astype(next(fits, np.int64))


def _check_size(file: Path, header: Dataset) -> int:
    """The bytes that reading the pixels takes, of a file that is long enough to hold them."""
    frames, rows, columns = int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)
    pixels = frames * rows * columns
    expected = pixels * max(1, int(header.get("BitsAllocated", 16)) // 8)
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
        dataset = pydicom.dcmread(file)
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
            f"{file}: its pixels ({name}) cannot be decoded: {_one_line(error)}; get the file again"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # decoders fail in many ways on damaged data
        raise ValueError(
            f"{file}: its pixels are damaged or cut off: {_one_line(error)}; get the file again"
        ) from error
    if pixels.size != frames * rows * columns:
        raise ValueError(
            f"{file}: expected {frames} x {rows} x {columns} pixels, got {pixels.shape}; get the file again"
        )
    lookup = None
    if dataset.get("ModalityLUTSequence"):
        lookup = partial(_look_up, dataset=dataset)
    return pixels.reshape(frames, rows, columns), lookup


def _check_streams(dataset: Dataset, frames: int) -> None:
    """Refuse compressed images that are cut, or of another size than the header's: decoders believe what they get."""
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


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _warn(text: str) -> None:
    warnings.warn(text, VolumeWarning, stacklevel=5)
