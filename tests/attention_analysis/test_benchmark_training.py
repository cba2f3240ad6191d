"""Small trainings of the benchmark: no mechanism is left out, and weights fit sequences of any length."""

import math

import pytest
import torch

from voxelwave.attention_analysis.benchmark_scores import Scores, composite_index, estimate, z_scores
from voxelwave.attention_analysis.benchmark_tasks import Needle, Recall, TaskData, all_tasks, generator_of
from voxelwave.attention_analysis.benchmark_training import (
    CONTROL,
    Effort,
    Method,
    TaskModel,
    Trial,
    all_methods,
    connected,
    graph_of,
    measure,
    of_length,
    supports,
    train,
)
from voxelwave.kernels.attention.choice import NAMES
from voxelwave.kernels.attention.mixer import Pattern


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    images, signals = torch.rand(4, 90, 90, generator=generator), torch.randn(4, 2, 1500, generator=generator)
    return TaskData((images[:2], images[2:]), (signals[:2], signals[2:]), torch.rand(6, 3, generator=generator))


def method_of(label):
    return next(method for method in all_methods() if method.label == label)


def test_every_mechanism_that_a_configuration_can_name_takes_part():
    named = {(method.mixer or "").split("(")[0] for method in all_methods()}
    assert set(NAMES) <= named
    assert CONTROL in {method.label for method in all_methods()}
    labels = [method.label for method in all_methods()]
    assert len(set(labels)) == len(labels)


def test_each_pattern_has_a_task(data):
    assert {task.pattern for task in all_tasks(data)} == set(Pattern)


@pytest.mark.slow
@pytest.mark.parametrize("label", [method.label for method in all_methods()])
def test_a_method_trains_and_is_measured_on_all_tasks_that_it_supports(label, data):
    method = method_of(label)
    tasks = [task for task in all_tasks(data) if supports(method, task)]
    assert tasks
    for task in tasks:
        trial = measure(train(task, method, 0, 1e-9), task, method, 0, Effort(1e-9, 1, 1))
        assert set(trial.scores) == set(task.measures)
        assert all(value is not None and math.isfinite(value) and value <= 1 for value in trial.scores.values())
        assert len(trial.lengths) == 4


