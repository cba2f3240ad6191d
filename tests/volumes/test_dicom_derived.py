"""A derived series keeps only the attributes of its source that are still true."""

from datetime import UTC, datetime, timedelta

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
)

from voxelwave.volumes import read_volume
from voxelwave.volumes.dicom_derived import check_source, derived_series_number
from voxelwave.volumes.dicom_registered import write_deformable_registration, write_registered_series
from voxelwave.volumes.dicom_write import write_derived_series
from voxelwave.volumes.transforms import DisplacementField

STORED = np.random.default_rng(0).integers(0, 4000, (3, 4, 5)).astype(np.uint16)
SLOPES = (0.5, 1.25, 3.0)


def _derive(tmp_path, description="unchanged"):
    volume = read_volume(tmp_path / "in")
    write_derived_series(tmp_path / "out", volume, tmp_path / "in", description)
    return volume, [pydicom.dcmread(file) for file in sorted((tmp_path / "out").iterdir())]


def _move(tmp_path):
    volume = read_volume(tmp_path / "in")
    write_registered_series(tmp_path / "moved", volume, tmp_path / "in", "moved", frame_of_reference="1.2.3")
    return volume, [pydicom.dcmread(file) for file in sorted((tmp_path / "moved").iterdir())]


def _map(holding, slope, intercept, first=0, last=65535):
    return holding(
        RealWorldValueFirstValueMapped=first,
        RealWorldValueLastValueMapped=last,
        RealWorldValueSlope=float(slope),
        RealWorldValueIntercept=float(intercept),
        LUTExplanation="x",
        LUTLabel="x",
        MeasurementUnitsCodeSequence=holding(CodeValue="1", CodingSchemeDesignator="UCUM", CodeMeaning="no units"),
    )


@pytest.mark.parametrize("factor", [1.0, 0.01])
def test_real_world_values_stay_what_they_were(tmp_path, write_classic, holding, factor):
    def edit(image, k):
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = SLOPES[k], 7, "US"
        image.RealWorldValueMappingSequence = _map(holding, SLOPES[k] * factor, 2 * factor)

    write_classic(tmp_path / "in", STORED, edit=edit)
    _derive(tmp_path)
    for before, after in zip(sorted((tmp_path / "in").iterdir()), sorted((tmp_path / "out").iterdir()), strict=True):
        values = [highdicom.imread(file).get_frames(dtype=np.float64) for file in (before, after)]
        np.testing.assert_allclose(values[1], values[0], atol=0.2501 * factor)  # half the finest slope


def test_a_moved_series_keeps_a_map_that_is_the_same_in_all_slices_only(tmp_path, write_classic, holding):
    def edit(image, k):
        image.RealWorldValueMappingSequence = _map(holding, 0.01, 5)

    write_classic(tmp_path / "in", STORED, edit=edit)
    _, moved = _move(tmp_path)
    assert all(image.RealWorldValueMappingSequence[0].RealWorldValueSlope == 0.01 for image in moved)

    def differing(image, k):
        image.RealWorldValueMappingSequence = _map(holding, SLOPES[k], 5)

    (tmp_path / "other").mkdir()
    write_classic(tmp_path / "other" / "in", STORED, edit=differing)
    _, moved = _move(tmp_path / "other")
    assert not any("RealWorldValueMappingSequence" in image for image in moved)


def test_a_map_by_look_up_table_goes(tmp_path, write_classic, holding):
    def edit(image, k):
        image.RealWorldValueMappingSequence = holding(
            RealWorldValueFirstValueMapped=0, RealWorldValueLastValueMapped=1, RealWorldValueLUTData=[0.0, 5.0]
        )

    write_classic(tmp_path / "in", STORED, edit=edit)
    _, derived = _derive(tmp_path)
    assert not any("RealWorldValueMappingSequence" in image for image in derived)


def test_float_pixels_keep_their_fractions(tmp_path, write_enhanced):
    values = np.random.default_rng(1).uniform(0, 0.9, (4, 4, 5)).astype(np.float32)

    def edit(image):
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = ParametricMapStorage
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            del image[keyword]
        image.BitsAllocated, image.FloatPixelData = 32, values.tobytes()

    write_enhanced(tmp_path / "in" / "e.dcm", [(k, 0) for k in range(4)], lambda group, time: None, edit=edit)
    source, derived = _derive(tmp_path)
    np.testing.assert_allclose(source.array.transpose(2, 1, 0)[:, ::-1], values)
    np.testing.assert_allclose(read_volume(tmp_path / "out").array, source.array, atol=0.9 / 65_534)
    assert "FloatPixelData" not in derived[0]


def _pet(image, k):
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
    image.Modality, image.ImageType = "PT", ["ORIGINAL", "PRIMARY"]
    image.SeriesDate, image.SeriesTime, image.DecayCorrection = "20200102", "101500", "START"
    image.RescaleSlope, image.RescaleIntercept = SLOPES[k] * 10, 0
    image.ImageIndex, image.NumberOfSlices = k + 1, len(STORED)
    image.PatientOrientationCodeSequence = image.PatientGantryRelationshipCodeSequence = []


def test_pet_keeps_the_time_of_its_decay_correction_and_an_intercept_of_0(tmp_path, write_classic):
    write_classic(tmp_path / "in", STORED, edit=_pet)
    source, derived = _derive(tmp_path)
    moved = _move(tmp_path)[1]
    for image in derived + moved:
        assert (image.SeriesDate, image.SeriesTime) == ("20200102", "101500")
        assert list(image.ImageType) == ["DERIVED", "PRIMARY"]
        assert image.RescaleIntercept == 0
    for image in moved:
        assert image.PatientOrientationCodeSequence == image.PatientGantryRelationshipCodeSequence == []
        assert image.NumberOfSlices == len(moved)
    back = read_volume(tmp_path / "out").array
    np.testing.assert_allclose(back, source.array, atol=2.5)  # half the finest slope of the source


