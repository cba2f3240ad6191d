"""C5: two heads reach the debiased step, one head does not, and neither is ridge regression."""

import pytest
import torch

from voxelwave.attention_analysis.regression_heads import debiased_step
from voxelwave.attention_analysis.regression_task import (
    RegressionTask,
    closed_form_optimum,
    reduced_heads,
    ridge,
    train_heads,
)


@pytest.mark.slow
def test_the_optima_are_those_of_the_setting():
    found = closed_form_optimum(RegressionTask(), train=6000, test=20_000, steps=120)
    assert found.one_head == pytest.approx(0.291, abs=0.02)
    assert found.two_heads == pytest.approx(0.138, abs=0.01)
    assert found.two_heads == pytest.approx(found.debiased_step, rel=0.03)
    assert found.two_heads < 0.6 * found.one_head
    assert found.ridge == pytest.approx(0.0015, abs=2e-4)


def test_small_opposite_heads_are_the_debiased_step():
    given = RegressionTask().draw(50, torch.Generator().manual_seed(0))
    size = 0.01
    heads = reduced_heads(given, torch.tensor([size, -size]), torch.tensor([1, -1]) * 0.9 / (2 * size))
    step = debiased_step(given.x, given.y, given.query, 0.9)
    torch.testing.assert_close(heads, step, atol=2e-3, rtol=0)


def test_ridge_without_noise_is_exact():
    given = RegressionTask(noise=0.0).draw(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(ridge(given, 1e-6), given.truth, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_two_trained_heads_have_opposite_signs():
    found = train_heads(RegressionTask(), 2, steps=1500, batch=128, test=1000)
    assert sorted(found.scores.sign) == ["+", "-"]
    assert found.error.mean < 0.2
    assert found.scores.zero_sum < 0.2
