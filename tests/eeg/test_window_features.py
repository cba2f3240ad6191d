"""Features of windows by the checks of scikit-learn, and in its pipelines and searches.

Left out of scikit-learn's checks, with the reason:
- BandPowerFeatures: the checks give windows of 2 to 10 samples, in which a band such as delta has no frequency.
- braindecode's EEGClassifier with our networks: the checks give tables, and the networks take windows of a fixed
  length; `clone` is tested in test_braindecode_models.py.
- the estimators of nested cross-validation: they hold a study and are given subjects, not arrays.
"""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from voxelwave.eeg.window_features import BandPowerFeatures, RandomConvolutionFeatures, TangentSpaceFeatures

ALL = [TangentSpaceFeatures(), RandomConvolutionFeatures(random_state=0), BandPowerFeatures(sfreq=64.0)]


@parametrize_with_checks([TangentSpaceFeatures(), RandomConvolutionFeatures(random_state=0)])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def rhythm():
    """Windows (50, 2, 128) at 64 Hz, half of them with a 10 Hz rhythm on the first channel."""
    rng = np.random.default_rng(0)
    y = np.arange(50) % 2
    x = rng.standard_normal((50, 2, 128))
    x[y == 1, 0] += 1.5 * np.sin(2 * np.pi * 10 * np.arange(128) / 64)
    return x, y


@pytest.mark.parametrize("features", ALL, ids=lambda features: type(features).__name__)
def test_a_clone_in_a_search_finds_a_rhythm(features, rhythm):
    x, y = rhythm
    model = make_pipeline(clone(features), StandardScaler(), LogisticRegression(max_iter=500))
    search = GridSearchCV(model, {"logisticregression__C": [0.01, 1.0]}, cv=3).fit(x[:34], y[:34])
    assert search.score(x[34:], y[34:]) > 0.9


def test_windows_of_another_shape_are_refused(rhythm):
    x, _ = rhythm
    with pytest.raises(ValueError, match=r"windows of \(2, 128\) channels and samples, got \(2, 100\)"):
        TangentSpaceFeatures().fit(x).transform(x[:, :, :100])
