"""Section 13: the progress measures of the handmade induction model are those of its strengths."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.handmade import InductionModel
from voxelwave.attention_analysis.induction import (
    induction_measures,
    known_first_weight,
    known_second_weight,
    onset,
    onset_order,
)
from voxelwave.attention_analysis.trace import record

F64 = torch.float64
ITEMS = torch.tensor([[3, 0, 5, 2]])
LABELS = torch.tensor([[4, 1, 0, 3]])


def measured(correct, beta1, alpha, beta2):
    model = InductionModel(beta1=beta1, alpha=alpha, beta2=beta2)
    trace = record(model, model.embed(ITEMS, LABELS, ITEMS[:, correct]))
    return trace, induction_measures(trace[0].map(), trace[1].map(), LABELS, LABELS[:, correct], trace.output)


@pytest.mark.parametrize("correct", [0, 1, 2, 3])
@pytest.mark.parametrize("strengths", [(0.0, 0.0, 0.0), (1.0, 2.0, 0.5), (3.0, 5.0, 1.5), (8.0, 8.0, 2.0)])
def test_the_weights_are_those_of_the_closed_form(correct, strengths):
    beta1, alpha, beta2 = strengths
    trace, found = measured(correct, *strengths)
    for i in range(4):
        weight = trace[0].map()[0, 0, 2 * i + 1, 2 * i]
        assert_close(weight, torch.tensor(known_first_weight(beta1, i), dtype=F64), atol=1e-14, rtol=1e-12)
    expected = known_second_weight(alpha, beta1, beta2, correct, 4)
    assert_close(found.target_label[0], torch.tensor(expected, dtype=F64), atol=1e-14, rtol=1e-12)


def test_without_strength_the_weights_are_uniform():
    _, found = measured(2, 0.0, 0.0, 0.0)
    assert_close(found.target_label[0], torch.tensor(1 / 9, dtype=F64))
    assert_close(found.target_labels[0], torch.tensor(4 / 9, dtype=F64))
    assert_close(found.strength[0], torch.tensor(0.0, dtype=F64))
    assert_close(found.item_label[0], torch.tensor(sum(1 / (2 * i + 2) for i in range(4)) / 4, dtype=F64))


def test_with_large_strength_the_weights_are_1():
    trace, found = measured(1, 60.0, 60.0, 5.0)
    for value in (found.item_label[0], found.target_label[0], found.strength[0]):
        assert float(value) == pytest.approx(1, abs=1e-12)
    assert trace.output.argmax(1) == LABELS[:, 1]
    assert float(found.context_label) > 0.99


def test_a_target_without_a_label_in_the_context_does_not_count():
    a = torch.rand(2, 1, 9, 9, dtype=F64)
    labels = LABELS.expand(2, -1)
    found = induction_measures(a, a, labels, torch.tensor([1, 2]), torch.zeros(2, 5, dtype=F64))
    assert_close(found.target_label, a[0, :, -1, 3])
    assert float(found.context_label) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="9 tokens for 4 pairs"):
        induction_measures(a[..., :5], a, labels, labels[:, 0], torch.zeros(2, 5))


def test_onsets_are_ordered_on_a_logarithmic_axis():
    steps = [0, *[10 * 2**i for i in range(10)]]
    early, late = ([0.0] * (k + 1) + [1.0] * (10 - k) for k in (4, 7))
    found = onset_order(steps, {"late": late, "early": early, "flat": [0.0] * 11})
    assert [name for name, _ in found] == ["early", "late", "flat"]
    assert 80 <= onset(steps, early) <= 160
    assert onset(steps, [0.0] * 11) != onset(steps, [0.0] * 11)
