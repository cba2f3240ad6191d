"""DICOM files made from the CT image that comes with pydicom."""

import inspect
import io
import itertools
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from damages import DAMAGES, Damage, Truth, cut, damaged, swap, zeros_deflated
from PIL import Image as Pillow
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

SLICES, SPACING_MM = 5, 5.0
_NUMBERS = itertools.count()  # UID of the generated series


def sound_series(count: int = SLICES) -> list[Dataset]:
    """Slices made from pydicom's CT image; each slice has its own values and position."""
    series, uid = [], f"1.2.826.0.1.{next(_NUMBERS)}"
    for k in range(count):
        image = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
        del image.DataSetTrailingPadding
        image.InstanceNumber = k + 1
        image.SeriesInstanceUID = uid
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        x, y, z = map(float, image.ImagePositionPatient)
        image.ImagePositionPatient = [x, y, round(z + SPACING_MM * k, 4)]
        image.PixelData = np.roll(image.pixel_array, 7 * k, axis=0).tobytes()
        series.append(image)
    return series


def truth_of(series: list[Dataset]) -> Truth:
    """The volume of axial slices by the DICOM standard (PS3.3, C.7.6.2.1.1), with rows upwards as the reader does."""
    first = series[0]
    planes = [image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept) for image in series]
    array = np.stack(planes).transpose(2, 1, 0)[:, ::-1]
    between_rows, between_columns = map(float, first.PixelSpacing)
    x, y, z = map(float, first.ImagePositionPatient)
    affine = np.diag([-between_columns, between_rows, SPACING_MM, 1.0])
    affine[:3, 3] = -x, -y - (first.Rows - 1) * between_rows, z
    return {"array": array, "affine": affine}


def write(folder: Path, series: list[Dataset], name: str = "{:03d}.dcm") -> Path:
    for k, image in enumerate(series):
        image.save_as(folder / name.format(k), enforce_file_format=True)
    return folder


def dicom(what: str, said: str, outcome: str = "refused") -> Callable:
    """Register an input whose datasets are changed, or whose files are, if the function also takes the folder."""

    def add(change: Callable) -> Callable:
        def make(folder: Path) -> Any:
            series = sound_series()
            truth = truth_of(series)
            if "folder" in inspect.signature(change).parameters:
                write(folder, series)
                return change(folder, series) or folder, truth
            changed = change(series)
            return write(folder, series if changed is None else changed), truth

        DAMAGES.append(Damage("DICOM", what, outcome, said, make))
        return change

    return add


def element(image: Dataset, keyword: str) -> bytes:
    """The first bytes of an explicit little-endian element: tag and VR."""
    tag = pydicom.tag.Tag(keyword)
    return struct.pack("<HH", tag.group, tag.element) + image[keyword].VR.encode()


@dicom("nothing: a sound series", "", "read")
def _(series):
    pass


for _what, _keep in (("half of its pixels", -16384), ("its last byte", -1), ("all pixels", 4000)):

    @dicom(f"last slice lacks {_what}", "cut off")
    def _(folder, series, keep=_keep):
        cut(folder / "004.dcm", keep)


@dicom("last slice ends in its header", "Rows and Columns")
def _(folder, series):
    cut(folder / "004.dcm", 900)


@dicom("last slice ends in its file header", "damaged")
def _(folder, series):
    cut(folder / "004.dcm", 180)


@dicom("last slice is empty (0 bytes)", "empty (0 bytes)")
def _(folder, series):
    cut(folder / "004.dcm", 0)


@dicom("first slice is text", "not a DICOM")
def _(folder, series):
    (folder / "000.dcm").write_text("<html>404 not found</html>" * 50)


@dicom("magic DICM overwritten in one slice", "not a DICOM")
def _(folder, series):
    swap(folder / "002.dcm", b"DICM", b"DICN")


@dicom("all slices without the file header (bare data set)", "not a DICOM")
def _(folder, series):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])


@dicom("a sub-folder with the name of a slice", "", "read")
def _(folder, series):
    (folder / "005.dcm").mkdir()


@dicom("names with spaces, line breaks and umlauts", "", "read")
def _(folder, series):
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"Schädel {path.stem}\nzwei.dcm")


