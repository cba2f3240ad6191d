"""Section 15: attribution adds up, patching and paths find the planted heads, and a planted rank is found."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from voxelwave.attention_analysis.circuits import (
    circuit,
    circuit_overlap,
    compress_head,
    logit_attribution,
    patch_effects,
    path_effect,
    through_norm,
    transfer_weights,
)
from voxelwave.attention_analysis.edits import intervene
from voxelwave.attention_analysis.handmade import InductionModel
from voxelwave.attention_analysis.importance import heads_of
from voxelwave.attention_analysis.trace import Head, record

F64 = torch.float64
PREVIOUS, MATCHING = Head(0, 0), Head(1, 0)
LABELS = torch.tensor([[4, 1, 0, 3]])


@pytest.fixture
def model():
    return InductionModel()


@pytest.fixture
def runs(model):
    """The target's item stands before label 1 in one run and before label 3 in the other."""
    target = torch.tensor([0])
    clean = model.embed(torch.tensor([[3, 0, 5, 2]]), LABELS, target)
    return clean, model.embed(torch.tensor([[3, 2, 5, 0]]), LABELS, target)


def metric(logits):
    return (logits[:, 1] - logits[:, 3]).sum()


def test_attribution_adds_up_to_the_logit(model, runs):
    trace = record(model, runs[0])
    found = logit_attribution(model, trace, model.readout[1])
    assert_close(found.total, trace.output[:, 1])
    assert_close(found.heads[MATCHING], trace.output[:, 1])  # no other part writes where the logit is read


def test_attribution_adds_up_behind_a_norm_with_biases(model, runs, generator):
    norm = nn.LayerNorm(model.readout.shape[1]).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.uniform_(-1, 1, generator=generator)
    trace = record(model, runs[0])
    stream, u = trace.residuals["blocks.1.after"][0][:, -1], torch.randn(model.readout.shape[1], dtype=F64)
    direction, constant = through_norm(u, norm, stream)
    found = logit_attribution(model, trace, direction)
    assert_close(found.total + constant, norm(stream) @ u)
    rms = nn.RMSNorm(model.readout.shape[1]).double()
    direction, constant = through_norm(u, rms, stream)
    assert_close(logit_attribution(model, trace, direction).total + constant, rms(stream) @ u)


def test_patching_either_known_head_carries_all_and_noise_heads_nothing(model, runs):
    found = patch_effects(model, *runs, metric, heads_of(model))
    for head, effect in found.items():
        assert effect == pytest.approx(1 if head in (PREVIOUS, MATCHING) else 0, abs=1e-12)
    assert circuit(found) == {PREVIOUS, MATCHING}


def test_patching_the_stream_carries_all(model, runs):
    found = patch_effects(model, *runs, metric, ["blocks.0.before", "blocks.1.after"])
    assert list(found.values()) == pytest.approx([1, 1], abs=1e-12)


def test_equal_runs_have_no_effect_to_measure(model, runs):
    with pytest.warns(UserWarning, match="same metric"):
        found = patch_effects(model, runs[0], runs[0], metric, [PREVIOUS])
    assert math.isnan(found[PREVIOUS])


def test_the_path_from_the_previous_token_to_the_key_of_the_match_carries_all(model, runs):
    def through(sender, way, **options):
        return path_effect(model, *runs, metric, sender, MATCHING, way, **options)

    assert through(PREVIOUS, "k") == pytest.approx(1, abs=1e-12)
    assert through(PREVIOUS, "z") == pytest.approx(1, abs=1e-12)
    assert through(PREVIOUS, "q") == pytest.approx(0, abs=1e-12)
    assert through(PREVIOUS, "v") == pytest.approx(0, abs=1e-12)
    assert through(PREVIOUS, "k", freeze_feeds=True) == pytest.approx(0, abs=1e-12)  # it leads through that network
    assert through(Head(0, 2), "z") == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="earlier layer"):
        path_effect(model, *runs, metric, MATCHING, PREVIOUS, "q")


def test_weights_of_another_run_can_be_transferred(model, runs):
    source = record(model, runs[1])
    with intervene(model, transfer_weights(source, [MATCHING])):
        assert_close(metric(model(runs[0])), metric(source.output))


def test_overlap_of_two_circuits_that_share_the_matching_head():
    first, second = {PREVIOUS, MATCHING}, {Head(0, 3), MATCHING}
    found = circuit_overlap(first, second, [4, 4])
    assert found.jaccard == pytest.approx(1 / 3)
    assert found.share == 0.5
    # each layer matches with probability 1/4: both 1/16 (index 1), exactly one 6/16 (index 1/3)
    assert found.chance == pytest.approx(1 / 16 + 6 / 16 / 3, abs=0.03)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_planted_rank_is_found_and_the_model_restored(model, rank):
    """With items that differ in `rank` directions only, the scores of the matching head have that rank."""
    layer = model.blocks[1].mixing
    channels = layer.output.in_features // 4
    with torch.no_grad():
        layer.query.weight[rank:channels] = 0
        layer.key.weight[rank:channels] = 0
    generator = torch.Generator().manual_seed(0)
    items = torch.stack([torch.randperm(6, generator=generator)[:4] for _ in range(40)])
    tokens = model.embed(items, LABELS.expand(40, -1), items[:, 2])
    plain = record(model, tokens)[1].map()[:, 0]

    def fit():
        return float(1 - (record(model, tokens)[1].map()[:, 0] - plain).norm() / plain.norm())

    before = model(tokens)
    found = compress_head(model, MATCHING, "qk", fit, keep=0.999, shifted=fit)
    assert found.rank == rank
    assert found.shifted == pytest.approx(1, abs=1e-6)
    assert torch.equal(model(tokens), before)


def test_output_and_value_are_compressed_to_the_number_of_labels(model, runs):
    tokens = torch.cat([model.embed(torch.arange(4)[None], LABELS, torch.tensor([i])) for i in range(4)])
    target = LABELS[0]

    def accuracy():
        return float((model(tokens).log_softmax(1)[range(4), target] > -1).double().mean())

    assert compress_head(model, MATCHING, "ov", accuracy).rank <= 5
    assert accuracy() == 1
