"""The audit reports each kind of planted leak, and reports none if there is none."""

import dataclasses
import json
from datetime import UTC, datetime

import mne
import numpy as np
import pytest
from scipy.signal import butter, resample_poly, sosfiltfilt

from voxelwave.eeg.audit import audit, check_declared, check_splits
from voxelwave.eeg.check import failed
from voxelwave.eeg.confound_checks import _check_row_order
from voxelwave.eeg.confounds import confound_auc
from voxelwave.eeg.duplicates import near_duplicate_windows, shared_stretches
from voxelwave.eeg.split_file import WHOLE, read_splits
from voxelwave.eeg.study import read_study
from voxelwave.eeg.synthetic import synthetic_signal
from voxelwave.eeg.windows import WindowOptions, standardize

NAMES = ("Fz", "Cz", "Pz")
PEOPLE = [f"s{i:02d}" for i in range(12)]
LABELS = {name: ("control", "case")[i % 2] for i, name in enumerate(PEOPLE)}
OPTIONS = WindowOptions(seconds=2.0)


def outcomes(checks):
    return {check.check: check.outcome for check in checks}


def detail(checks, name):
    return next(check.detail for check in checks if check.check == name)


def split_content(**more):
    """Three folds with two inner folds each, in the form in which a user may write them."""
    folds = []
    for fold in range(3):
        test = PEOPLE[4 * fold : 4 * fold + 4]
        train = [name for name in PEOPLE if name not in test]
        inner = [{"train": train[:4], "validation": train[4:]}, {"train": train[4:], "validation": train[:4]}]
        folds.append({"repeat": 0, "fold": fold, "train": train, "test": test, "inner": inner})
    return {"scaling": "window", "selected_on": "validation", "folds": folds, **more}


@pytest.fixture
def splits(tmp_path):
    """A function that reads the content of a split from a file."""

    def make(content):
        path = tmp_path / "splits.json"
        path.write_text(json.dumps(content))
        return read_splits(path)

    return make


@pytest.fixture
def study(tmp_path, write_fif, noise):
    """Twelve people with ten seconds each; `signals` and `columns` replace the values of some people."""

    def make(signals=None, columns=None):
        signals, columns = signals or {}, columns or {}
        lines = ["\t".join(["subject", "file", "label", *columns])]
        for number, name in enumerate(PEOPLE):
            write_fif(tmp_path / f"{name}_raw.fif", signals.get(name, noise(seed=number)), NAMES)
            lines.append("\t".join([name, f"{name}_raw.fif", LABELS[name], *(v[number] for v in columns.values())]))
        (tmp_path / "subjects.tsv").write_text("\n".join(lines) + "\n")
        return read_study(tmp_path)

    return make


# --- splits


def test_a_clean_study_and_split_pass(study, splits):
    found = audit(study(), options=OPTIONS, splits=splits(split_content()), permutations=99)
    assert not failed(found), [c for c in found if c.outcome == "fail"]
    assert outcomes(found)["no subject on both sides"] == "ok"
    assert outcomes(found)["no near-duplicate windows on both sides"] == "ok"
    assert outcomes(found)["confound: amplitude"] == "ok"


def _test_subject_in_training(content):
    content["folds"][1]["train"].append(content["folds"][1]["test"][0])


def _test_subject_in_the_inner_folds(content):
    content["folds"][1]["inner"][0]["train"].append(content["folds"][1]["test"][0])


def _inner_validation_in_inner_training(content):
    content["folds"][1]["inner"][0]["train"].append(content["folds"][1]["inner"][0]["validation"][0])


def _tested_twice(content):
    content["folds"][0]["test"].append(content["folds"][1]["test"][0])
    content["folds"][0]["train"].remove(content["folds"][1]["test"][0])


def _one_class_in_the_test_part(content):
    content["folds"][2]["test"] = content["folds"][2]["test"][::2]


def _somebody_else(content):
    content["folds"][0]["train"].append("nobody")


