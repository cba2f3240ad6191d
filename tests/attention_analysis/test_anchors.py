"""Section 2: backward distance, windowed distance, future influence and credit of known maps."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.attention_analysis.anchors import (
    backward_distance,
    coupling,
    future_influence,
    lift_at,
    local_and_global,
    middle_layers,
    plan,
    receiver_kurtosis,
    windowed_distance,
)
from voxelwave.attention_analysis.handmade import band_map, lag_map, sink_map, uniform_map

F64 = torch.float64
LENGTH = 80


@pytest.mark.parametrize("width", [1, 3, 8, 11])
def test_a_band_has_the_mean_distance_of_its_keys(width):
    found = windowed_distance(band_map(LENGTH, width))[width - 1 :]
    assert_close(found, torch.full_like(found, (width - 1) / 2))


@pytest.mark.parametrize("lag", [1, 9, 10, 25])
def test_a_lag_has_its_distance_up_to_the_window(lag):
    found = windowed_distance(lag_map(LENGTH, lag))[lag:]
    assert_close(found, torch.full_like(found, min(lag, 10)))
    assert_close(backward_distance(lag_map(LENGTH, lag), slice(lag, None)), torch.tensor(float(lag), dtype=F64))


@pytest.mark.parametrize("column", [0, 4, 30])
def test_a_column_has_influence_1_and_all_others_0(column):
    found = future_influence(sink_map(LENGTH, column))
    assert_close(found[column], torch.tensor(1.0, dtype=F64))
    others = torch.cat([found[:column], found[column + 1 : LENGTH - 10]])
    assert others.abs().max() == 0
    assert found[LENGTH - 10 :].isnan().all()  # no token is ten places later


def test_local_and_far_heads_are_separated():
    maps = torch.stack([lag_map(LENGTH, r) for r in (40, 1, 5, 60, 2, 30)])
    found = local_and_global(maps, share=1 / 3)
    assert set(found.local_heads.tolist()) == {1, 4}
    assert set(found.far_heads.tolist()) == {0, 3}
    assert_close(found.local, (lag_map(LENGTH, 1) + lag_map(LENGTH, 2)) / 2)


def test_a_receiver_head_has_the_larger_kurtosis():
    assert receiver_kurtosis(sink_map(LENGTH, 5)) > 2 * receiver_kurtosis(band_map(LENGTH, 5))


def test_layers_of_the_middle_third():
    assert middle_layers(30) == [10, 12, 14, 17, 19]
    assert middle_layers(1) == [0]


def test_random_peaks_have_no_lift_and_planted_ones_do():
    generator = torch.Generator().manual_seed(3)
    second = torch.rand(400, generator=generator) < 0.1
    covered = 0
    for _ in range(40):
        first = torch.zeros(400, dtype=torch.bool)
        first[torch.randperm(400, generator=generator)[:40]] = True
        found = coupling(first, second, shuffles=300)
        covered += found.low <= 0 <= found.high
    assert covered >= 34  # 95 % of 40, less three standard deviations
    planted = coupling(second.roll(-1), second)
    assert planted.low > 0


def test_entropy_at_planted_peaks_is_larger():
    values = torch.ones(100, dtype=F64)
    peaks = torch.zeros(100, dtype=torch.bool)
    peaks[::10] = True
    values[peaks] = 2
    assert lift_at(values, peaks).lift == pytest.approx(2 / 1.1 - 1)
    with pytest.raises(ValueError, match="at least one peak"):
        coupling(torch.zeros(4, dtype=torch.bool), peaks[:4])


def test_a_dominated_anchor_shares_its_bonus():
    waad = torch.tensor([5.0, 5, 0, 0, 5, 5, 5, 5, 5, 5], dtype=F64)
    fai = torch.zeros(10, dtype=F64)
    fai[3] = 1
    found = plan(waad, fai, share=0.1, handed_back=0.25)
    assert found.preplan.nonzero().flatten().tolist() == [1]
    assert found.anchor.nonzero().flatten().tolist() == [3]
    assert found.dominated[3]
    assert found.credit[3] == 1.375
    assert found.credit[1] == 1.125
    assert found.credit.sum() == 10.5


def test_a_map_that_sees_the_future_has_no_such_figure():
    with pytest.raises(ValueError, match="must be causal"):
        future_influence(uniform_map(LENGTH, causal=False))
