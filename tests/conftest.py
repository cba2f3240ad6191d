"""Fixtures that every folder of tests shares."""

import contextlib
import gc
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the processors; read when NumPy and PyTorch are loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file go to one worker, so that its fixtures, such as the built site, are made once."""
    from xdist.scheduler import LoadFileScheduling  # an optional package

    config.option.loadscopereorder = False  # by default the files with few tests come last, however slow they are
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker begins one while the others run out of work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Exempt the loaded packages from garbage collection; Lightning collects after each training, for 0.6 s."""
    gc.collect()
    gc.freeze()


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"needs the folder of real recordings and scans: set {variable} (looked at {folder})")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings and scans."""
    return _folder("VOXELWAVE_DATA", _SHARED / "data")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """The folder of outputs of the published models with random weights."""
    return _folder("VOXELWAVE_FIXTURES", _SHARED / "fixtures")


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded random generator for one test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def fewer_samples() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with fewer_samples():` searches for linear maps on a sixth of the samples, from three of eight turned starts.

    The search takes most of the registration of a small image. For tests that are not about its accuracy.
    """
    return _fewer_samples


@contextlib.contextmanager
def _fewer_samples() -> Iterator[None]:
    from voxelwave.registration import affine, mirror, rigid

    with pytest.MonkeyPatch.context() as patch:
        for module in (affine, mirror, rigid):
            levels = tuple((spacing_mm, count // 6) for spacing_mm, count in module._LEVELS)
            patch.setattr(module, "_LEVELS", levels)
        patch.setattr(affine, "_TRIED", 3)
        yield


@pytest.fixture(scope="session")
def dicom_errors() -> Callable[[Path], set[str]]:
    """The errors that dciodvfy finds in a DICOM file, without the numbers of sequence items."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("needs dciodvfy (Debian package dicom3tools)")

    def errors(file: Path) -> set[str]:
        run = subprocess.run([program, "-new", str(file)], capture_output=True, text=True, errors="replace")
        lines = [line for line in (run.stderr + run.stdout).splitlines() if line.startswith("Error")]
        return {re.sub(r"\[\d+\]| Item #\d+", "", line) for line in lines}

    return errors


@pytest.fixture(scope="session")
def synthetic_windows() -> Callable[..., Any]:
    """`synthetic_windows(people=, count=, planted_uv=, planted=)`: windows of 2 s at 64 Hz of synthetic EEG.

    Each person has `count` windows; every other person is a case and carries 10 Hz of `planted_uv` on the channels
    `planted`.
    """
    return _synthetic_windows


def _synthetic_windows(*, people: int, count: int, planted_uv: float, planted: tuple[str, ...]) -> Any:
    from voxelwave.eeg.channels import CED_ORDER  # MNE takes a second to load
    from voxelwave.eeg.synthetic import CLASSES, synthetic_signal
    from voxelwave.eeg.windows import WindowOptions, Windows, standardize

    sfreq, times, seconds = 64.0, 128, 2 * count
    signals = [
        synthetic_signal(
            np.random.default_rng([0, i]),
            planted_uv=planted_uv * (i % 2),
            seconds=seconds,
            sfreq=sfreq,
            planted=planted,
        )
        for i in range(people)
    ]
    raw = np.stack(signals).reshape(people, len(CED_ORDER), count, times).transpose(0, 2, 1, 3)
    raw = raw.reshape(-1, len(CED_ORDER), times)
    return Windows(
        x=standardize(raw),
        subject=np.repeat(np.arange(people), count),
        start=np.tile(np.arange(count) * times, people),
        log_variance=np.log(raw.var(axis=2)).astype(np.float32),
        subjects=tuple(f"s{i:02d}" for i in range(people)),
        labels=np.arange(people) % 2,
        classes=CLASSES,
        sfreq=sfreq,
        channels=CED_ORDER,
        seconds=np.full(people, float(seconds)),
        unit="uV",
        options=WindowOptions(seconds=2.0, sfreq=sfreq),
        excluded=(),
        notes=(),
        digests=tuple(f"d{i}" for i in range(people)),
    )


@pytest.fixture(scope="session")
def write_ct() -> Callable[..., None]:
    """`write_ct(folder, ...)` writes a small CT series into a new folder."""
    return _write_ct


def _write_ct(folder: Path, *, slices: int = 4, slope: float = 1.0, intercept: float = -1024.0) -> None:
    """A small oblique CT series of random values; the names of its files do not follow the order of the slices."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    series, study, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    row, column = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])
    for k in range(slices):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.SeriesInstanceUID, image.StudyInstanceUID = series, study
        image.FrameOfReferenceUID = frame_of_reference
        image.PatientID, image.PatientName, image.Modality = "p1", "Phantom^Head", "CT"
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.SeriesNumber, image.InstanceNumber = 3, k + 1
        image.Rows, image.Columns = 6, 5
        image.PixelSpacing, image.SliceThickness = [0.7, 0.5], 2.0
        image.ImageOrientationPatient = [*row, *column]
        image.ImagePositionPatient = [-12.5, 20.25, 7.0 + 2.0 * k]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        image.WindowCenter, image.WindowWidth = 40, 400
        image.SmallestImagePixelValue = 0
        image.LossyImageCompression, image.LossyImageCompressionRatio = "01", 10
        image.PixelData = rng.integers(0, 4096, (6, 5), dtype=np.uint16).tobytes()
        image.save_as(folder / f"{slices - k:03d}.dcm", enforce_file_format=True)


@pytest.fixture
def tiny_module() -> dict[str, Any]:
    """Settings of a module that trains in a second."""
    return {
        "network": "MaIR",
        "arguments": {
            "in_channels": 1,
            "scale": 1,
            "upsampler": None,
            "width": 8,
            "depths": [1],
            "states": 1,
            "expansion": 1.0,
            "stripe_width": 4,
            "drop_path_rate": 0.0,
        },
        "lr": 2e-3,
        "schedule": "cosine",
        "steps": 24,
    }
