"""Each alteration of a stress test removes what it names and keeps the rest."""

import mne
import numpy as np
import pytest

from voxelwave.eeg.alterations import (
    EQUAL_LENGTHS,
    LABELS,
    PHASES,
    UNIT_CHANNELS,
    UNIT_WINDOWS,
    alterations_of,
    load_altered,
    phase_randomised,
    shuffled_within,
)
from voxelwave.eeg.study import Study, read_study
from voxelwave.eeg.windows import WindowOptions, load_windows

CHANNELS = ("Fp1", "Fz", "C3", "T7", "Pz", "O1")
OPTIONS = WindowOptions(seconds=2.0, sfreq=256.0, scaling="none")
TONES = (10.0, 50.0, 60.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    """Four subjects with tones of 10, 50 and 60 Hz in noise, for 10, 10, 6 and 8 s; amplitudes differ by channel."""
    folder = tmp_path_factory.mktemp("tones")
    lines = ["subject\tfile\tlabel"]
    for number, seconds in enumerate((10, 10, 6, 8)):
        time = np.arange(seconds * 256) / 256
        noise = np.random.default_rng(number).normal(size=(len(CHANNELS), len(time)))
        tones = sum(np.sin(2 * np.pi * tone * time) for tone in TONES)
        signal = (noise + 10 * tones) * np.arange(1, 1 + len(CHANNELS))[:, None]
        info = mne.create_info(list(CHANNELS), 256.0, "eeg")
        mne.io.RawArray(signal * 1e-6, info, verbose="error").save(folder / f"{number}_raw.fif", verbose="error")
        lines.append(f"{number}\t{number}_raw.fif\t{('control', 'case')[number % 2]}")
    (folder / "subjects.tsv").write_text("\n".join(lines) + "\n")
    return read_study(folder)


def _power(x: np.ndarray, tone: float) -> np.ndarray:
    """Power at a frequency, (n, channels)."""
    spectrum = np.abs(np.fft.rfft(x * np.hanning(x.shape[-1]), axis=-1)) ** 2
    place = round(tone * x.shape[-1] / 256)
    return spectrum[..., place]


@pytest.mark.parametrize(
    ("name", "gone"), [("band-1-40", {50.0, 60.0}), ("without-45-55", {50.0}), ("without-55-65", {60.0})]
)
def test_frequencies_are_removed_and_others_stay(study, name, gone):
    before, after = load_windows(study, OPTIONS).x, load_altered(study, OPTIONS, None, name).x
    for tone in TONES:
        ratio = _power(after, tone) / _power(before, tone)
        assert (ratio < 1e-4).all() if tone in gone else (abs(ratio - 1) < 0.05).all()


def test_unit_variance_by_channel_and_by_window(study):
    channels, windows = (load_altered(study, OPTIONS, None, name) for name in (UNIT_CHANNELS, UNIT_WINDOWS))
    np.testing.assert_allclose(channels.x.var(-1), 1, rtol=1e-4)
    np.testing.assert_allclose(windows.x.var(-1).mean(-1), 1, rtol=1e-4)
    before = load_windows(study, OPTIONS).x.var(-1)
    np.testing.assert_allclose(windows.x.var(-1) / windows.x.var(-1)[:, :1], before / before[:, :1], rtol=1e-3)
    assert not channels.log_variance.any()
    np.testing.assert_allclose(windows.log_variance, np.log(windows.x.var(-1)), atol=1e-3)


def test_subjects_keep_the_same_number_of_first_windows(study):
    before, after = load_windows(study, OPTIONS), load_altered(study, OPTIONS, None, EQUAL_LENGTHS)
    assert np.bincount(after.subject).tolist() == [3] * 4
    for subject in range(4):
        np.testing.assert_array_equal(after.x[after.subject == subject], before.x[before.subject == subject][:3])
    assert after.seconds.tolist() == [6.0] * 4


def test_a_group_of_electrodes_is_left_out(study):
    after = load_altered(study, OPTIONS, None, "without-frontal")
    assert after.channels == ("C3", "T7", "Pz", "O1")
    np.testing.assert_array_equal(after.x, load_windows(study, OPTIONS).x[:, 2:])
    found = {a.name: a for a in alterations_of(load_windows(study, OPTIONS), "bandpower")}
    assert found["without-frontal"].title == "without frontal electrodes (Fp1, Fz)"
    assert found["without-occipital"].removed == "the occipital electrodes"


@pytest.mark.parametrize("times", [16, 17])
def test_random_phases_keep_power_and_cross_spectra_and_lose_the_waveform(times):
    x = np.random.default_rng(0).normal(size=(3, 4, times)).astype(np.float32)
    y = phase_randomised(x, np.random.default_rng(1))
    before, after = (np.fft.rfft(z.astype(float), axis=-1) for z in (x, y))
    for a, b in ((before, after),):
        cross = [np.einsum("nif,njf->nijf", z, z.conj()) for z in (a, b)]
        np.testing.assert_allclose(cross[0], cross[1], atol=1e-4)
    assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 0.5
    np.testing.assert_allclose(x.mean(-1), y.mean(-1), atol=1e-6)


def test_phases_are_the_same_for_the_same_seed(study):
    a, b, c = (load_altered(study, OPTIONS, None, PHASES, seed=seed).x for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


def test_labels_stay_within_their_stratum_and_with_their_person():
    labels, strata = [0, 1, 0, 1, 1, 0, 1, 0], list("aaaabbbb")
    persons = ["p", "p2", "q", "r", "s", "t", "s", "u"]
    for seed in range(20):
        found = shuffled_within(labels, strata, persons, seed)
        assert found[:4].sum() == 2  # the shares within a stratum stay
        assert found[4] == found[6]  # one person
    assert len({tuple(shuffled_within(labels, strata, persons, seed)) for seed in range(20)}) > 3


def test_alterations_without_an_effect_say_why(study):
    scaled = load_windows(study, WindowOptions(seconds=2.0, sfreq=64.0, scaling="window", band=(1.0, 20.0)))
    why = {a.name: a.why_not for a in alterations_of(scaled, "eegnet")}
    assert why["band-1-40"] == "the windows hold nothing outside this band"
    assert why["without-45-55"] == "the windows hold nothing above 20 Hz"
    assert "unit variance in this run already" in why[UNIT_CHANNELS]
    assert not why[EQUAL_LENGTHS]
    assert not why[PHASES]
    assert alterations_of(scaled, "amplitude")[3].why_not == ""  # log variance is measured before scaling
    assert [a.name for a in alterations_of(scaled, "length") if not a.why_not] == [EQUAL_LENGTHS]
    assert LABELS not in why


def test_an_unknown_alteration_is_refused(study):
    with pytest.raises(ValueError, match="no alteration is called 'without-ears'"):
        load_altered(study, OPTIONS, None, "without-ears")
