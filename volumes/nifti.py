"""Read and write NIfTI (.nii, .nii.gz) and FreeSurfer (.mgz) files. The table lists the outcome for unusual input:

| input | outcome |
| --- | --- |
| 2-D image | read as one slice, warned |
| 4-D (or more) with one volume | read as 3-D |
| 5-D and more with several volumes, e.g. a vector field | error: use `read_transform` |
| all values NaN or infinite | error |
| axes not perpendicular (sheared sform) | read, warned |
| compressed data damaged or cut off | error |
| file shorter than its header claims | error, before memory is allocated |
| file longer than its header claims, by a slice or more | error: an axis of the header may be damaged |
| header extensions longer than the space before the voxels | error, before memory is allocated |
| more than the free memory | error, before memory is taken |
| MGH file without a valid orientation (goodRASFlag 0) | read with FreeSurfer's default, warned |
| not a NIfTI or MGH file | error |
| one of sform, qform set | that one is used |
| RGB, complex or other compound values | error |
| scaled integers (scl_slope, scl_inter) | scaled: float32 from 8 and 16 bits, else float64 |
| sform and qform both 0 | nibabel's default (centred, first axis to the left), warned: left and right are unknown |
| sform and qform disagree by more than a tenth of a voxel | sform is used, warned with the distance |
| sform or qform not finite or not invertible | the other is used, warned; error if there is none |
| size of an axis zero or negative | error |
| some values NaN or infinite | set to 0, warned with their number |
| spatial or temporal unit with a code that NIfTI does not define | taken as mm, or as no unit; warned |
| spatial unit metre or micron | converted to mm, warned |
"""

import gzip
import os
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.arrayproxy import ArrayProxy

from ..runs.files import atomic_path
from ..runs.memory import check_inflated, check_memory
from ..runs.words import one_line
from .volume import HeaderFacts, Volume, perpendicular_axes
from .warning import VolumeWarning

NIFTI_SUFFIXES = (".nii", ".nii.gz")
MGH_SUFFIXES = (".mgz", ".mgh")

