"""A planted gain is found and confirmed on held-out samples; without one, the model is kept."""

import pytest
import torch
from torch.nn import functional as F

from voxelwave.attention_analysis.handmade import planted_classifier
from voxelwave.attention_analysis.tuning import KEPT, interventions, tune

F64 = torch.float64


def world(generator, harmful):
    """A head that votes for the true class, and one that adds noise if `harmful`."""
    maps = torch.full((2, 5, 5), 0.2, dtype=F64)
    model, vectors = planted_classifier(torch.tensor([1.0, 3.0 if harmful else 0.0]), classes=2, maps=maps)
    values = model.blocks[0].mixing.value.weight
    target = torch.randint(2, (200,), generator=generator)
    vote = vectors[target] - vectors[1 - target]
    noise = torch.randn(200, 1, generator=generator, dtype=F64) * (vectors[0] - vectors[1])
    x = (torch.cat([vote, noise], 1) @ torch.linalg.pinv(values).mT).unsqueeze(1).repeat(1, 5, 1)
    x[:, -1, :2] = 0

    def losses(part):
        return lambda: F.cross_entropy(model(x[part]), target[part], reduction="none")

    return model, losses(slice(0, 100)), losses(slice(100, 200))


def test_the_harmful_head_is_found_and_confirmed(generator):
    model, calibration, held_out = world(generator, harmful=True)
    plain = calibration()
    found = tune(model, interventions(model, causal={0: False}), calibration, held_out)
    assert found.chosen == "head 1 of layer 0 removed"
    assert found.helps
    assert found.attempts[0].gain.mean == max(attempt.gain.mean for attempt in found.attempts)
    assert torch.equal(calibration(), plain)


def test_without_a_gain_the_model_is_kept_and_the_held_out_part_is_not_looked_at(generator):
    model, calibration, _ = world(generator, harmful=False)

    def forbidden():
        raise AssertionError("the held-out part was used")

    candidates = {"noise": interventions(model, causal={})["head 1 of layer 0 removed"]}
    found = tune(model, candidates, calibration, forbidden)
    assert found.chosen == KEPT
    assert found.held_out is None
    assert not found.helps


def test_more_attempts_widen_the_intervals(generator):
    model, calibration, held_out = world(generator, harmful=True)
    few = interventions(model, causal={})
    many = {**few, **{f"again {i}": few["head 0 of layer 0 removed"] for i in range(40)}}
    widths = []
    for candidates in (few, many):
        attempts = {a.name: a.gain for a in tune(model, candidates, calibration, held_out).attempts}
        gain = attempts["head 1 of layer 0 removed"]
        widths.append(gain.high - gain.low)
    assert widths[1] > widths[0]


def test_too_few_units_are_refused(generator):
    model, _, held_out = world(generator, harmful=True)
    with pytest.raises(ValueError, match="at least 2 units, got 1"):
        tune(model, interventions(model, causal={}), lambda: torch.zeros(1), held_out)
    with pytest.raises(ValueError, match="at least one intervention"):
        tune(model, {}, held_out, held_out)