@pytest.mark.parametrize(
    ("leak", "check", "words"),
    [
        (_test_subject_in_training, "no subject on both sides", "repeat 0, fold 1: s04 in train and test"),
        (_test_subject_in_the_inner_folds, "inner folds inside the outer training part", "s04 not in the outer"),
        (_inner_validation_in_inner_training, "no subject on both sides", "inner fold 0: s08 in train and validation"),
        (_tested_twice, "each subject tested once per repeat", "s04 tested more than once"),
        (_one_class_in_the_test_part, "both classes in every part", "no case in test"),
        (_somebody_else, "subjects of the split", "not in the study: nobody"),
    ],
)
def test_each_fault_of_a_split_fails_its_check(leak, check, words, splits):
    content = split_content()
    assert outcomes(check_splits(splits(content), LABELS))[check] == "ok"
    leak(content)
    found = check_splits(splits(content), LABELS)
    assert outcomes(found)[check] == "fail"
    assert words in detail(found, check)


def test_two_names_of_one_person_on_both_sides_fail(splits):
    given = splits(split_content())
    twins = dataclasses.replace(given, persons={"s00": "anna", "s04": "anna"})
    assert outcomes(check_splits(twins, LABELS))["no subject on both sides"] == "fail"


def test_a_person_column_is_enough_to_find_one_person_on_both_sides(study, splits):
    people = ["anna" if name in ("s00", "s04") else name for name in PEOPLE]
    found = audit(study(columns={"person": people}), options=OPTIONS, splits=splits(split_content()), confounds=False)
    assert outcomes(found)["no subject on both sides"] == "fail"
    assert "anna in" in detail(found, "no subject on both sides")


def test_the_person_is_no_confound(study):
    people = [f"p{i % 2}{i // 4}" for i in range(12)]  # six people with one label each
    assert "confound: person" not in outcomes(
        audit(study(columns={"person": people}), options=OPTIONS, permutations=99)
    )


def test_equal_recordings_of_a_known_person_are_a_warning(study, noise):
    people = ["anna" if name in ("s02", "s04") else name for name in PEOPLE]
    found = audit(study({"s04": noise(seed=2)}, {"person": people}), options=OPTIONS, confounds=False)
    assert outcomes(found)["duplicate recordings"] == "warning"


@pytest.mark.parametrize(
    ("declared", "check", "outcome"),
    [
        ({"scaling": "all"}, "scaling inside the fold", "fail"),
        ({"scaling": "fold"}, "scaling inside the fold", "ok"),
        ({"selected_on": "test"}, "selection inside the fold", "fail"),
        ({"selected_on": "validation"}, "selection inside the fold", "ok"),
        ({"scaling": "Fold"}, "scaling inside the fold", "ok"),
        ({"scaling": " WHOLE "}, "scaling inside the fold", "fail"),
        ({"scaling": None}, "scaling inside the fold", "not checked"),
        ({"selected_on": "Test"}, "selection inside the fold", "fail"),
        ({"selected_on": "test set"}, "selection inside the fold", "fail"),
        ({"selected_on": ["validation", "test"]}, "selection inside the fold", "fail"),
        ({"selected_on": "Inner folds"}, "selection inside the fold", "ok"),
        ({"selected_on": "by hand"}, "selection inside the fold", "not checked"),
    ],
)
def test_scaling_and_selection_outside_the_fold_fail(declared, check, outcome, splits):
    assert outcomes(check_declared(splits(split_content(**declared))))[check] == outcome


def test_a_split_without_folds_fails(splits):
    found = check_splits(splits(split_content(folds=[])), LABELS)
    assert outcomes(found)["subjects of the split"] == "fail"


