"""The phantom of large shifts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelwave.registration import nestedmorph
from voxelwave.registration.benchmark_shift import ShiftSettings, measure_shift, shifted_pair
from voxelwave.registration.warp import warp

SMALL = ShiftSettings(size=(32, 32, 64), reach=24, search_steps=1, steps=1, batch=1, tests=5)


@pytest.mark.parametrize("shift", [-24, 0, 17])
def test_the_known_shift_aligns_the_pair(shift):
    moving, fixed = shifted_pair(np.random.default_rng(0), SMALL, shift)
    displacement = torch.tensor([0.0, 0.0, shift]).view(1, 3, 1, 1, 1).expand(1, 3, *SMALL.size)
    inside = slice(max(0, -shift), 64 - max(0, shift))
    assert_close(warp(moving[None], displacement)[0, ..., inside], fixed[..., inside])
    assert fixed.std() > 0.1


@pytest.mark.parametrize("mixer", [None, "bilevel(region=[1, 1, 1], top=1)"])
def test_an_untrained_network_has_the_error_of_no_displacement(mixer, monkeypatch):
    monkeypatch.setattr(nestedmorph, "WIDTHS", (16, 32, 64, 128))
    result = measure_shift(mixer, replace(SMALL, learning_rate=1e-9))
    assert (result.zero_near, result.zero_far) == (8.0, 24.0)  # shifts of -24, -12, 0, 12 and 24
    assert result.near == pytest.approx(8.0, abs=0.1)
    assert result.far == pytest.approx(24.0, abs=0.1)
    assert (result.searched_far is None) == (mixer is None)


def test_routing_finds_shifts_beyond_a_region_before_any_training():
    settings = replace(SMALL, size=(32, 32, 128), reach=48, tests=9, learning_rate=1e-9)
    result = measure_shift("bilevel(region=[1, 1, 1], top=1)", settings)
    assert result.searched_far is not None
    assert result.searched_far < 0.6 * result.zero_far
