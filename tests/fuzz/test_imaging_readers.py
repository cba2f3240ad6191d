"""Mutated imaging files: each is refused in one line or gives a volume with a position, in bounded time and memory."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from voxelwave.registration.pairs import read_pairs
from voxelwave.restoration.bitmaps import read_bitmap
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import load_weights, save_weights
from voxelwave.scanpath.readers import read_scanpaths
from voxelwave.volumes import AffineTransform, DisplacementField, read_transform, read_volume, write_transform

MUTANTS = 400  # mutants of each format
SECONDS = 20  # seconds for each mutant
MEMORY_GIB = 3  # GiB above the memory of the process
NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xc0\0\0",
    b"\0\0\xc0\x7f",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\x01",
)
WORDS = (b"-1", b"0", b"99999999", b"1e308", b"nan", b"", b"\\", b"[[[[[[", b"null", b'"', b"\xff\xfe")
CHANGES: dict[str, Any] = {"values": NUMBERS, "words": WORDS, "most_changes": 3, "header": 700, "longest": 29}
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 1.6, -1.2, -20], [0, 1.2, 1.6, 5], [0, 0, 0, 1.0]])  # axes at right angles
VALUES = np.random.default_rng(0).integers(-900, 3000, (6, 5, 4)).astype(np.int16)


def _nifti(file: Path) -> None:
    nib.save(nib.Nifti1Image(VALUES, AFFINE), file)


def _mgh(file: Path) -> None:
    nib.save(nib.MGHImage(VALUES.astype(np.float32), AFFINE), file)


def _dicom(name: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        header = pydicom.dcmread(get_testdata_file(name, download=False))
        file.write_bytes(_bytes_of(header))

    return write


def _bytes_of(image: pydicom.Dataset) -> bytes:
    stream = io.BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _tiff(file: Path) -> None:
    tifffile.imwrite(file, VALUES.astype(np.uint16)[..., 0], compression="zlib")


def _bitmap(file: Path) -> None:
    Image.fromarray(VALUES[..., 0].clip(0, 255).astype(np.uint8)).save(file)


def _linear(file: Path) -> None:
    write_transform(file, AffineTransform(np.linalg.inv(AFFINE) @ np.diag([1.01, 1, 1, 1]) @ AFFINE))


def _field(file: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(6, 5, 4, 3)).astype(np.float32)
    write_transform(file, DisplacementField(vectors, AFFINE))


def _weights(file: Path) -> None:
    network = MaIR(in_channels=1, width=12, depths=(1,), states=2, stripe_width=4)
    save_weights(file, network, task="denoise", intensity_range=(0.0, 1.0), intensity_unit="relative")


def _coco(file: Path) -> None:
    boxes = [{"image_id": 7, "category_id": n, "bbox": [20 * n, 20, 40, 40], "iscrowd": 0} for n in (1, 2)]
    content = {"images": [{"id": 7, "file_name": "p.jpg", "width": 840, "height": 525}], "annotations": boxes}
    content["categories"] = [{"id": 1, "name": "cup"}, {"id": 2, "name": "oven"}]
    trial = {
        "name": "p.jpg",
        "subject": 3,
        "task": "cup",
        "condition": "present",
        "X": [840.0, 60.0],
        "Y": [525.0, 70.0],
    }
    file.write_text(json.dumps(content))
    (file.parent / "fixations.json").write_text(json.dumps([trial]))


def _pairs(file: Path) -> None:
    file.write_text("moving,fixed,subject\na.nii,b.nii,1\nc.nii,d.nii,2\n")


def _check_volume(file: Path) -> str | None:
    volume = read_volume(file)
    spacing, values = np.array(volume.spacing), volume.array
    sound = np.isfinite(volume.affine).all() and (spacing > 0).all() and np.isfinite(values).all() and values.size > 0
    return None if sound else f"affine {volume.affine.tolist()}, shape {values.shape}"


def _check_bitmap(file: Path) -> str | None:
    stack = read_bitmap(file)
    sound = stack.ndim == 4 and stack.shape[1] in (1, 3) and stack.size > 0 and np.isfinite(stack).all()
    return None if sound else f"shape {stack.shape}"


def _check_transform(file: Path) -> str | None:
    points = np.array([[0.0, 0, 0], [5, -10, 8]])
    moved = read_transform(file).map(points)
    # NaN marks points outside a field
    return None if moved.shape == points.shape and not np.isinf(moved).any() else f"points moved to {moved.tolist()}"


def _check_weights(file: Path) -> str | None:
    network, _ = load_weights(file)
    return None if all(bool(p.isfinite().all()) for p in network.parameters()) else "weights that are not finite"


def _check_scanpaths(file: Path) -> str | None:
    found = read_scanpaths(file.parent)
    return None if all(np.isfinite(path.position).all() for path in found.paths) else "positions that are not finite"


def _check_pairs(file: Path) -> str | None:
    return None if read_pairs(file) is not None else "nothing"


Check = Callable[[Path], str | None]
FORMATS: dict[str, tuple[str, Callable[[Path], None], Check]] = {
    "nifti": ("a.nii", _nifti, _check_volume),
    "packed nifti": ("a.nii.gz", _nifti, _check_volume),
    "mgz": ("a.mgz", _mgh, _check_volume),
    "mgh": ("a.mgh", _mgh, _check_volume),
    "dicom": ("a.dcm", _dicom("CT_small.dcm"), _check_volume),
    "compressed dicom": ("a.dcm", _dicom("MR_small_RLE.dcm"), _check_volume),
    "segmentation": ("a.dcm", _dicom("liver_1frame.dcm"), _check_volume),
    "tiff": ("a.tiff", _tiff, _check_bitmap),
    "png": ("a.png", _bitmap, _check_bitmap),
    "pgm": ("a.pgm", _bitmap, _check_bitmap),
    "mat transform": ("a.mat", _linear, _check_transform),
    "text transform": ("a.txt", _linear, _check_transform),
    "field": ("a.nii.gz", _field, _check_transform),
    "plain field": ("a.nii", _field, _check_transform),
    "safetensors": ("a.safetensors", _weights, _check_weights),
    "coco": ("boxes.json", _coco, _check_scanpaths),
    "pairs": ("a.csv", _pairs, _check_pairs),
}


def problem_with(file: Path, check: Check, limits: Callable[..., Any]) -> str | None:
    """The error in reading a file; None if it is refused in one line or read with finite numbers."""
    try:
        with limits(SECONDS, MEMORY_GIB), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check(file)
    except (ValueError, OSError) as error:
        return None if str(error) and "\n" not in str(error).strip() else f"{type(error).__name__}: {error!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit of memory needs Linux")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_mutated_file_is_refused_in_one_line_or_read(kind: str, tmp_path: Path, mutated: Any, limits: Any) -> None:
    name, write, check = FORMATS[kind]
    file = tmp_path / name
    write(file)
    content = file.read_bytes()
    sound: Any = problem_with(file, check, limits)
    assert sound is None, sound
    problems = {}
    for number in range(MUTANTS):
        file.write_bytes(mutated(content, np.random.default_rng([number, *kind.encode()]), **CHANGES))
        found = problem_with(file, check, limits)
        if found:
            problems[number] = found
    assert not problems, "\n".join(f"mutant {number}: {found}" for number, found in problems.items())
