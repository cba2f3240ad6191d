"""Names of channels that are judged together: caps with their own names, positions, bad channels in a reference."""

import mne
import numpy as np
import pytest

from voxelwave.eeg.channels import CED_ORDER, is_ten_twenty
from voxelwave.eeg.electrode_positions import names_by_position
from voxelwave.eeg.recording import read_recording

BIOSEMI = [f"{bank}{number}" for bank in "ABCD" for number in range(1, 33)]
EGI = [f"E{number}" for number in range(1, 129)]
EQUIDISTANT = [f"{number}{side}" for side in "LRZ" for number in range(1, 11)]
CAPS = {
    "biosemi": BIOSEMI,
    "egi": [*EGI, "Cz"],
    "equidistant": [*EQUIDISTANT, "Cz", "Fz"],
    "numbers": list(map(str, range(1, 33))),
}


@pytest.fixture
def write_cap(tmp_path, write_fif, noise):
    """`write_cap(names)` writes a FIF with a channel per name, and returns the file and the signal."""

    def write(names, **more):
        x = noise(len(names), seconds=4)
        return write_fif(tmp_path / "cap_raw.fif", x, names, **more), x

    return write


@pytest.mark.parametrize("cap", CAPS)
def test_all_electrodes_of_a_cap_with_its_own_names_are_kept_and_none_is_taken_for_another(cap, write_cap):
    file, x = write_cap(CAPS[cap])
    found = read_recording(file)
    np.testing.assert_allclose(found.signal, x, atol=1e-3)
    assert not {"C1", "C3", "C5", "A1", "A2", "D1"} & set(found.channels) - {"D1"}
    assert any("write" in n.text or "name them with the option channels" in n.text for n in found.notes)


@pytest.mark.parametrize("names", [[f"C{i}" for i in range(1, 9)], [f"F{i}" for i in range(5, 13)]])
def test_a_single_short_series_is_judged_as_a_whole_too(names):
    assert not is_ten_twenty(names)


def test_a_place_in_a_cap_without_positions_must_be_named(write_cap):
    file, x = write_cap(BIOSEMI)
    with pytest.raises(ValueError, match=r"must have the channels C3, C4.*for instance Cz=A1"):
        read_recording(file, channels=["C3", "C4"])
    with pytest.raises(ValueError, match="reference must name channels of the recording; C3"):
        read_recording(file, reference="C3")
    found = read_recording(file, channels=["Pz=A19", "cz=A1", "file:C3"])
    assert found.channels == ("Pz", "Cz", "file:C3")
    np.testing.assert_allclose(found.signal, x[[18, 0, BIOSEMI.index("C3")]], atol=1e-3)


def test_a_name_given_for_a_cap_does_no_harm_to_a_10_20_recording(write_cap):
    file, x = write_cap([*CED_ORDER, "A1"])
    found = read_recording(file, channels=["Cz=A1", "Pz=A19"])
    np.testing.assert_allclose(found.signal, x[[CED_ORDER.index("Cz"), CED_ORDER.index("Pz")]], atol=1e-3)


@pytest.mark.parametrize(
    "names",
    [
        CED_ORDER,
        [*CED_ORDER, *(f"DC{i:02d}" for i in range(1, 17)), *(f"X{i}" for i in range(1, 11))],
        [f"EEG {n}-REF" for n in (*CED_ORDER, *range(20, 129))],  # unused inputs of the amplifier
        ["C3", "C4", "Cz", "EOG left", "EMG chin"],
        [*CED_ORDER, "F11", "F12", "FT11", "FT12", "CB1", "CB2"],
    ],
)
def test_a_10_20_cap_stays_one_beside_other_inputs(names):
    assert is_ten_twenty(names)


def test_a_depth_electrode_beside_a_10_20_cap_is_left_out(write_cap):
    """C1, C2 and C5 to C9 are contacts of one electrode; C3 and C4 fit its names too, but lie on the scalp."""
    names = [*CED_ORDER, "C1", "C2", "C5", "C6", "C7", "C8", "C9", "C10"]
    assert read_recording(write_cap(names)[0]).channels == CED_ORDER


