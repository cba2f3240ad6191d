"""A small transformer and a training loop for the tasks of this folder."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..kernels.attention.choice import Place, mixer_of
from ..kernels.attention.layer import MixingLayer, ResidualPoint
from ..kernels.attention.mixer import NS, Pattern

T = TypeVar("T")


class SmallBlock(nn.Module):
    """Attention and a feed-forward network, each after a norm and added to the residual stream."""

    def __init__(self, dim: int, heads: int, mixer: str, length: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixing = MixingLayer(dim, heads, mixer_of(mixer, Place(heads, dim // heads, length=length)))
        self.feed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.before, self.between, self.after = ResidualPoint(), ResidualPoint(), ResidualPoint()

    def forward(self, x: Tensor, pattern: Pattern, mask: Tensor | None = None) -> Tensor:
        x = self.before(x)
        x = self.between(x + self.mixing(self.norm(x), pattern=pattern, mask=mask).out)
        out: Tensor = self.after(x + self.feed(x))
        return out


class SmallTransformer(nn.Module):
    """Tokens (B, L, features) -> (B, outputs), read from the last token.

    Args:
        features: numbers of a token.
        outputs: numbers of the output.
        length: the largest number of tokens; their places are learned.
        dim, heads, depth: sizes.
        mixer: mechanism of the layers, see `mixer_of`.
        pattern: the attention pattern.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        length: int,
        *,
        dim: int = 32,
        heads: int = 4,
        depth: int = 2,
        mixer: str = "softmax",
        pattern: Pattern = NS,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.place = nn.Parameter(0.1 * torch.randn(length, dim))
        self.blocks = nn.ModuleList(SmallBlock(dim, heads, mixer, length) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, outputs)
        self.pattern = pattern

    def hidden(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The tokens (B, L, dim) after all blocks; mask (B, L) bool, True = visible."""
        tokens = self.embed(x) + self.place[-x.shape[1] :]
        for block in self.blocks:
            tokens = block(tokens, self.pattern, None if mask is None else mask[:, None, None])
        return self.norm(tokens)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.head(self.hidden(x, mask)[:, -1])
        return out


def log_steps(steps: int, count: int = 30) -> list[int]:
    """About `count` steps from 1 to `steps`, evenly spaced on a logarithmic axis."""
    return sorted({round(float(s)) for s in torch.logspace(0, torch.tensor(float(steps)).log10(), count)})


def fit(
    parameters: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    *,
    rate: float = 1e-3,
    at: Collection[int] = (),
    look: Callable[[int], T] | None = None,
) -> list[T]:
    """Train by AdamW with a short warm-up and a cosine decay.

    Args:
        parameters: the module to train.
        loss: draws a batch and returns its loss.
        steps: number of steps.
        rate: largest learning rate.
        at: steps after which `look` is called.
        look: returns what is kept of a step.

    Raises:
        ValueError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(parameters.parameters(), rate, weight_decay=1e-4)
    warm = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (
            min(1.0, (s + 1) / warm) * (0.55 + 0.45 * float(torch.cos(torch.tensor(torch.pi * min(1.0, s / steps)))))
        ),
    )
    found = []
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        if not torch.isfinite(value):
            raise ValueError(f"the loss is not finite at step {step}; a smaller learning rate may help")
        value.backward()
        nn.utils.clip_grad_norm_(parameters.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if look is not None and step in at:
            parameters.eval()
            found.append(look(step))
            parameters.train()
    return found


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn in this block depend on the seed only; torch's generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
