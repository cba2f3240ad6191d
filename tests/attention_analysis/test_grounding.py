"""Section 17: the grounded head is chosen and its patch is found."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.grounding import (
    best_region,
    box_target,
    ground,
    grounding_loss,
    hidden_of,
    hit,
    locate,
    overlap,
)
from voxelwave.attention_analysis.handmade import TwoStreamModel
from voxelwave.attention_analysis.trace import record

F64 = torch.float64
ROWS, COLUMNS, TEXT = 4, 5, 3
PATCHES = torch.arange(ROWS * COLUMNS)
QUERY = torch.arange(ROWS * COLUMNS, ROWS * COLUMNS + TEXT)


def planted(generator, patch):
    """Maps of a grounded head (2) among noise heads, and hidden states in which text token 1 resembles the patches."""
    length = ROWS * COLUMNS + TEXT + 1
    maps = torch.randn(6, length, length, generator=generator, dtype=F64).softmax(-1)
    maps[:, QUERY] = 0
    maps[:, QUERY[:2, None], PATCHES] = 0.9 / len(PATCHES)  # noise heads read from the wrong tokens
    maps[2, QUERY] = 0
    maps[2, QUERY[1], patch] = 1
    maps[2, -1] = 0.02
    maps[2, -1, patch] = 1
    hidden = torch.zeros(1, length, 4, dtype=F64)
    hidden[0, PATCHES, 0] = 1
    hidden[0, QUERY] = torch.tensor([[0.2, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], dtype=F64)
    return maps / maps.sum(-1, keepdim=True).clamp_min(1e-12), hidden


@pytest.mark.parametrize("patch", [0, 7, 19])
def test_the_grounded_head_has_the_largest_weight_and_its_patch_the_largest_share(generator, patch):
    maps, hidden = planted(generator, patch)
    found = ground(maps, hidden, query=QUERY, patches=PATCHES, anchor=-1)
    assert found.head_weights.argmax() == 2
    assert found.patches.argmax() == patch
    assert_close(found.patches.sum(), torch.tensor(1.0, dtype=F64))


def test_equal_heads_have_equal_weights(generator):
    maps, hidden = planted(generator, 3)
    found = ground(maps[:1].expand(5, -1, -1), hidden, query=QUERY, patches=PATCHES, anchor=-1)
    assert_close(found.head_weights, torch.full((5,), 0.2, dtype=F64))


def test_the_evidence_of_the_two_stream_model_is_found(generator):
    model = TwoStreamModel(evidence=3.0)
    image, text = torch.randn(1, ROWS * COLUMNS, 4, generator=generator, dtype=F64), torch.zeros(1, TEXT, 4, dtype=F64)
    evidence = (PATCHES == 13)[None]
    trace = record(model, model.embed(image, text, evidence))
    hidden = hidden_of([trace.residuals["blocks.1.after"][0]])
    found = ground(trace.maps[:, 0].flatten(0, 1), hidden, query=QUERY, patches=PATCHES, anchor=-1)
    assert found.patches.argmax() == 13
    region = best_region(found.patches.view(ROWS, COLUMNS))
    assert (region.row, region.column) == (2.5, 3.5)
    assert hit((region.row, region.column), region.box)


def test_the_loss_is_0_for_the_target_and_grows_away_from_it():
    target = box_target(ROWS, COLUMNS, (0.5, 1.2, 1.5, 1.8))
    assert target.view(ROWS, COLUMNS).nonzero().tolist() == [[0, 1], [1, 1]]
    assert float(grounding_loss(target, target)) == pytest.approx(0, abs=1e-15)
    assert float(grounding_loss(torch.full((20,), 0.05, dtype=F64), target)) == pytest.approx(torch.tensor(10.0).log())


def test_the_best_region_is_the_one_with_the_largest_sum():
    found = torch.zeros(5, 5, dtype=F64)
    found[0, 0], found[3, 2:5] = 0.3, 0.2
    region = best_region(found)
    assert (region.row, region.column) == pytest.approx((3.5, 3.5))
    assert region.box == (3, 2, 4, 5)


def test_a_zoom_halves_the_error_of_coarse_patches(generator):
    image = (0.0, 0.0, 1.0, 1.0)
    errors = {0: 0.0, 1: 0.0}
    for target in torch.rand(300, 2, generator=generator, dtype=F64).tolist():

        def map_of(view, target=target):
            found = torch.zeros(4, 4)
            place = [int(4 * (t - low) / (view[2] - view[0])) for t, low in zip(target, view[:2], strict=True)]
            found[min(max(place[0], 0), 3), min(max(place[1], 0), 3)] = 1
            return found

        for zooms in errors:
            point = locate(map_of, image, zooms=zooms)
            errors[zooms] += ((point[0] - target[0]) ** 2 + (point[1] - target[1]) ** 2) ** 0.5 / 300
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)


def test_overlap_of_boxes():
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert overlap((0, 0, 1, 1), (0, 0, 1, 1)) == 1
