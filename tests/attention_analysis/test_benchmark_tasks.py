"""The tasks that compare mechanisms: perfect solvers score 1, guesses are at chance, no test data is in training."""

import pytest
import torch
from torch.nn import functional as F

from voxelwave.attention_analysis import benchmark_tasks
from voxelwave.attention_analysis.benchmark_tasks import (
    LENGTHS,
    Batch,
    MaskedPatches,
    MovedPatches,
    Needle,
    NextFixation,
    NextWindow,
    Recall,
    TaskData,
    accuracy,
    all_tasks,
    coordinates,
    different_colours,
    explained,
    generator_of,
)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, 90, 90, generator=generator) + 0.1
    signals = torch.randn(5, 2, 2000, generator=generator)
    return TaskData((images[:4], images[4:]), (signals[:3], signals[3:]), torch.cat([torch.eye(3), 1 - torch.eye(3)]))


def drawn(task, count=64, length=None, *, test=False, seed=0):
    return task.batch(count, length or task.length, test=test, generator=generator_of(task.name, seed, test=test))


def exact(task, batch):
    """The output of a perfect model."""
    return 99 * F.one_hot(batch.target, task.outputs).float() if task.classes else batch.target


def names():
    return ["masked patches", "next window", "recall", "needle", "moved patches", "next fixation"]


@pytest.mark.parametrize("name", names())
def test_shapes_and_the_score_of_a_perfect_output_at_every_length(name, data):
    task = next(task for task in all_tasks(data) if task.name == name)
    for factor in LENGTHS:
        length = task.sizes[LENGTHS.index(factor)][0] if name == "recall" else round(factor * task.length)
        batch = drawn(task, 16, length, test=True)
        assert batch.tokens.shape == (16, length, task.features)
        assert (batch.context is None) == (task.context_features is None)
        assert batch.scored.any(1).all()
        found = task.score(exact(task, batch), batch)
        assert all(value == pytest.approx(1.0) for value in found.values())
        assert set(found) <= set(task.measures)


@pytest.mark.parametrize("name", names())
def test_no_sequence_of_training_occurs_in_the_test(name, data):
    task = next(task for task in all_tasks(data) if task.name == name)
    train, test = (
        {row.numpy().tobytes() for seed in range(3) for row in drawn(task, 64, test=test, seed=seed).tokens}
        for test in (False, True)
    )
    assert len(train) > 150  # the sequences of training differ among themselves too
    assert not train & test


def test_slices_and_people_of_training_and_test_are_disjoint(data):
    images = (torch.ones_like(data.images[0]), 2 * torch.ones_like(data.images[1]))
    marked = TaskData(images, (0 * data.signals[0], data.signals[1]), data.colours)
    assert (drawn(MaskedPatches(marked)).target == 1).all()
    assert (drawn(MaskedPatches(marked), test=True).target == 2).all()
    assert not drawn(NextWindow(marked)).target.any()
    assert drawn(NextWindow(marked), test=True).target.any(-1).all()


def test_a_seed_gives_the_same_sequences_and_another_seed_others(data):
    for task in all_tasks(data):
        first, again, other = drawn(task), drawn(task), drawn(task, seed=1)
        assert torch.equal(first.tokens, again.tokens)
        assert not torch.equal(first.tokens, other.tokens)


def test_hidden_patches_are_not_among_the_inputs(data):
    batch = drawn(MaskedPatches(data))
    assert not batch.tokens[..., :16][batch.scored].any()
    assert torch.equal(batch.tokens[..., :16][~batch.scored], batch.target[~batch.scored])
    assert batch.scored.float().mean() == pytest.approx(0.4, abs=0.05)


def test_the_next_window_is_the_input_of_the_next_token(data):
    task = NextWindow(data)
    batch = drawn(task)
    assert torch.equal(batch.tokens[:, 1:, : task.outputs], batch.target[:, :-1])


def test_a_solver_that_looks_up_pairs_recalls_perfectly_and_guessing_is_at_chance():
    task = Recall()
    for length, pairs in task.sizes:
        batch = drawn(task, 8, length, test=True)
        symbols = batch.tokens[..., : task.keys + task.outputs].argmax(-1)
        output = torch.zeros(8, length, task.outputs)
        for row, sequence in enumerate(symbols.tolist()):
            known = {sequence[2 * n]: sequence[2 * n + 1] - task.keys for n in range(pairs)}
            assert len(known) == pairs
            for at in range(2 * pairs, length):
                output[row, at, known[sequence[at]]] = 1
        assert set(task.score(output, batch).values()) == {1.0}
        (guessed,) = task.score(torch.rand(output.shape, generator=torch.Generator().manual_seed(0)), batch).values()
        assert guessed == pytest.approx(1 / task.outputs, abs=0.03)


