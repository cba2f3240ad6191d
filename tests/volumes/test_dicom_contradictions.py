"""A header that contradicts its acquisition tags gives a note, and the header is used."""

import warnings

import numpy as np
import pytest

from voxelwave.volumes import read_volume

STORED = np.zeros((12, 6, 5), np.uint16)  # axial slices from z = 5 to 38 mm, rows 2 mm apart, columns 1.5 mm apart


def _notes(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_volume(folder)
    assert volume.orientation == "LAS"
    return [str(warning.message) for warning in caught]


def _scan(image, first, last):
    block = image.private_block(0x19, "GEMS_ACQU_01", create=True)
    for element, value in ((0x18, "S" if first >= 0 else "I"), (0x1A, "S" if last >= 0 else "I")):
        block.add_new(element, "LO", value)
    for element, value in ((0x19, first), (0x1B, last)):
        block.add_new(element, "DS", str(value))


@pytest.mark.parametrize(("first", "last", "noted"), [(5, 38, False), (38, 5, True), (37, 6, True), (90, -60, False)])
def test_slices_against_the_order_of_acquisition(tmp_path, write_classic, first, last, noted):
    write_classic(tmp_path / "in", STORED, edit=lambda image, k: _scan(image, first, last))
    assert [("run against the order" in note and "upside down" in note) for note in _notes(tmp_path / "in")] == [
        True
    ] * noted


@pytest.mark.parametrize(("flipped", "noted"), [(False, None), (True, "its rows run against the corners")])
def test_rows_against_the_recorded_corners(tmp_path, write_classic, flipped, noted):
    def edit(image, k):
        x, y, z = image.ImagePositionPatient
        top, bottom = (y + 10, y) if flipped else (y, y + 10)
        corners = {0x42: (x + 3, y + 5, z), 0x48: (x + 6, top, z), 0x4B: (x + 6, bottom, z)}
        block = image.private_block(0x27, "GEMS_IMAG_01", create=True)
        for start, place in corners.items():
            for axis, value in enumerate(np.multiply(place, (-1, -1, 1))):
                block.add_new(start + axis, "FL", float(value))

    write_classic(tmp_path / "in", STORED, edit=edit)
    notes = _notes(tmp_path / "in")
    assert notes == [] if noted is None else noted in notes[0]


@pytest.mark.parametrize(("letters", "noted"), [(["L", "P"], 0), (["L", "A"], 1), (["R", "P"], 1), (["", ""], 0)])
def test_patient_orientation_against_image_orientation(tmp_path, write_classic, letters, noted):
    write_classic(tmp_path / "in", STORED, edit=lambda image, k: setattr(image, "PatientOrientation", letters))
    notes = _notes(tmp_path / "in")
    assert len(notes) == noted
    assert all("contradicts PatientOrientation" in note for note in notes)
