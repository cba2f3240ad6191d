"""Section 10: emphasis raises the planted evidence and leaves the ratios of the other tokens."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.edits import intervene
from voxelwave.attention_analysis.emphasis import (
    absolute_emphasis,
    choose_tokens,
    emphasis_edits,
    emphasise,
    emphasise_scores,
    factor_by_rank,
    fading_curve,
)
from voxelwave.attention_analysis.handmade import TwoStreamModel
from voxelwave.attention_analysis.trace import record

F64 = torch.float64
EVIDENCE = torch.isin(torch.arange(8), torch.tensor([2, 5]))
GROUP = torch.cat([EVIDENCE, torch.zeros(5, dtype=torch.bool)])


@pytest.fixture
def run(generator):
    model = TwoStreamModel(evidence=0.5)
    image = torch.randn(2, 8, 4, generator=generator, dtype=F64)
    text = torch.randn(2, 4, 4, generator=generator, dtype=F64)
    return model, model.embed(image, text, EVIDENCE.expand(2, -1))


@pytest.mark.parametrize("form", ["deviation", "absolute"])
def test_alpha_and_beta_of_0_change_nothing(generator, form):
    scores = torch.randn(2, 3, 4, 13, generator=generator, dtype=F64)
    assert torch.equal(emphasise_scores(scores, GROUP, ~GROUP, alpha=0, beta=0, form=form), scores)
    a = scores.softmax(-1)
    assert torch.equal(emphasise(a, GROUP, ~GROUP, alpha=0, beta=0), a)


def test_the_mass_of_planted_evidence_rises_with_alpha(run):
    model, x = run
    masses = []
    for alpha in (0.0, 0.3, 0.7, 1.5):
        with intervene(model, emphasis_edits([0, 1], GROUP, alpha=alpha)):
            a = record(model, x).maps
        assert_close(a.sum(-1), torch.ones_like(a.sum(-1)))
        masses.append(float((a[0, :, 1, -1] * GROUP).sum(-1).mean()))
        # the other heads give the image no weight, and none appears
        assert a[0, :, 0, -1, :8].abs().max() == 0
    assert all(low < high for low, high in pairwise(masses))


def test_unaffected_tokens_keep_their_ratios_and_other_rows_their_weights(generator):
    a = torch.randn(2, 3, 6, 13, generator=generator, dtype=F64).softmax(-1)
    after = emphasise(a, GROUP, alpha=0.9)
    others = (~GROUP).nonzero().flatten()
    assert_close(
        after[..., -1, others[1:]] / after[..., -1, others[:1]], a[..., -1, others[1:]] / a[..., -1, others[:1]]
    )
    assert torch.equal(after[..., :-1, :], a[..., :-1, :])


def test_the_default_does_not_depend_on_the_origin_of_the_scores_and_the_published_form_does(generator):
    scores = torch.randn(13, generator=generator, dtype=F64)
    by_form = {
        form: [emphasise_scores(scores + shift, GROUP, form=form).softmax(-1) for shift in (0.0, 5.0)]
        for form in ("deviation", "absolute")
    }
    assert_close(*by_form["deviation"])
    assert float((by_form["absolute"][0] - by_form["absolute"][1]).abs().max()) > 0.01


def test_hidden_keys_stay_hidden():
    scores = torch.tensor([0.0, 1.0, 2.0, -torch.inf], dtype=F64)
    after = emphasise_scores(scores, torch.tensor([True, False, False, True]), alpha=1.0)
    assert after[3] == -torch.inf
    assert_close(after[0], torch.tensor(2 / 3, dtype=F64).sqrt())


def test_the_published_form_acts_on_the_scores_of_the_model(run):
    model, x = run
    plain = record(model, x)[0].map()
    with intervene(model, [absolute_emphasis(0, GROUP, alpha=0.0, scale=1.0)]):
        assert_close(record(model, x)[0].map(), plain)
    with intervene(model, [absolute_emphasis(0, GROUP, alpha=0.5, scale=1.0)]):
        found = record(model, x)[0].map()
    assert torch.equal(found[:, :, :-1], plain[:, :, :-1])
    assert ((found[:, 1, -1] * GROUP).sum(-1) > (plain[:, 1, -1] * GROUP).sum(-1)).all()


def test_fading_has_the_slope_of_the_shares():
    maps = torch.zeros(4, 1, 2, 3, 13, dtype=F64)
    for layer in range(4):
        maps[layer, ..., 2] = 0.8 - 0.2 * layer
        maps[layer, ..., 12] = 0.2 + 0.2 * layer
    found = fading_curve(maps, GROUP)
    assert_close(found.share, torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=F64))
    assert found.slope == pytest.approx(-0.2)


def test_tokens_are_chosen_without_the_late_outliers():
    first = torch.full((9, 9), 0.05, dtype=F64)
    first[0, [3, 4]] = 0.3
    first[1:, [6, 7]] = 0.3
    late = torch.full((9, 9), 0.1, dtype=F64)
    late[:, 4] = 5
    found = choose_tokens(first, late)
    assert found.emphasised.nonzero().flatten().tolist() == [3, 6, 7]
    assert found.bottom.nonzero().flatten().tolist() == [4]


def test_a_factor_per_head_follows_its_sensitivity():
    assert factor_by_rank(torch.tensor([5.0, 1.0, 3.0, 9.0]), 0.8).flatten().tolist() == pytest.approx(
        [0.6, 0.2, 0.4, 0.8]
    )
