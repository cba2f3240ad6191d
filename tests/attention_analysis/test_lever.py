"""Section 9: the weight of the first token as a lever on the other weights."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.edits import intervene
from voxelwave.attention_analysis.handmade import planted_classifier
from voxelwave.attention_analysis.lever import (
    LeverProfile,
    dominant_heads,
    lever_edits,
    output_entropy,
    profile_heads,
    scale_key,
    search_gamma,
)
from voxelwave.attention_analysis.trace import Head, record

F64 = torch.float64
HEADS = [Head(0, h) for h in range(2)]


@pytest.fixture
def maps(generator):
    return torch.randn(3, 2, 9, 9, generator=generator, dtype=F64).softmax(-1)


@pytest.mark.parametrize("gamma", [0.1, 0.6, 1.5, 4.0])
def test_the_gaps_between_other_tokens_change_as_predicted(maps, gamma):
    after = scale_key(maps, gamma)
    assert_close(after.sum(-1), torch.ones_like(after.sum(-1)))
    first = maps[..., :1]
    gap_before, gap_after = (a[..., 1:-1] - a[..., 2:] for a in (maps, after))
    change = gap_before.abs() - gap_after.abs()
    assert_close(change, gap_before.abs() * (gamma - 1) * first / ((gamma - 1) * first + 1))


def test_gamma_1_or_no_weight_on_the_lever_changes_nothing(maps):
    assert torch.equal(scale_key(maps, 1.0), maps)
    without = maps.clone()
    without[..., 0] = 0
    assert torch.equal(scale_key(without, 3.0), without)
    with pytest.raises(ValueError, match="above 0, got 0"):
        scale_key(maps, 0)


@pytest.mark.parametrize("given", [True, False])
def test_a_bias_is_the_same_as_a_change_of_the_weights(generator, given):
    maps = torch.randn(2, 7, 7, generator=generator, dtype=F64).softmax(-1) if given else None
    model, _ = planted_classifier(torch.tensor([1.0, 2.0]), maps=maps)
    x = torch.randn(3, 7, 12, generator=generator, dtype=F64)
    found = []
    for form in ("bias", "weight"):
        with intervene(model, lever_edits(model, [Head(0, 1)], 0.3, form=form)):
            found.append(record(model, x)[0].map())
    assert_close(found[0], found[1])
    assert_close(found[0][:, 1], scale_key(record(model, x)[0].map()[:, 1], 0.3))
    assert_close(found[0][:, 0], record(model, x)[0].map()[:, 0])


def voters(generator, right):
    """A classifier in which all tokens but the first vote for the true class, or against it."""
    model, vectors = planted_classifier(
        torch.tensor([1.0, 1.0]), classes=2, maps=torch.full((2, 6, 6), 1 / 6, dtype=F64)
    )
    target = torch.randint(2, (40,), generator=generator)
    values = model.blocks[0].mixing.value.weight
    want = torch.cat([vectors, vectors], 1)  # both heads
    vote = (want[target] - want[1 - target]) * (1 if right else -1)
    x = torch.zeros(40, 6, 12, dtype=F64)
    x[:, 1:] = (vote @ torch.linalg.pinv(values).mT).unsqueeze(1)
    x[:, -1, :2] = 0

    def metric():
        return -float(torch.nn.functional.cross_entropy(model(x), target))

    return model, metric, x


@pytest.mark.parametrize("right", [True, False])
def test_the_search_sharpens_where_this_helps_and_flattens_where_it_does_not(generator, right):
    model, metric, _ = voters(generator, right)
    found = search_gamma(model, HEADS, metric)
    assert (found.gamma < 1) == right
    assert (found.gamma > 1) == (not right)
    ordered = [found.values[gamma] for gamma in sorted(found.values)]
    assert ordered == sorted(ordered, reverse=right)


def test_without_labels_the_least_entropy_sharpens(generator):
    model, _, x = voters(generator, True)
    assert search_gamma(model, HEADS, lambda: -output_entropy(model(x))).gamma < 1


def test_of_equal_values_gamma_1_is_kept(generator):
    model, _, _ = voters(generator, True)
    assert search_gamma(model, HEADS, lambda: 0.0).gamma == 1


@pytest.mark.parametrize("right", [True, False])
def test_heads_are_profiled_by_their_direction(generator, right):
    model, metric, _ = voters(generator, right)
    found = profile_heads(model, HEADS, metric)
    assert [one.direction for one in found] == ["down" if right else "up"] * 2
    assert len(dominant_heads(found, 0.5)) == 1


def test_the_commoner_direction_is_dominant():
    profiles = [
        LeverProfile(Head(0, 0), {0.6: 0.1, 1.5: -0.1}),
        LeverProfile(Head(0, 1), {0.6: 0.3, 1.5: -0.1}),
        LeverProfile(Head(0, 2), {0.6: -0.1, 1.5: 0.9}),
        LeverProfile(Head(0, 3), {0.6: -0.1, 1.5: -0.9}),
    ]
    assert profiles[3].direction == "none"
    assert dominant_heads(profiles, 0.5) == [Head(0, 1)]
    assert dominant_heads(profiles[3:]) == []
