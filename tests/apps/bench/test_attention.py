"""The benchmark of attention mechanisms: its arithmetic, and a small run."""

import json

import pytest

from voxelwave.apps import cli
from voxelwave.kernels.attention import benchmark
from voxelwave.kernels.attention.benchmark import PEER, Cost, cost_rows
from voxelwave.runs.exit import DONE


def _costs(*seconds: float) -> list[Cost]:
    return [Cost(length, s, s, 1.0) for length, s in zip((1024, 4096, 16384), seconds, strict=True)]


def test_ratio_exponent_and_efficiency_length_follow_from_the_times():
    costs = {(PEER, "CS"): _costs(1.0, 16.0, 256.0), ("power", "CS"): _costs(4.0, 16.0, 64.0)}
    peer, power = cost_rows(costs, at=16384)
    assert (peer.ratio, peer.efficiency_length) == (None, None)
    assert peer.exponent == pytest.approx(2.0)
    assert power.ratio == pytest.approx(4.0)
    assert power.exponent == pytest.approx(1.0)
    assert power.efficiency_length == pytest.approx(4096)  # the times are equal there
    assert power.met is False  # the goal is 8


def test_goals_are_judged_only_at_the_length_for_which_they_are_stated():
    costs = {(PEER, "CS"): _costs(1.0, 16.0, 256.0), ("power", "CS"): _costs(0.1, 0.4, 1.6)[:2]}
    assert cost_rows(costs, at=16384)[1].met is None


@pytest.mark.slow
def test_the_command_writes_a_page_and_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "METHODS", {"power": benchmark.METHODS["power"]})
    monkeypatch.setattr("voxelwave.apps.bench.attention.LENGTHS", (256, 1024))
    assert cli.main(["bench", "attention", "-o", str(tmp_path), "--part", "forward", "--threads", "1"]) == DONE
    rows = json.loads((tmp_path / "attention.json").read_text())["forward"]["rows"]
    assert [row["method"] for row in rows] == [PEER, PEER, "power"]
    page = (tmp_path / "attention.html").read_text()
    assert page.count("<svg") == 1
    assert "<td>power</td>" in page