def test_negative_pet_values_are_kept(tmp_path, write_classic):
    write_classic(tmp_path / "in", STORED, edit=_pet)
    volume = read_volume(tmp_path / "in")
    lower = volume.with_array(volume.array - 60_000)
    write_derived_series(tmp_path / "out", lower, tmp_path / "in", "lower")
    np.testing.assert_allclose(read_volume(tmp_path / "out").array, lower.array, atol=2.5)


@pytest.mark.parametrize(("zone", "hours"), [("+0900", 9), ("-0330", -3.5), (None, None)])
def test_times_are_in_the_zone_of_the_header(tmp_path, write_classic, zone, hours):
    def edit(image, k):
        if zone:
            image.TimezoneOffsetFromUTC = zone

    write_classic(tmp_path / "in", STORED, edit=edit)
    image = _derive(tmp_path)[1][0]
    written = datetime.strptime(image.InstanceCreationDate + image.InstanceCreationTime, "%Y%m%d%H%M%S")
    here = datetime.now() if hours is None else datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=hours)
    assert abs(here - written) < timedelta(minutes=2)
    assert (image.SeriesDate, image.SeriesTime) == (image.InstanceCreationDate, image.InstanceCreationTime)


@pytest.mark.parametrize(
    ("own", "after"), [(None, "ISO_IR 192"), ("ISO_IR 100", "ISO_IR 100"), ("ISO_IR 144", "ISO_IR 192")]
)
def test_text_has_a_character_set_that_has_its_letters(tmp_path, write_classic, own, after):
    def edit(image, k):
        image.SeriesDescription = "t1 sag"
        if own:
            image.SpecificCharacterSet = own
            image.PatientName = {"ISO_IR 100": "Müller", "ISO_IR 144": "Люкceмбypг"}[own]

    write_classic(tmp_path / "in", STORED, edit=edit)
    before = pydicom.dcmread(next((tmp_path / "in").iterdir()))
    image = _derive(tmp_path, "by Gewichte_ä.safetensors")[1][0]
    assert image.SpecificCharacterSet == after
    assert image.DerivationDescription == "by Gewichte_ä.safetensors"
    assert image.SeriesDescription == "t1 sag, by Gewichte_ä.safetensors"  # the original's words
    assert image.PatientName == before.PatientName


def test_a_series_number_stays_within_what_an_integer_string_holds(tmp_path, write_classic):
    write_classic(tmp_path / "in", STORED, edit=lambda image, k: setattr(image, "SeriesNumber", 2**31 - 1))
    assert _derive(tmp_path)[1][0].SeriesNumber == 2**31 - 1


def test_a_series_number_that_is_no_number_is_replaced(tmp_path, write_classic):
    write_classic(tmp_path / "in", STORED, edit=lambda image, k: setattr(image, "SeriesNumber", 12345678))
    for file in (tmp_path / "in").iterdir():
        file.write_bytes(file.read_bytes().replace(b"12345678", b"three b "))
    check_source(tmp_path / "in")
    assert _derive(tmp_path)[1][0].SeriesNumber == 1000
    header = Dataset()
    assert derived_series_number(header, 2000) == 2000


def test_what_cannot_be_derived_from_is_reported_before_the_work(tmp_path, write_classic):
    def edit(image, k):
        image.ReferringPhysicianName = "R"
        del image.SOPClassUID

    write_classic(tmp_path / "in", STORED, edit=edit)
    with pytest.raises(ValueError, match=r"no derived DICOM image can be made of it .*write a NIfTI file instead"):
        check_source(tmp_path / "in")


def test_a_big_endian_series_gives_derived_and_moved_ones(tmp_path, write_classic):
    folder = tmp_path / "in"
    write_classic(tmp_path / "little", STORED)
    folder.mkdir()
    for file in sorted((tmp_path / "little").iterdir()):
        image = pydicom.dcmread(file)
        image.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        image.PixelData = image.pixel_array.astype(">u2").tobytes()
        image["PixelData"].VR = "OW"
        image.add_new(0x60003000, "OW", np.array([1, 512], ">u2").tobytes())
        image.AcquisitionMatrix = [0, 4, 5, 0]
        image.ReferencedImageSequence = [Dataset()]
        image.ReferencedImageSequence[0].ReferencedFrameNumber = 3
        pydicom.dcmwrite(folder / file.name, image, little_endian=False, implicit_vr=False)
    check_source(folder)
    source, derived = _derive(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path / "out").array, source.array)
    assert derived[0].file_meta.TransferSyntaxUID.is_little_endian
    assert derived[0][0x60003000].value == np.array([1, 512], "<u2").tobytes()
    assert derived[0].AcquisitionMatrix == [0, 4, 5, 0]
    assert derived[0].ReferencedImageSequence[0].ReferencedFrameNumber == 3
    np.testing.assert_array_equal(read_volume(tmp_path / "in").array, source.array)
    _move(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path / "moved").array, source.array)
    field = DisplacementField(np.zeros((*source.shape, 3), np.float32), source.affine)
    options = {"moving": folder, "fixed": None, "frame_of_reference": "1.2.3", "description": "moved ä"}
    path = write_deformable_registration(tmp_path / "registration.dcm", field, **options)
    assert pydicom.dcmread(path).SeriesDescription == "moved ä"
