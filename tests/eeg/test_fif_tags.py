"""In a FIF file, each tag must point to a later one."""

import struct

import mne
import pytest

from voxelwave.eeg.fif_tags import check_fif
from voxelwave.eeg.recording import read_recording

NAMES = ("Fz", "Cz", "Pz")


def test_a_tag_that_leads_back_is_refused(tmp_path, write_fif, noise):
    file = write_fif(tmp_path / "r_raw.fif", noise(), NAMES)
    check_fif(file)
    content = bytearray(file.read_bytes())
    places = [0]  # positions of the tags
    while places[-1] < len(content) - 200:
        _, _, size, following = struct.unpack_from(">iiii", content, places[-1])
        places.append(following if following > 0 else places[-1] + 16 + size)
    content[places[9] + 12 : places[9] + 16] = struct.pack(">i", places[3])
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"the tag at byte {places[9]} of \d+ bytes leads to byte {places[3]}"):
        read_recording(file)


def test_positions_of_a_kind_that_does_not_exist_are_refused_in_one_line(tmp_path, write_fif, noise):
    places = {name: [0.01 * i, 0.0, 0.1] for i, name in enumerate(NAMES)}
    montage = mne.channels.make_dig_montage(places, nasion=[0, 0.1, 0], lpa=[-0.08, 0, 0], rpa=[0.08, 0, 0])
    file = write_fif(tmp_path / "r_raw.fif", noise(), NAMES, montage=montage)
    content = bytearray(file.read_bytes())
    first = content.index(struct.pack(">iii", 213, 33, 20)) + 16  # a digitised point: kind, identity, x, y, z
    content[first + 4 : first + 8] = struct.pack(">i", 77)
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="could not be read as FIF"):
        read_recording(file)
