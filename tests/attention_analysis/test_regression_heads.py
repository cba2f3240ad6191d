"""Section 14: two heads of opposite sign compute a debiased gradient step."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.regression_heads import (
    constructed_layer,
    debiased_step,
    head_circuits,
    regression_scores,
)
from voxelwave.kernels.attention.mixer import NC

F64 = torch.float64
RATE, FEATURES = 0.7, 3


def data(generator):
    x = torch.randn(16, 20, FEATURES, generator=generator, dtype=F64)
    query = torch.randn(16, FEATURES, generator=generator, dtype=F64)
    return x, torch.randn(16, 20, generator=generator, dtype=F64) + 2, query


def predict(layer, x, y, query):
    tokens, asked = x.new_zeros(16, 20, layer.output.out_features), x.new_zeros(16, 1, layer.output.out_features)
    tokens[..., :FEATURES], tokens[..., FEATURES] = x, y
    asked[:, 0, :FEATURES] = query
    return layer(asked, tokens, pattern=NC).out[:, 0, FEATURES]


def two_heads(size):
    return constructed_layer(FEATURES, torch.tensor([size, -size]), torch.tensor([1, -1]) * RATE / (2 * size))


def test_two_heads_approach_the_debiased_step_with_an_error_of_second_order(generator):
    given = data(generator)
    step = debiased_step(*given, RATE)
    errors = [float((predict(two_heads(size), *given) - step).norm()) for size in (0.02, 0.01, 0.005)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.01)
    assert errors[2] < 1e-3 * float(step.norm())


def test_a_single_head_keeps_the_mean_divided_by_its_size(generator):
    x, y, query = data(generator)
    size = 1e-4
    layer = constructed_layer(FEATURES, torch.tensor([size]), torch.tensor([RATE / size]))
    bias = predict(layer, x, y, query) - debiased_step(x, y, query, RATE)
    assert_close(bias, RATE * y.mean(1) / size, rtol=1e-3, atol=0)


def test_constructed_weights_have_exact_scores():
    layer = constructed_layer(FEATURES, torch.tensor([0.1, -0.1, 0.1]), torch.tensor([3.0, -3.0, 0.0]))
    found = regression_scores(head_circuits(layer, FEATURES + 1))
    assert found.diagonality.tolist() == [0, 0, 0]
    assert found.homogeneity.tolist() == [0, 0, 0]
    assert found.last_entry.tolist() == [1, 1, 0]
    assert found.spread == 0
    assert found.zero_sum == 0
    assert found.sign == ["+", "-", "idle"]


def test_circuits_are_the_scores_and_values_of_the_layer(generator):
    layer = two_heads(0.3)
    with torch.no_grad():
        for linear in (layer.query, layer.key, layer.value, layer.output):
            linear.weight.copy_(torch.randn(8, 8, generator=generator, dtype=F64))
    found = head_circuits(layer, 8)
    token, other = torch.randn(2, 8, generator=generator, dtype=F64)
    q, k = layer.query(token).view(2, 4), layer.key(other).view(2, 4)
    assert_close((other @ found.key_query @ token), (q * k).sum(-1))
    assert_close((found.output_value @ token).sum(0), layer.output(layer.value(token)))
    scores = regression_scores(found)
    assert (scores.diagonality > 0.5).all()
    assert scores.zero_sum > 0