def test_parts_columns_and_numbers_are_read_in_other_spellings(splits, tmp_path):
    given = splits({"folds": [{"Training": [1, 2], "Test ": ["3.0"]}]})
    assert given.folds[0].parts == {"train": {("1", WHOLE), ("2", WHOLE)}, "test": {("3", WHOLE)}}
    (tmp_path / "folds.csv").write_text("Subject,Fold\na,1\nb,2\n")
    assert read_splits(tmp_path / "folds.csv").folds[0].parts["test"] == {("a", WHOLE)}


def test_undeclared_scaling_and_selection_are_not_checked(splits):
    content = split_content()
    del content["scaling"], content["selected_on"]
    assert set(outcomes(check_declared(splits(content))).values()) == {"not checked"}


def test_a_table_of_windows_dealt_out_at_random_fails(study, tmp_path):
    """A common mistake: half-overlapping windows of one recording lie in training and test."""
    options = WindowOptions(seconds=2.0, overlap=0.5)
    lines = ["subject,start,fold"] + [f"{n},{k * 128},{(i + k) % 3}" for i, n in enumerate(PEOPLE) for k in range(9)]
    (tmp_path / "windows.csv").write_text("\n".join(lines) + "\n")
    splits = read_splits(tmp_path / "windows.csv")
    assert splits.by_window
    found = audit(study(), options=options, splits=splits, permutations=9)
    assert outcomes(found)["no subject on both sides"] == "fail"
    assert "windows overlap a window of another part" in detail(found, "no near-duplicate windows on both sides")


def test_near_duplicate_windows_of_two_subjects_on_both_sides_fail(study, splits, noise):
    """A scaled part of one recording is also in another fold under another name, at an offset from the windows."""
    whole, copy = noise(seed=0, seconds=30), noise(seed=4, seconds=30)
    copy[:, 900:3460] = 3 * whole[:, :2560] + noise(seconds=20, sd=5.0, seed=99)
    given = study({"s00": whole, "s04": copy})
    found = audit(given, options=OPTIONS, splits=splits(split_content()), permutations=9)
    assert outcomes(found)["no near-duplicate windows on both sides"] == "fail"
    assert "s00 and s04" in detail(found, "duplicate recordings")
    together = split_content()  # two copies in one part are no leak, but are reported
    for fold in together["folds"]:
        for part in ("train", "test"):
            fold[part] = ["s04" if n == "s02" else "s02" if n == "s04" else n for n in fold[part]]
        fold["inner"] = []
    found = audit(given, options=OPTIONS, splits=splits(together), permutations=9)
    assert outcomes(found)["no near-duplicate windows on both sides"] == "ok"
    assert outcomes(found)["duplicate recordings"] == "fail"


def test_one_recording_under_two_names_fails(study, noise):
    found = audit(study({"s07": noise(seed=2)}), options=OPTIONS, permutations=9)
    assert "s02 and s07 (identical)" in detail(found, "duplicate recordings")
    assert failed(found)


# --- confounds


def test_amplitude_that_predicts_the_label_fails(study, noise):
    loud = {name: noise(seed=i, sd=40.0 if LABELS[name] == "case" else 20.0) for i, name in enumerate(PEOPLE)}
    found = audit(study(loud), options=OPTIONS, permutations=199)
    assert outcomes(found)["confound: amplitude"] == "fail"
    assert "it predicts the label alone" in detail(found, "confound: amplitude")


def test_recording_length_that_predicts_the_label_fails(study, noise):
    long = {name: noise(seed=i, seconds=12 if LABELS[name] == "case" else 10) for i, name in enumerate(PEOPLE)}
    assert outcomes(audit(study(long), options=OPTIONS, permutations=199))["confound: recording length"] == "fail"


