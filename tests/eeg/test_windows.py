"""Windows are cut from good signal, scaled per window or by training windows, and are the same from the cache."""

from pathlib import Path

import numpy as np
import pytest

from voxelwave.eeg.recording import Recording
from voxelwave.eeg.study import Study, Subject, read_study
from voxelwave.eeg.windows import Scaler, WindowOptions, cut, load_windows, standardize

NAMES = ("Fz", "Cz", "Pz")


def recording(seconds=10.0, bad_spans=(), sfreq=64.0):
    """Two channels, of which the first counts the samples."""
    samples = round(seconds * sfreq)
    signal = np.stack([np.arange(samples), np.ones(samples)]).astype(np.float32)
    return Recording(signal, "uV", sfreq, ("Fz", "Cz"), list(bad_spans), (), Path("r"), sfreq, "int16")


@pytest.fixture
def study(tmp_path, write_fif, noise):
    """Four subjects of ten seconds; a and b are controls."""

    def make(**more):
        signals = {name: noise(seed=number) for number, name in enumerate("abcd")} | more
        for name, x in signals.items():
            write_fif(tmp_path / f"{name}_raw.fif", x, NAMES)
        rows = [f"{n}\t{n}_raw.fif\t{'control' if n in 'ab' else 'case'}" for n in signals]
        (tmp_path / "subjects.tsv").write_text("\n".join(["subject\tfile\tlabel", *rows]) + "\n")
        return read_study(tmp_path)

    return make


def test_windows_follow_each_other_and_the_rest_is_dropped():
    x, start = cut(recording(9.9), WindowOptions(seconds=2.0))
    assert start.tolist() == [0, 128, 256, 384]
    np.testing.assert_array_equal(x[:, 0, 0], start)
    np.testing.assert_array_equal(x[1, 0], np.arange(128, 256))


def test_overlap_is_the_share_that_the_next_window_repeats():
    _, start = cut(recording(), WindowOptions(seconds=2.0, overlap=0.75))
    assert np.unique(np.diff(start)).tolist() == [32]
    with pytest.raises(ValueError, match="overlap must be at least 0 and below 1"):
        WindowOptions(overlap=1.0)


def test_windows_that_touch_a_bad_span_or_a_cut_are_left_out():
    _, start = cut(recording(bad_spans=[(2.5, 2.6), (6.0, 6.0), (9.0, 9.0)]), WindowOptions(seconds=2.0))
    assert start.tolist() == [0, 256, 384]  # the cut at 6 s lies between two windows, that at 9 s within the last


def test_a_recording_shorter_than_a_window_gives_none():
    x, start = cut(recording(1.0), WindowOptions(seconds=2.0))
    assert x.shape == (0, 2, 128)
    assert len(start) == 0


def test_standardized_windows_have_mean_0_and_sd_1_and_flat_channels_stay_flat(noise):
    x = np.stack([noise(seed=1), noise(seed=2) * 7 + 100])
    x[0, 1] = 5.0
    z = standardize(x)
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(np.delete(z.std(-1).ravel(), 1), 1, atol=1e-5)
    assert (z[0, 1] == 0).all()