@dicom("a name that is no UTF-8", "", "read")
def _(folder, series):
    os.rename(os.fsencode(folder / "001.dcm"), os.fsencode(folder) + b"/\xff\xfe.dcm")


@dicom("a link to itself and one to nothing beside the slices", "", "read")
def _(folder, series):
    (folder / "loop.dcm").symlink_to(folder / "loop.dcm")
    (folder / "gone.dcm").symlink_to(folder / "nothing.dcm")


@dicom("a pipe beside the slices", "", "read")
def _(folder, series):
    os.mkfifo(folder / "pipe.dcm")


@dicom("one slice is missing", "1 of 5 slices are missing")
def _(series):
    del series[2]


@dicom("every second slice is missing, the header knows the gap", "some may be missing", "read, with a note")
def _(folder, series):
    for number, image in enumerate(series):
        image.SpacingBetweenSlices = SPACING_MM / 2
        image.save_as(folder / f"{number:03d}.dcm")


@dicom("one slice is 2 mm off its place", "not evenly spaced")
def _(series):
    series[2].ImagePositionPatient[2] = float(series[2].ImagePositionPatient[2]) + 2


@dicom("one slice twice, in two files", "copies of others", "read, with a note")
def _(folder, series):
    shutil.copy(folder / "002.dcm", folder / "again.dcm")


@dicom("two slices with one SOP Instance UID", "have one SOPInstanceUID but differ")
def _(series):
    series[3].SOPInstanceUID = series[3].file_meta.MediaStorageSOPInstanceUID = series[2].SOPInstanceUID


@dicom("two images at one place, told apart by nothing", "slices are missing")
def _(series):
    series[3].ImagePositionPatient = series[2].ImagePositionPatient


@dicom("two series in one folder", "must hold one series, got 2")
def _(series):
    for image in series[:2]:
        image.SeriesInstanceUID = "1.2.3.4"


@dicom("one slice of another size", "image sizes")
def _(series):
    series[1].Rows, series[1].PixelData = 64, series[1].PixelData[: 64 * 128 * 2]


@dicom("one slice of another pixel spacing", "pixel spacings")
def _(series):
    series[1].PixelSpacing = [0.9, 0.9]


@dicom("one slice turned by 90 degrees", "slice orientations")
def _(series):
    series[1].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


@dicom("gantry tilt", "gantry tilt")
def _(series):
    for k, image in enumerate(series):
        image.ImagePositionPatient[1] = float(image.ImagePositionPatient[1]) + k


for _keyword, _said in (
    ("ImagePositionPatient", "has no ImagePositionPatient"),
    ("ImageOrientationPatient", "has no ImageOrientationPatient"),
    ("PixelSpacing", "has no PixelSpacing"),
    ("Rows", "no Rows and Columns"),
    ("BitsAllocated", "damaged or cut off"),
    ("PixelData", "cut off"),
    ("PhotometricInterpretation", "damaged or cut off"),
):

    @dicom(f"one slice without {_keyword}", _said)
    def _(series, keyword=_keyword):
        del series[4][keyword]


@dicom("no rescale slope and intercept", "", "read")
def _(folder, series):
    for k, image in enumerate(series):
        image.PixelData = (image.pixel_array.astype(np.int32) + int(image.RescaleIntercept)).astype(np.int16).tobytes()
        image.PixelRepresentation = 1
        del image.RescaleSlope, image.RescaleIntercept
        image.save_as(folder / f"{k:03d}.dcm")


@dicom("positions that are no numbers", "finite numbers")
def _(folder, series):
    position = "\\".join(str(v) for v in series[4].ImagePositionPatient).encode()
    swap(folder / "004.dcm", position[:4], b"nan\\")


@dicom("pixel spacing 0", "must be above 0 mm")
def _(series):
    for image in series:
        image.PixelSpacing = [0, 0]


@dicom("orientation of two equal vectors", "perpendicular unit vectors")
def _(series):
    for image in series:
        image.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]


@dicom("rescale slope without end", "not finite")
def _(series):
    for image in series:
        image.RescaleSlope = "1e300"


@dicom("65535 x 65535 pixels claimed", "cut off")
def _(series):
    for image in series:
        image.Rows = image.Columns = 65535


