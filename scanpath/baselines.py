"""Baselines with few parameters, which a network has to beat. They all give log-probabilities of the next fixation.

A path has at least one fixation, so no baseline lets a path end before the first one. All baselines except `Uniform`
learn the length of paths, as one probability of ending after each fixation.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from scipy.optimize import minimize

from .data import PathData, fit_prior
from .markov_prior import BEGIN, MarkovPrior
from .scene import Dataset, Scene, grid_around

_PRIOR = 0.5  # pseudo-count of choices for each place or step
_RASTER = 6, 8  # rows and columns into which a picture is divided if its objects are not on a grid


class ScanpathModel(Protocol):
    """Interface of all models of scanpaths, baselines and networks."""

    @property
    def name(self) -> str:
        """Name for display."""

    def log_probabilities(self, scene: Scene, sequence: Sequence[int] | np.ndarray) -> np.ndarray:
        """Log-probabilities of what follows each prefix of a path, in nats: (steps + 1, n + 1); the last column is the
        end of the path."""

    def sample(self, scene: Scene, n: int, *, seed: int = 0, max_length: int = 100) -> list[np.ndarray]:
        """`n` random paths of object indices."""


class Baseline(ABC):
    """A model of the next object, given the path so far, and of the end of the path."""

    name: ClassVar[str]
    needs_target: ClassVar[bool] = False

    def __init__(self) -> None:
        self.end: float | None = None  # probability, after each fixation

    def fit(self, dataset: Dataset, trials: Iterable[int] | None = None) -> Self:
        """Fit the model to trials.

        Args:
            dataset: the dataset that holds the trials.
            trials: indices of the training trials, by default all.
        """
        part = dataset if trials is None else dataset.subset(trials)
        if not len(part):
            raise ValueError(f"{self.name} needs at least one training trial, got none")
        if self.needs_target and dataset.target_position != "given":
            raise ValueError(
                f'{self.name} uses the position of the target, which this dataset hides: with_target_position("given")'
                " shows it"
            )
        # half a fixation is added: with a probability of 1, longer test paths would be impossible
        self.end = float(len(part) / (part.lengths.sum() + 0.5))
        self._learn(part)
        return self

    def log_probabilities(self, scene: Scene, sequence: Sequence[int] | np.ndarray) -> np.ndarray:
        """Log-probabilities of what follows each prefix of a path, in nats.

        Args:
            scene: the scene that the person looks at.
            sequence: (steps,) object indices.

        Returns:
            (steps + 1, n + 1) float64: row t is for the fixation after the first t ones; the last column is the end of
            the path, which is impossible (-inf) in row 0.
        """
        path = np.asarray(sequence, dtype=np.int64)
        if self.end is None:
            raise ValueError(f"{self.name} must be fitted to trials first: call fit")
        if len(path) and (path.min() < 0 or path.max() >= len(scene)):
            raise ValueError(f"objects must be 0 to {len(scene) - 1}, got {path.min()} to {path.max()}")
        return np.stack([self._next(scene, path[:t]) for t in range(len(path) + 1)])

    def log_probability(self, scene: Scene, sequence: Sequence[int] | np.ndarray) -> np.ndarray:
        """Log-probability of each fixation of a path and of its end, (steps + 1,) nats."""
        tokens = np.append(np.asarray(sequence, dtype=np.int64), len(scene))
        result: np.ndarray = self.log_probabilities(scene, sequence)[np.arange(len(tokens)), tokens]
        return result

    def sample(self, scene: Scene, n: int, *, seed: int = 0, max_length: int = 100) -> list[np.ndarray]:
        """Random paths of object indices.

        Args:
            scene: the scene that the person looks at.
            n: number of paths.
            seed: seed of the draws, which also depend on the scene's name and the number of the path.
            max_length: a path that has not ended before is cut at this length.
        """
        if self.end is None:
            raise ValueError(f"{self.name} must be fitted to trials first: call fit")
        paths = []
        for k in range(n):
            rng = np.random.default_rng([seed, zlib.crc32(scene.identifier.encode()), k])
            path = np.empty(0, dtype=np.int64)
            while len(path) < max_length:
                share = np.exp(self._next(scene, path)).cumsum()
                drawn = int(np.searchsorted(share, rng.random() * share[-1], side="right"))
                if drawn == len(scene):
                    break
                path = np.append(path, drawn)
            paths.append(path)
        return paths

    def _next(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        end = self._end(scene, path) if len(path) else 0.0
        with np.errstate(divide="ignore"):
            result: np.ndarray = np.log(np.append((1 - end) * self._objects(scene, path), end))
            return result

    def _end(self, scene: Scene, path: np.ndarray) -> float:
        assert self.end is not None
        return self.end

    @abstractmethod
    def _objects(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        """(n,) probabilities of the next object if the path continues."""

    def _learn(self, dataset: Dataset) -> None:  # noqa: B027
        """Fit the parameters other than the probability of the end, if there are any."""


class Uniform(Baseline):
    """Equal probability for every object and for the end; it uses only the number of objects."""

    name = "uniform"

    def _objects(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        return np.full(len(scene), 1 / len(scene))

    def _end(self, scene: Scene, path: np.ndarray) -> float:
        return 1 / (len(scene) + 1)


class Random(Baseline):
    """Equal probability for every object; the mean length of paths is that of people."""

    name = "random"

    def _objects(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        return np.full(len(scene), 1 / len(scene))


class CellFrequency(Baseline):
    """Frequency with which people look at each place of the picture, regardless of the path so far.

    Places are the cells of the grid that all scenes share, or of a raster of 6 x 8 if they share no grid.
    """

    name = "cell frequency"

    def _learn(self, dataset: Dataset) -> None:
        self.raster = _common_grid(dataset) or _RASTER
        scenes = list(dict.fromkeys(dataset.scene_of(k) for k in range(len(dataset))))
        chosen = {scene: np.zeros(len(scene)) for scene in scenes}
        for k, trial in enumerate(dataset.trials):
            np.add.at(chosen[dataset.scene_of(k)], trial.objects, 1)
        cells = [_cells(scene, self.raster) for scene in scenes]
        self.weight = choice_weights(cells, [chosen[s] for s in scenes], self.raster[0] * self.raster[1])

    def _objects(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        return _normalised(self.weight[_cells(scene, self.raster)])


class _Nearest(Baseline):
    """The weight of an object is exp(-distance / scale), less if it was seen; the current object has its own weight.

    The three parameters (two for the first fixation) are fitted by maximum likelihood; the distance is in units of the
    scene's spacing.
    """

    from_centre: ClassVar[bool]

    def _learn(self, dataset: Dataset) -> None:
        rows = [
            (*self._row(dataset.scene_of(k), t.objects[:s]), t.objects[s])
            for k, t in enumerate(dataset.trials)
            for s in range(len(t))
        ]
        n = max(len(row[0]) for row in rows)
        distance, seen = (np.full((len(rows), n), fill) for fill in (np.inf, 0.0))
        for k, row in enumerate(rows):
            distance[k, : len(row[0])], seen[k, : len(row[0])] = row[:2]
        last = np.array([row[2] for row in rows])
        chosen = np.array([row[3] for row in rows])
        first = last < 0
        starts = minimize(_start_loss, [0.0], args=(distance[first], chosen[first]), method="Nelder-Mead")
        self.start_scale = float(np.exp(starts.x[0]))
        later = ~first
        self.scale, self.seen, self.stay = self.start_scale, 0.0, 0.0
        if later.any():
            found = minimize(
                _nearest_loss,
                [0.0, 0.0, 0.0],
                args=(distance[later], seen[later], last[later], chosen[later]),
                method="L-BFGS-B",
                bounds=[(-5, 5), (-8, 8), (-8, 8)],
            )
            self.scale, self.seen, self.stay = float(np.exp(found.x[0])), float(found.x[1]), float(found.x[2])

    def _row(self, scene: Scene, path: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Distance of each object, whether it was seen, and the index of the current object (-1 before the first)."""
        last = int(path[-1]) if len(path) else -1
        if last < 0 or self.from_centre:
            distance = np.linalg.norm(scene.centres - np.array(scene.size) / 2, axis=1)
        else:
            distance = np.linalg.norm(scene.centres - scene.centres[last], axis=1)
        seen = np.zeros(len(scene))
        seen[path] = 1
        return distance / scene.spacing, seen, last

    def _objects(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        distance, seen, last = self._row(scene, path)
        if last < 0:
            result: np.ndarray = np.exp(_log_softmax(-distance[None] / self.start_scale))[0]
            return result
        parameters = np.array([np.log(self.scale), self.seen, self.stay])
        result = np.exp(_nearest_log(parameters, distance[None], seen[None], np.array([last])))[0]
        return result


class CentreNearest(_Nearest):
    """An object is more likely the nearer it is to the middle of the picture."""

    name = "nearest to the centre"
    from_centre = True


class NearestObject(_Nearest):
    """An object is more likely the nearer it is to the last fixation; the first fixation is near the middle of the
    picture."""

    name = "nearest object"
    from_centre = False


class StepMarkov(Baseline):
    """Frequency of each step, as a number of rows and columns, regardless of the position at which it starts.

    The possible steps depend on the current position. Each step therefore has a weight, and the probability of an
    object is the weight of the step to it, divided by the sum of the weights for all objects (Luce's choice rule).
    """

    name = "step Markov"

    def _learn(self, dataset: Dataset) -> None:
        self.first = CellFrequency().fit(_first_fixations(dataset))
        extent = np.max([np.ptp(dataset.scene_of(k).places, axis=0) for k in range(len(dataset))], axis=0)
        self.reach = np.ceil(extent).astype(int)
        chosen: dict[tuple[Scene, int], np.ndarray] = {}
        for k, trial in enumerate(dataset.trials):
            scene = dataset.scene_of(k)
            for last, after in zip(trial.objects[:-1], trial.objects[1:], strict=True):
                chosen.setdefault((scene, int(last)), np.zeros(len(scene)))[after] += 1
        steps = {scene: self._steps(scene) for scene, _ in chosen}
        offered = [steps[scene][last] for scene, last in chosen]
        kinds = int(np.prod(2 * self.reach + 1)) + 1
        self.weight = choice_weights(offered, list(chosen.values()), kinds)
        self._tables: dict[Scene, np.ndarray] = {}

    def _steps(self, scene: Scene) -> np.ndarray:
        """(n, n) the index of the step from each object to each other; 0 means no move."""
        step = np.rint(scene.places[None] - scene.places[:, None]).astype(int)
        step = np.clip(step, -self.reach, self.reach) + self.reach
        kind = 1 + step[..., 0] * (2 * self.reach[1] + 1) + step[..., 1]
        np.fill_diagonal(kind, 0)
        result: np.ndarray = kind
        return result

    def _objects(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        if not len(path):
            return self.first._objects(scene, path)
        if scene not in self._tables:
            self._tables[scene] = _normalised(self.weight[self._steps(scene)])
        result: np.ndarray = self._tables[scene][path[-1]]
        return result


class PlacedMarkov(Baseline):
    """`StepMarkov` with a weight for each place of the grid and a probability of ending for each length of the path.

    It is `MarkovPrior` of order 1: all weights are fitted together by maximum likelihood.
    """

    name = "step Markov with places"

    def _learn(self, dataset: Dataset) -> None:
        self.model = MarkovPrior(*grid_around(dataset.scene_of(k) for k in range(len(dataset))), order=1)
        fit_prior(self.model, PathData(dataset))
        self.model.double()
        self.ends = torch.sigmoid(self.model.end).numpy()
        self._tables: dict[Scene, np.ndarray] = {}

    def _objects(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        if scene not in self._tables:
            self._tables[scene] = self._read(scene)
        table = self._tables[scene]
        result: np.ndarray = table[path[-1]] if len(path) else table[-1]
        return result

    def _end(self, scene: Scene, path: np.ndarray) -> float:
        return float(self.ends[min(len(path), len(self.ends) - 1)])

    def _read(self, scene: Scene) -> np.ndarray:
        """(n + 1, n) probabilities of the next object after each object and, in the last row, of the first one."""
        n = len(scene)
        position = torch.from_numpy(scene.places).expand(n, n, 2)
        history = torch.stack([torch.full((n,), BEGIN), torch.arange(n)], 1)
        with torch.inference_mode():
            both = self.model(position, torch.ones(n, n, dtype=torch.bool), history, 2)[..., :-1].exp()
        return _normalised(np.concatenate([both[:, 1].numpy(), both[:1, 0].numpy()]))


class MarkovWithTarget(StepMarkov):
    """`StepMarkov` with knowledge of the target's position: it may jump to the target and usually ends there.

    The probability of a jump is estimated for each distance from the target (the larger of rows and columns), and the
    probability of the end separately for fixations on the target and elsewhere. In a scene without a target, the model
    equals `StepMarkov`.
    """

    name = "step Markov with target"
    needs_target = True

    def _learn(self, dataset: Dataset) -> None:
        super()._learn(dataset)
        offers, jumps = (np.full(int(self.reach.max()) + 1, v) for v in (2 * _PRIOR, _PRIOR))
        stops, stays = np.full(2, _PRIOR), np.full(2, 2 * _PRIOR)
        for k, trial in enumerate(dataset.trials):
            scene = dataset.scene_of(k)
            if scene.target is None:
                continue
            away = self._away(scene)[trial.objects]
            np.add.at(offers, away[:-1], 1)
            np.add.at(jumps, away[:-1][trial.objects[1:] == scene.target], 1)
            on = (trial.objects == scene.target).astype(int)
            np.add.at(stays, on, 1)
            stops[on[-1]] += 1
        self.jump, self.end_on = jumps / offers, stops / stays

    def _away(self, scene: Scene) -> np.ndarray:
        """(n,) distance of each object from the target in grid places, rounded to integers."""
        away = np.abs(scene.places - scene.places[scene.target]).max(axis=1)
        result: np.ndarray = np.minimum(np.rint(away).astype(int), self.reach.max())
        return result

    def _objects(self, scene: Scene, path: np.ndarray) -> np.ndarray:
        share = super()._objects(scene, path)
        if not len(path) or scene.target is None or len(scene) == 1:
            return share
        jump = self.jump[self._away(scene)[path[-1]]]
        share = share.copy()
        share[scene.target] = 0
        share *= (1 - jump) / share.sum()
        share[scene.target] = jump
        return share

    def _end(self, scene: Scene, path: np.ndarray) -> float:
        if scene.target is None:
            return super()._end(scene, path)
        return float(self.end_on[int(path[-1] == scene.target)])


BASELINES: dict[str, type[Baseline]] = {
    kind.name: kind
    for kind in (
        Uniform,
        Random,
        CellFrequency,
        CentreNearest,
        NearestObject,
        StepMarkov,
        PlacedMarkov,
        MarkovWithTarget,
    )
}


def fit_baselines(dataset: Dataset, trials: Iterable[int] | None = None) -> dict[str, Baseline]:
    """All baselines that can be fitted; `MarkovWithTarget` only if the target's position is given."""
    index = range(len(dataset)) if trials is None else list(trials)
    given = dataset.target_position == "given"
    return {name: kind().fit(dataset, index) for name, kind in BASELINES.items() if given or not kind.needs_target}


def choice_weights(
    offered: Sequence[np.ndarray], chosen: Sequence[np.ndarray], kinds: int, *, prior: float = _PRIOR
) -> np.ndarray:
    """Weights of kinds of objects; the probability of a choice is its weight divided by the sum of all offered weights.

    Luce's choice rule, fitted by the iteration of Hunter (Annals of Statistics 32, 2004) with the gamma prior of Caron
    and Doucet (Journal of Computational and Graphical Statistics 21, 2012), here with mode 1.

    Args:
        offered: for each offer (n,) int, the kind of each object on offer; n may differ between offers.
        chosen: for each offer (n,), the number of times that each object was chosen.
        kinds: number of kinds.
        prior: rate of the gamma prior, whose shape is 1 + `prior`.

    Returns:
        (kinds,) float64 with mean 1: choices determine the weights only up to a factor, and the prior is largest for
        this factor.

    Example:
        >>> offered, chosen = [np.array([0, 1]), np.array([1, 2])], [np.array([20, 10]), np.array([5, 5])]
        >>> choice_weights(offered, chosen, 3, prior=1e-9).round(6)
        array([1.5 , 0.75, 0.75])
    """
    n = max(len(kind) for kind in offered) if offered else 1
    kind = np.full((len(offered), n), kinds)  # the padding of the rows has weight 0
    times = np.zeros((len(offered), n))
    for row, (a, b) in enumerate(zip(offered, chosen, strict=True)):
        kind[row, : len(a)], times[row, : len(b)] = a, b
    wins = np.bincount(kind.ravel(), times.ravel(), kinds + 1)[:kinds]
    total = times.sum(axis=1, keepdims=True)
    weight = np.append(np.ones(kinds), 0.0)
    for _ in range(500):
        per_offer = np.broadcast_to(total / weight[kind].sum(axis=1, keepdims=True), kind.shape)
        chances = np.bincount(kind.ravel(), per_offer.ravel(), kinds + 1)[:kinds]
        new = (wins + prior) / (chances + prior)
        new /= new.mean()
        done = np.abs(new - weight[:-1]).max() < 1e-9 * new.max()
        weight[:-1] = new
        if done:
            break
    return weight[:-1]


def _common_grid(dataset: Dataset) -> tuple[int, int] | None:
    grids = {(s.rows, s.columns) for s in (dataset.scenes[t.scene] for t in dataset.trials)}
    rows, columns = next(iter(grids))
    return (rows, columns) if len(grids) == 1 and rows is not None and columns is not None else None


def _cells(scene: Scene, raster: tuple[int, int]) -> np.ndarray:
    """(n,) the cell of each object, row by row."""
    if (scene.rows, scene.columns) == raster:
        return np.arange(len(scene))
    share = scene.centres[:, ::-1] / np.array(scene.size)[::-1]
    row, column = np.clip((share * raster).astype(int), 0, np.array(raster) - 1).T
    result: np.ndarray = row * raster[1] + column
    return result


def _first_fixations(dataset: Dataset) -> Dataset:
    first = (replace(t, objects=t.objects[:1], xy=t.xy[:1], onset=None, duration=None) for t in dataset.trials)
    return replace(dataset, trials=tuple(first))


def _normalised(weight: np.ndarray) -> np.ndarray:
    result: np.ndarray = weight / weight.sum(axis=-1, keepdims=True)
    return result


def _log_softmax(score: np.ndarray) -> np.ndarray:
    score = score - score.max(axis=1, keepdims=True)
    result: np.ndarray = score - np.log(np.exp(score).sum(axis=1, keepdims=True))
    return result


def _start_loss(parameters: np.ndarray, distance: np.ndarray, chosen: np.ndarray) -> float:
    log_p = _log_softmax(-distance / np.exp(np.clip(parameters[0], -5, 5)))
    return -float(log_p[np.arange(len(chosen)), chosen].mean())


def _nearest_log(parameters: np.ndarray, distance: np.ndarray, seen: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(rows, n) log-probabilities for the parameters log scale, seen and stay."""
    score = -distance / np.exp(parameters[0]) + parameters[1] * seen
    score[np.arange(len(last)), last] = parameters[2]
    return _log_softmax(score)


def _nearest_loss(
    parameters: np.ndarray, distance: np.ndarray, seen: np.ndarray, last: np.ndarray, chosen: np.ndarray
) -> float:
    return -float(_nearest_log(parameters, distance, seen, last)[np.arange(len(chosen)), chosen].mean())