def test_a_site_that_predicts_the_label_fails_and_another_passes(study):
    told = ["north" if LABELS[name] == "case" else "south" for name in PEOPLE]
    mixed = [("north", "south")[i // 2 % 2] for i in range(12)]
    found = audit(study(columns={"site": told, "ward": mixed}), options=OPTIONS, permutations=199)
    assert outcomes(found)["confound: site"] == "fail"
    assert outcomes(found)["confound: ward"] == "ok"


def test_names_and_labels_written_out_are_no_confounds(study):
    columns = {"code": [f"id-{i}" for i in range(12)], "folder": [f"{LABELS[n]}_part1" for n in PEOPLE]}
    found = outcomes(audit(study(columns=columns), options=OPTIONS, permutations=9))
    assert "confound: code" not in found
    assert found["confound: folder"] == "not checked"


def test_an_age_that_predicts_the_label_fails_in_spite_of_a_stray_word(study):
    ages = [f"{7 + 3 * (LABELS[n] == 'case') + 0.1 * i:.1f}" for i, n in enumerate(PEOPLE)]
    ages[:3] = "?", "10,1", "7.2 y"
    found = audit(study(columns={"age": ages}), options=OPTIONS, permutations=199)
    assert outcomes(found)["confound: age"] == "fail"
    assert "counts as missing: '?'" in detail(found, "confound: age")


def test_a_column_with_too_many_words_is_named_as_not_checked(study):
    column = [f"doctor {min(i, 10)}" for i in range(12)]
    assert outcomes(audit(study(columns={"doctor": column}), options=OPTIONS, permutations=9))["confound: doctor"] == (
        "not checked"
    )


def _with_mains(x, frequency):
    return x + 30 * np.sin(2 * np.pi * frequency * np.arange(x.shape[1]) / 128)


def _rereferenced(x, case):
    return x - x.mean(axis=0) if case else x - x[0]


def _low_passed(x, high):
    return sosfiltfilt(butter(6, high, fs=128, output="sos"), x, axis=1)


@pytest.mark.parametrize(
    ("confound", "of_class"),
    [
        ("mains frequency", lambda x, case: _with_mains(x, 60 if case else 50)),
        ("reference of the file", _rereferenced),
        ("highest frequency", lambda x, case: _low_passed(x, 25 if case else 40)),
        ("offset", lambda x, case: x + (100 if case else 20)),
        ("resolution", lambda x, case: np.round(x) if case else np.round(2 * x) / 2),
    ],
)
def test_a_file_that_gives_the_label_away_fails(confound, of_class, study, noise):
    signals = {n: of_class(noise(seed=i), LABELS[n] == "case") for i, n in enumerate(PEOPLE)}
    found = outcomes(audit(study(signals), options=OPTIONS, permutations=199))
    assert found[f"confound: {confound}"] == "fail"
    assert "confound: date of the header" not in found  # it is the same in all files


@pytest.mark.parametrize(("column", "write"), [("date of the header", "date"), ("channel names of the file", "names")])
def test_a_header_that_gives_the_label_away_fails(column, write, study, noise, tmp_path, write_fif):
    given = study()
    for number, name in enumerate(PEOPLE):
        raw = mne.io.read_raw_fif(tmp_path / f"{name}_raw.fif", preload=True, verbose="ERROR")
        if write == "date":
            raw.set_meas_date(datetime(2019 + (LABELS[name] == "case"), 1 + number % 12, 3, tzinfo=UTC))
        elif LABELS[name] == "case":
            raw.rename_channels({n: n.upper() for n in NAMES}, verbose="ERROR")
        raw.save(tmp_path / f"{name}_raw.fif", overwrite=True, verbose="ERROR")
    assert outcomes(audit(given, options=OPTIONS, permutations=199))[f"confound: {column}"] == "fail"


def test_rows_in_blocks_of_classes_are_usual_and_rows_that_lean_are_a_warning():
    assert _check_row_order(np.repeat([0, 1], 20), 199, 0).outcome == "ok"
    leaning = np.r_[np.zeros(18), 1, 0, 1, 0, np.ones(18)].astype(int)
    assert _check_row_order(leaning, 199, 0).outcome == "warning"
    assert _check_row_order(np.tile([0, 1], 20), 199, 0).outcome == "ok"


def test_cross_validated_auc_of_a_number_and_a_category():
    labels = np.arange(60) % 2
    told = confound_auc((labels + 0.01 * np.arange(60)).tolist(), labels, permutations=99, bootstraps=200)
    backwards = confound_auc((-labels).tolist(), labels, permutations=99, bootstraps=200)
    words = confound_auc([f"g{v}" for v in labels], labels, permutations=99, bootstraps=200)
    for found in (told, backwards, words):
        assert (found.auc, found.p) == (1.0, 0.01)
    guess = confound_auc(np.random.default_rng(1).random(60).tolist(), labels, permutations=99, bootstraps=200)
    assert guess.p > 0.05
    assert guess.interval[0] < 0.5 < guess.interval[1]
    with pytest.raises(ValueError, match="each class must have at least 2 subjects"):
        confound_auc([1.0, 2.0, 3.0], [0, 0, 1])


def test_a_confound_that_is_noise_is_called_significant_as_rarely_as_it_should():
    labels = np.arange(40) % 2
    draws = [np.random.default_rng(k).random(40).tolist() for k in range(60)]
    p = [confound_auc(x, labels, permutations=39, bootstraps=2, repeats=2).p for x in draws]
    assert np.mean(np.array(p) < 0.05) < 0.15  # 0.025 expected with 40 ranks, 60 draws


@pytest.mark.parametrize("effect", [0.0, 1.19])  # AUC 0.5 and 0.8 in the population
def test_the_interval_of_a_confound_covers_the_true_auc_in_19_of_20_studies(effect):
    held = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        labels = generator.permutation(np.arange(24) % 2)
        values = generator.standard_normal(24) + effect * labels
        low, high = confound_auc(values.tolist(), labels, permutations=9, bootstraps=300, repeats=3, seed=seed).interval
        held += low <= (0.8 if effect else 0.5) <= high
    assert held >= 90  # 95 expected, binomial standard deviation 2.2; the former bootstrap reached 60


# --- finding the same EEG


def test_pairs_of_windows_are_those_of_all_correlations(noise):
    x = standardize(noise(3 * 40, seconds=1).reshape(40, 3, 128))
    x[7], x[31] = -x[3], standardize(x[12] + 0.2 * x[20])
    flat = x.reshape(40, -1)
    correlation = np.corrcoef(flat)
    expected = {(i, j) for i in range(40) for j in range(i + 1, 40) if abs(correlation[i, j]) > 0.95}
    assert expected == {(3, 7), (12, 31)}
    assert {(i, j) for i, j, _ in near_duplicate_windows(x)} == expected


def _cut_between_samples(x):
    return resample_poly(resample_poly(x, 8, 1, axis=1)[:, 1003:], 1, 8, axis=1)


def _resampled_cropped_and_renamed(x):
    slower = resample_poly(x, 25, 32, axis=1)[:, 201:]
    return resample_poly(slower, 32, 25, axis=1)[::-1]


def _filtered(low, high):
    return lambda x: sosfiltfilt(butter(4, (low, high), "bandpass", fs=128, output="sos"), x, axis=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, 777:],
        _cut_between_samples,
        lambda x: x - x[3],
        lambda x: x - x.mean(axis=0),
        lambda x: x[:, ::-1],
        _filtered(8, 30),
        _filtered(1, 4),
        _filtered(4, 8),
        _filtered(2, 4),
        lambda x: _filtered(10, 14)(x - x[2])[::-1, 901:][:, ::-1],
        lambda x: x[np.random.default_rng(0).permutation(len(x))],
        lambda x: -0.5 * x,
        _resampled_cropped_and_renamed,
        lambda x: _filtered(8, 30)(x - x[2])[::-1, 901:][:, ::-1],
    ],
    ids=[
        "odd crop",
        "between samples",
        "Cz",
        "average",
        "backwards",
        "filtered",
        "delta",
        "theta",
        "2-4 Hz",
        "alpha",
        "order",
        "gain",
        "resampled",
        "all",
    ],
)
def test_a_changed_copy_of_a_recording_is_found_among_others(change):
    signals = [
        synthetic_signal(np.random.default_rng(k), planted_uv=0.0, seconds=40, sfreq=128.0, planted=())
        for k in range(6)
    ]
    halved = [resample_poly(x, 1, 2, axis=1) for x in (*signals, change(signals[2]))]
    found = shared_stretches(halved, 64.0)
    assert [(i, j) for i, j, _ in found] == [(2, 6)]
    assert found[0][2] > 0.95