@pytest.mark.parametrize(
    ("cap", "places"),
    [
        ("biosemi128", {"A1": "Cz", "A19": "Pz", "A23": "Oz", "C17": "Fpz", "C21": "Fz", "D23": "T7", "B26": "T8"}),
        ("GSN-HydroCel-128", {"E36": "C3", "E104": "C4", "E62": "Pz", "E70": "O1", "E83": "O2", "E22": "Fp1"}),
        ("easycap-M10", {"1": "Cz", "17": "C3", "11": "C4"}),
    ],
)
def test_positions_name_the_electrodes_of_a_cap(cap, places, write_cap):
    """The positions are those that the makers of the caps publish."""
    montage = mne.channels.make_standard_montage(cap)
    file, x = write_cap(montage.ch_names, montage=montage)
    found = read_recording(file)
    assert {name: found.channels[montage.ch_names.index(name)] for name in places} == places
    assert found.signal.shape == x.shape
    assert len(set(found.channels)) == len(found.channels)
    wanted = list(places.values())
    np.testing.assert_allclose(
        read_recording(file, channels=wanted).signal, x[[montage.ch_names.index(name) for name in places]], atol=1e-3
    )


@pytest.mark.parametrize("montage", ["biosemi64", "easycap-M1"])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_positions_of_a_10_20_cap_give_its_own_names(montage, scale):
    made = mne.channels.make_standard_montage(montage)
    raw = mne.io.RawArray(
        np.zeros((len(made.ch_names), 2)), mne.create_info(made.ch_names, 1.0, "eeg"), verbose="error"
    )
    places = raw.set_montage(made).get_montage().get_positions()["ch_pos"]
    found = names_by_position(
        {name: scale * place for name, place in places.items() if name in CED_ORDER or name == "Oz"}
    )
    assert {name: found[name] for name in CED_ORDER} == {name: name for name in CED_ORDER}


@pytest.mark.parametrize(
    "places", [np.zeros((20, 3)), np.eye(3), np.random.default_rng(0).normal(size=(20, 3)), np.full((20, 3), np.nan)]
)
def test_points_that_are_no_head_name_nothing(places):
    assert names_by_position({str(i): place for i, place in enumerate(places)}) == {}


@pytest.mark.parametrize("names", [("Fp1", "O1", "O2", "Cz"), ("A3", "A4", "A5", "A6")])
def test_bad_channels_stay_out_of_an_average_reference(names, write_cap):
    file, x = write_cap(names, bads=[names[0]])
    found = read_recording(file, reference="average")
    np.testing.assert_allclose(found.signal[1:], x[1:] - x[1:].mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(found.signal[0], x[0], atol=1e-3)  # as MNE does
    assert any(f"keep the reference of the file: {names[0]}" in note.text for note in found.notes)
    with pytest.raises(ValueError, match="an average reference needs at least one good channel"):
        read_recording(write_cap(names, bads=names)[0], reference="average")


def test_a_bad_channel_as_the_reference_is_a_defect(write_cap):
    file, _ = write_cap(("Fp1", "O1", "Cz"), bads=["Cz"])
    defects = [note.text for note in read_recording(file, reference="Cz").notes if note.kind == "defect"]
    assert "the reference Cz is marked as bad in the file" in defects


def test_missing_samples_of_one_channel_do_not_spread_through_a_reference(write_cap, write_fif, tmp_path, noise):
    x = noise(3)
    x[0, 256:300] = np.nan
    found = read_recording(write_fif(tmp_path / "nan_raw.fif", x, ("Fp1", "O1", "Cz")), reference="average")
    clean = x.copy()
    clean[0, 256:300] = np.interp(np.arange(256, 300), [255, 300], x[0, [255, 300]])
    np.testing.assert_allclose(found.signal, clean - clean.mean(axis=0), atol=1e-3)
    assert found.bad_spans == [(2.0, 300 / 128)]
