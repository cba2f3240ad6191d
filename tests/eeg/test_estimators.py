"""Estimators of the nested cross-validation: the data that they learn from, and the data that must not affect them."""

import dataclasses
import json

import numpy as np
import optuna
import pytest
from sklearn.metrics import roc_auc_score

from voxelwave.eeg.estimators import build, windows_as_subjects
from voxelwave.eeg.networks import load_network, predict_windows
from voxelwave.eeg.search_spaces import NAMES, PUBLISHED_SPACE
from voxelwave.eeg.windows import Scaler

TRAIN, VALIDATION, TEST = list(range(20)), list(range(20, 30)), list(range(30, 40))
TINY = {
    "adhdeepnet": {"settings": {"F1": 4, "D": 2, "kernel_length": 32, "lr": 5e-3, "max_norm": 5.0}},
    "eegnet": {"settings": {"F1": 4, "D": 2, "lr": 5e-3}},
    "shallow": {"settings": {"filters": 8}},
}


def _options(name, **more):
    return {**TINY.get(name, {}), **(more if name in TINY else {})}


def _scores(predictions, subjects):
    return np.array([predictions.probability[predictions.subject == s].mean() for s in subjects])


@pytest.mark.parametrize("name", NAMES)
def test_every_estimator_predicts_each_window_of_the_subjects_asked(name, cohort):
    fit = build(name, cohort, _options(name, epochs=1)).fit(TRAIN, VALIDATION, {}, 0, None, None)
    predictions = fit.predict([33, 31])
    assert predictions.subject.tolist() == 5 * [31] + 5 * [33]
    assert predictions.window.tolist() == 2 * [0, 128, 256, 384, 512]
    assert ((predictions.probability > 0) & (predictions.probability < 1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adhdeepnet", "bandpower", "minirocket"])
def test_a_planted_rhythm_is_found_in_new_people(name, cohort):
    fit = build(name, cohort, _options(name, epochs=20, batch=16)).fit(TRAIN, VALIDATION, {}, 0, None, None)
    scores = _scores(fit.predict(TEST), TEST)
    assert roc_auc_score(cohort.labels[TEST], scores) > 0.9


@pytest.mark.parametrize(
    "name", ["adhdeepnet", "bandpower", "amplitude", "riemann", "minirocket", "length", "majority"]
)
def test_fitted_models_do_not_depend_on_the_test_subjects(name, cohort):
    """Other windows and labels of the test subjects do not change the fit."""
    x, labels, seconds = cohort.x.copy(), cohort.labels.copy(), cohort.seconds.copy()
    own = np.isin(cohort.subject, TEST)
    x[own] = x[own][::-1] * 7
    labels[TEST] = 1 - labels[TEST]
    seconds[TEST] *= 3
    other = dataclasses.replace(cohort, x=x, labels=labels, seconds=seconds)
    options = dataclasses.replace(cohort.options, scaling="fold")
    predicted = []
    for windows in (cohort, other):
        estimator = build(name, dataclasses.replace(windows, options=options), _options(name))
        predicted.append(estimator.fit(TRAIN, None, {}, 0, 1, None).predict(VALIDATION).probability)
    np.testing.assert_array_equal(*predicted)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_probabilities_and_exactly_so_many_epochs(cohort):
    estimator = build("adhdeepnet", cohort, _options("adhdeepnet"))
    fits = [estimator.fit(TRAIN, None, {"augmentation": "1x0.1"}, seed, 2, None) for seed in (1, 1, 2)]
    first, again, other = (fit.predict(TEST).probability for fit in fits)
    assert [fit.epochs for fit in fits] == [2, 2, 2]
    assert len(fits[0].curve) == 2
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["adhdeepnet", "eegnet", "shallow"])
def test_weights_on_disk_predict_the_same(name, cohort, tmp_path):
    windows = dataclasses.replace(cohort, options=dataclasses.replace(cohort.options, scaling="fold"))
    fit = build(name, windows, _options(name)).fit(TRAIN, None, {}, 0, 1, tmp_path)
    network, card = load_network(tmp_path / "model.safetensors")
    rows = windows.rows(TEST)
    x = card.fitted_scaler.apply(windows.x[rows])
    np.testing.assert_array_equal(card.fitted_scaler.mean, Scaler.fit(windows.x[windows.rows(TRAIN)]).mean)
    np.testing.assert_allclose(predict_windows(network, x), fit.predict(TEST).probability, atol=1e-6)
    assert card.subjects == tuple(cohort.subjects[i] for i in TRAIN)
    assert card.window_options.channels == cohort.channels


def test_the_published_space_has_no_dead_dimensions(cohort):
    estimator = build("adhdeepnet", cohort)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    settings = estimator.suggest(trial)
    assert set(settings) == set(PUBLISHED_SPACE)
    assert not {"F2", "optimizer"} & set(settings)
    assert int(np.prod([len(v) for k, v in PUBLISHED_SPACE.items() if k != "augmentation"])) == 32_400
    assert json.loads(json.dumps(settings)) == settings


def test_unknown_settings_are_refused(cohort):
    with pytest.raises(ValueError, match="settings of adhdeepnet must be among F1, D"):
        build("adhdeepnet", cohort, {"settings": {"F2": 16}})
    with pytest.raises(ValueError, match="model must be one of adhdeepnet"):
        build("deepnet", cohort)
    with pytest.raises(ValueError, match="either validation subjects or a number of epochs"):
        build("eegnet", cohort).fit(TRAIN, None, {}, 0, None, None)


def test_windows_as_subjects_keep_their_labels(cohort):
    single = windows_as_subjects(cohort)
    assert len(single.subjects) == len(set(single.subjects)) == 200
    predictions = build("amplitude", single).fit(list(range(100)), None, {}, 0, None, None).predict([150])
    assert predictions.subject.tolist() == [150]
    np.testing.assert_array_equal(single.labels, np.repeat(cohort.labels, 5))


def test_a_random_split_of_windows_rewards_knowing_people_where_there_is_nothing_to_find(cohort):
    """People with individual features and random labels: windows of known people can be recognised."""
    generator = np.random.default_rng(5)
    own = generator.standard_normal((40, 60))[cohort.subject] + 0.2 * generator.standard_normal((200, 60))
    labels = generator.permutation(cohort.labels)
    null = dataclasses.replace(cohort, labels=labels, log_variance=own.astype(np.float32))
    reached = []
    for windows in (null, windows_as_subjects(null)):
        estimator = build("amplitude", windows, {"settings": {"C": 100.0}})
        units = np.random.default_rng(0).permutation(len(windows.subjects))
        label, probability = [], []
        for test in np.array_split(units, 5):
            found = estimator.fit(np.setdiff1d(units, test).tolist(), None, {}, 0, None, None).predict(test.tolist())
            label += windows.labels[found.subject].tolist()
            probability += found.probability.tolist()
        reached.append(roc_auc_score(label, probability))
    people, mixed = reached
    assert people < 0.65
    assert mixed > 0.85
