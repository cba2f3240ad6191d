"""C7 and C8: images hold what their questions ask for; masks grow; pre-training helps under occlusion."""

import pytest
import torch
from torch.nn import functional as F

from voxelwave.attention_analysis.display_task import FEATURES, GRID, LENGTH, draw, grounding_result, train_displays
from voxelwave.attention_analysis.masking_task import (
    draw_views,
    random_mask,
    random_objects,
    run_curriculum,
)
from voxelwave.attention_analysis.small_models import SmallTransformer, fit, log_steps, seeded


def test_the_box_of_a_display_holds_the_item_of_the_colour():
    given = draw("display", 40, torch.Generator().manual_seed(0))
    for image, words, box in zip(given.images, given.words, given.boxes, strict=True):
        asked = int(words[2])
        if asked < 3:  # red, green, blue; yellow has no channel of its own
            channel = image[asked] - image[[c for c in range(3) if c != asked]].mean(0)
            pooled = F.avg_pool2d(channel[None, None], 8, stride=4)[0, 0]
            assert divmod(int(pooled.argmax()), pooled.shape[1]) == box[:2]


def test_the_box_of_a_phantom_is_brighter_than_its_surroundings():
    given = draw("lesion", 100, torch.Generator().manual_seed(0))
    assert given.tokens().shape == (100, LENGTH, FEATURES)
    contrast = []
    for image, box in zip(given.images, given.boxes, strict=True):
        top, left = (4 * int(edge) for edge in box[:2])
        wide = image[0, top - 4 : top + 12, left - 4 : left + 12]
        inside = image[0, top : top + 8, left : left + 8]
        contrast.append(inside.mean() - (wide.sum() - inside.sum()) / (wide.numel() - inside.numel()))
    assert float(torch.stack(contrast).mean()) > 0.3


def test_grounding_of_an_untrained_network_is_measured():
    with seeded(0):
        network = SmallTransformer(FEATURES, 6, LENGTH, dim=16).eval()
    found = grounding_result(network, "lesion", count=20)
    assert 0 <= found.hits.low <= found.hits.mean <= found.hits.high <= 1
    assert found.random_hits == 4 / GRID**2
    assert found.distance.mean > 0


def test_the_mask_grows_from_a_tenth_to_six_tenths():
    visible = random_mask(50, 0.5, torch.Generator().manual_seed(0))
    assert (visible.sum(1) == 19).all()
    assert visible[:, -1].all()


def test_views_show_the_object_in_the_foreground():
    generator = torch.Generator().manual_seed(0)
    views = draw_views(*random_objects(300, generator), generator)
    pixels = views.tokens[:, :-1, :-1].mean(-1)
    assert float(pixels[views.foreground].mean()) > float(pixels[~views.foreground].mean()) + 0.3
    assert (views.foreground.sum(1) == 4).all()


def test_training_reports_a_loss_that_is_not_finite():
    layer = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="not finite at step 1"):
        fit(layer, lambda: layer(torch.ones(1, 1)).sum() * torch.inf, 3)
    assert fit(layer, lambda: layer(torch.ones(1, 1)).square().sum(), 5, at={2, 5}, look=lambda step: step) == [2, 5]
    assert log_steps(100, 5) == [1, 3, 10, 32, 100]


@pytest.mark.slow
def test_pre_training_under_a_growing_mask_helps_under_occlusion():
    found = run_curriculum(steps=60, test=500)
    assert found.gain.low > 0
    assert found.foreground_after > 1.5 > found.foreground_before


@pytest.mark.slow
def test_a_short_training_finds_lesions_better_than_chance():
    found = grounding_result(train_displays(steps=120), "lesion", count=100)
    assert found.accuracy > 0.7
