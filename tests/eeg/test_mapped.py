"""The tangent space and the random convolutions: their mathematics, and what is fitted on training windows."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from scipy.linalg import logm, sqrtm
from sklearn.covariance import oas
from sklearn.metrics import roc_auc_score

from voxelwave.eeg.estimators import build
from voxelwave.eeg.mapped import MAPS
from voxelwave.eeg.random_convolutions import RandomConvolutions, convolved, dilations_of
from voxelwave.eeg.tangent_space import TangentSpaceMap, oas_covariances
from voxelwave.eeg.windows import standardize

TRAIN, TEST = list(range(20)), list(range(20, 40))


def _windows(n=6, channels=4, times=64, seed=0):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(n, channels, channels)) + 2 * np.eye(channels)
    return (mixing @ generator.normal(size=(n, channels, times))).astype(np.float32)


def test_covariances_are_those_of_scikit_learn():
    x = _windows()
    for own, window in zip(oas_covariances(x), x, strict=True):
        np.testing.assert_allclose(own, oas(window.T.astype(float))[0], rtol=1e-3, atol=1e-3)


def test_flat_and_dependent_channels_keep_the_covariance_positive():
    x = _windows()
    x[:, 1] = 0
    x[:, 3] = x[:, 2]
    x[0] = 0
    assert np.linalg.eigvalsh(oas_covariances(x)).min() > 0
    assert np.isfinite(TangentSpaceMap.fit(x, 0).features(x)).all()


def test_the_tangent_space_is_the_logarithm_at_the_mean():
    x = _windows()
    made = TangentSpaceMap.fit(x, 0)
    features = made.features(x)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)  # what makes it the mean
    mean = np.array(made.numbers()["mean"])
    root = np.linalg.inv(np.real(sqrtm(mean)))
    for own, covariance in zip(features, oas_covariances(x), strict=True):
        log = np.real(logm(root @ covariance @ root))
        weights = np.where(np.eye(4, dtype=bool), 1, np.sqrt(2))
        np.testing.assert_allclose(own, (log * weights)[np.triu_indices(4)], atol=1e-6)


def test_convolutions_are_those_of_numpy():
    x = np.random.default_rng(0).normal(size=(2, 3, 50)).astype(np.float32)
    channels = np.zeros((84, 3), bool)
    channels[:, 0] = channels[40, 2] = True
    found = convolved(torch.from_numpy(x), channels, 2).numpy()
    for kernel, threes in ((0, (0, 1, 2)), (40, None), (83, (6, 7, 8))):
        weights = np.zeros(17)
        weights[::2] = -1
        if threes is None:
            threes = list(itertools.combinations(range(9), 3))[kernel]
        weights[[2 * k for k in threes]] = 2
        signal = x[0, channels[kernel]].sum(0)
        np.testing.assert_allclose(found[0, kernel], np.correlate(signal, weights, "same"), atol=1e-4)


def test_features_are_shares_and_depend_on_the_seed_and_the_training_windows():
    x = _windows(n=8, times=128)
    features = RandomConvolutions.fit(x, 0).features(x)
    assert features.shape == (8, dilations_of(128) * 84 * 3)
    assert features.min() >= 0
    assert features.max() <= 1
    assert 0.3 < features.mean() < 0.7  # biases are quantiles
    np.testing.assert_array_equal(features, RandomConvolutions.fit(x, 0).features(x))
    assert not np.array_equal(features, RandomConvolutions.fit(x, 1).features(x))


@pytest.mark.parametrize("name", list(MAPS))
def test_a_saved_map_gives_the_same_features(name):
    x = _windows(n=8, times=128)
    made = MAPS[name].fit(x, 0)
    again = MAPS[name].of(json.loads(json.dumps(made.numbers())))
    np.testing.assert_allclose(made.features(x), again.features(x), atol=1e-12)


def test_a_planted_correlation_of_channels_is_found_by_the_tangent_space_and_not_by_band_power(cohort):
    """In cases, two channels share a part of their noise; each channel by itself is the same in both classes."""
    x = np.random.default_rng(0).normal(size=cohort.x.shape).astype(np.float32)
    case = cohort.labels[cohort.subject] == 1
    x[case, 1] = 0.7 * x[case, 0] + np.sqrt(0.51) * x[case, 1]
    windows = dataclasses.replace(cohort, x=standardize(x))
    reached = {}
    for name in ("riemann", "bandpower"):
        found = build(name, windows).fit(TRAIN, None, {"C": 1e-2}, 0, 1, None).predict(TEST)
        scores = [found.probability[found.subject == s].mean() for s in TEST]
        reached[name] = roc_auc_score(cohort.labels[TEST], scores)
    assert reached["riemann"] > 0.95
    assert reached["bandpower"] < 0.8


@pytest.mark.parametrize("name", list(MAPS))
def test_features_are_kept_for_the_next_setting_and_do_not_change_it(name, cohort):
    windows = dataclasses.replace(cohort, options=dataclasses.replace(cohort.options, scaling="fold"))
    kept, fresh = build(name, windows), build(name, windows)
    kept.fit(TRAIN, None, {"C": 1e-3}, 0, 1, None).predict(TEST)
    found = [e.fit(TRAIN, None, {"C": 1e-2}, 0, 1, None).predict(TEST).probability for e in (kept, fresh)]
    np.testing.assert_array_equal(*found)
