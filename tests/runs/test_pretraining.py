"""A growing mask hides the share that it says, and the loss prefers matching views."""

import pytest
import torch

from voxelwave.runs.pretraining import contrastive_loss, hidden_spans, hide_blocks, mask_ratio


def test_the_mask_grows_to_its_last_ratio():
    assert [mask_ratio(step, 11) for step in (0, 5, 10, 20)] == pytest.approx([0.1, 0.35, 0.6, 0.6])
    assert mask_ratio(0, 1) == 0.1


def test_the_contrastive_loss_prefers_matching_rows():
    x = torch.eye(5)
    assert contrastive_loss(x, x) < contrastive_loss(x, x.flip(0))
    assert contrastive_loss(x, x[:1].expand(5, -1)) == pytest.approx(float(torch.tensor(5.0).log()))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_valid_parts_is_hidden_and_one_stays(generator, ratio):
    valid = torch.arange(12) < torch.tensor([12, 8, 4, 1])[:, None]
    hidden = hidden_spans(valid, ratio, generator)
    assert not (hidden & ~valid).any()
    assert hidden.sum(1).tolist() == [min(round(ratio * n), n - 1) for n in (12, 8, 4, 1)]


def test_blocks_are_hidden_as_a_whole(generator):
    images = torch.rand(3, 2, 20, 33, generator=generator)
    hidden = hide_blocks(images, 0.5, generator)
    changed = (hidden != images).any(1)
    assert 0.4 < float(changed.double().mean()) < 0.6
    block = changed[:, :8, 8:16].flatten(1)
    assert ((block.sum(1) == 0) | (block.sum(1) == 64)).all()
    assert (hidden[0][:, changed[0]] == images[0].mean()).all()
    assert torch.equal(hide_blocks(images, 0.0, generator), images)
