"""NIfTI and MGH files made from the scan that comes with nibabel."""

import gzip
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from damages import DAMAGES, Damage, Truth, damaged, put, zeros_deflated

SCAN = Path(nib.__file__).parent / "tests" / "data" / "anatomical.nii"


def sound_scan() -> tuple[bytes, Truth]:
    """nibabel's scan as bytes without scaling, and its values."""
    image = nib.load(SCAN)
    array = np.asarray(image.dataobj).astype(np.int16)
    new = nib.Nifti1Image(array, image.affine)
    new.set_qform(image.affine, 1)
    return new.to_bytes(), {"array": array, "affine": new.affine}


def nifti(what: str, said: str, outcome: str = "refused", name: str = "scan.nii") -> Callable:
    """Register a file whose bytes are changed by a function, which may also return the expected result of reading."""

    def add(change: Callable) -> Callable:
        def make(folder: Path) -> Any:
            content, truth = sound_scan()
            changed = change(bytearray(content))
            if isinstance(changed, tuple):
                changed, truth = changed
            (folder / name).write_bytes(changed)
            return folder / name, truth

        DAMAGES.append(Damage("NIfTI", what, outcome, said, make))
        return change

    return add


nifti("nothing: a sound scan", "", "read")(bytes)
nifti("nothing: a sound compressed scan", "", "read", "scan.nii.gz")(lambda b: gzip.compress(b))
nifti("empty (0 bytes)", "empty (0 bytes)")(lambda b: b"")
nifti("compressed, empty (0 bytes)", "empty (0 bytes)", name="scan.nii.gz")(lambda b: b"")
nifti("ends in its header", "not a readable")(lambda b: b[:200])
nifti("lacks its last byte", "cut off")(lambda b: b[:-1])
nifti("compressed, lacks its last bytes", "cut off or damaged", name="scan.nii.gz")(lambda b: gzip.compress(b)[:-9])
nifti("compressed, ends after 100 bytes", "damaged", name="scan.nii.gz")(lambda b: gzip.compress(b)[:100])
nifti("compressed, garbage behind it", "damaged", name="scan.nii.gz")(lambda b: gzip.compress(b) + b"garbage" * 9)
nifti("compressed, zeros behind it", "", "read", "scan.nii.gz")(lambda b: gzip.compress(b) + bytes(512))
nifti("compressed in two members", "", "read", "scan.nii.gz")(lambda b: gzip.compress(b[:999]) + gzip.compress(b[999:]))
nifti("plain file named .nii.gz", "not a readable", name="scan.nii.gz")(bytes)
nifti("compressed file named .nii", "not a readable")(lambda b: gzip.compress(b))
nifti("text", "not a readable")(lambda b: b"hello " * 300)
nifti("wrong magic", "not a readable")(lambda b: put(b, 344, "4s", b"nix1"))
nifti("header length of 347 claimed", "", "read")(lambda b: put(b, 0, "<i", 347))
nifti("axis of 0 voxels", "at least one voxel")(lambda b: put(b, 42, "<h", 0))
nifti("axis of -33 voxels", "at least one voxel")(lambda b: put(b, 42, "<h", -33))
nifti("0 axes", "header")(lambda b: put(b, 40, "<h", 0))
nifti("99 axes", "not a readable")(lambda b: put(b, 40, "<h", 99))
nifti("32767 voxels on each axis", "cut off")(lambda b: put(b, 42, "<3h", 32767, 32767, 32767))
nifti("compressed, 32767 voxels on each axis", "cut off", name="scan.nii.gz")(
    lambda b: gzip.compress(put(b, 42, "<3h", 32767, 32767, 32767))
)
nifti("fewer slices in the header than in the file", "holds more than its header claims")(lambda b: put(b, 46, "<h", 5))
nifti("compressed, fewer slices in the header", "holds more than its header claims", name="scan.nii.gz")(
    lambda b: gzip.compress(put(b, 46, "<h", 5))
)
nifti("unknown data type", "not a readable")(lambda b: put(b, 70, "<h", 999))
nifti("data type of colours", "cut off")(lambda b: put(b, 70, "<2h", 128, 24))
nifti("data type of 64 bits over 16", "cut off")(lambda b: put(b, 70, "<2h", 64, 64))
nifti("scl_slope without end", "finite")(lambda b: put(b, 112, "<2f", 3e38, 3e38))
nifti("scl_slope NaN: no scaling", "", "read")(lambda b: put(b, 112, "<2f", np.nan, np.nan))
nifti("voxels start at NaN", "damaged or cut-off header")(lambda b: put(b, 108, "<f", np.nan))
nifti("voxels start at 1e30", "damaged or cut-off header")(lambda b: put(b, 108, "<f", 1e30))
nifti("voxels start at -400", "damaged or cut-off header")(lambda b: put(b, 108, "<f", -400))
nifti("sform of NaN, qform sound", "the sform is unusable", "read, with a note")(
    lambda b: put(b, 280, "<12f", *[np.nan] * 12)
)
nifti("sform and qform of NaN", "no usable place")(
    lambda b: put(bytearray(put(b, 280, "<12f", *[np.nan] * 12)), 256, "<6f", *[np.nan] * 6)
)
nifti("sform of zeros, no qform", "no usable place")(
    lambda b: put(bytearray(put(b, 280, "<12f", *[0] * 12)), 252, "<2h", 0, 1)
)


