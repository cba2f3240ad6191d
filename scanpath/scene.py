"""Scenes with their objects, trials with their fixations, and data sets of both.

Positions are in pixels, with x to the right and y down; times are in seconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

Box = tuple[float, float, float, float]  # x, y of the upper left corner, width, height
TargetPosition = Literal["hidden", "given"]


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene.

    Args:
        name: name of the object, which need not be unique: three mugs may all be called mug.
        box: x, y of the upper left corner, width and height in pixels.
        features: (d,) float32 that describe its appearance, if known.
        crop: (H, W, 3) uint8, picture of the object, if known.
    """

    name: str
    box: Box
    features: np.ndarray | None = None
    crop: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.box) != 4 or not np.isfinite(self.box).all() or min(self.box[2:]) <= 0:
            raise ValueError(f"box must be x, y, width, height in pixels with sides above 0, got {self.box}")


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture as a list of objects, with the target of the search.

    Args:
        identifier: identifier of this picture with this target.
        size: width, height in pixels.
        objects: the objects, in the order to which the indices in trials refer; on a grid, row by row.
        target: index of the object that is searched for; None if no object is searched for or it is not in the picture.
        rows: rows of the grid; None for a free layout.
        columns: columns of the grid; None for a free layout.
        image: file of the picture.
        layout: name of the arrangement of objects, the same for scenes that differ only in their target; by default the
            identifier.
        sought: name of the object that is searched for; by default that of the target.
    """

    identifier: str
    size: tuple[int, int]
    objects: tuple[SceneObject, ...]
    target: int | None = None
    rows: int | None = None
    columns: int | None = None
    image: Path | None = None
    layout: str = ""
    sought: str | None = None

    def __post_init__(self) -> None:
        n = len(self.objects)
        if n < 1 or min(self.size) < 1:
            raise ValueError(
                f"scene {self.identifier} must have a size above 0 and at least one object, got {self.size} and {n}"
            )
        if self.target is not None and not 0 <= self.target < n:
            raise ValueError(f"target of scene {self.identifier} must be 0 to {n - 1}, got {self.target}")
        if (self.rows is None) != (self.columns is None):
            raise ValueError(
                f"scene {self.identifier} must have rows and columns or neither, got {self.rows} and {self.columns}"
            )
        if self.rows is not None and self.columns is not None and self.rows * self.columns != n:
            raise ValueError(
                f"scene {self.identifier} must have {self.rows} x {self.columns} objects, one per place, got {n}"
            )
        lengths = {None if o.features is None else np.shape(o.features) for o in self.objects}
        if len(lengths) > 1:
            raise ValueError(f"features of scene {self.identifier} must have one length for all objects, got {lengths}")
        object.__setattr__(self, "layout", self.layout or self.identifier)
        if self.sought is None and self.target is not None:
            object.__setattr__(self, "sought", self.objects[self.target].name)

    def __len__(self) -> int:
        return len(self.objects)

    @cached_property
    def boxes(self) -> np.ndarray:
        """(n, 4) float32: x, y, width, height in pixels."""
        return np.array([o.box for o in self.objects], dtype=np.float32)

    @cached_property
    def centres(self) -> np.ndarray:
        """(n, 2) float32: x, y of the middle of each box in pixels."""
        return self.boxes[:, :2] + self.boxes[:, 2:] / 2

    @cached_property
    def features(self) -> np.ndarray | None:
        """(n, d) float32 features of the objects, if known."""
        if self.objects[0].features is None:
            return None
        return np.stack([np.asarray(o.features, dtype=np.float32) for o in self.objects])

    @cached_property
    def places(self) -> np.ndarray:
        """(n, 2) float32: row and column of each object.

        On a grid these are whole numbers from 0. In a free layout, the unit is the median distance from an object to
        its nearest neighbour, so that a step is about as long as on a grid.
        """
        if self.columns is not None:
            return np.stack(np.divmod(np.arange(len(self)), self.columns), axis=1).astype(np.float32)
        return self.centres[:, ::-1] / self.spacing

    @cached_property
    def spacing(self) -> float:
        """Distance in pixels from an object to its nearest neighbour, median over the objects."""
        if len(self) == 1:
            return float(max(self.size))
        distance = np.linalg.norm(self.centres[:, None] - self.centres[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        return max(float(np.median(distance.min(axis=1))), 1.0)

    @property
    def diagonal(self) -> float:
        """Diagonal of the picture in pixels."""
        return float(np.hypot(*self.size))


def grid_around(scenes: Iterable[Scene]) -> tuple[int, int]:
    """Rows and columns of the grid that holds the places of all objects; that of the scenes, if they share one."""
    rows, columns = np.ceil(np.max([scene.places.max(axis=0) for scene in scenes], axis=0)).astype(int) + 1
    return int(rows), int(columns)


@dataclass(frozen=True, eq=False)
class Trial:
    """One person's fixations in one scene, in order.

    Args:
        scene: identifier of the scene.
        person: name of the person who looked.
        objects: (n,) int64, index of the object of each fixation.
        xy: (n, 2) float32, measured position of each fixation in pixels.
        onset: (n,) seconds from the onset of the picture, if known.
        duration: (n,) seconds, if known.
    """

    scene: str
    person: str
    objects: np.ndarray
    xy: np.ndarray
    onset: np.ndarray | None = None
    duration: np.ndarray | None = None

    def __post_init__(self) -> None:
        name = f"trial of {self.person} on {self.scene}"
        objects = np.asarray(self.objects)
        if objects.ndim != 1 or not len(objects) or not np.issubdtype(objects.dtype, np.integer):
            raise ValueError(f"{name} must have (n,) whole numbers as objects, n at least 1, got {objects.shape}")
        xy = np.asarray(self.xy, dtype=np.float32)
        if xy.shape != (len(objects), 2) or not np.isfinite(xy).all():
            raise ValueError(f"{name} must have finite positions ({len(objects)}, 2), got {xy.shape}")
        object.__setattr__(self, "objects", objects.astype(np.int64))
        object.__setattr__(self, "xy", xy)
        for key in ("onset", "duration"):
            value = getattr(self, key)
            if value is None:
                continue
            value = np.asarray(value, dtype=np.float64)
            if value.shape != (len(objects),) or not np.isfinite(value).all() or (value < 0).any():
                raise ValueError(f"{key} of {name} must be ({len(objects)},) seconds, none below 0, got {value}")
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(self.objects)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Scenes, the trials on them, and notes of the reader.

    Args:
        scenes: identifier -> scene.
        trials: the trials, each on one of the scenes.
        notes: one line for each kind of data that the reader left out or derived.
        target_position: whether a model may use the target's position. The task is a search only if it is hidden.
    """

    scenes: dict[str, Scene]
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = field(default=())
    target_position: TargetPosition = "hidden"

    def __post_init__(self) -> None:
        if self.target_position not in get_args(TargetPosition):
            raise ValueError(f'target_position must be "hidden" or "given", got {self.target_position!r}')
        for identifier, scene in self.scenes.items():
            if identifier != scene.identifier:
                raise ValueError(f"scene {scene.identifier} must be listed under its identifier, got {identifier}")
        for trial in self.trials:
            if trial.scene not in self.scenes:
                raise ValueError(f"trial of {trial.person} is on scene {trial.scene}, which is not in the dataset")
            n = len(self.scenes[trial.scene])
            if trial.objects.min() < 0 or trial.objects.max() >= n:
                raise ValueError(
                    f"objects of {trial.person} on {trial.scene} must be 0 to {n - 1}, got {trial.objects.min()} to"
                    f" {trial.objects.max()}"
                )

    def __len__(self) -> int:
        return len(self.trials)

    def scene_of(self, trial: int) -> Scene:
        """The scene of a trial, by its index."""
        return self.scenes[self.trials[trial].scene]

    @property
    def lengths(self) -> np.ndarray:
        """(trials,) number of fixations of each trial."""
        return np.array([len(t) for t in self.trials], dtype=np.int64)

    def subset(self, trials: Iterable[int]) -> "Dataset":
        """A dataset with these trials and all scenes."""
        return replace(self, trials=tuple(self.trials[i] for i in trials))

    def with_target_position(self, target_position: TargetPosition) -> "Dataset":
        """The same dataset with the position of the target hidden or given."""
        return replace(self, target_position=target_position)

    def without_long_trials(self, sd: float = 3.0) -> "Dataset":
        """The dataset without trials longer than the mean plus `sd` population standard deviations, as for OAT.

        The limit is computed from all trials, so it also depends on the lengths of test trials.
        """
        limit = self.lengths.mean() + sd * self.lengths.std()
        kept = np.flatnonzero(self.lengths <= limit)
        note = f"{len(self) - len(kept)} of {len(self)} trials left out, longer than {limit:.2f} fixations"
        return replace(self.subset(kept), notes=(*self.notes, note))
