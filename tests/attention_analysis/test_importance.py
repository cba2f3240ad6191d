"""Section 3: the importance of heads equals their planted share."""

import pytest
import torch
from scipy.stats import spearmanr
from torch.testing import assert_close

from voxelwave.attention_analysis.edits import intervene, remove_heads
from voxelwave.attention_analysis.handmade import planted_classifier
from voxelwave.attention_analysis.importance import (
    area_between,
    bootstrap,
    by_class,
    gate_gradient,
    heads_of,
    importance_by_removal,
    jensen_shannon,
    loss_change,
    random_orders,
    removal_curve,
)
from voxelwave.attention_analysis.trace import record

F64 = torch.float64
SHARES = torch.tensor([0.0, 2.0, -0.5, 1.0, 0.0, 4.0])


@pytest.fixture
def planted(generator):
    model, vectors = planted_classifier(SHARES)
    x = torch.randn(64, 5, 36, generator=generator, dtype=F64)
    x[..., :3] = 0
    return model, vectors, x, torch.randint(3, (64,), generator=generator)


def test_removal_takes_exactly_the_planted_contribution(planted):
    model, vectors, x, _ = planted
    full, heads = model(x), record(model, x)[0].heads[:, -1]
    for head in range(6):
        with intervene(model, remove_heads(model, [(0, head)])):
            lost = full - model(x)
        assert_close(lost, SHARES[head] * heads[:, head] @ vectors.mT)


def test_the_ranking_is_that_of_the_shares(planted):
    model, _, x, _ = planted
    with torch.no_grad():  # equal sizes of all heads
        values = model.blocks[0].mixing.value.weight.view(6, 6, 36)
        values.copy_(values[:1].expand_as(values))
        model.blocks[0].mixing.query.weight.zero_()
    change = loss_change(model, x, lambda logits: logits[:, 0])
    size = [float(value.abs().mean()) for value in change.values()]
    assert spearmanr(size, SHARES.abs()).statistic == pytest.approx(1)


def test_heads_without_a_share_have_importance_0(planted):
    model, _, x, target = planted
    for found in importance_by_removal(model, x, target):
        measures = torch.stack(found[1:])
        if SHARES[found.head.head] == 0:
            assert measures.abs().max() < 1e-15
        else:
            assert (measures.abs().amax(1) > 1e-3).all()


def test_mean_ablation_of_a_constant_head_changes_nothing(planted):
    model, _, x, target = planted
    found = importance_by_removal(model, x[:1].expand(8, -1, -1), target[:8], how="mean")
    assert max(float(one.divergence.max()) for one in found) < 1e-14
    assert max(float(one.divergence.max()) for one in importance_by_removal(model, x, target, how="mean")) > 1e-3


def test_the_gradient_of_the_gates_is_exact_for_a_linear_readout(planted):
    model, _, x, _ = planted
    slopes = gate_gradient(model, x, lambda logits: logits[:, 1].sum())
    removed = loss_change(model, x, lambda logits: logits[:, 1])
    for head, slope in slopes.items():
        assert slope == pytest.approx(-float(removed[head].sum()), abs=1e-12)


def test_removal_in_order_loses_faster_than_in_reverse(planted):
    model, _, x, _ = planted
    target = model(x).argmax(1)
    order = sorted(heads_of(model), key=lambda head: -abs(float(SHARES[head.head])))
    curves = [
        removal_curve(model, chosen, lambda: float((model(x).argmax(1) == target).double().mean()))
        for chosen in (order, order[::-1], *random_orders(order, 3))
    ]
    assert curves[0][0] == curves[1][0] == 1
    assert area_between(curves[0], curves[1]) > 0.2
    assert all(area_between(curves[0], curve) >= 0 for curve in curves[2:])


def test_divergence_is_1_bit_for_disjoint_distributions():
    p = torch.tensor([[1.0, 0.0], [0.3, 0.7]], dtype=F64)
    assert_close(
        jensen_shannon(p, torch.tensor([[0.0, 1.0], [0.3, 0.7]], dtype=F64)), torch.tensor([1.0, 0], dtype=F64)
    )


def test_intervals_hold_the_mean_of_each_class():
    values = torch.tensor([0.0, 1, 2, 3, 10, 10])
    assert bootstrap(values[4:]) == (10, 10, 10)
    found = by_class(values, torch.tensor([0, 0, 0, 0, 1, 1]))
    assert found[0].mean == 1.5
    assert 0 <= found[0].low < 1.5 < found[0].high <= 3