@nifti("bomb: 1 GiB of zeros behind a small image", "holds more than its header claims", name="scan.nii.gz")
def _(content):
    return gzip.compress(content) + zeros_deflated(1 << 30)


@nifti("bomb: 4 GiB of zeros, as its header gives", "does not fit in memory", name="scan.nii.gz")
def _(content):
    return gzip.compress(put(content, 42, "<3h", 2048, 2048, 512)[:352]) + zeros_deflated(4 << 30)


def with_extension(content: bytearray, size: int) -> bytes:
    """A header extension that claims `size` bytes, although only 64 bytes lie between header and voxels."""
    put(content, 108, "<f", 352 + 64)
    return bytes(content[:348]) + b"\1\0\0\0" + struct.pack("<2i", size, 4) + bytes(56) + bytes(content[352:])


nifti("header extension", "", "read")(lambda b: with_extension(b, 64))
nifti("header extension that claims 2 GB", "extension claims")(lambda b: with_extension(b, 2**31 - 16))
nifti("header extension of 0 bytes before a bomb", "extension claims", name="scan.nii.gz")(
    lambda b: gzip.compress(with_extension(b, 0)) + zeros_deflated(1 << 30)
)


@nifti("NIfTI-2 with 100,000 slices claimed", "cut off")
def _(content):
    image = nib.Nifti1Image.from_bytes(bytes(content))
    packed = bytearray(nib.Nifti2Image(np.asarray(image.dataobj), image.affine).to_bytes())
    return put(packed, 16, "<8q", 3, 33, 41, 100_000, 1, 1, 1, 1)


@nifti("every value is NaN", "no finite value")
def _(content):
    return nib.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)).to_bytes()


@damaged("NIfTI", "MGH file with 10^9 voxels on an axis", said="cut off")
def _(folder):
    image = nib.MGHImage(np.zeros((4, 4, 4), np.float32), np.eye(4))
    nib.save(image, folder / "a.mgh")
    content = bytearray((folder / "a.mgh").read_bytes())
    (folder / "a.mgh").write_bytes(put(content, 4, ">i", 10**9))
    return folder / "a.mgh"


@damaged("NIfTI", "compressed MGH bomb: 1 GiB of zeros behind a small image", said="holds more than its header claims")
def _(folder):
    nib.save(nib.MGHImage(np.zeros((4, 4, 4), np.float32), np.eye(4)), folder / "a.mgh")
    (folder / "a.mgz").write_bytes(gzip.compress((folder / "a.mgh").read_bytes()) + zeros_deflated(1 << 30))
    return folder / "a.mgz"


@damaged("NIfTI", "folder named scan.nii.gz", said="must hold a DICOM series")
def _(folder):
    (folder / "scan.nii.gz").mkdir()
    return folder / "scan.nii.gz"


@damaged("NIfTI", "link to itself", said="no such file")
def _(folder):
    (folder / "scan.nii").symlink_to(folder / "scan.nii")
    return folder / "scan.nii"


@damaged("NIfTI", "file that the user must not read", said="Permission denied", as_nobody=True)
def _(folder):
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    (place / "scan.nii").write_bytes(sound_scan()[0])
    (place / "scan.nii").chmod(0)
    return place / "scan.nii"
