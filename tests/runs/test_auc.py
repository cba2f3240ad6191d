"""Area under the ROC curve."""

import numpy as np
from sklearn.metrics import roc_auc_score

from voxelwave.runs.auc import auc


def test_auc_equals_that_of_scikit_learn_with_ties_row_by_row():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, (2, 4, 31)) / 5
    labels = generator.permutation(31) % 2
    expected = [[roc_auc_score(labels, row) for row in rows] for rows in scores]
    np.testing.assert_allclose(auc(scores, labels), expected, rtol=1e-14)


def test_auc_is_nan_with_one_class_or_a_nan_score():
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([1, 1])))
    found = auc(np.array([[0.1, np.nan, 0.3], [0.1, 0.2, 0.3]]), np.array([0, 0, 1]))
    np.testing.assert_array_equal(found, [np.nan, 1.0])
