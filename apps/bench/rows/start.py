"""Rows of the start of commands, of reading files, and of batches of small series."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ....volumes import read_volume
from .row import Row, cpu_seconds, cpu_seconds_of_child


def rows(*, quick: bool) -> list[Row]:
    """The rows, with one thread."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reading = [_reading(folder, 128 if quick else 256), _reading_series(folder / "series", 100 if quick else 300)]
        return [*_commands(folder), *reading, *_batches(folder, 8 if quick else 40)]


def _commands(folder: Path) -> list[Row]:
    _picture(folder / "small.png", seed=0)
    restore = ("restoration", "restore", "-i", str(folder / "small.png"), "--weights", "denoise-grey", "--threads", "1")
    missing = ("restoration", "restore", "-i", str(folder / "no.png"), "-o", "o.png", "--weights", "denoise-grey")
    figures = {
        "voxelwave --help": (("--help",), 0, 0.3),
        "a command with a wrong path": (missing, 1, 0.5),
        "restoring a picture of 64 x 64": ((*restore, "-o", str(folder / "restored.png")), 0, 3.0),
    }
    bare = cpu_seconds_of_child(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
    return [
        Row(what=what, unit="CPU s", ours=_command(words, code=code), peer="import torch", theirs=bare, most=most)
        for what, (words, code, most) in figures.items()
    ]


def _batches(folder: Path, count: int) -> list[Row]:
    pictures, results = folder / "pictures", folder / "results"
    pictures.mkdir()
    for number in range(count):
        _picture(pictures / f"picture-{number}.png", seed=number)
    words = ["restoration", "restore", "-i", str(pictures), "-o", str(results), "--weights", "denoise-grey"]
    words += ["--threads", "1"]
    first, again = _command(words), _command(words)
    return [
        Row(what=f"a batch of {count} pictures of 64 x 64", unit="CPU s", ours=first, most=10.0),
        Row(what="the same batch again, with nothing to do", unit="CPU s", ours=again, most=0.8),
    ]


def _command(words: Sequence[str], *, code: int = 0) -> float:
    """CPU time of a command, which must end with this exit code."""
    command = [sys.executable, "-m", "voxelwave.apps.cli", *words]
    codes = []
    seconds = cpu_seconds_of_child(lambda: codes.append(subprocess.run(command, capture_output=True).returncode))
    if codes != [code]:
        raise RuntimeError(f"{' '.join(words)} must end with exit code {code}, got {codes[0]}")
    return seconds


def _reading(folder: Path, side: int) -> Row:
    path = folder / "volume.nii.gz"
    array = np.random.default_rng(0).integers(0, 500, (side,) * 3).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return Row(
        what=f"reading {side} x {side} x {side} from .nii.gz",
        unit="CPU s",
        ours=cpu_seconds(lambda: read_volume(path), 3),
        peer="nibabel",
        theirs=cpu_seconds(lambda: np.asarray(nib.Nifti1Image.from_filename(path).dataobj, np.float32), 3),
        most_of_peer=1.2,
    )


def _reading_series(folder: Path, count: int) -> Row:
    folder.mkdir()
    series, frame_of_reference = generate_uid(), generate_uid()
    for number in range(count):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.SeriesInstanceUID, image.FrameOfReferenceUID = series, frame_of_reference
        image.Rows = image.Columns = 512
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.RescaleSlope, image.RescaleIntercept, image.PixelSpacing, image.SliceThickness = 1, -1024, [0.7, 0.7], 1
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, number]
        image.PixelData = np.random.default_rng(number).integers(0, 4096, (512, 512), np.uint16).tobytes()
        image.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return Row(
        what=f"reading {count} DICOM slices of 512 x 512",
        unit="CPU s",
        ours=cpu_seconds(lambda: read_volume(folder), 3),
        peer="pydicom",
        theirs=cpu_seconds(
            lambda: np.stack([pydicom.dcmread(path).pixel_array for path in sorted(folder.iterdir())]), 3
        ),
        most_of_peer=1.2,
    )


def _picture(path: Path, *, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(128, 20, (64, 64))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
