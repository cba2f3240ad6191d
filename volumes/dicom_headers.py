"""Read and check the headers of the DICOM images in a folder: one series, no damaged file, no duplicate."""

import io
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, MediaStorageDirectoryStorage

from ..runs.memory import inflate_within_memory
from ..runs.words import first_few, one_line
from .warning import warn

_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")


def read_headers(path: Path) -> dict[Path, Dataset]:
    """The headers of all images in a folder (not in its sub-folders), or of one file."""
    found = dict(_headers(path))
    headers = {file: header for file, header in found.items() if header is not None}
    if not headers:
        raise _no_image(path)
    if left_out := [file.name for file, header in found.items() if header is None]:
        warn(f"{path}: {len(left_out)} files are no DICOM images and were left out: {first_few(left_out)}")
    return headers


def first_header(path: Path) -> Dataset:
    """The header of the first image in a folder, or of one file; the others are not read."""
    header = next((header for _, header in _headers(path) if header is not None), None)
    if header is None:
        raise _no_image(path)
    return header


def _headers(path: Path) -> Iterator[tuple[Path, Dataset | None]]:
    """Each file with its header, None if it holds no DICOM image."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
    for file in files:
        header = _header(file, must_be_dicom=path.is_file() or file.suffix.lower() in _DICOM_SUFFIXES)
        yield file, header if header is not None and _is_image(file, header) else None


def _no_image(path: Path) -> ValueError:
    folders = "" if path.is_file() else _and_folders(path)
    return ValueError(f"{path} must hold a DICOM series or be an image file (.nii, .nii.gz, .mgz), got none{folders}")


def _is_image(file: Path, header: Dataset) -> bool:
    if "Rows" in header and "Columns" in header:
        return True
    try:
        other = is_other_object(header)
    except Exception as error:  # pydicom decodes a value on access
        raise damaged_header(file, error) from error
    if not other:
        raise ValueError(f"{file} is cut off or damaged: it may be an image, but has no Rows and Columns")
    return False


def is_other_object(header: Dataset) -> bool:
    """Whether a header without an image size belongs to a report, a plan or the like, not to a cut-off image."""
    # the file meta information at the start is the most likely part to survive, but may be cut off too
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    if not isinstance(kind, UID) or "Image Storage" in kind.name:
        return False
    return "SOPClassUID" in header or kind == MediaStorageDirectoryStorage


def _and_folders(path: Path) -> str:
    folders = sorted(p.name for p in path.iterdir() if p.is_dir())
    return f"; give one of its folders: {first_few(folders)}" if folders else ""


def _header(file: Path, *, must_be_dicom: bool) -> Dataset | None:
    if file.stat().st_size == 0:
        if must_be_dicom:
            raise ValueError(f"{file} is empty (0 bytes); get the file again")
        return None
    try:
        with open_dicom(file) as stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True)
            header.end_of_header = stream.tell()  # where `dicom_pixels` reads on
            header.__class__ = _Header
            _check_numbers(header)
            return header
    except InvalidDicomError as error:
        if not must_be_dicom:
            return None
        raise ValueError(
            f"{file} is not a DICOM, NIfTI (.nii, .nii.gz) or .mgz file, or its start is damaged"
        ) from error
    except OSError:  # no permission, a bad disk: the system's message is the clearest
        raise
    except Exception as error:  # pydicom raises errors of any type for a damaged header
        raise damaged_header(file, error) from error


def _check_numbers(header: FileDataset) -> None:
    """Refuse several values, or none, where the reading of the pixels relies on one."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not isinstance(syntax, UID | None):
        raise ValueError(f"TransferSyntaxUID must be one UID, got {syntax}")
    for keyword in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames"):
        value = header[keyword].value if keyword in header else 1
        left_empty = value is None and keyword in ("BitsAllocated", "NumberOfFrames")
        if not isinstance(value, int) and not left_empty:
            raise ValueError(f"{keyword} must be one whole number, got {value}")


class _Header(FileDataset):
    """A header whose damaged elements raise a `ValueError` that names the file.

    pydicom decodes an element on access and raises errors of any type for a damaged one.
    """

    def __getitem__(self, key: Any) -> Any:
        try:
            return super().__getitem__(key)
        except KeyError:  # there is no such element
            raise
        except Exception as error:
            raise damaged_header(Path(str(self.filename)), error) from error


def damaged_header(file: Path, error: Exception) -> ValueError:
    """A one-line error about a file with a damaged header."""
    if isinstance(error, ValueError) and str(file) in str(error):
        return error
    return ValueError(f"{file} has a damaged DICOM header: {one_line(error)}; get the file again")


def open_dicom(file: Path) -> io.BufferedReader:
    """Open a file for `pydicom.dcmread`, which inflates a deflated file whole.

    Raises:
        ValueError: (when it is read) the file is deflated and would fill the memory.
    """
    return _Guarded(io.FileIO(file))


_read = io.BufferedReader.read  # `super()` takes as long as the reading


class _Guarded(io.BufferedReader):
    """A file whose rest is not read before it is known that it can be inflated."""

    def read(self, size: int | None = -1) -> bytes:
        # pydicom reads elements by their lengths, and all that is left only to inflate it
        if size is None or size < 0:
            start = self.tell()
            inflate_within_memory(Path(self.name), self, wbits=-zlib.MAX_WBITS)
            self.seek(start)
        return _read(self, size)


def one_series(path: Path, headers: dict[Path, Dataset]) -> dict[Path, Dataset]:
    series: dict[str, list[Dataset]] = defaultdict(list)
    for header in headers.values():
        series[str(header.get("SeriesInstanceUID", ""))].append(header)
    if len(series) > 1:
        found = [f'"{h[0].get("SeriesDescription", "no description")}" ({len(h)} files)' for h in series.values()]
        raise ValueError(
            f"{path} must hold one series, got {len(series)}: {first_few(found)}; put each into its own folder"
        )
    return headers


def without_copies(path: Path, headers: dict[Path, Dataset]) -> dict[Path, Dataset]:
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
        warn(f"{path}: {len(copies)} files are copies of others and were left out: {first_few(copies)}")
    return {file: headers[file] for file in first.values()}


def _same_image(first: Path, second: Path) -> bool:
    if first.read_bytes() == second.read_bytes():
        return True
    a, b = pydicom.dcmread(first), pydicom.dcmread(second)
    same_place = all(a.get(k) == b.get(k) for k in ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope"))
    return same_place and a.get("PixelData") == b.get("PixelData")
