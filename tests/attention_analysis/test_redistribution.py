"""Section 8: the group gets back exactly what the sinks lose."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.edits import intervene
from voxelwave.attention_analysis.handmade import TwoStreamModel
from voxelwave.attention_analysis.redistribution import group_centric, redistribute, redistribution_edits
from voxelwave.attention_analysis.trace import record

F64 = torch.float64
LENGTH = 12
GROUP = torch.arange(LENGTH) < 6
SINKS = torch.isin(torch.arange(LENGTH), torch.tensor([2, 9]))


@pytest.fixture
def maps(generator):
    a = torch.rand(4, 3, LENGTH, LENGTH, generator=generator, dtype=F64)
    a[0, :, :, :6] *= 0.01  # these rows do not read the group
    a[1, :, :, 2] += 50  # these read mostly its sink
    return a / a.sum(-1, keepdim=True)


def test_row_sums_stay_and_weights_are_not_negative(maps):
    after = redistribute(maps, GROUP, SINKS)
    assert_close(after.sum(-1), torch.ones_like(after.sum(-1)))
    assert (after >= 0).all()
    zeros = maps.clone()
    zeros[..., 4] = 0
    assert redistribute(zeros, GROUP, SINKS)[..., 4].abs().max() == 0


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6])
def test_the_group_gains_what_the_sinks_outside_lose(maps, keep):
    after = redistribute(maps, GROUP, SINKS, keep=keep)
    changed = group_centric(maps, GROUP, SINKS)
    assert 0 < changed.double().mean() < 1
    gained = (1 - keep) * maps[..., 9]
    assert_close((after * GROUP).sum(-1)[changed], ((maps * GROUP).sum(-1) + gained)[changed])
    assert_close(after[..., SINKS][changed], keep * maps[..., SINKS][changed])


def test_rows_that_do_not_read_the_group_are_unchanged(maps):
    after = redistribute(maps, GROUP, SINKS)
    changed = group_centric(maps, GROUP, SINKS)
    assert not changed[:2].any()
    assert torch.equal(after[~changed], maps[~changed])


def test_keep_1_or_a_group_without_a_sink_changes_nothing(maps):
    assert torch.equal(redistribute(maps, GROUP, SINKS, keep=1), maps)
    assert torch.equal(redistribute(maps, GROUP, SINKS & ~GROUP), maps)
    assert not torch.equal(redistribute(maps, GROUP, SINKS), maps)


def test_only_rows_after_the_group_and_not_the_last_layer_are_edited(generator):
    model = TwoStreamModel(evidence=0.0)
    image, text = torch.randn(2, 1, 6, 4, generator=generator, dtype=F64)
    x = model.embed(image, text, torch.zeros(1, 6, dtype=torch.bool))
    group = torch.arange(13) < 6
    sinks = torch.arange(13) == 2
    plain = record(model, x)
    with intervene(model, redistribution_edits(2, group, sinks, keep=0.5)):
        found = record(model, x)
    assert torch.equal(found[1].map(), plain[1].map())
    before, after = plain[0].map()[0, 1], found[0].map()[0, 1]  # the reader
    assert torch.equal(after[:6], before[:6])
    assert_close(after[6:, 2], before[6:, 2] / 2)
