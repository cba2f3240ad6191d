"""C5: linear regression in context, by one softmax attention layer.

An idea after arXiv 2503.12734. Two heads of opposite sign can compute a debiased step of gradient descent; a single
head cannot. The step is far from ridge regression if the noise is small.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.attention.baselines import SoftmaxAttention
from ..kernels.attention.layer import MixingLayer
from ..kernels.attention.mixer import NC
from .importance import Interval, bootstrap
from .regression_heads import RegressionScores, debiased_step, head_circuits, regression_scores
from .small_models import fit, seeded


@dataclass(frozen=True)
class RegressionTask:
    """y_i = w·x_i + noise with x ~ N(0, I_d) and w ~ N(0, I_d / d), so that w·x has unit variance.

    Args:
        features: d.
        examples: n.
        noise: standard deviation of the noise.
    """

    features: int = 5
    examples: int = 40
    noise: float = 0.1

    def draw(self, batch: int, generator: torch.Generator) -> "Regressions":
        """Draw regressions, each with its own w."""
        x = torch.randn(batch, self.examples, self.features, generator=generator)
        query = torch.randn(batch, self.features, generator=generator)
        w = torch.randn(batch, self.features, 1, generator=generator) / self.features**0.5
        noise = self.noise * torch.randn(batch, self.examples, generator=generator)
        return Regressions(x, (x @ w)[..., 0] + noise, query, (query[:, None] @ w)[:, 0, 0])


class Regressions(NamedTuple):
    """A batch: x (B, n, d), y (B, n), the query (B, d) and its true value without noise (B)."""

    x: Tensor
    y: Tensor
    query: Tensor
    truth: Tensor


def ridge(given: Regressions, strength: float) -> Tensor:
    """(B,): the prediction of ridge regression with a penalty of `strength` |w|^2."""
    d = given.x.shape[2]
    gram = given.x.mT @ given.x + strength * torch.eye(d)
    w = torch.linalg.solve(gram, given.x.mT @ given.y.unsqueeze(2))
    found: Tensor = (given.query.unsqueeze(1) @ w)[:, 0, 0]
    return found


def reduced_heads(given: Regressions, omega: Tensor, last: Tensor) -> Tensor:
    """(B,): the prediction of heads with KQ_h = omega_h I and OV_h = last_h on y."""
    scores = (given.x @ given.query.unsqueeze(2))[..., 0]
    weights = (scores.unsqueeze(1) * omega.view(1, -1, 1)).softmax(-1)
    return ((weights @ given.y.unsqueeze(2))[..., 0] * last).sum(1)


class Optimum(NamedTuple):
    """The mean squared errors of the best heads of the reduced form, the best debiased step, and ridge regression."""

    one_head: float
    two_heads: float
    debiased_step: float
    ridge: float


def closed_form_optimum(
    task: RegressionTask, *, train: int = 20_000, test: int = 50_000, steps: int = 300, seed: int = 0
) -> Optimum:
    """Fit the few numbers of the reduced forms on one sample, and measure them on another."""
    generator = torch.Generator().manual_seed(seed)
    fitting, held_out = task.draw(train, generator), task.draw(test, generator)

    def best(predict: Callable[[Regressions, Tensor], Tensor], start: list[float]) -> float:
        numbers = torch.tensor(start, requires_grad=True)
        optimizer = torch.optim.Adam([numbers], 0.03)
        for _ in range(steps):
            optimizer.zero_grad()
            (predict(fitting, numbers) - fitting.truth).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            return float((predict(held_out, numbers) - held_out.truth).square().mean())

    one = best(lambda given, n: reduced_heads(given, n[:1], n[1:]), [0.5, 1.0])
    signs = torch.tensor([1.0, -1.0])
    two = best(lambda given, n: reduced_heads(given, n[0] * signs, n[1] * signs), [0.3, 1.5])
    step = best(lambda given, n: debiased_step(given.x, given.y, given.query, n[0]), [0.8])
    penalty = max(task.noise, 1e-3) ** 2 * task.features
    exact = float((ridge(held_out, penalty) - held_out.truth).square().mean())
    return Optimum(one, two, step, exact)


class TrainedHeads(NamedTuple):
    """A trained layer: its error with an interval, the circuits' scores and its distance from the debiased step."""

    heads: int
    error: Interval
    scores: RegressionScores
    from_step: float  # mean squared difference from the best debiased step, over the step's mean square


def train_heads(
    task: RegressionTask, heads: int, *, steps: int = 3000, batch: int = 256, test: int = 4000, seed: int = 0
) -> TrainedHeads:
    """Train all weights of one softmax layer on tokens (x_i, y_i), with the query (x_q, 0) as the only query."""
    entries = task.features + 1
    dim = heads * entries
    with seeded(seed):
        layer = MixingLayer(dim, heads, SoftmaxAttention(), bias=False)
    generator = torch.Generator().manual_seed(1000 + seed)

    def predict(given: Regressions) -> Tensor:
        tokens = torch.zeros(*given.y.shape, dim)
        tokens[..., : task.features], tokens[..., task.features] = given.x, given.y
        asked = torch.zeros(len(given.y), 1, dim)
        asked[:, 0, : task.features] = given.query
        out: Tensor = layer(asked, tokens, pattern=NC).out[:, 0, task.features]
        return out

    def loss() -> Tensor:
        given = task.draw(batch, generator)
        return (predict(given) - given.truth).square().mean()

    fit(layer, loss, steps, rate=5e-3)
    with torch.no_grad():
        given = task.draw(test, torch.Generator().manual_seed(5))
        found = predict(given)
        error = bootstrap((found - given.truth).square())
        rate = 1 / (1 + (task.features + 1) / task.examples)  # minimises E|w - rate S w|^2
        step = debiased_step(given.x, given.y, given.query, rate)
        away = float((found - step).square().mean() / step.square().mean())
        scores = regression_scores(head_circuits(layer, entries))
    return TrainedHeads(heads, error, scores, away)
