"""Names of channels as different amplifiers write them."""

import numpy as np
import pytest

from voxelwave.eeg.channels import (
    CED_ORDER,
    TEXT_ORDER,
    is_scalp_name,
    named_reference,
    positions,
    standard_name,
    standard_names,
)


@pytest.mark.parametrize("written", ["T3", "t3", "EEG T3", "EEG T3-REF", "T7", "EEG T7-LE", "t3.", "POL T3", "T3-A1A2"])
def test_one_electrode_has_one_name_under_all_spellings(written):
    assert standard_name(written) == "T7"


@pytest.mark.parametrize(("old", "new"), [("T3", "T7"), ("T4", "T8"), ("T5", "P7"), ("T6", "P8")])
def test_old_names_of_the_temporal_electrodes(old, new):
    assert standard_name(old) == new


@pytest.mark.parametrize("name", ["Fp1-F7", "ECG", "EOG left", "STI 014", "A-B"])
def test_what_is_no_electrode_keeps_its_name(name):
    assert standard_name(name) == name
    assert not is_scalp_name(standard_name(name))


def test_the_reference_in_a_name_is_read():
    assert [named_reference(n) for n in ("EEG Fp1-REF", "O1-a2", "Cz")] == ["REF", "A2", None]


def test_ears_are_no_scalp_electrodes():
    assert is_scalp_name("Cz")
    assert not is_scalp_name("A1")
    assert not is_scalp_name("M2")


def test_two_channels_of_one_electrode_are_refused():
    with pytest.raises(ValueError, match="EEG T3 and T7, which are both T7"):
        standard_names(["Cz", "EEG T3", "T7"])


def test_both_orders_name_the_same_19_electrodes_and_differ():
    assert set(CED_ORDER) == set(TEXT_ORDER)
    assert len(set(CED_ORDER)) == 19
    assert CED_ORDER != TEXT_ORDER
    assert all(is_scalp_name(name) for name in CED_ORDER)


def test_positions_put_left_to_the_left_and_front_to_the_front():
    """The x axis points to the right ear, and the y axis to the nose."""
    for left, right in (("Fp1", "Fp2"), ("T7", "T8"), ("O1", "O2")):
        assert positions()[left][0] < 0 < positions()[right][0]
    assert positions()["Fz"][1] > positions()["Cz"][1] > positions()["Pz"][1]
    assert all(np.isfinite(positions()[name]).all() for name in CED_ORDER)