@pytest.mark.parametrize("band", [(1, 4), (4, 8)])
def test_recordings_of_one_narrow_band_are_no_copies_of_each_other(band):
    signals = [
        synthetic_signal(np.random.default_rng(k), planted_uv=0.0, seconds=40, sfreq=64.0, planted=()) for k in range(6)
    ]
    narrow = [sosfiltfilt(butter(4, band, "bandpass", fs=64, output="sos"), x, axis=1) for x in signals[:4]]
    assert shared_stretches([*narrow, *signals[4:]], 64.0) == []


def test_a_shared_stretch_is_found_at_any_offset(noise):
    signals = [noise(3, seconds=40, sfreq=32, seed=k) for k in range(5)]
    signals[4][:, 100:700] = 2 * signals[1][:, 300:900]
    found = shared_stretches(signals, 32.0)
    assert [(i, j) for i, j, _ in found] == [(1, 4)]
    assert found[0][2] > 0.99


# --- split files


def test_a_table_of_folds_means_that_the_others_are_trained_on(tmp_path):
    rows = ["subject\tfold", *(f"{name}\t{i % 3}" for i, name in enumerate(PEOPLE))]
    (tmp_path / "folds.tsv").write_text("\n".join(rows) + "\n")
    folds = read_splits(tmp_path / "folds.tsv").folds
    assert len(folds) == 3
    assert folds[0].parts["test"] == {(name, WHOLE) for name in PEOPLE[::3]}
    assert folds[0].parts["train"] == {(name, WHOLE) for i, name in enumerate(PEOPLE) if i % 3}


