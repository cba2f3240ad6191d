"""Damaged and unusual inputs are refused in one line or read correctly, in bounded time and memory; see damaged/."""

import gzip
import importlib
import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxelwave.eeg.recording import read_recording
from voxelwave.restoration.images import read_image
from voxelwave.volumes import Volume, read_volume

HERE = Path(__file__).resolve().parent / "damaged"
PAGE = HERE.parents[3] / "docs" / "damaged_inputs.md"
LINES = (ValueError, OSError)  # the command line shows this as one line
FLIPS = settings(  # no limit of time, since other work may run
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """`modules(name)` imports one of the files that make and read the inputs."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, modules: Any) -> dict[str, Any]:
    """The outcomes of all inputs, read by one process with limits."""
    folder = tmp_path_factory.mktemp("damaged")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = subprocess.run(
        [sys.executable, str(HERE / "read_all.py"), str(folder)],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    names = modules("read_all")
    results = [json.loads(line) for line in (folder / names.RESULTS).read_text().splitlines()]
    damages = modules("damages").DAMAGES
    if len(results) < len(damages):
        pytest.fail(f"{damages[len(results)]} took too long, or ended the process: {program.stderr[-3000:]}")
    assert program.returncode == 0, program.stderr[-3000:]
    return {
        "damages": damages,
        "results": results,
        "batch": json.loads((folder / names.BATCH).read_text()),
        "told": program.stdout + program.stderr,
        "limits": names,
    }


def wrong(damage: Any, result: dict[str, Any], limits: Any) -> list[str]:
    """The differences between the outcome of one input and the expectation."""
    found = []
    if result["outcome"] != damage.outcome:
        found.append(f"expected {damage.outcome}")
    if result["equal"] is False:
        found.append("a wrong volume")
    if damage.said not in result["said"]:
        found.append(f"no word of {damage.said!r}")
    if result["error"] not in ("", "ValueError", "OSError", "FileNotFoundError", "PermissionError"):
        found.append("a traceback")
    if "\n" in result["said"] or (result["error"] and not 10 < len(result["said"]) < 800):
        found.append("not one line")
    if result["mib"] > limits.MEMORY_MIB:
        found.append("too much memory")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DICOM", "NIfTI", "picture", "EEG", "folder"])
def test_each_input_is_refused_in_a_line_or_read_right_within_its_bounds(everything: dict[str, Any], kind: str) -> None:
    pairs = [pair for pair in zip(everything["damages"], everything["results"], strict=True) if pair[0].kind == kind]
    problems = [
        f"{damage.what}: {', '.join(found)}; got {result}"
        for damage, result in pairs
        if (found := wrong(damage, result, everything["limits"]))
    ]
    assert not problems, "\n".join(problems)
    assert len(pairs) >= 8


@pytest.mark.slow
def test_the_page_of_inputs_says_what_happened(everything: dict[str, Any]) -> None:
    assert len(everything["results"]) >= 60
    assert PAGE.read_text() == everything["limits"].table(everything["results"])


@pytest.mark.slow
def test_a_batch_over_all_of_them_records_each_in_a_line(everything: dict[str, Any]) -> None:
    done, told = everything["batch"], everything["told"]
    assert "Traceback" not in told
    assert done["code"] == 3
    assert all("\n" not in (entry["error"] or "") for entry in done["entries"])
    ended: dict[int, list[bool]] = {}  # whether the cases of each input were read
    for entry in done["entries"]:
        ended.setdefault(int(entry["place"]), []).append(entry["status"] == "done")
    sound = [
        number
        for number, (damage, result) in enumerate(zip(everything["damages"], everything["results"], strict=True))
        if damage.kind in ("NIfTI", "picture") and result["outcome"] != "refused" and len(ended.get(number, [])) == 1
    ]
    assert len(sound) >= 10
    assert all(ended[number] == [True] for number in sound)


def one_line(error: BaseException) -> bool:
    return 0 < len(str(error)) < 1500 and "\n" not in str(error)


def read_or_refuse(reader: Callable[[Path], Any], path: Path) -> Any | None:
    """Read a file; return None if it is refused in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return reader(path)
        except LINES as error:
            problem = error
    assert one_line(problem), problem
    return None


def flipped(content: bytes, place: float, bit: int) -> bytes:
    """The bytes with one flipped bit at the fraction `place` of their length."""
    changed = bytearray(content)
    changed[int(place * len(content))] ^= 1 << bit
    return bytes(changed)


places, bits = st.floats(0, 1, exclude_max=True), st.integers(0, 7)


def same(found: Volume, array: np.ndarray, affine: np.ndarray) -> bool:
    return np.array_equal(found.array, array) and np.allclose(found.affine, affine, atol=1e-4)


@FLIPS
@given(place=places, bit=bits)
def test_a_flipped_bit_in_a_compressed_scan_is_noticed(modules, tmp_path_factory, place, bit):
    content, truth = modules("nifti_inputs").sound_scan()
    path = tmp_path_factory.mktemp("flip") / "scan.nii.gz"
    path.write_bytes(flipped(gzip.compress(content, mtime=0), place, bit))
    volume = read_or_refuse(read_volume, path)
    assert volume is None or same(volume, truth["array"], truth["affine"])


@FLIPS
@given(place=st.floats(0, 0.01), bit=bits)
def test_a_flipped_bit_in_a_scans_header_gives_what_nibabel_reads_or_an_error(modules, tmp_path_factory, place, bit):
    content, _ = modules("nifti_inputs").sound_scan()
    path = tmp_path_factory.mktemp("flip") / "scan.nii"
    path.write_bytes(flipped(content, place, bit))
    volume = read_or_refuse(read_volume, path)
    if volume is None:
        return
    other = nib.load(path)
    array = np.nan_to_num(np.asarray(other.dataobj), nan=0, posinf=0, neginf=0)
    assert volume.array.size == array.size
    np.testing.assert_allclose(volume.array.ravel(), array.ravel(), rtol=1e-6)
    unit = {"meter": 1e3, "micron": 1e-3}.get(other.header.get_xyzt_units()[0], 1.0)
    affine = np.diag([unit, unit, unit, 1.0]) @ other.affine
    if np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]):  # otherwise the other form was used, with a warning
        np.testing.assert_allclose(volume.affine, affine, rtol=1e-6)


