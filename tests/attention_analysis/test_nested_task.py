"""C6: the gap is 0 for the stack solver, 1 for the partner solver and lambda for a mixture."""

import pytest
import torch

from voxelwave.attention_analysis.nested_task import (
    NestedTask,
    gaps,
    mixed_solver,
    partner_solver,
    stack_solver,
    train_nested,
)

TASK = NestedTask()


def test_a_solver_by_structure_has_no_gap_and_one_by_partners_has_a_gap_of_1():
    assert [(g.gap, g.implausible) for g in gaps(TASK, lambda b: stack_solver(TASK, b), batch=30)] == [(0, 1)] * 6
    assert [g.gap for g in gaps(TASK, lambda b: partner_solver(TASK, b), batch=30)] == [1] * 6


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_a_mixture_has_its_share_as_gap(share):
    generator = torch.Generator().manual_seed(0)
    found = gaps(TASK, lambda b: mixed_solver(TASK, b, share, generator), batch=150)
    assert [g.gap for g in found] == pytest.approx([share] * 6, abs=0.15)  # 3.7 standard errors


def test_the_stack_solver_answers_every_question():
    given = TASK.draw(300, torch.Generator().manual_seed(1))
    assert set(given.question.tolist()) == {0, 1, 2}
    assert torch.equal(stack_solver(TASK, given), TASK.target(given))


def test_twins_differ_in_their_pairs_only():
    twins = [TASK.draw(200, torch.Generator().manual_seed(2), plausible=p) for p in (True, False)]
    assert torch.equal(twins[0].actors, twins[1].actors)
    assert torch.equal(twins[0].asked, twins[1].asked)
    assert torch.equal(twins[0].actions, twins[0].actors)
    assert not (twins[1].actions == twins[1].actors).any()
    assert all(len(set(row)) == TASK.deepest for row in twins[1].actions.tolist())


def test_most_pairs_are_frequent_in_training():
    given = TASK.draw(1000, torch.Generator().manual_seed(3))
    assert float((given.actions == given.actors).double().mean()) == pytest.approx(0.9, abs=0.02)
    assert all(len(set(row)) == TASK.deepest for row in given.actions.tolist())


@pytest.mark.slow
def test_a_short_training_takes_the_shortcut():
    found = train_nested(TASK, "softmax", steps=200, batch=48, dim=32)
    assert all(gap.gap > 0.5 for gap in found.gaps[1:])
    assert set(found.accuracy) == {"who", "depth", "chain"}