@dicom("100,000 frames claimed by a single image", "100000 frames")
def _(series):
    series[4].NumberOfFrames = 100_000


@dicom("an element that claims 4 GB", "damaged")
def _(folder, series):
    image = series[4]
    del image.PixelData
    image.add_new(0x00091010, "OB", b"12345678")
    image.save_as(folder / "004.dcm")
    swap(folder / "004.dcm", b"OB\0\0\x08\0\0\0", b"OB\0\0\xfe\xff\xff\xff")


@dicom("sequences 3000 levels deep", "damaged")
def _(folder, series):
    item = b"\x08\x00\x40\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    image = series[4]
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image.save_as(folder / "004.dcm", implicit_vr=True, little_endian=True)
    content = (folder / "004.dcm").read_bytes()
    start = content.index(b"\x08\x00\x60\x00\x02\x00\x00\x00CT")  # Modality
    (folder / "004.dcm").write_bytes(content[:start] + item * 3000)


@dicom("an element with an unknown value representation", "damaged")
def _(folder, series):
    swap(folder / "004.dcm", element(series[4], "PixelSpacing"), element(series[4], "PixelSpacing")[:4] + b"ZQ")


@dicom("private elements with an unknown value representation", "", "read")
def _(folder, series):
    for number, image in enumerate(series):
        image.private_block(0x0041, "TEST", create=True).add_new(1, "UN", b"\x01\x02\x03\x04")
        image.save_as(folder / f"{number:03d}.dcm")
        swap(folder / f"{number:03d}.dcm", b"\x41\0\x01\x10UN\0\0\4\0\0\0", b"\x41\0\x01\x10QQ\x08\0\0\0\0\0")


@dicom("transfer syntax of big-endian numbers over little-endian ones", "damaged")
def _(folder, series):
    for path in folder.iterdir():
        swap(path, ExplicitVRLittleEndian.encode() + b"\0", ExplicitVRBigEndian.encode()[:19] + b"\0")


@dicom("unknown transfer syntax", "unknown transfer syntax")
def _(folder, series):
    for path in folder.iterdir():
        swap(path, ExplicitVRLittleEndian.encode() + b"\0", b"1.2.840.10008.1.2.7\0")


@dicom("JPEG 2000 promised, plain pixels there", "pixels are damaged or cut off")
def _(folder, series):
    for image in series:
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for number, image in enumerate(series):
        path = folder / f"{number:03d}.dcm"
        image.save_as(path)
        content = path.read_bytes()
        old, new = ExplicitVRLittleEndian.encode() + b"\0", JPEG2000Lossless.encode()
        new += b"\0" * (len(new) % 2)
        # the element and the group become longer by the same amount
        place = content.index(old)
        grown = len(new) - len(old)
        length = struct.unpack_from("<I", content, 140)[0] + grown
        path.write_bytes(
            content[:140]
            + struct.pack("<I", length)
            + content[144 : place - 2]
            + struct.pack("<H", len(new))
            + new
            + content[place + len(old) :]
        )


@dicom("big-endian series", "", "read")
def _(folder, series):
    for number, image in enumerate(series):
        image.remove_private_tags()
        image.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        image.PixelData = image.pixel_array.astype(">i2").tobytes()
        pydicom.dcmwrite(
            folder / f"{number:03d}.dcm", image, force_encoding=True, little_endian=False, implicit_vr=False
        )


@dicom("implicit value representations", "", "read")
def _(folder, series):
    for number, image in enumerate(series):
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        image.save_as(folder / f"{number:03d}.dcm", implicit_vr=True, little_endian=True)


@dicom("deflated series", "", "read")
def _(folder, series):
    for number, image in enumerate(series):
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        image.save_as(folder / f"{number:03d}.dcm", implicit_vr=False, little_endian=True)


@dicom("deflated file that inflates to 1 GiB", "inflates to more than")
def _(folder, series):
    image = series[4]
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(folder / "004.dcm", implicit_vr=False, little_endian=True)
    content = (folder / "004.dcm").read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    (folder / "004.dcm").write_bytes(content[:start] + zeros_deflated(1 << 30, wbits=-15))


