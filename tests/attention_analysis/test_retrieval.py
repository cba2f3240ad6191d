"""Section 12: the planted retrieval heads, and no others, score 1 and are needed."""

import pytest
import torch

from voxelwave.attention_analysis.handmade import CopyModel
from voxelwave.attention_analysis.retrieval import copy_run, needle_prompt, removal_check, retrieval_scores

LENGTH, NEEDLE = 40, 4


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [
        needle_prompt(48, length, d, generator=generator) for length in (24, LENGTH) for d in (0, 0.25, 0.5, 0.75, 1)
    ]


@pytest.mark.parametrize("planted", [(2,), (0, 3, 5)])
def test_exactly_the_planted_heads_score_1(planted, prompts):
    model = CopyModel(48, 6, planted)
    scores = retrieval_scores(model, prompts)
    assert {one.head.head for one in scores if one.score == 1} == set(planted)
    assert all(one.score <= 2 * NEEDLE / LENGTH for one in scores if one.head.head not in planted)
    assert all(one.spread == 0 for one in scores[: len(planted)])


def test_only_the_removal_of_retrieval_heads_drops_the_recall_to_chance(prompts):
    model = CopyModel(48, 6, (1, 4))
    found = removal_check(model, prompts, retrieval_scores(model, prompts), 2)
    assert found.full == found.without_random == 1
    assert found.without_best <= NEEDLE / LENGTH


def test_a_prompt_ends_with_the_token_before_its_needle():
    prompt = needle_prompt(48, 20, 0.5, generator=torch.Generator().manual_seed(1))
    assert len(prompt.tokens) == 21
    assert prompt.tokens[-1] == prompt.tokens[prompt.needle.start - 1]
    assert copy_run(CopyModel(48, 2, (0,)), prompt).recall == 1


def test_a_model_that_copies_nothing_has_no_scores(prompts):
    with pytest.raises(ValueError, match="copies no needle"):
        retrieval_scores(CopyModel(48, 6, ()), prompts[:2])
    with pytest.raises(ValueError, match="depth must be 0 to 1"):
        needle_prompt(48, 20, 1.5)
