"""Folders that a batch searches for cases. The expected result is the images of each case, and whether it is sound."""

import os
import shutil
import tempfile
from pathlib import Path

from damages import cut, damaged
from dicom_inputs import sound_series, write
from pydicom.data import get_testdata_file


@damaged("folder", "links in circles, to nothing and to itself; a pipe; a hidden file", "read")
def _(folder):
    write(folder, sound_series())
    (folder / "up").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "nothing").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe.nii")
    (folder / ".hidden.nii").write_bytes(b"")
    return folder, {"cases": [[5, True]]}


@damaged("folder", "folders named like files", "read")
def _(folder):
    for name in ("a.dcm", "b.nii.gz", "c.png", "d.edf", "DICOMDIR"):
        (folder / name).mkdir()
    write(folder / "a.dcm", sound_series())
    return folder, {"cases": [[5, True]]}


@damaged("folder", "DICOMDIR that points to nothing", "read")
def _(folder):
    shutil.copy(get_testdata_file("DICOMDIR", download=False), folder)
    write(folder, sound_series())
    return folder, {"cases": [[5, True]]}


@damaged("folder", "DICOMDIR cut off", "read")
def _(folder):
    shutil.copy(get_testdata_file("DICOMDIR", download=False), folder)
    cut(folder / "DICOMDIR", 3000)
    write(folder, sound_series())
    return folder, {"cases": [[5, True]]}


@damaged("folder", "radiotherapy, report, waveform beside a series", "read")
def _(folder):
    for name in ("rtplan.dcm", "rtstruct.dcm", "test-SR.dcm", "waveform_ecg.dcm"):
        shutil.copy(get_testdata_file(name, download=False), folder)
    (folder / "series").mkdir()
    write(folder / "series", sound_series())
    return folder, {"cases": [[1, False], [5, True]]}


@damaged("folder", "a damaged file beside a series", "read")
def _(folder):
    write(folder, sound_series())
    cut(folder / "003.dcm", 300)
    return folder, {"cases": [[4, False]]}


@damaged("folder", "two patients with one series UID, mixed", "read")
def _(folder):
    for patient in ("one", "two"):
        series = sound_series()
        for image in series:
            image.PatientID, image.SeriesInstanceUID = patient, "1.2.826.0.2"
        write(folder, series, patient + "{:03d}")
    return folder, {"cases": [[5, True], [5, True]]}


@damaged("folder", "a folder that the user must not open", "read", as_nobody=True)
def _(folder):
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    write(place, sound_series())
    (place / "closed").mkdir(mode=0)
    return place, {"cases": [[1, False], [5, True]]}


@damaged("folder", "300 folders one in the other", "read")
def _(folder):
    here = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(300):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
    finally:
        os.close(here)
    write(folder, sound_series())
    return folder, {"cases": [[5, True]]}
