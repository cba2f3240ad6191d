"""The benchmark of attention mechanisms: its arithmetic, and small runs of its parts."""

import importlib
import inspect
import json
import pkgutil

import pytest
import torch

from voxelwave.apps import cli
from voxelwave.apps.bench.attention_data import task_data
from voxelwave.apps.bench.attention_sections import task_sections
from voxelwave.attention_analysis.benchmark_scores import Scores
from voxelwave.attention_analysis.benchmark_training import Method, Trial
from voxelwave.kernels import attention as folder
from voxelwave.kernels.attention import benchmark
from voxelwave.kernels.attention.benchmark import (
    LENGTHS,
    PEER,
    Cost,
    Fit,
    cost_rows,
    fit_cost,
    fitted_efficiency_length,
)
from voxelwave.kernels.attention.benchmark_streaming import STREAMS, state_bytes, stream_costs
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


def test_a_fit_finds_the_terms_of_a_cost_and_explains_it_fully():
    lengths = [256, 512, 1024, 2048, 4096, 8192]
    plain = fit_cost(lengths, [3e-8 * n**2 + 2e-6 * n + 1e-3 for n in lengths], quadratic=True)
    other = fit_cost(lengths, [8e-6 * n + 4e-3 for n in lengths], quadratic=False)
    assert plain == pytest.approx((3e-8, 2e-6, 1e-3, 1.0), rel=1e-6)
    assert other == pytest.approx((0, 8e-6, 4e-3, 1.0), rel=1e-6)
    length = fitted_efficiency_length(plain, other)
    assert 3e-8 * length**2 + 2e-6 * length + 1e-3 == pytest.approx(8e-6 * length + 4e-3, rel=2e-3)


def test_longer_sequences_do_not_enter_a_fit_and_few_lengths_give_none():
    lengths = [256, 512, 1024, 2048, 4096, 8192, 65536]
    assert fit_cost(lengths, [*(1e-6 * n for n in lengths[:-1]), 99.0], quadratic=False).linear == pytest.approx(1e-6)
    assert fit_cost(lengths[:3], [1.0, 2.0, 3.0], quadratic=True) is None


@pytest.mark.parametrize(
    ("plain", "other", "since"),
    [
        ((1e-6, 0, 1.0), (0, 1e-3, 0.0), "always"),  # no crossing
        ((1e-6, 0, 0.0), (0, 1e-3, 0.0), 1000),
        ((0, 1e-3, 0.0), (0, 2e-3, 0.0), "never"),
        ((0, 2e-3, 0.0), (0, 1e-3, 1.0), 1000),
        ((0, 2e-3, 1.0), (0, 1e-3, 0.0), "always"),
    ],
)
def test_the_efficiency_length_is_the_larger_root_of_the_difference(plain, other, since):
    assert fitted_efficiency_length(Fit(*plain, 1.0), Fit(*other, 1.0)) == since


def test_regions_of_the_benchmark_have_as_many_tokens_as_asked_for():
    for length in LENGTHS:
        mixer = benchmark.METHODS["bi-level"].make(length)
        assert mixer.grid[0] * mixer.grid[1] == length
    assert benchmark.METHODS["bi-level"].make(16384).region == (16, 16)


def test_a_stream_has_a_constant_state_if_and_only_if_it_keeps_no_tokens():
    for name, stream in STREAMS.items():
        if name == "associative, taylor":
            continue  # takes longest, and shares its code with "associative, elu"
        few, more = (cost.state_bytes for cost in stream_costs(name, (128, 320)))
        assert (few == more) == (stream.longest is None)


def test_every_mixer_that_takes_a_state_is_among_the_streams():
    found = set()
    for info in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == info.name and hasattr(value, "v_linear"):
                call = value.forward if issubclass(value, torch.nn.Module) else value.__call__
                if "state" in inspect.signature(call).parameters:
                    found.add(value)
    assert {type(stream.make()) for stream in STREAMS.values()} == found


def test_the_bytes_of_a_state_count_the_storage_of_a_view_once():
    whole = torch.zeros(10, 4)
    assert state_bytes((whole[0], (whole[1], 3), None)) == 160


def test_real_recordings_are_cut_without_overlap():
    data = task_data()
    assert len(data.images[0]) > 10
    assert len(data.images[1]) > 5
    assert data.signals[0].shape[1:] == data.signals[1].shape[1:]
    assert data.signals[0].std(2).allclose(torch.ones(()), atol=1e-2)
    rows = {row.numpy().tobytes() for part in data.images for row in part}
    assert len(rows) == sum(map(len, data.images))


def test_a_pattern_that_a_mechanism_lacks_is_a_dash_in_every_table():
    trials = [
        Trial("softmax", "needle", 0, {"accuracy": 1.0}, {"1": 1.0}, {"1 x 0": 1.0}, {"1 x 0": 1.0}, 1, 0.0),
        Trial("power", "needle", 0, {"accuracy": 0.5}, {"1": 0.5}, {"1 x 0": 0.1}, {"1 x 0": 0.0}, 1, 0.0),
        Trial("softmax", "next fixation", 0, {"right object": 0.8}, {"1": 0.8}, {}, {}, 1, 0.0),
        Trial("mlp", "needle", 0, {"accuracy": 0.2}, {"1": 0.2}, {"1 x 0": 0.1}, {"1 x 0": 0.0}, 1, 0.0),
        Trial("mlp", "next fixation", 0, {"right object": 0.3}, {"1": 0.3}, {}, {}, 1, 0.0),
    ]
    sections = task_sections(Scores(trials, {"needle": "CS", "next fixation": "CC"}))
    assert sections[0].tables[0].rows == [("softmax", "+1.00", "+0.00"), ("power", "−1.00", "–")]
    needle, fixation = (table.rows for table in sections[1].tables)
    assert needle == [("softmax", "1.00", "+0.80"), ("power", "0.50", "+0.30"), ("mlp", "0.20", "–")]
    assert fixation == [("softmax", "0.80", "+0.50"), ("power", "–", "–"), ("mlp", "0.30", "–")]
    assert sections[2].tables[0].rows[1] == ("power", "0.10 (not reached)")


@pytest.mark.slow
def test_the_command_writes_a_page_and_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "METHODS", {"power": benchmark.METHODS["power"]})
    monkeypatch.setattr("voxelwave.apps.bench.attention.LENGTHS", (256, 1024))
    assert cli.main(["bench", "attention", "-o", str(tmp_path), "--part", "forward", "--threads", "1"]) == DONE
    record = json.loads((tmp_path / "attention.json").read_text())
    rows = record["forward"]["rows"]
    assert "backward" not in record
    assert [row["method"] for row in rows] == [PEER, PEER, "power"]
    page = (tmp_path / "attention.html").read_text()
    assert page.count("<svg") == 1
    assert ">power</th>" in page


@pytest.mark.slow
def test_the_tasks_part_trains_and_writes_its_tables(tmp_path, monkeypatch):
    few = [Method("softmax", "softmax"), Method("power", "power(block=4, window=2)"), Method("mlp", None)]
    monkeypatch.setattr("voxelwave.attention_analysis.benchmark_training.all_methods", lambda: few)
    assert cli.main(["bench", "attention", "-o", str(tmp_path), "--part", "tasks", "--quick", "--threads", "1"]) == DONE
    trials = json.loads((tmp_path / "attention.json").read_text())["tasks"]["trials"]
    assert len(trials) == 6 + 4 + 6  # power attention has no cross patterns
    page = (tmp_path / "attention.html").read_text()
    assert page.count("<svg") == 2
    assert "A quick run" in page
