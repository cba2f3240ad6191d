"""A log-linear model of steps, which is fitted to people before a network is trained beside it.

The score of the next object is the sum of a weight of its place, one of the step to it from the last fixation, one of
the step to it from the fixation before that, and of weights for objects that were seen before; the path ends after n
fixations with a probability of its own for each n. For the first fixation, each place has another weight. All weights
are fitted together by maximum likelihood.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BEGIN = -1  # the token before the first fixation
_LAGS = 3  # fixations before the last one whose objects have weights of their own
_L2 = 1.0  # penalty of the squared weights, in nats


class Steps(NamedTuple):
    """What the model knows before each of some fixations, (..., N) for N objects."""

    place: Tensor  # (..., N) int: the place of each object
    step: Tensor  # (..., N) int: the kind of the step from the last fixation
    longer: Tensor  # (..., N) int: the kind of the step from the fixation before the last
    seen: Tensor  # (..., N) bool: seen before the last fixation
    lags: Tensor  # (..., LAGS, N) bool: seen one, two or three fixations before the last
    present: Tensor  # (..., N) bool: False for padding
    fixations: Tensor  # (...,) int: number of fixations so far


class MarkovPrior(nn.Module):
    """The model as a part of a network.

    Args:
        rows: rows of the grid; objects elsewhere belong to the nearest place.
        columns: its columns.
        lengths: paths of this number of fixations and more have one probability of ending.
        order: 2, or 1 for a Markov model whose only memory is the last fixation.
    """

    def __init__(self, rows: int, columns: int, *, lengths: int = 32, order: int = 2):
        super().__init__()
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order}")
        self.rows, self.columns, self.order = rows, columns, order
        kinds = (2 * rows - 1) * (2 * columns - 1)
        self.first = nn.Parameter(torch.zeros(rows * columns))
        self.place = nn.Parameter(torch.zeros(rows * columns))
        self.step = nn.Parameter(torch.zeros(kinds))
        self.end = nn.Parameter(torch.zeros(lengths))
        if order == 2:
            self.longer = nn.Parameter(torch.zeros(kinds))
            self.seen = nn.Parameter(torch.zeros(1 + _LAGS))
        self.requires_grad_(False)  # only `fit` changes them

    def forward(self, position: Tensor, present: Tensor, history: Tensor, new: int) -> Tensor:
        """Log-probabilities of the objects and the end, (B, new, N + 1); the end is impossible before a fixation.

        Args:
            position: (B, N, 2) row and column of each object.
            present: (B, N) bool, False for padding.
            history: (B, T) the tokens so far: `BEGIN`, then object indices.
            new: the number of the last tokens after which log-probabilities are wanted.
        """
        return self.log_probabilities(self.steps(position, present, history, new))

    def steps(self, position: Tensor, present: Tensor, history: Tensor, new: int) -> Steps:
        """What is known after each of the last `new` tokens; the arguments are those of `forward`."""
        objects, length = position.shape[1], history.shape[1]
        place = torch.stack(
            [position[..., 0].round().clamp(0, self.rows - 1), position[..., 1].round().clamp(0, self.columns - 1)], -1
        ).long()
        fixated = history.unsqueeze(-1) == torch.arange(objects, device=history.device)  # (B, T, N)

        def back(by: int) -> Tensor:
            """(B, new, N): which object was fixated `by` fixations before the last one."""
            return F.pad(fixated, (0, 0, by, 0))[:, length - new : length]

        def kind(by: int) -> Tensor:
            """(B, new, N): the kind of the step to each object."""
            start = back(by).long() @ place  # row and column, (0, 0) before the first fixation
            step = place.unsqueeze(1) - start.unsqueeze(2)
            return (step[..., 0] + self.rows - 1) * (2 * self.columns - 1) + step[..., 1] + self.columns - 1

        seen = (fixated.cumsum(1) > 0)[:, :length]
        before = F.pad(seen, (0, 0, 1, 0))[:, length - new : length]
        count = torch.arange(length - new, length, device=history.device).expand(history.shape[0], new)
        wide = (history.shape[0], new, objects)
        cell = place[..., 0] * self.columns + place[..., 1]
        return Steps(
            cell.unsqueeze(1).expand(wide),
            kind(0),
            kind(1),
            before,
            torch.stack([back(lag + 1) for lag in range(_LAGS)], 2),
            present.unsqueeze(1).expand(wide),
            count,
        )

    def log_probabilities(self, known: Steps) -> Tensor:
        """Log-probabilities of the objects and the end, (..., N + 1)."""
        score = self.place[known.place] + self.step[known.step]
        if self.order == 2:
            score = score + self.longer[known.longer] * (known.fixations > 1).unsqueeze(-1)
            score = score + self.seen[0] * known.seen + (self.seen[1:, None] * known.lags).sum(-2)
        begins = known.fixations == 0
        score = torch.where(begins.unsqueeze(-1), self.first[known.place], score)
        score = score.masked_fill(~known.present, -math.inf).log_softmax(-1)
        end = self.end[known.fixations.clamp(max=len(self.end) - 1)]
        ends = F.logsigmoid(end).masked_fill(begins, -math.inf)
        goes_on = F.logsigmoid(-end).masked_fill(begins, 0.0)
        return torch.cat([score + goes_on.unsqueeze(-1), ends.unsqueeze(-1)], -1)

    def fit(self, parts: Iterable[tuple[Steps, Tensor]], *, iterations: int = 60) -> float:
        """Fit all weights by maximum likelihood with a weak quadratic penalty.

        Args:
            parts: what is known before some fixations, (n, N), and the chosen objects, (n,); N stands for the end. N
                may differ between parts.
            iterations: of L-BFGS.

        Returns:
            The mean negative log-likelihood of a fixation or end, in nats.
        """
        pieces = list(parts)
        count = sum(len(chosen) for _, chosen in pieces)
        optimizer = torch.optim.LBFGS(
            self.parameters(), max_iter=iterations, history_size=15, line_search_fn="strong_wolfe"
        )

        def nats() -> Tensor:
            found = [-self.log_probabilities(known).gather(-1, chosen.unsqueeze(-1)).sum() for known, chosen in pieces]
            return torch.stack(found).sum() / count

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nats() + _L2 / count * torch.stack([p.square().sum() for p in self.parameters()]).sum()
            loss.backward()
            return loss

        self.requires_grad_(True)
        with torch.enable_grad():
            optimizer.step(closure)
        self.requires_grad_(False)
        self.zero_grad()
        with torch.no_grad():
            return float(nats())
