"""Decoding of paths by a network: greedily, by sampling, or by beam search.

Each step uses a cache of keys and values and gives the same result as reading the whole path again. The rows of a batch
are independent: the paths of a scene do not depend on the other scenes of the batch.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .oat import BEGIN, OAT, SceneBatch, State, log_probabilities
from .stepping import Stepper, serves

Path = list[int]
Choose = Callable[[Tensor, Tensor, int], Tensor]  # log-probabilities (R, N + 1), rows (R,), step -> (R,) columns


@torch.no_grad()
def greedy(model: OAT, scenes: SceneBatch, *, max_length: int, cache: bool = True) -> list[Path]:
    """A path of object indices for each scene, with the most likely object (or the end) at each step.

    Args:
        model: the network in evaluation mode.
        scenes: S scenes.
        max_length: largest number of fixations.
        cache: False reads the whole path again at every step, for comparison.
    """
    rows = torch.arange(len(scenes), device=scenes.present.device)
    return _decode(model, scenes, rows, lambda log_p, kept, step: log_p.argmax(-1), max_length, cache)


@torch.no_grad()
def sample(
    model: OAT,
    scenes: SceneBatch,
    *,
    samples: int,
    max_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    names: Sequence[str] | None = None,
    cache: bool = True,
) -> list[list[Path]]:
    """Random paths from the distribution of the network, `samples` for each scene.

    Args:
        model: the network in evaluation mode.
        scenes: S scenes.
        samples: number of paths for each scene.
        max_length: largest number of fixations.
        temperature: above 0; values below 1 favour likely objects.
        seed: seed of the draws, which also depend on the scene's name and the number of the sample.
        names: names of the scenes; by default their indices in the batch.
        cache: see `greedy`.
    """
    if not temperature > 0 or samples < 1:
        raise ValueError(f"temperature must be above 0 and samples at least 1, got {temperature} and {samples}")
    words = [zlib.crc32(str(name).encode()) for name in (range(len(scenes)) if names is None else names)]
    if len(words) != len(scenes):
        raise ValueError(f"names must be as many as scenes ({len(scenes)}), got {len(words)}")
    draws = np.stack([np.random.default_rng([seed, w, k]).random(max_length) for w in words for k in range(samples)])
    uniform = torch.from_numpy(draws).to(scenes.present.device)

    def choose(log_p: Tensor, kept: Tensor, step: int) -> Tensor:
        share = (log_p.double() / temperature).softmax(-1).cumsum(-1)
        point = uniform[kept, step].unsqueeze(-1) * share[:, -1:]
        return (share <= point).sum(-1).clamp(max=log_p.shape[-1] - 1)

    rows = torch.arange(len(scenes), device=scenes.present.device).repeat_interleave(samples)
    paths = _decode(model, scenes, rows, choose, max_length, cache)
    return [paths[i * samples : (i + 1) * samples] for i in range(len(scenes))]


@torch.no_grad()
def beam(model: OAT, scenes: SceneBatch, *, width: int, max_length: int) -> list[Path]:
    """The most likely path for each scene that a beam search finds. A beam of width 1 is greedy decoding.

    Args:
        model: the network in evaluation mode.
        scenes: S scenes.
        width: number of paths kept at each step.
        max_length: largest number of fixations; a path that is cut there is scored without its end.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    memory = model.encode(scenes)
    return [
        _beam_one(model, model.start(memory, memory.target.new_tensor([i])), width, max_length)
        for i in range(len(scenes))
    ]


def _beam_one(model: OAT, state: State, width: int, max_length: int) -> Path:
    device = state.scored.device
    open_paths: list[tuple[float, Path]] = [(0.0, [])]
    ended: list[tuple[float, Path]] = []
    for step in range(max_length):
        last = torch.tensor([[path[-1] if path else BEGIN] for _, path in open_paths], device=device)
        scores, state, _ = model.step(state, last)
        log_p = log_probabilities(scores, first=torch.full_like(last, step == 0, dtype=torch.bool))[:, 0]
        end = log_p.shape[-1] - 1
        totals = log_p.double() + torch.tensor([[score] for score, _ in open_paths], device=device, dtype=torch.double)
        value, place = totals.flatten().topk(min(width, totals.numel()))
        found = [(v, p // (end + 1), p % (end + 1)) for v, p in zip(value.tolist(), place.tolist(), strict=True)]
        found = [(v, row, column) for v, row, column in found if v > -np.inf]
        ended += [(v, open_paths[row][1]) for v, row, column in found if column == end]
        going = [(v, row, column) for v, row, column in found if column != end]
        # a longer path is never more likely than its prefix
        if not going or (ended and max(ended)[0] >= going[0][0]):
            return max(ended)[1]
        state = state.rows(torch.tensor([row for _, row, _ in going], device=device))
        open_paths = [(v, [*open_paths[row][1], column]) for v, row, column in going]
    return max(ended + open_paths)[1]


def _decode(model: OAT, scenes: SceneBatch, rows: Tensor, choose: Choose, max_length: int, cache: bool) -> list[Path]:
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    memory = model.encode(scenes)
    if cache and serves(model) and len(rows):
        with torch.inference_mode():
            return _decode_fast(Stepper(model, memory, rows, max_length), rows, choose, max_length)
    fresh = state = model.start(memory, rows)
    paths: list[Path] = [[] for _ in rows]
    kept = torch.arange(len(rows), device=rows.device)
    seen = torch.full((len(rows), 1), BEGIN, device=rows.device)
    for step in range(max_length):
        if cache:
            scores, state, _ = model.step(state, seen[:, -1:])
        else:
            fresh = model.start(memory, rows[kept])
            scores = model.step(fresh, seen)[0][:, -1:]
        log_p = log_probabilities(scores, first=scores.new_full(scores.shape[:2], step == 0, dtype=torch.bool))[:, 0]
        chosen = choose(log_p, kept, step)
        going = chosen != log_p.shape[-1] - 1
        for row, column in zip(kept[going].tolist(), chosen[going].tolist(), strict=True):
            paths[row].append(column)
        if not bool(going.all()):
            if not bool(going.any()):
                break
            kept, seen, chosen = kept[going], seen[going], chosen[going]
            state = state.rows(going.nonzero().squeeze(1)) if cache else state
        seen = torch.cat([seen, chosen.unsqueeze(1)], 1)
    return paths


def _decode_fast(stepper: Stepper, rows: Tensor, choose: Choose, max_length: int) -> list[Path]:
    """The same paths; ended ones stay in the batch until they are a quarter of it, since leaving copies the others."""
    paths: list[Path] = [[] for _ in rows]
    kept, going, chosen = torch.arange(len(rows), device=rows.device), [True] * len(rows), None
    for step in range(max_length):
        scores = stepper.step(chosen)
        if step == 0:
            scores[:, -1] = -torch.inf  # a path has at least one fixation
        chosen = choose(scores.log_softmax(-1), kept, step)
        end = scores.shape[1] - 1
        for at, (row, column) in enumerate(zip(kept.tolist(), chosen.tolist(), strict=True)):
            going[at] = going[at] and column != end
            if going[at]:
                paths[row].append(column)
        left = sum(going)
        if not left:
            break
        if 4 * left <= 3 * len(going):
            index = torch.tensor([at for at, goes in enumerate(going) if goes], device=rows.device)
            stepper.keep(index)
            kept, chosen, going = kept[index], chosen[index], [True] * left
        chosen = chosen.clamp_max(end - 1)  # an ended path goes on with any object, and nobody reads it
    return paths
