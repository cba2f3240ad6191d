"""Retrieval heads: the heads that look at a token of the context in order to copy it.

An idea after arXiv 2404.15574. A model is any module that maps token numbers (1, L) to logits (1, vocabulary) of the
next token.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .edits import intervene, remove_heads
from .importance import heads_of
from .trace import Head, record


class Prompt(NamedTuple):
    """A context with a needle, followed by the cue, the token that stands before the needle."""

    tokens: Tensor  # (L,) int
    needle: slice


class CopyRun(NamedTuple):
    """One generation."""

    recall: float  # share of the needle's tokens that were generated in their places
    retrieved: dict[Head, set[int]]  # the needle's tokens that each head retrieved


class RetrievalScore(NamedTuple):
    """The score of one head over all runs in which the copy succeeded."""

    head: Head
    score: float
    spread: float  # standard deviation over contexts; large for a head that is used in some contexts only


def needle_prompt(
    vocabulary: int, length: int, depth: float, *, needle: int = 4, generator: torch.Generator | None = None
) -> Prompt:
    """A random context of `length` different tokens, and the cue.

    Args:
        vocabulary: number of tokens; at least `length`.
        length: tokens before the cue.
        depth: place of the needle, from 0 (start) to 1 (end).
        needle: tokens of the needle.
        generator: of the tokens.
    """
    if not 0 <= depth <= 1 or not 0 < needle < length <= vocabulary:
        raise ValueError(
            f"depth must be 0 to 1 and needle < length <= vocabulary, got {depth}, {needle}, {length}, {vocabulary}"
        )
    context = torch.randperm(vocabulary, generator=generator)[:length]
    start = 1 + round(depth * (length - needle - 1))
    return Prompt(torch.cat([context, context[start - 1 : start]]), slice(start, start + needle))


@torch.no_grad()
def copy_run(model: nn.Module, prompt: Prompt, *, watch: bool = True) -> CopyRun:
    """Generate as many tokens as the needle has, each the most probable one.

    A head retrieves a token if its largest weight at that step is on a token of the needle that equals the generated
    token.
    """
    needle = prompt.tokens[prompt.needle]
    tokens = prompt.tokens
    retrieved: dict[Head, set[int]] = {head: set() for head in heads_of(model)}
    for _ in range(len(needle)):
        if watch:
            trace = record(model, tokens.unsqueeze(0))
            word = int(trace.output.argmax())
            for call in trace.calls:
                for head, key in enumerate(call.map()[0, :, -1].argmax(-1).tolist()):
                    if prompt.needle.start <= key < prompt.needle.stop and int(tokens[key]) == word:
                        retrieved[Head(call.layer, head)].add(word)
        else:
            word = int(model(tokens.unsqueeze(0)).argmax())
        tokens = torch.cat([tokens, tokens.new_tensor([word])])
    recall = (tokens[-len(needle) :] == needle).double().mean()
    return CopyRun(float(recall), retrieved)


def retrieval_scores(model: nn.Module, prompts: Iterable[Prompt], *, least_recall: float = 0.5) -> list[RetrievalScore]:
    """|retrieved tokens| / |needle| of each head, averaged over the prompts that the model copies; best head first.

    A head is usually called a retrieval head from a score of 0.1.

    Raises:
        ValueError: the model copies no needle.
    """
    found: dict[Head, list[float]] = {}
    for prompt in prompts:
        run = copy_run(model, prompt)
        if run.recall > least_recall:
            size = prompt.needle.stop - prompt.needle.start
            for head, words in run.retrieved.items():
                found.setdefault(head, []).append(len(words) / size)
    if not found:
        raise ValueError(f"the model copies no needle with a recall above {least_recall:g}, so there are no scores")
    scores = [
        RetrievalScore(head, sum(each) / len(each), float(torch.tensor(each, dtype=torch.float64).std(correction=0)))
        for head, each in found.items()
    ]
    return sorted(scores, key=lambda one: -one.score)


def recall_without(model: nn.Module, prompts: Sequence[Prompt], heads: Collection[tuple[int, int]]) -> float:
    """Mean recall with some heads removed."""
    with intervene(model, remove_heads(model, heads)):
        return sum(copy_run(model, prompt, watch=False).recall for prompt in prompts) / len(prompts)


class RemovalCheck(NamedTuple):
    """Mean recall of the whole model, without the best heads, and without as many random other heads."""

    full: float
    without_best: float
    without_random: float


def removal_check(
    model: nn.Module, prompts: Sequence[Prompt], scores: Sequence[RetrievalScore], count: int, *, seed: int = 0
) -> RemovalCheck:
    """Whether the model needs its `count` best retrieval heads more than other heads; `scores` are best first."""
    others = [one.head for one in scores[count:]]
    generator = torch.Generator().manual_seed(seed)
    random = [others[i] for i in torch.randperm(len(others), generator=generator)[:count]]
    return RemovalCheck(
        recall_without(model, prompts, []),
        recall_without(model, prompts, [one.head for one in scores[:count]]),
        recall_without(model, prompts, random),
    )