@FLIPS
@given(place=places, bit=bits)
def test_a_flipped_bit_in_a_series_gives_what_simpleitk_reads_or_an_error(modules, tmp_path_factory, place, bit):
    dicom = modules("dicom_inputs")
    series = dicom.sound_series(3)
    folder = dicom.write(tmp_path_factory.mktemp("flip"), series)
    path = folder / "001.dcm"
    content = path.read_bytes()
    header = content.index(series[1].PixelData[:64])
    end = header if bit % 2 else len(content)  # as many flips in the header as in the pixels
    path.write_bytes(flipped(content[:end], place, bit) + content[end:])
    truth = dicom.truth_of(series)
    volume = read_or_refuse(read_volume, folder)
    if volume is not None and not same(volume, truth["array"], truth["affine"]):
        image = sitk.ReadImage([str(folder / f"{k:03d}.dcm") for k in range(3)])
        np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0)[:, ::-1])
        np.testing.assert_allclose(sorted(volume.spacing), sorted(image.GetSpacing()), rtol=1e-3)


@pytest.mark.parametrize(
    "keyword",
    [
        *("BitsAllocated", "Columns", "FrameOfReferenceUID", "ImageOrientationPatient", "ImagePositionPatient"),
        *(
            "ImageType",
            "PixelSpacing",
            "RescaleSlope",
            "Rows",
            "SamplesPerPixel",
            "SeriesInstanceUID",
            "StudyInstanceUID",
        ),
    ],
)
def test_an_element_of_an_unknown_kind_is_ignored_or_refused_with_the_file(modules, tmp_path, keyword):
    dicom = modules("dicom_inputs")
    series = dicom.sound_series(3)
    folder = dicom.write(tmp_path, series)
    path, element = folder / "001.dcm", series[1][keyword]
    start = struct.pack("<HH", element.tag.group, element.tag.element)
    content = path.read_bytes()
    assert content.count(start + element.VR.encode()) == 1
    path.write_bytes(content.replace(start + element.VR.encode(), start + b"WI"))
    if keyword == "StudyInstanceUID":  # is not needed to read a series
        assert same(read_volume(folder), dicom.truth_of(series)["array"], dicom.truth_of(series)["affine"])
    else:
        with pytest.raises(ValueError, match=r"001.dcm has a damaged DICOM header: .*'WI'"):
            read_volume(folder)


def test_two_transfer_syntaxes_are_refused(modules, tmp_path):
    dicom = modules("dicom_inputs")
    folder = dicom.write(tmp_path, dicom.sound_series(3))
    content = (folder / "001.dcm").read_bytes()
    (folder / "001.dcm").write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1\\2.1\0", 1))
    with pytest.raises(ValueError, match=r"001.dcm has a damaged DICOM header: TransferSyntaxUID must be one UID"):
        read_volume(folder)


@FLIPS
@given(place=places, bit=bits)
def test_a_flipped_bit_in_a_picture_is_noticed(modules, tmp_path_factory, place, bit):
    pictures = modules("picture_inputs")
    path = tmp_path_factory.mktemp("flip") / "a.png"
    path.write_bytes(flipped(pictures.bitmap(pictures.sound_picture(), "PNG"), place, bit))
    image = read_or_refuse(read_image, path)
    assert image is None or np.array_equal(image.stack[0, 0], pictures.sound_picture())


@FLIPS
@given(place=st.floats(0, 0.15), bit=bits)
def test_a_flipped_bit_in_a_recordings_header_is_an_error_or_gives_numbers(modules, tmp_path_factory, place, bit):
    eeg = modules("eeg_inputs")
    path = tmp_path_factory.mktemp("flip") / "a.edf"
    path.write_bytes(flipped(eeg.edf(eeg.sound_eeg()), place, bit))
    recording = read_or_refuse(read_recording, path)
    assert recording is None or (recording.signal.size > 0 and np.isfinite(recording.signal).all())


REAL = [
    *("siemens_xa30_enhanced/fa.dcm", "dicom2nifti/generic/compressed_rle/001", "dicom2nifti/hitachi/anatomical/001"),
    *("dicom2nifti/generic/compressed_j2k/001", "dicom2nifti/generic/compressed_jpeg/001"),
    *("dicom2nifti/generic/compressed_jpegls/001", "dicom2nifti/philips_enhanced/anatomical/001"),
    *(
        "dicom2nifti/siemens_multiframe/anatomical/001",
        "dicom2nifti/ge/dti/001",
        "dicom2nifti/hyperfine/anatomical/001",
    ),
]


@pytest.mark.parametrize("name", REAL)
def test_real_images_that_are_cut_anywhere_are_refused(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "dicom" / name
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    victim = files[len(files) // 2]
    for path in files:
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / victim.name).unlink()
    content = victim.read_bytes()
    rest = pydicom.dcmread(victim)
    behind = sum(len(e.value or b"") + 12 for e in rest if e.tag > 0x7FE00010)  # padding and similar bytes
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        (tmp_path / victim.name).write_bytes(content[: int(share * (len(content) - behind - 1))])
        assert read_or_refuse(read_volume, tmp_path / victim.name if source.is_file() else tmp_path) is None
