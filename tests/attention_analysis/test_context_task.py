"""C4: sequences are as described, and a trained network remembers or looks up labels."""

import pytest
import torch

from voxelwave.attention_analysis.context_task import ContextRun, ContextTask, Progress, train_in_context

TASK = ContextTask(classes=64, features=15, labels=16)


def generator():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("bursts", [1, 2, 4])
def test_the_target_of_a_bursty_sequence_is_in_its_context(bursts):
    world = ContextTask(classes=64, features=15, labels=64, bursts=bursts).world()
    given = world.training(200, generator())
    assert ((given.labels == given.target[:, None]).sum(1) == bursts).all()
    assert {len(set(row.tolist())) for row in given.labels} == {8 // bursts}


def test_items_have_unit_length_and_belong_to_their_class():
    world = TASK.world()
    given = world.training(100, generator())
    items = given.tokens[:, 0::2, :15]
    assert float(items.square().sum(-1).mean()) == pytest.approx(1, abs=0.1)
    nearest = torch.cdist(items, world.means).argmin(-1)
    assert torch.equal(world.of_class[nearest[:, :-1]], given.labels)
    assert torch.equal(world.of_class[nearest[:, -1]], given.target)
    assert torch.equal(given.tokens[:, 1::2, :15], world.vectors[given.labels])


def test_the_tests_separate_context_and_weights():
    world = TASK.world()
    absent = world.absent(200, generator())
    nearest = torch.cdist(absent.tokens[:, 0::2, :15], world.means).argmin(-1)
    assert not (nearest[:, :-1] == nearest[:, -1:]).any()
    swapped = world.swapped(200, generator())
    nearest = torch.cdist(swapped.tokens[:, -1, :15], world.means).argmin(-1)
    assert not (world.of_class[nearest] == swapped.target).any()
    assert (swapped.labels == swapped.target[:, None]).any(1).all()


def test_frequent_classes_are_drawn_more_often():
    world = ContextTask(classes=64, features=15, labels=64, zipf=1.0, bursty=0.0).world()
    counts = torch.bincount(world.training(2000, generator()).target, minlength=64)
    assert counts[0] > 2 * counts[3] > 3 * counts[40]


def test_a_jump_and_its_plateau_are_read_from_the_curve():
    steps = [1, 2, 4, 8, 16, 24, 64]
    accuracy = [0.03, 0.1, 0.12, 0.125, 0.13, 0.9, 0.95]
    run = ContextRun(
        TASK, 0, [Progress(s, 1.0, a, 0.0, 0.0, 0.2, 0.1, 0.4, 0.5, 0.0) for s, a in zip(steps, accuracy, strict=True)]
    )
    assert run.jumps
    assert run.plateau == pytest.approx(0.125)
    assert run.onsets()[0][0] == "novel"
    assert run.rise == pytest.approx(0.77)
    assert not ContextRun(TASK, 0, run.progress[:5]).jumps
    slow = [p._replace(step=2 * p.step if p.step == 24 else p.step) for p in run.progress]
    assert not ContextRun(TASK, 0, slow).jumps  # the same accuracies, but no step in between


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="bursts must divide 8"):
        ContextTask(bursts=3).world()


@pytest.mark.slow
def test_few_classes_are_remembered_and_not_looked_up():
    run = train_in_context(TASK, steps=300, rate=3e-3, test=200)
    assert run.progress[-1].absent > 0.8
    assert run.progress[-1].swapped < 0.2
    assert [p.step for p in run.progress] == sorted({p.step for p in run.progress})
