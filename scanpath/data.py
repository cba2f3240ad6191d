"""Scanpaths as tensors: scenes with equal inputs are encoded once, and paths are padded to the longest of a batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from .appearance import crop_tensor
from .markov_prior import MarkovPrior, Steps
from .oat import BEGIN, SceneBatch
from .readers import with_crops
from .scene import Dataset, Scene, TargetPosition

IGNORED = -100  # label of the padding after the end of a shorter path
_PRIOR_BATCH = 256  # paths
_POOL = 16  # number of batches whose paths are sorted by length together


@dataclass(eq=False)  # not frozen: Lightning converts the fields to another precision
class PathBatch:
    """A batch of paths and their scenes.

    Args:
        scenes: the scenes of the batch, each of them once.
        scene: (B,) index of the scene of each path.
        previous: (B, T) the token before each step: `BEGIN`, then object indices, then 0 after the end.
        chosen: (B, T) the token to predict: object indices, then the end, whose index is the largest number of objects,
            then `IGNORED`.
        weight: () weight of the mean loss: the number of tokens relative to a mean batch, if the batches hold paths of
            similar length.
    """

    scenes: SceneBatch
    scene: Tensor
    previous: Tensor
    chosen: Tensor
    weight: Tensor

    def to(self, device: Any) -> "PathBatch":
        """The same batch on another device."""
        return replace(self, **{name: value.to(device) for name, value in self.__dict__.items()})

    @property
    def first(self) -> Tensor:
        """(B, T) bool: the steps at which a path cannot end."""
        return self.previous == BEGIN


def scene_batch(
    scenes: Sequence[Scene], *, appearance: str = "none", target_position: TargetPosition = "hidden"
) -> SceneBatch:
    """Scenes as tensors.

    Args:
        scenes: the scenes; their numbers of objects may differ.
        appearance: "cnn" uses the crops of the objects, cut out of the scene's image if needed; "features" uses their
            feature vectors; "none" uses neither.
        target_position: whether the position of the target is given and fixations on it are marked.

    Raises:
        ValueError: a scene lacks the crops or features.
    """
    most = max(len(scene) for scene in scenes)
    position = torch.zeros(len(scenes), most, 2)
    present = torch.zeros(len(scenes), most, dtype=torch.bool)
    for k, scene in enumerate(scenes):
        position[k, : len(scene)] = torch.from_numpy(scene.places)
        present[k, : len(scene)] = True
    target = torch.tensor([-1 if scene.target is None else scene.target for scene in scenes])
    given = torch.full((len(scenes),), target_position == "given")
    looks = None
    if appearance != "none":
        parts = [_looks(scene, appearance) for scene in scenes]
        kinds = {tuple(part.shape[1:]) for part in parts}
        if len(kinds) > 1:
            raise ValueError(f"features must have one length in all scenes, got {sorted(kinds)}")
        looks = torch.stack([torch.cat([p, p.new_zeros(most - len(p), *p.shape[1:])]) for p in parts])
    return SceneBatch(position, present, target, given, given, looks)


class PathData(TorchDataset[PathBatch]):
    """Batches of trials, each built from a list of indices.

    Args:
        dataset: the dataset that holds the trials.
        trials: indices of the trials to use.
        appearance: see `scene_batch`.
        target_position: by default that of the dataset.
        mirror: also include each trial in its mirrored scene; index i + len(trials) is trial i, flipped left to right.
    """

    def __init__(
        self,
        dataset: Dataset,
        trials: Sequence[int] | np.ndarray | None = None,
        *,
        appearance: str = "none",
        target_position: TargetPosition | None = None,
        mirror: bool = False,
    ):
        index = range(len(dataset)) if trials is None else [int(k) for k in trials]
        self._alike = False
        self.paths = [dataset.trials[k].objects for k in index]
        if not self.paths:
            raise ValueError("trials must name at least one trial, got none")
        shown = target_position or dataset.target_position
        place: dict[tuple[object, ...], int] = {}
        scenes: list[Scene] = []
        self.scene: list[int] = []
        for k in index:
            scene = dataset.scene_of(k)
            key = _inputs(scene, appearance, shown)
            if key not in place:
                place[key] = len(scenes)
                scenes.append(scene)
            self.scene.append(place[key])
        self.scenes = scene_batch(scenes, appearance=appearance, target_position=shown)
        if mirror:
            count = len(self.scenes)
            both = self.scenes.rows(torch.arange(count).repeat(2))
            extent = [(np.ptp(s.places[:, 1]) + 2 * s.places[:, 1].min()) for s in scenes]
            turned = both.position.clone()
            turned[count:, :, 1] = torch.tensor(extent).unsqueeze(1) - turned[count:, :, 1]
            self.scenes = replace(both, position=turned.where(both.present.unsqueeze(-1), 0))
            self.scene += [place + count for place in self.scene]
            self.paths += self.paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: list[int]) -> PathBatch:
        end = self.scenes.present.shape[1]
        longest = max(len(self.paths[i]) for i in indices)
        previous = torch.zeros(len(indices), longest + 1, dtype=torch.long)
        chosen = torch.full((len(indices), longest + 1), IGNORED)
        for row, i in enumerate(indices):
            path = torch.from_numpy(self.paths[i])
            previous[row, 0], previous[row, 1 : len(path) + 1] = BEGIN, path
            chosen[row, : len(path)], chosen[row, len(path)] = path, end
        wanted = [self.scene[i] for i in indices]
        kept = sorted(set(wanted))
        scene = torch.tensor([kept.index(k) for k in wanted])
        tokens = (chosen != IGNORED).sum()
        weight = tokens / (self.lengths.mean() + 1) / len(indices) if self._alike else torch.tensor(1.0)
        return PathBatch(self.scenes.rows(torch.tensor(kept)), scene, previous, chosen, weight)

    @property
    def lengths(self) -> np.ndarray:
        """(paths,) number of fixations of each path."""
        return np.array([len(path) for path in self.paths])

    def loader(
        self, batch: int, *, shuffle: Callable[[], np.random.Generator] | None = None, alike: bool = False
    ) -> DataLoader[PathBatch]:
        """Batches for an epoch.

        Args:
            batch: number of paths per batch.
            shuffle: returns the generator that draws the order of an epoch; None keeps the order of the trials.
            alike: put paths of similar length into one batch, which needs less padding; the batches are then weighted.
        """
        self._alike = alike
        return DataLoader(self, sampler=_Batches(self.lengths, batch, shuffle, alike), batch_size=None)


def fit_prior(prior: MarkovPrior, data: PathData) -> float:
    """Fit the weights of a prior to all paths of `data`; returns their mean negative log-likelihood in nats."""
    parts = []
    for k in range(0, len(data), _PRIOR_BATCH):
        batch = data[list(range(k, min(k + _PRIOR_BATCH, len(data))))]
        scenes = batch.scenes.rows(batch.scene)
        known = prior.steps(scenes.position, scenes.present, batch.previous, batch.previous.shape[1])
        counted = batch.chosen != IGNORED
        parts.append((Steps(*(part[counted] for part in known)), batch.chosen[counted]))
    return prior.fit(parts)


class _Batches(Sampler[list[int]]):
    """Batches as lists of indices."""

    def __init__(self, lengths: np.ndarray, batch: int, shuffle: Callable[[], np.random.Generator] | None, alike: bool):
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.lengths, self.batch, self.shuffle, self.alike = lengths, batch, shuffle, alike

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.lengths))
        generator = None if self.shuffle is None else self.shuffle()
        if generator is not None:
            generator.shuffle(order)
        if self.alike:
            pool = _POOL * self.batch
            parts = [order[k : k + pool] for k in range(0, len(order), pool)]
            order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        batches = [order[k : k + self.batch].tolist() for k in range(0, len(order), self.batch)]
        if self.alike and generator is not None:
            generator.shuffle(batches)
        return iter(batches)


def _looks(scene: Scene, appearance: str) -> Tensor:
    """(n, ...) crops or features of the objects of one scene."""
    if appearance == "cnn":
        crops = [o.crop for o in scene.objects]
        if any(crop is None for crop in crops):
            crops = [o.crop for o in with_crops(scene).objects]
        return crop_tensor([crop for crop in crops if crop is not None])
    if appearance != "features":
        raise ValueError(f'appearance must be "cnn", "features" or "none", got {appearance!r}')
    if scene.features is None:
        raise ValueError(f"the objects of scene {scene.identifier} have no features, which this network needs")
    return torch.from_numpy(scene.features)


def _inputs(scene: Scene, appearance: str, target_position: TargetPosition) -> tuple[object, ...]:
    """A key that is equal for two scenes only if the network's inputs for them are equal."""
    if appearance == "none":
        looks: Any = None
    elif appearance == "features":
        looks = None if scene.features is None else scene.features.tobytes()
    else:
        looks = scene.identifier
    matters = target_position == "given" or appearance != "none"
    return scene.places.tobytes(), looks, scene.target if matters else None