@dicom("deflated file with a flipped bit", "damaged")
def _(folder, series):
    image = series[4]
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(folder / "004.dcm", implicit_vr=False, little_endian=True)
    content = bytearray((folder / "004.dcm").read_bytes())
    content[900] ^= 0x10
    (folder / "004.dcm").write_bytes(bytes(content[:-3000]))


def compressed(series: list[Dataset], syntax: str = RLELossless) -> list[Dataset]:
    for image in series:
        image.compress(syntax, generate_instance_uid=False)
    return series


@dicom("run-length encoded series", "", "read")
def _(series):
    compressed(series)


@dicom("JPEG 2000 series", "", "read")
def _(series):
    compressed(series, JPEG2000Lossless)


@dicom("JPEG-LS series", "", "read")
def _(series):
    compressed(series, JPEGLSLossless)


@dicom("run-length encoded slice whose fragment is cut", "cannot be decoded")
def _(series):
    compressed(series)
    frame = next(pydicom.encaps.generate_frames(series[4].PixelData, number_of_frames=1))
    series[4].PixelData = encapsulate([frame[: len(frame) // 2]])


@dicom("JPEG 2000 slice whose fragment is cut", "pixels are damaged or cut off")
def _(series):
    compressed(series, JPEG2000Lossless)
    frame = next(pydicom.encaps.generate_frames(series[4].PixelData, number_of_frames=1))
    series[4].PixelData = encapsulate([frame[: len(frame) // 2]])


@dicom("JPEG-LS slice whose fragment is cut", "pixels are damaged or cut off")
def _(series):
    compressed(series, JPEGLSLossless)
    frame = next(pydicom.encaps.generate_frames(series[4].PixelData, number_of_frames=1))
    series[4].PixelData = encapsulate([frame[: len(frame) // 2]])


@dicom("compressed slice whose file is cut", "damaged")
def _(folder, series):
    write(folder, compressed(series))
    cut(folder / "004.dcm", -300)


@dicom("JPEG 2000 slice of 60000 x 60000 pixels in itself", "60000 x 60000 pixels, the header gives 128 x 128")
def _(series):
    compressed(series, JPEG2000Lossless)
    frame = bytearray(next(pydicom.encaps.generate_frames(series[4].PixelData, number_of_frames=1)))
    frame[8:16] = struct.pack(">II", 60000, 60000)
    series[4].PixelData = encapsulate([bytes(frame)])


@dicom("JPEG slice of 65000 x 65000 pixels in itself", "65000 x 65000 pixels, the header gives 128 x 128")
def _(series):
    stream = io.BytesIO()
    Pillow.fromarray(np.zeros((128, 128), np.uint8)).save(stream, "JPEG")
    frame = bytearray(stream.getvalue())
    place = frame.index(b"\xff\xc0") + 5
    frame[place : place + 4] = struct.pack(">HH", 65000, 65000)
    series[4].PixelData = encapsulate([bytes(frame)])
    series[4].file_meta.TransferSyntaxUID = JPEGBaseline8Bit


@dicom("rows and columns of a compressed slice exchanged with others", "the header gives")
def _(series):
    for image in compressed(series, JPEGLSLossless):
        image.Rows, image.Columns = 64, 256


@dicom("colour image as last slice", "colour image")
def _(series):
    series[4].SamplesPerPixel, series[4].PhotometricInterpretation, series[4].PlanarConfiguration = 3, "RGB", 0
    series[4].PixelData *= 3


@dicom("random bytes after the file header", "damaged")
def _(folder, series):
    content = (folder / "004.dcm").read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    (folder / "004.dcm").write_bytes(content[:360] + noise)


def enhanced() -> tuple[Dataset, Truth]:
    """The undamaged series as one multi-frame file."""
    singles = sound_series()
    image, truth = singles[0], truth_of(singles)
    positions = [single.ImagePositionPatient for single in singles]
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    image.NumberOfFrames, image.PixelData = SLICES, b"".join(single.PixelData for single in singles)
    measures, orientation, value, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, SPACING_MM
    orientation.ImageOrientationPatient = image.ImageOrientationPatient
    value.RescaleSlope, value.RescaleIntercept = image.RescaleSlope, image.RescaleIntercept
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [value]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for position in positions:
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = position
        group.PlanePositionSequence = [place]
        frames.append(group)
    image.PerFrameFunctionalGroupsSequence = frames
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del image[keyword]
    return image, truth


def multi_frame(what: str, said: str, outcome: str = "refused") -> Callable:
    """Register a multi-frame file whose dataset is changed."""

    def add(change: Callable) -> Callable:
        def make(folder: Path) -> Any:
            image, truth = enhanced()
            change(image)
            image.save_as(folder / "enhanced.dcm", enforce_file_format=True)
            return folder / "enhanced.dcm", truth

        DAMAGES.append(Damage("DICOM", f"multi-frame file: {what}", outcome, said, make))
        return change

    return add


@multi_frame("nothing wrong", "", "read")
def _(image):
    pass


@multi_frame("one frame more than pixels and places", "announces 6 frames but describes 5")
def _(image):
    image.NumberOfFrames = 6


@multi_frame("places for more frames than there are pixels", "cut off")
def _(image):
    image.NumberOfFrames = 6
    frames = image.PerFrameFunctionalGroupsSequence
    x, y, z = frames[-1].PlanePositionSequence[0].ImagePositionPatient
    frames.append(deepcopy(frames[-1]))
    frames[-1].PlanePositionSequence[0].ImagePositionPatient = [x, y, float(z) + SPACING_MM]


@multi_frame("fewer frames than pixels", "announces 4 frames but describes 5")
def _(image):
    image.NumberOfFrames = 4


@multi_frame("pixels for more frames than it says and describes", "expected 4 x 128 x 128 pixels")
def _(image):
    image.NumberOfFrames = 4
    del image.PerFrameFunctionalGroupsSequence[4]


@multi_frame("100,000 frames claimed", "announces 100000 frames but describes 5")
def _(image):
    image.NumberOfFrames = 100_000


@multi_frame("-1 frames", "frames")
def _(image):
    image.NumberOfFrames = -1


@multi_frame("compressed, one frame missing", "damaged")
def _(image):
    compressed([image])
    frames = list(pydicom.encaps.generate_frames(image.PixelData, number_of_frames=SLICES))
    image.PixelData = encapsulate(frames[:-1])


@multi_frame("two frames at one place", "missing")
def _(image):
    frames = image.PerFrameFunctionalGroupsSequence
    frames[1].PlanePositionSequence = frames[2].PlanePositionSequence


def one_file(name: str, what: str, said: str) -> None:
    """Register a file of pydicom's own collection."""

    def make(folder: Path) -> Any:
        shutil.copy(get_testdata_file(name, download=False), folder / "a.dcm")
        return folder / "a.dcm"

    DAMAGES.append(Damage("DICOM", what, "refused", said, make))


one_file("rtplan.dcm", "radiotherapy plan", "must hold a DICOM series")
one_file("rtstruct.dcm", "radiotherapy structures", "not a DICOM")
one_file("test-SR.dcm", "structured report", "must hold a DICOM series")
one_file("waveform_ecg.dcm", "waveform", "must hold a DICOM series")
one_file("MR_truncated.dcm", "real MR image, cut off", "cut off")
one_file("SC_rgb_jpeg.dcm", "colour screenshot", "colour image")
one_file("no_meta.dcm", "image without a file header", "not a DICOM")
one_file("badVR.dcm", "report with a wrong value representation", "")


@damaged("DICOM", "PDF in DICOM", said="must hold a DICOM series")
def _(folder):
    document = sound_series(1)[0]
    document.SOPClassUID = document.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    del document.PixelData, document.Rows, document.Columns
    document.EncapsulatedDocument, document.MIMETypeOfEncapsulatedDocument = b"%PDF-1.4 ", "application/pdf"
    write(folder, [document])
    return folder


@damaged("DICOM", "a folder without images", said="must hold a DICOM series")
def _(folder):
    (folder / "readme.txt").write_text("nothing")
    return folder


@damaged("DICOM", "a series that the user must not read", said="Permission denied", as_nobody=True)
def _(folder):
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    write(place, sound_series())
    (place / "002.dcm").chmod(0)
    return place