def test_a_scaler_knows_its_training_windows_only(noise):
    """Only the training windows determine the scaling; test windows do not get mean 0 and standard deviation 1."""
    train, test = noise(seed=1)[None] * 2 + 3, noise(seed=2)[None] * 50 - 100
    scaler = Scaler.fit(train)
    np.testing.assert_allclose(scaler.apply(train).std((0, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(scaler.apply(train).mean((0, 2)), 0, atol=1e-5)
    assert (scaler.apply(test).std((0, 2)) > 10).all()
    np.testing.assert_allclose(scaler.apply(test)[0], (test[0] - scaler.mean[:, None]) / scaler.sd[:, None], rtol=1e-5)
    with pytest.raises(ValueError, match="at least one training window"):
        Scaler.fit(train[:0])


@pytest.mark.parametrize("scaling", ["window", "recording", "fold", "none"])
def test_scaling_sees_what_it_says(scaling, study):
    windows = load_windows(study(), WindowOptions(seconds=2.0, scaling=scaling))
    own = [windows.x[windows.subject == s] for s in range(4)]
    sd = np.array([x.std((0, 2)) for x in own])
    if scaling in ("window", "recording"):
        np.testing.assert_allclose(sd, 1, atol=0.05)
        exact = np.array([x.std(-1) for x in own]) if scaling == "window" else sd
        np.testing.assert_allclose(exact, 1, atol=1e-3)
    else:
        np.testing.assert_allclose(sd, 20, rtol=0.1)  # microvolts, as in the file
    np.testing.assert_allclose(windows.log_variance, np.log(400), atol=0.5)  # before any scaling


def test_subjects_labels_and_starts_belong_to_the_windows(study):
    windows = load_windows(study(), WindowOptions(seconds=2.0))
    assert windows.subjects == ("a", "b", "c", "d")
    assert windows.labels.tolist() == [0, 0, 1, 1]
    assert windows.subject.tolist() == [s for s in range(4) for _ in range(5)]
    assert windows.start.tolist() == 4 * [0, 256, 512, 768, 1024]
    assert windows.rows([2, 0]).tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert windows.seconds.tolist() == 4 * [10.0]


def test_a_recording_that_is_too_short_is_left_out_by_name_with_its_reason(study, noise):
    windows = load_windows(study(e=noise(seconds=1)), WindowOptions(seconds=2.0))
    assert windows.excluded == (("e", "no window of 2 s free of bad spans in 1.0 s"),)
    assert "e" not in windows.subjects
    with pytest.raises(ValueError, match="both classes must have subjects with windows"):
        load_windows(study(), WindowOptions(seconds=60.0))


def test_a_recording_of_zeros_is_left_out_with_its_reason(study):
    windows = load_windows(study(e=np.zeros((3, 1280))), WindowOptions(seconds=2.0))
    assert windows.subjects == ("a", "b", "c", "d")
    ((name, reason),) = windows.excluded
    assert name == "e"
    assert "all channels are constant in the whole recording" in reason


@pytest.mark.parametrize(
    "option",
    [{"seconds": np.inf}, {"sfreq": np.inf}, {"mat_sfreq": np.nan}, {"band": (1.0, np.inf)}, {"overlap": np.nan}],
)
def test_windows_without_a_finite_size_are_refused(option):
    with pytest.raises(ValueError, match=r"finite|overlap"):
        WindowOptions(**option)


def test_a_window_longer_than_any_recording_gives_none():
    assert len(cut(recording(), WindowOptions(seconds=1e300))[1]) == 0
    with pytest.raises(ValueError, match="two samples or more"):
        WindowOptions(seconds=0.001)


def test_one_recording_under_two_names_is_said(study, noise):
    windows = load_windows(study(c=noise(seed=0)), WindowOptions(seconds=2.0))
    assert "a and c are the same recording" in windows.notes
    assert windows.digests[0] == windows.digests[2]
    assert len(set(windows.digests)) == 3


def test_channels_in_another_order_are_put_right_and_other_channels_are_refused(study, tmp_path, write_fif, noise):
    given = study()
    before = load_windows(given, WindowOptions(seconds=2.0))
    write_fif(tmp_path / "d_raw.fif", noise(seed=3)[::-1], NAMES[::-1])
    after = load_windows(given, WindowOptions(seconds=2.0))
    np.testing.assert_allclose(after.x, before.x, atol=1e-6)
    write_fif(tmp_path / "d_raw.fif", noise(seed=3), ("Fz", "Cz", "Oz"))
    with pytest.raises(ValueError, match=r"must have the same channels, d and a_raw\.fif differ in Oz, Pz"):
        load_windows(given, WindowOptions(seconds=2.0))
    assert load_windows(given, WindowOptions(seconds=2.0, channels=("Cz", "Fz"))).channels == ("Cz", "Fz")


def test_two_sampling_rates_are_refused_unless_one_is_asked_for(study, tmp_path, write_fif, noise):
    given = study()
    write_fif(tmp_path / "d_raw.fif", noise(seed=3, sfreq=256), NAMES, sfreq=256.0)
    with pytest.raises(ValueError, match=r"must have one sampling rate; d has 256 Hz and a_raw\.fif 128 Hz; set sfreq"):
        load_windows(given, WindowOptions(seconds=2.0, sfreq=None))
    assert load_windows(given, WindowOptions(seconds=2.0, sfreq=64.0)).x.shape[2] == 128


def test_units_that_differ_need_a_scaling_that_takes_them_out(study, tmp_path, write_edf, noise):
    given = study()
    file = write_edf(tmp_path / "d.edf", dict(zip(NAMES, noise(seed=3), strict=True)), unit="")
    subjects = (*given.subjects[:3], Subject("d", (file,), "case"))
    mixed = Study(subjects, given.classes, given.folder)
    assert load_windows(mixed, WindowOptions(seconds=2.0)).unit == "unknown"
    with pytest.raises(ValueError, match="must have one unit"):
        load_windows(mixed, WindowOptions(seconds=2.0, scaling="fold"))


def test_the_cache_gives_the_same_and_follows_files_and_options(study, tmp_path, write_fif, noise):
    given, cache = study(), tmp_path / "cache"
    options = WindowOptions(seconds=2.0, band=(1.0, 30.0))
    first, again = (load_windows(given, options, cache) for _ in range(2))
    assert len(list(cache.iterdir())) == 1
    for name, value in vars(first).items():
        np.testing.assert_equal(getattr(again, name), value)
    load_windows(given, WindowOptions(seconds=1.0), cache)
    write_fif(tmp_path / "a_raw.fif", noise(seed=9), NAMES)
    changed = load_windows(given, options, cache)
    assert len(list(cache.iterdir())) == 3
    assert not np.array_equal(changed.x[0], first.x[0])


def test_an_unreadable_recording_is_named_with_its_subject(study, tmp_path):
    given = study()
    (tmp_path / "b_raw.fif").write_bytes(b"nothing" * 100)
    with pytest.raises(ValueError, match=r"b: .*b_raw\.fif could not be read as FIF"):
        load_windows(given)
