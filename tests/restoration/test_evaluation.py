"""What is compared: images as a window of intensities shows them."""

import math

import numpy as np
import pytest

from voxelwave.restoration.evaluation import Evaluation, EvaluationImage
from voxelwave.restoration.images import IntensityRange


def test_what_lies_beyond_the_window_does_not_count():
    rng = np.random.default_rng(0)
    inside = rng.random((1, 32, 32), dtype=np.float32)
    clean, degraded = inside.copy(), inside.copy()
    clean[:, :8], degraded[:, :8] = -3.0, -1.0  # air, in a window of soft tissue
    window = IntensityRange(-200.0, 400.0, unit="HU", origin="given")
    image = EvaluationImage("slice", clean, degraded, None, window, whole=False)
    assert Evaluation(network=None, methods=()).measure(image)["input"] == (math.inf, pytest.approx(1.0))
    degraded[:, 16:] += 0.1
    assert Evaluation(network=None, methods=()).measure(image)["input"][0] < 30