def test_training_is_repeatable_and_leaves_the_global_generator_alone(data):
    task, method = Needle(), method_of("softmax")
    before = torch.get_rng_state()
    first, again, other = (train(task, method, seed, 0.005) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_the_model_for_another_length_has_the_same_weights(data):
    task, method = all_tasks(data)[0], method_of("relative convolution")
    model = train(task, method, 0, 1e-9)
    other = of_length({task.length: model}, task, method, 128)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_control_does_not_mix_tokens_and_has_about_as_many_weights():
    task = Needle()
    where = connected(TaskModel(task, method_of(CONTROL), 64), task, method_of(CONTROL), 64)
    assert where.tolist() == [0.0] * 63 + [1.0]
    counts = [sum(p.numel() for p in TaskModel(task, method_of(x), 64).parameters()) for x in (CONTROL, "softmax")]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


@pytest.mark.parametrize("window", [2, 5])
def test_a_sliding_window_reaches_as_far_as_its_layers_together(window):
    task, method = Needle(), Method("x", f"sliding_window(window={window})")
    where = connected(TaskModel(task, method, 32), task, method, 32)
    distance = 31 - torch.arange(32)
    assert torch.equal(where > 0, distance <= 2 * (window - 1))  # two layers


def test_power_attention_reaches_the_distances_with_at_most_two_ones_in_binary():
    task, method = Needle(), Method("x", "power(block=1, window=1, sink=0)")
    where = connected(TaskModel(task, method, 64), task, method, 64)
    assert [bool(x) for x in where > 0] == [(63 - at).bit_count() <= 2 for at in range(64)]


def test_softmax_reaches_every_token():
    task, method = Needle(), method_of("softmax")
    assert (connected(TaskModel(task, method, 64), task, method, 64) == 1).all()


@pytest.mark.slow
def test_softmax_learns_to_find_the_needle_and_the_control_stays_at_chance():
    task = Needle()
    found = {
        label: measure(train(task, method_of(label), 0, 1.0), task, method_of(label), 0, Effort(1.0, 1, 8))
        for label in ("softmax", CONTROL)
    }
    assert found["softmax"].scores["accuracy"] > 0.9
    assert found[CONTROL].scores["accuracy"] == pytest.approx(1 / 8, abs=0.1)


def test_neighbours_on_a_grid():
    graph = graph_of((2, 3))
    assert graph.sum() == 2 * 7  # edges of a grid of 2 x 3
    assert graph[0].nonzero().flatten().tolist() == [1, 3]


def test_identical_methods_have_a_composite_index_of_0():
    equal = {"a": 0.7, "b": 0.7, "c": 0.7}
    assert composite_index([{"x": equal, "y": dict.fromkeys(equal, -3.0)}]) == {"a": 0.0, "b": 0.0, "c": 0.0}


def test_the_index_is_the_mean_over_measures_then_over_tasks():
    first = {"x": {"a": 1.0, "b": 0.0}, "y": {"a": 0.0, "b": 0.0}}
    second = {"z": {"a": 3.0, "b": 5.0}}
    found = composite_index([first, second])
    assert found == {"a": pytest.approx((0.5 - 1) / 2), "b": pytest.approx((-0.5 + 1) / 2)}
    assert sum(z_scores({"a": 1.0, "b": 2.0, "c": 9.0}).values()) == pytest.approx(0)


def test_a_method_without_all_tasks_of_a_pattern_has_no_index():
    assert set(composite_index([{"x": {"a": 1.0, "b": 0.0}}, {"y": {"a": 1.0}}])) == {"a"}


def test_the_interval_is_that_of_students_t():
    assert estimate([1.0, 2.0, 3.0]).half == pytest.approx(4.303 / 3**0.5)
    assert estimate([0.5]).half is None


def trial(method, seed, score, task="needle"):
    return Trial(method, task, seed, {"accuracy": score}, {"1": score}, {}, {}, 1, 0.0)


def test_the_benefit_is_paired_by_seed_and_the_control_has_none():
    trials = [trial("a", 0, 0.9), trial("a", 1, 0.7), trial(CONTROL, 0, 0.5), trial(CONTROL, 1, 0.3)]
    scores = Scores(trials, {"needle": "CS"})
    assert scores.benefit("a", "needle").mean == pytest.approx(0.4)
    assert scores.benefit("a", "needle").half == pytest.approx(0, abs=1e-9)
    assert scores.benefit(CONTROL, "needle") is None
    assert scores.index("CS") == {"a": 0.0}  # the control is no mechanism
    assert scores.main("b", "needle") is None


def test_a_training_that_diverged_has_no_scores_and_does_not_stop_the_tables():
    task, method = Needle(), method_of("softmax")
    model = TaskModel(task, method, 64)
    torch.nn.init.constant_(model.embed.weight, torch.nan)
    broken = measure(model, task, method, 0, Effort(1.0, 1, 1))
    assert set(broken.scores.values()) == set(broken.lengths.values()) == set(broken.needle.values()) == {None}
    scores = Scores([trial("a", 0, None), trial("b", 0, 0.5), trial(CONTROL, 0, 0.1)], {"needle": "CS"})
    assert scores.main("a", "needle") is None
    assert scores.benefit("a", "needle") is None
    assert scores.main("b", "needle").mean == 0.5
    assert scores.index("CS") == {"b": 0.0}


def test_explained_variance_of_a_training_that_diverged_is_none(data):
    task, method = all_tasks(data)[0], method_of("uniform")
    model = TaskModel(task, method, task.length)
    torch.nn.init.constant_(model.out[1].bias, torch.nan)
    assert set(measure(model, task, method, 0, Effort(1.0, 1, 1)).scores.values()) == {None}


def test_sequences_of_different_seeds_and_parts_are_different_streams():
    found = {
        tuple(torch.rand(3, generator=generator_of(name, seed, test=test)).tolist())
        for name in (Needle.name, Recall.name)
        for seed in range(3)
        for test in (False, True)
    }
    assert len(found) == 12
