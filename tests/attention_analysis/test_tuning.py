"""A planted gain is found and confirmed on held-out samples; without one, the model is kept."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from voxelwave.attention_analysis.edits import intervene
from voxelwave.attention_analysis.handmade import TwoStreamModel, planted_classifier
from voxelwave.attention_analysis.trace import Head
from voxelwave.attention_analysis.tuning import KEPT, TokenGroup, dependent_on, interventions, tune

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


def grouped_world(generator, kind):
    """Tokens 3 to 5 show the true class to the heads that read the image, beside noise; the gain is planted by kind.

    "emphasis": these tokens get more weight than the others, but not enough. "reinforcement": there is no noise in the
    image, but the text, which the other heads read, misleads.
    """
    model = TwoStreamModel(readers=[(0, 1), (1, 2)], evidence=2.0)
    n, patches = 120, 8
    target = torch.randint(4, (n,), generator=generator)
    member = (torch.arange(patches) > 2) & (torch.arange(patches) < 6)
    size = 12.0 if kind == "emphasis" else 0.0
    image = size * torch.randn(n, patches, 4, generator=generator, dtype=F64)
    image[:, member] = (4.0 if kind == "emphasis" else 1.0) * torch.eye(4, dtype=F64)[target].unsqueeze(1)
    text = 0.5 * torch.randn(n, 4, 4, generator=generator, dtype=F64)
    group = TokenGroup("the evidence")

    def losses(part):
        x = model.embed(image[part], text[part], member.expand(n, -1)[part])

        def run():
            group.mask = torch.cat([member, torch.zeros(5, dtype=torch.bool)])
            return F.cross_entropy(model(x), target[part], reduction="none")

        return run

    return model, group, losses(slice(0, 60)), losses(slice(60, 120))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("emphasis", "the evidence emphasised in layer"), ("reinforcement", "heads that depend on the evidence times 2")],
)
def test_a_gain_by_a_group_is_found_and_confirmed(generator, kind, expected):
    model, group, calibration, held_out = grouped_world(generator, kind)
    dependent = dependent_on(model, group, calibration)
    assert Head(0, 1) in dependent
    assert Head(0, 0) not in dependent
    candidates = interventions(model, causal={0: False, 1: False}, groups={group: dependent}, single_heads=False)
    if kind == "emphasis":  # larger logits would help, too
        candidates = {name: edits for name, edits in candidates.items() if "times" not in name}
    found = tune(model, candidates, calibration, held_out)
    assert expected in found.chosen
    assert found.helps


def test_sinks_given_back_to_a_group_are_found(generator):
    maps = torch.full((2, 24, 24), 0.05 / 17, dtype=F64)
    maps[..., 0], maps[..., 1:6], maps[..., 20] = 0.22, 0.28 / 5, 0.45  # sinks: 0 in the group, 20 outside
    model, vectors = planted_classifier(torch.tensor([1.0, 1.0]), classes=2, maps=maps)
    pinv = torch.linalg.pinv(model.blocks[0].mixing.value.weight)
    target = torch.randint(2, (200,), generator=generator)
    vote = 0.2 * (vectors[target] - vectors[1 - target]).repeat(1, 2)
    noise = 0.3 * torch.randn(200, 1, generator=generator, dtype=F64) * (vectors[0] - vectors[1]).repeat(2)
    x = torch.zeros(200, 24, 12, dtype=F64)
    x[:, 1:6] = (vote @ pinv.mT).unsqueeze(1)
    x[:, 20] = noise @ pinv.mT
    group = TokenGroup("the votes")
    group.mask = torch.arange(24) < 6

    def losses(part):
        return lambda: F.cross_entropy(model(x[part]), target[part], reduction="none")

    candidates = interventions(model, causal={0: False}, groups={group: []}, single_heads=False)
    of_sinks = {name: edits for name, edits in candidates.items() if "sinks" in name}
    assert len(of_sinks) == 2
    found = tune(model, of_sinks, losses(slice(0, 100)), losses(slice(100, 200)))
    assert found.chosen == "sinks of layer 0 given back to the votes"
    assert found.helps


def test_a_group_of_other_tokens_changes_nothing(generator):
    model, _, calibration, _ = grouped_world(generator, "emphasis")
    plain = calibration()
    others = TokenGroup("others")
    others.mask = torch.ones(3, dtype=torch.bool)  # no layer has three keys
    tried = 0
    for name, edits in interventions(model, causal={0: False, 1: False}, groups={others: []}).items():
        if "others" in name:
            with intervene(model, edits):
                assert_close(calibration(), plain, atol=1e-12, rtol=0)
            tried += 1
    assert tried == 6
