"""C6: structure or shortcut in nested sequences.

An idea after CenterBench (arXiv 2510.20543). A sequence a_1 ... a_n b_n ... b_1 nests n pairs like brackets: the actor
a_i does the action b_i. In training, most pairs are frequent ones, so a model can answer "who did b?" by the structure
or by the partner that b usually has. The plausible twin of a test sequence has frequent pairs, the implausible twin has
the same actors with rare pairs. The gap between them is 0 for a model that reads the structure, and 1 for one that
remembers the partners.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.attention.choice import Place, mixer_of
from ..kernels.attention.mixer import CS, NS
from .small_models import SmallTransformer, fit, seeded

Question = Literal["who", "depth", "chain"]
QUESTIONS: tuple[Question, ...] = ("who", "depth", "chain")


class NestedBatch(NamedTuple):
    """Nested sequences with a question each."""

    actors: Tensor  # (B, deepest), a_1 ... a_n, -1 after the end
    actions: Tensor  # (B, deepest), b_1 ... b_n
    depth: Tensor  # (B,), n
    asked: Tensor  # (B,), the pair i of the question, from 0
    question: Tensor  # (B,), index in `QUESTIONS`

    @property
    def answer(self) -> Tensor:
        """(B,): "who": the actor of action b_i; "depth": i; "chain": the actor around actor a_i, a_{i-1}.

        Depths come after the actors among the classes, see `NestedTask.outputs`.
        """
        rows = torch.arange(len(self.depth))
        who = self.actors[rows, self.asked]
        chain = self.actors[rows, (self.asked - 1).clamp_min(0)]
        return torch.where(self.question == 0, who, torch.where(self.question == 1, _DEPTHS + self.asked, chain))


_DEPTHS = 1000  # added to depths, so that they are not actors; `NestedTask.target` maps them to classes


@dataclass(frozen=True)
class NestedTask:
    """The sequences of one world, in which action i is usually done by actor i.

    Args:
        kinds: number of actors and of actions.
        deepest: largest depth.
        frequent: share of frequent pairs in training.
    """

    kinds: int = 24
    deepest: int = 6
    frequent: float = 0.9

    @property
    def outputs(self) -> int:
        """Number of classes: the actors, then the depths."""
        return self.kinds + self.deepest

    @property
    def length(self) -> int:
        """Tokens of the longest sequence with its question."""
        return 2 * self.deepest + 1

    @property
    def features(self) -> int:
        """Numbers of a token: actors, actions, and the kind of question."""
        return 2 * self.kinds + len(QUESTIONS)

    def draw(
        self,
        batch: int,
        generator: torch.Generator,
        *,
        plausible: bool | None = None,
        depth: int | None = None,
        question: Question | None = None,
    ) -> NestedBatch:
        """Draw sequences.

        Args:
            batch: number of sequences.
            generator: of the draw; equal generators give twins with equal actors, depths and questions.
            plausible: whether all pairs are frequent ones, or none; None as in training.
            depth: the depth; any if None.
            question: the question; any if None.
        """
        n = torch.randint(1, self.deepest + 1, (batch,), generator=generator)
        n = n if depth is None else torch.full_like(n, depth)
        actors = torch.rand(batch, self.kinds, generator=generator).argsort(1)[:, : self.deepest]
        usual = torch.rand(batch, self.deepest, generator=generator) < self.frequent
        usual = usual if plausible is None else torch.full_like(usual, plausible)
        actions = _actions(actors, usual, self.kinds, generator)
        kinds = torch.randint(len(QUESTIONS), (batch,), generator=generator)
        kinds = kinds if question is None else torch.full_like(kinds, QUESTIONS.index(question))
        kinds = torch.where((kinds == 2) & (n == 1), 0, kinds)  # a single pair has no chain
        first = (kinds == 2).long()
        share = torch.rand(batch, generator=generator)
        asked = first + (share * (n - first)).long()
        return NestedBatch(actors, actions, n, asked, kinds)

    def tokens(self, given: NestedBatch) -> Tensor:
        """(B, 2 deepest + 1, features): zeros, the sequence, and last the question with its subject."""
        batch, deepest = given.actors.shape
        x = torch.zeros(batch, self.length, self.features)
        place = torch.arange(2 * deepest).expand(batch, -1)
        n = given.depth[:, None]
        at = place - (2 * deepest - 2 * n)  # place in the sequence
        is_actor, is_action = (at >= 0) & (at < n), at >= n
        pair = torch.where(is_actor, at, 2 * n - 1 - at).clamp(0, deepest - 1)
        actor, action = given.actors.gather(1, pair), given.actions.gather(1, pair)
        x[:, :-1, : self.kinds] = F.one_hot(actor, self.kinds) * is_actor.unsqueeze(2)
        x[:, :-1, self.kinds : 2 * self.kinds] = F.one_hot(action, self.kinds) * is_action.unsqueeze(2)
        rows = torch.arange(batch)
        by_action = given.question == 0
        subject = torch.where(by_action, self.kinds + given.actions[rows, given.asked], given.actors[rows, given.asked])
        x[rows, -1, subject] = 1
        x[rows, -1, 2 * self.kinds + given.question] = 1
        return x

    def target(self, given: NestedBatch) -> Tensor:
        """(B,): the class of the answer."""
        answer = given.answer
        return torch.where(answer >= _DEPTHS, answer - _DEPTHS + self.kinds, answer)


def stack_solver(task: NestedTask, given: NestedBatch) -> Tensor:
    """(B,): answers by the structure, read from the tokens with a stack."""
    x = task.tokens(given)
    answers = []
    for row in x:
        stack: list[int] = []
        outer: dict[int, int] = {}
        level: dict[int, int] = {}
        actor_of: dict[int, int] = {}
        for token in row[:-1]:
            if token[: task.kinds].any():
                actor = int(token[: task.kinds].argmax())
                outer[actor], level[actor] = (stack[-1] if stack else -1), len(stack)
                stack.append(actor)
            elif token.any():
                actor_of[int(token[task.kinds : 2 * task.kinds].argmax())] = stack.pop()
        subject, kind = int(row[-1, : 2 * task.kinds].argmax()), int(row[-1, 2 * task.kinds :].argmax())
        if kind == 0:
            answers.append(actor_of[subject - task.kinds])
        else:
            answers.append(task.kinds + level[subject] if kind == 1 else outer[subject])
    return torch.tensor(answers)


def partner_solver(task: NestedTask, given: NestedBatch) -> Tensor:
    """(B,): answers "who did b?" by the usual partner of b, and other questions at random places."""
    rows = torch.arange(len(given.depth))
    return torch.where(given.question == 0, given.actions[rows, given.asked], given.actors[:, 0])


def mixed_solver(task: NestedTask, given: NestedBatch, share: float, generator: torch.Generator) -> Tensor:
    """(B,): the partner solver in a share of the sequences, the stack solver in the others."""
    by_partner = torch.rand(len(given.depth), generator=generator) < share
    return torch.where(by_partner, partner_solver(task, given), stack_solver(task, given))


class Gap(NamedTuple):
    """Accuracies at one depth for "who did b?"."""

    depth: int
    plausible: float
    implausible: float

    @property
    def gap(self) -> float:
        """plausible - implausible."""
        return self.plausible - self.implausible


def gaps(task: NestedTask, answer: Callable[[NestedBatch], Tensor], *, batch: int = 500, seed: int = 0) -> list[Gap]:
    """The gap at each depth; `answer` maps a batch to classes (B,)."""
    found = []
    for depth in range(1, task.deepest + 1):
        accuracy = []
        for plausible in (True, False):
            generator = torch.Generator().manual_seed(seed)
            given = task.draw(batch, generator, plausible=plausible, depth=depth, question="who")
            accuracy.append(float((answer(given) == task.target(given)).double().mean()))
        found.append(Gap(depth, *accuracy))
    return found


class Solver:
    """A trained network as a solver."""

    def __init__(self, task: NestedTask, network: SmallTransformer) -> None:
        self.task, self.network = task, network

    @torch.no_grad()
    def __call__(self, given: NestedBatch) -> Tensor:
        answer: Tensor = self.network(self.task.tokens(given)).argmax(1)
        return answer


class NestedResult(NamedTuple):
    """The gaps of a trained network, and its accuracy for each kind of question on sequences as in training."""

    mixer: str
    gaps: list[Gap]
    accuracy: dict[str, float]


def train_nested(
    task: NestedTask, mixer: str, *, steps: int = 2500, batch: int = 128, dim: int = 64, depth: int = 2, seed: int = 0
) -> NestedResult:
    """Train a small transformer of this mechanism on all questions, and measure its gaps."""
    pattern = NS if NS in mixer_of(mixer, Place(4, dim // 4, length=task.length)).patterns else CS
    with seeded(seed):
        network = SmallTransformer(
            task.features, task.outputs, task.length, dim=dim, depth=depth, mixer=mixer, pattern=pattern
        )
    generator = torch.Generator().manual_seed(1000 + seed)

    def loss() -> Tensor:
        given = task.draw(batch, generator)
        return F.cross_entropy(network(task.tokens(given)), task.target(given))

    fit(network, loss, steps, rate=3e-3)
    network.eval()
    solver = Solver(task, network)
    test = torch.Generator().manual_seed(5)
    accuracy: dict[str, float] = {}
    for question in QUESTIONS:
        given = task.draw(1000, test, question=question)
        kept = given.question == QUESTIONS.index(question)
        accuracy[question] = float((solver(given) == task.target(given))[kept].double().mean())
    return NestedResult(mixer, gaps(task, solver), accuracy)


def _actions(actors: Tensor, usual: Tensor, kinds: int, generator: torch.Generator) -> Tensor:
    """Actions (B, deepest), all different: the actor's own where `usual`, and one that is not its own elsewhere."""
    batch, deepest = actors.shape
    scores = torch.rand(batch, deepest, kinds, generator=generator)
    own = F.one_hot(actors, kinds).bool()
    taken = (own & usual.unsqueeze(2)).any(1)
    actions = actors.clone()
    for i in range(deepest):
        picked = scores[:, i].masked_fill(taken | own[:, i], -1).argmax(1)
        actions[:, i] = torch.where(usual[:, i], actors[:, i], picked)
        taken = taken | F.one_hot(actions[:, i], kinds).bool()
    return actions