def test_a_token_of_recall_carries_its_predecessor():
    tokens = drawn(Recall()).tokens
    assert torch.equal(tokens[:, 1:, 160:], tokens[:, :-1, :160])
    assert not tokens[:, 0, 160:].any()


def test_the_needle_lies_at_its_depth_and_a_solver_that_finds_the_mark_is_perfect():
    task = Needle()
    for depth in task.depths:
        batch = task.batch(40, 64, test=True, generator=generator_of("x", 0, test=True), depth=depth)
        at = batch.tokens[..., -1].argmax(-1)
        assert (at == task.place(depth, 64)).all()
        assert (batch.tokens[..., -1].sum(1) == 1).all()
        label = batch.tokens[torch.arange(40), at, : task.outputs]
        output = label.unsqueeze(1).expand(-1, 64, -1)
        assert task.score(output, batch) == {"accuracy": 1.0}
        assert batch.scored.sum() == 40  # the last token of each
    guess = torch.rand(3000, 64, 8, generator=torch.Generator().manual_seed(0))
    assert task.score(guess, drawn(task, 3000, test=True))["accuracy"] == pytest.approx(1 / 8, abs=0.02)


def test_in_training_every_token_after_the_mark_is_scored():
    batch = drawn(Needle())
    assert torch.equal(batch.scored, batch.tokens[..., -1].cumsum(1) - batch.tokens[..., -1] > 0)


def test_the_nearest_patch_of_the_moving_image_gives_the_displacement(data):
    task = MovedPatches(data)
    batch = drawn(task, 64, test=True)
    fixed, moving = batch.tokens[..., :16], batch.context[..., :16]
    match = torch.cdist(fixed, moving).argmin(-1)
    place = batch.context[..., 16:18].gather(1, match.unsqueeze(-1).expand(-1, -1, 2))
    displacement = (place - batch.tokens[..., 16:18]) * 8
    found = task.score(displacement / 2, batch)
    assert found["found within half a patch"] > 0.95  # noise makes some patches alike
    assert 0 < batch.scored.float().mean() < 1  # some patches left the moving image


def test_a_viewer_with_the_rule_finds_every_next_fixation(data):
    task = NextFixation(data)
    batch = drawn(task, 32, test=True)
    sought, now = batch.tokens[..., :3], batch.tokens[..., 3:5]
    colour, position = batch.context[..., :3], batch.context[..., 3:5]
    away = torch.cdist(now, position)
    away = away.masked_fill(away < 1e-6, 9) + 100 * (torch.cdist(sought, colour) > 0.5)
    found = position.gather(1, away.argmin(-1).unsqueeze(-1).expand(-1, -1, 2))
    assert task.score(found, batch)["right object"] == pytest.approx(1.0)
    guess = position[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    assert task.score(guess, batch)["right object"] < 0.25


def test_explained_variance_is_0_for_the_mean_and_accuracy_counts_scored_tokens_only():
    target = torch.tensor([[[1.0], [3.0], [50.0]]])
    scored = torch.tensor([[True, True, False]])
    batch = Batch(target, None, target, scored)
    assert explained(torch.full_like(target, 2.0), batch) == 0
    assert explained(target, batch) == 1
    labels = Batch(target, None, torch.tensor([[0, 1, 1]]), scored)
    assert accuracy(F.one_hot(torch.tensor([[0, 0, 0]]), 2).float(), labels) == 0.5


@pytest.mark.parametrize("name", ["masked patches", "next window", "moved patches"])
def test_no_coordinate_of_a_test_sequence_is_new(name, data, monkeypatch):
    task = next(task for task in all_tasks(data) if task.name == name)
    seen = []
    monkeypatch.setattr(
        benchmark_tasks, "coordinates", lambda at, octaves: (seen.append(at), coordinates(at, octaves))[1]
    )
    drawn(task, 400)
    known = {tuple(place) for place in seen.pop().flatten(0, 1).tolist()}
    for factor in LENGTHS:
        drawn(task, 20, round(factor * task.length), test=True)
        assert {tuple(place) for place in seen.pop().flatten(0, 1).tolist()} <= known


def test_coordinates_far_apart_differ_and_repeat_with_the_longest_period():
    at = torch.arange(64.0).view(-1, 1)
    found = coordinates(at, 4)
    assert found.shape == (64, 8)
    assert torch.cdist(found[:32], found[:32]).fill_diagonal_(1).min() > 0.1
    assert torch.allclose(found[:32], found[32:], atol=1e-5)


def test_chosen_colours_are_far_apart():
    colours = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [1, 1, 1], [0, 1, 0]])
    assert different_colours(colours, 3).tolist() == [[0, 0, 0], [1, 1, 1], [0, 1, 0]]