# the codes in a NIfTI header's xyzt_units: bits 0 to 2 for lengths (factor to mm), bits 3 to 5 for the fourth axis
_LENGTHS = {0: ("unknown", 1.0), 1: ("meter", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}
_TIMES = {0: "unknown", 8: "sec", 16: "msec", 24: "usec", 32: "hz", 40: "ppm", 48: "rads"}
_SPACES = (1, 2, 3, 4, 5)
_MGH_FIELDS = ("tr", "flip_angle", "te", "ti")
_ROUNDING = 1e-5  # the squared length of a quaternion may exceed 1 by this much through float32 rounding
_INFLATE_ERRORS = (zlib.error, cast("type[Exception]", isal_zlib.error), gzip.BadGzipFile)
_GZIP_SUFFIXES = (".gz", ".mgz")
_CHUNK = 1 << 20  # bytes read at once while a compressed file is checked
_SCALED = 16  # bytes that nibabel takes for a voxel while it is scaled
# the fields of the order and times of slices, and the largest number of each that means something
_SLICES = {
    "dim_info": 63,
    "slice_code": 6,
    "slice_start": 32767,
    "slice_end": 32767,
    "slice_duration": 1e9,
    "toffset": 1e9,
}
_MOST_EXTRA = 64 << 20  # bytes of header extensions, and of the data after the voxels of an MGH file
# MGH stores only these four types; others are converted to the next one that holds every value
_MGH_TYPES = {"b": "u1", "i1": "i2", "u2": "i4", "f2": "f4", "f8": "f4"}


class _RoundedQuaternion:
    """A header whose quaternion may exceed a length of 1 by rounding; nibabel allows only 3.6e-7."""

    def get_qform_quaternion(self) -> np.ndarray:
        header: Any = self
        imaginary = np.array([header["quatern_b"], header["quatern_c"], header["quatern_d"]], dtype=np.float64)
        square = float(imaginary @ imaginary)
        if 1 < square <= 1 + _ROUNDING:
            return np.array([0.0, *(imaginary / np.sqrt(square))])
        result: np.ndarray = super().get_qform_quaternion()  # type: ignore[misc]
        return result


class _Nifti1Header(_RoundedQuaternion, nib.Nifti1Header):
    pass


class _Nifti2Header(_RoundedQuaternion, nib.Nifti2Header):
    pass


class _Nifti1Image(nib.Nifti1Image):
    header_class = _Nifti1Header


class _Nifti2Image(nib.Nifti2Image):
    header_class = _Nifti2Header


def is_nifti_name(path: str | os.PathLike[str]) -> bool:
    """Whether the name ends in .nii, .nii.gz, .mgz or .mgh, in any case."""
    return Path(path).name.lower().endswith(NIFTI_SUFFIXES + MGH_SUFFIXES)


def load_image(path: Path) -> Any:
    """The nibabel image of a file, after a check that its data are complete; the data are not loaded yet.

    Raises:
        ValueError: the file is not a NIfTI or MGH file, is cut off or damaged, or claims an impossible size.
        OSError: the file is missing or cannot be read.
    """
    image = _opened(path)
    _check_complete(path, image)
    return image


def _opened(path: Path) -> Any:
    """The nibabel image of a file with a readable header."""
    if path.is_dir():
        raise ValueError(f"{path} must be a NIfTI or MGH file, got a folder")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    try:
        _check_extensions(path)
        image: Any = _open(path)
        shape, _, _ = _layout(image)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a readable NIfTI or MGH file: {one_line(error)}") from error
    except OSError:  # no permission, a bad disk: the system's message is the clearest
        raise
    except Exception as error:  # nibabel raises errors of any type for a damaged header
        raise ValueError(f"{path} has a damaged or cut-off header: {one_line(error)}; get the file again") from error
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{path} must have at least two axes of at least one voxel each, its header gives {shape}")
    return image


def _layout(image: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """The shape and the type of the voxels, and the bytes before them."""
    return tuple(int(n) for n in image.shape), image.get_data_dtype(), int(image.dataobj.offset)


def _check_complete(path: Path, image: Any) -> None:
    """Refuse a file that holds less or much more data than its header claims, or more than the free memory."""
    shape, dtype, offset = _layout(image)
    slice_bytes = int(np.prod([*shape[:2], dtype.itemsize], dtype=object))
    data_bytes = slice_bytes * int(np.prod(shape[2:], dtype=object))
    expected, stored = offset + data_bytes, path.stat().st_size
    packed = path.name.lower().endswith(_GZIP_SUFFIXES)
    if packed:
        check_inflated(path, expected, stored)
    elif stored < expected:
        raise ValueError(_cut_off(path, shape, dtype, expected, stored))
    scaled = (getattr(image.dataobj, "slope", 1), getattr(image.dataobj, "inter", 0)) != (1, 0)
    check_memory(path, data_bytes + data_bytes // dtype.itemsize * (_SCALED if scaled else 2 * dtype.itemsize))
    most = expected + (_MOST_EXTRA if isinstance(image, nib.MGHImage) else slice_bytes)
    found = _uncompressed_size(path, most) if packed else stored
    if found < expected:
        raise ValueError(_cut_off(path, shape, dtype, expected, found))
    if found >= most:
        raise ValueError(
            f"{path} holds more than its header claims ({shape} voxels of {dtype}, {expected} bytes): an axis of the"
            " header may be damaged; get the file again"
        )


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI or MGH file as a `Volume`; the table of the module lists the outcome for unusual input.

    Raises:
        ValueError, OSError: the values or the position in space cannot be trusted; the message is one line.
    """
    image = load_image(path)
    affine = _mgh_affine(path, image) if isinstance(image, nib.MGHImage) else nifti_affine(path, image)
    array = _finite(path, _spatial(path, _values(path, image)))
    try:
        volume = Volume(array, affine, path, header=_facts(image))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; repair the header's sform or qform") from error
    if not perpendicular_axes(affine):
        warnings.warn(f"{path}: the image axes are not perpendicular; read as they are", VolumeWarning, stacklevel=3)
    return volume


def _open(path: Path) -> Any:
    for kind in (_Nifti1Image, _Nifti2Image):
        if kind.path_maybe_image(path)[0]:
            return kind.from_filename(path)
    return nib.load(path)


def _facts(image: Any) -> HeaderFacts:
    header = image.header
    if isinstance(image, nib.MGHImage):
        numbers = {name: float(header[name]) for name in _MGH_FIELDS}
        numbers = {name: number for name, number in numbers.items() if np.isfinite(number)}
        return HeaderFacts(_positive(numbers.get("tr", 0.0)), "msec", None, numbers)
    code = int(header["sform_code"]) or int(header["qform_code"])
    step = _positive(float(header["pixdim"][4])) if len(image.shape) > 3 else None
    unit = _TIMES.get(int(header["xyzt_units"]) & 0o70, "unknown")
    slices = {name: float(header[name]) for name in _SLICES}
    kept = {name: number for name, number in slices.items() if number and 0 <= number <= _SLICES[name]}
    return HeaderFacts(step, unit, code if code in _SPACES else None, slices=kept)


def _positive(number: float) -> float | None:
    return number if np.isfinite(number) and number > 0 else None


def _units(path: Path, header: Any) -> tuple[str, float, str]:
    """The unit of lengths, its factor to mm, and the unit of the fourth axis; warns of codes that are not defined."""
    code = int(header["xyzt_units"])
    lengths, times = code & 7, code & 0o70
    if lengths not in _LENGTHS:
        _warn(f"{path}: the unit of lengths has the unknown code {lengths}; taken as mm")
    if times not in _TIMES:
        _warn(f"{path}: the unit of time has the unknown code {times}; taken as unknown")
    return *_LENGTHS.get(lengths, _LENGTHS[0]), _TIMES.get(times, "unknown")


def write_nifti(path: Path, volume: Volume, *, space: Literal["scanner", "aligned"] = "scanner") -> None:
    """Write .nii or .nii.gz (sform and qform both set), .mgz or .mgh by the suffix of `path`.

    Args:
        path: the file; it appears complete or not at all.
        volume: the image. Its dtype is kept if the format supports it, otherwise widened to the next supported one.
        space: "scanner" for an image in its original space (the code of its header, or 1), "aligned" for an image that
            was resampled to another one (code 2).
    """
    facts = volume.header or HeaderFacts()
    if path.name.lower().endswith(MGH_SUFFIXES):
        image: Any = nib.MGHImage(_mgh_array(path, volume.array), volume.affine)
        for name, number in facts.mgh.items():
            image.header[name] = number
        factor = {"sec": 1000.0, "msec": 1.0, "usec": 0.001}.get(facts.unit)
        if facts.step is not None and factor is not None and volume.array.ndim == 4:
            image.header["tr"] = facts.step * factor
    else:
        array = _native(volume.array)
        image = nib.Nifti1Image(array, None, dtype=array.dtype)
        set_nifti_affine(image, volume.affine, code=2 if space == "aligned" else facts.space or 1)
        if volume.array.ndim == 4 and facts.step is not None:
            image.header["pixdim"][4] = facts.step
            image.header.set_xyzt_units("mm", facts.unit)
        for name, number in facts.slices.items() if space == "scanner" else ():
            image.header[name] = number
    save_image(path, image)


def save_image(path: Path, image: Any) -> None:
    """Write an image of nibabel completely or not at all, compressed if .gz or .mgz; equal images give equal bytes."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        packed = path.name.lower().endswith(_GZIP_SUFFIXES)
        # ISA-L compresses to the same size as zlib's level 1 in a tenth of the time
        stream = igzip.IGzipFile("", "wb", 1, file, mtime=0) if packed else file
        for holder in image.file_map.values():
            holder.fileobj = stream
        image.to_file_map()
        if packed:
            stream.close()


def nifti_affine(path: Path, image: Any) -> np.ndarray:
    """The (4, 4) voxel -> world matrix of a NIfTI image in RAS+ mm; warns of a choice between sform and qform."""
    header = image.header
    forms: dict[str, np.ndarray] = {}
    broken: dict[str, str] = {}
    for name, form in (("sform", header.get_sform), ("qform", header.get_qform)):
        try:
            matrix, code = form(coded=True)
            if code:
                forms[name] = Volume(np.empty((1, 1, 1)), matrix).affine
        except (ValueError, nib.spatialimages.HeaderDataError) as error:
            broken[name] = one_line(error)
    if broken and not forms:
        raise ValueError(f"{path} has no usable place in the world: {broken}; repair the header's sform or qform")
    if broken:
        name, why = next(iter(broken.items()))
        _warn(f"{path}: the {name} is unusable ({why}); the {next(iter(forms))} is used")
    if not forms:
        try:
            affine = Volume(np.empty((1, 1, 1)), image.affine).affine
        except ValueError as error:
            raise ValueError(f"{path} has no usable voxel size: {error}; repair the header's pixdim") from error
        _warn(
            f"{path} does not give its position in space (sform and qform codes are 0): taken as"
            f" {''.join(code or '?' for code in nib.aff2axcodes(affine))} with its centre at the"
            " origin; left and right are unknown"
        )
    else:
        affine = forms["sform"] if "sform" in forms else forms["qform"]
    if len(forms) == 2:
        distance = _corner_distance(forms["sform"], forms["qform"], image.shape[:3])
        if distance > 0.1 * min(np.linalg.norm(forms["sform"][:3, :3], axis=0)):
            _warn(f"{path}: sform and qform disagree by up to {distance:.3g} mm; the sform is used")
    unit, scale, _ = _units(path, header)
    if scale != 1:
        _warn(f"{path}: lengths are in {unit}s and were converted to mm")
    result: np.ndarray = np.diag([scale, scale, scale, 1.0]) @ affine
    return result


def set_nifti_affine(image: Any, affine: np.ndarray, *, code: int) -> None:
    """Set sform and qform of a nibabel NIfTI image; a sheared affine has no qform, whose code is then 0."""
    image.set_sform(affine, code)
    image.set_qform(affine, code if perpendicular_axes(affine) else 0)
    image.header.set_xyzt_units(xyz="mm")


def _mgh_affine(path: Path, image: Any) -> np.ndarray:
    # bytes 28 and 29 hold the flag; nibabel sets it when it fills in the default
    with (gzip.open if path.name.lower().endswith(".mgz") else open)(path, "rb") as stream:
        flag = stream.read(30)[28:]
    if flag == b"\0\0":
        _warn(
            f"{path} does not give its position in space (goodRASFlag is 0): FreeSurfer's default orientation is used"
        )
    result: np.ndarray = image.affine
    return result


def _values(path: Path, image: Any) -> np.ndarray:
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        raise ValueError(f"{path} must hold one real number per voxel, got {dtype}; split it into real channels")
    try:
        array = _stored_values(path, image)
    except (EOFError, *_INFLATE_ERRORS, OSError, ValueError) as error:
        raise ValueError(f"{path} has damaged data: {one_line(error)}; get the file again") from error
    except MemoryError as error:
        raise ValueError(f"{path} does not fit in memory: {image.shape} voxels of {dtype}") from error
    if array.dtype.kind == "f" and dtype.kind != "f":  # nibabel scaled stored integers
        result: np.ndarray = array.astype(np.float32 if dtype.itemsize <= 2 else np.float64)
        return result
    return _native(array)


def _stored_values(path: Path, image: Any) -> np.ndarray:
    """The array of an image; ISA-L inflates a compressed one in half of zlib's time."""
    proxy = image.dataobj
    if type(proxy) is not ArrayProxy or not path.name.lower().endswith(_GZIP_SUFFIXES):
        return np.asanyarray(proxy)
    with igzip.open(path) as stream:
        layout = proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter
        return np.asanyarray(ArrayProxy(stream, layout, mmap=False))


def _spatial(path: Path, array: np.ndarray) -> np.ndarray:
    """(D, H, W) or (D, H, W, T) of an array with any number of axes."""
    if array.ndim == 2:
        _warn(f"{path} is a 2-D image of {array.shape} pixels; read as one slice")
        return array[:, :, None]
    shape = array.shape
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 4:
        raise ValueError(
            f"{path} must be 3-D or 4-D, got {shape}; a displacement field is read with read_transform, other channels"
            " must be split first"
        )
    return array


def _finite(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    # a sum is finite unless a value is not (or it overflows): one pass, no temporary array in the usual case
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return array
    finite = np.isfinite(array)
    bad = finite.size - int(np.count_nonzero(finite))
    if bad == finite.size:
        raise ValueError(f"{path} holds no finite value: all {bad} are NaN or infinite")
    if bad:
        _warn(f"{path}: {bad} of {finite.size} values are NaN or infinite and were set to 0")
    return np.where(finite, array, array.dtype.type(0))


def _native(array: np.ndarray) -> np.ndarray:
    """The array in native byte order and a type that NIfTI knows."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize == 2 else np.float64)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"array must hold real numbers, got {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _mgh_array(path: Path, array: np.ndarray) -> np.ndarray:
    kind = array.dtype.kind if array.dtype.kind == "b" else f"{array.dtype.kind}{array.dtype.itemsize}"
    if kind == "f8":
        _warn(f"{path}: .mgz has no float64; written as float32")
    if kind in ("u4", "i8", "u8"):
        limits = np.iinfo(np.int32)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise ValueError(f"{path} holds whole numbers of 32 bits at most, got {array.min()} to {array.max()}")
        return array.astype(np.int32)
    return array.astype(_MGH_TYPES.get(kind, array.dtype.newbyteorder("=")))


def _cut_off(path: Path, shape: tuple[int, ...], dtype: np.dtype, expected: int, found: int) -> str:
    return (
        f"{path} is cut off: its header gives {shape} voxels of {dtype} ({expected} bytes), it holds {found} bytes;"
        " get the file again"
    )


def _check_extensions(path: Path) -> None:
    """Refuse header extensions that claim more than the space before the voxels: nibabel would read it."""
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        return
    with (gzip.open if path.name.lower().endswith(_GZIP_SUFFIXES) else open)(path, "rb") as stream:
        start = stream.read(544)
        for kind, length in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540)):
            big = int.from_bytes(start[:4], "big") == length
            if len(start) < length + 4 or not (big or int.from_bytes(start[:4], "little") == length):
                continue
            offset = float(kind(start[:length], check=False)["vox_offset"])
            if not 0 <= offset <= _MOST_EXTRA:
                raise ValueError(f"its header places the voxels at byte {offset:g}")
            left, place = int(offset) - length - 4, length + 4
            while start[length] and left >= 16:
                stream.seek(place)
                size = int.from_bytes(stream.read(4), "big" if big else "little", signed=True)
                if not 8 <= size <= left:
                    raise ValueError(f"an extension claims {size} bytes where {left} are left")
                left, place = left - size, place + size


def _uncompressed_size(path: Path, most: int) -> int:
    """The uncompressed size of a gzip file, read piece by piece up to `most` bytes, which also checks its checksum."""
    size = 0
    try:
        with igzip.open(path) as stream:
            while size < most and (piece := stream.read(_CHUNK)):
                size += len(piece)
    except (EOFError, *_INFLATE_ERRORS) as error:
        raise ValueError(f"{path} is cut off or damaged: {one_line(error)}; get the file again") from error
    return size


def _corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance (mm) between the positions of a corner voxel under two affines."""
    sizes = [*shape, 1, 1, 1][:3]
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in sizes], indexing="ij"), -1).reshape(-1, 3)
    moved = corners @ (first - second)[:3, :3].T + (first - second)[:3, 3]
    return float(np.linalg.norm(moved, axis=1).max())


def _warn(text: str) -> None:
    warnings.warn(text, VolumeWarning, stacklevel=4)