def test_a_table_of_sets_in_words_of_any_kind(tmp_path):
    (tmp_path / "sets.csv").write_text("subject,set\na,Training\nb,dev\nc,testing\n")
    parts = read_splits(tmp_path / "sets.csv").folds[0].parts
    assert {name: {s for s, _ in part} for name, part in parts.items()} == {
        "train": {"a"},
        "validation": {"b"},
        "test": {"c"},
    }


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "person,fold\nx,1\n", "must have the columns subject and fold or set"),
        ("a.csv", "subject,set\nx,holdout\n", "line 2 must have set train, validation or test, got 'holdout'"),
        ("a.csv", "subject,fold,start\nx,1,first\n", "line 2 must have whole numbers"),
        ("a.json", "{]", "must be a plan or hold folds"),
        ("a.json", '{"folds": [{"train": ["x"]}]}', "must be a plan or hold folds with train and test"),
        ("a.txt", "x", r"must be \.csv, \.tsv or \.json"),
    ],
)
def test_unusable_split_files_are_refused_with_the_reason(name, content, complaint, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_splits(tmp_path / name)


def test_a_missing_split_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no split file at"):
        read_splits(tmp_path)


# --- the children


@pytest.mark.slow
def test_adhd_recordings_are_97_different_people_whose_amplitude_predicts_the_label(shared_data):
    """Figures published for these files: the median amplitude alone has AUC 0.70, the length alone 0.64."""
    found = audit(read_study(shared_data / "eeg_adhd" / "subjects.tsv"), permutations=199)
    assert outcomes(found)["duplicate recordings"] == "ok"
    for name, auc in (("amplitude", 0.70), ("recording length", 0.64)):
        assert outcomes(found)[f"confound: {name}"] == "warning"
        assert float(detail(found, f"confound: {name}").split()[1]) == pytest.approx(auc, abs=0.06)
