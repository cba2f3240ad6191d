"""Training and test trials that do not share a layout, a person or a target."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut

from .scene import Dataset

By = Literal["layout", "person", "target", "trial"]
Split = tuple[np.ndarray, np.ndarray]  # int64 indices of training and test trials


def split(
    dataset: Dataset,
    by: By = "layout",
    *,
    folds: int | None = 5,
    seed: int = 0,
    trials: Sequence[int] | np.ndarray | None = None,
) -> list[Split]:
    """Folds of trials; each trial is in the test part of one fold.

    Args:
        dataset: the dataset whose trials are split.
        by: the unit that training and test do not share: a layout (with all its targets and people), a person, or a
            searched target. "trial" separates single trials only: the training part then contains trials of other
            people on the tested layouts.
        folds: number of folds; None leaves out one layout, person or target at a time.
        seed: seed of the partition.
        trials: indices of the trials to split, by default all.

    Returns:
        (training, test) indices into `dataset.trials` for each fold.
    """
    if by not in get_args(By):
        raise ValueError(f"by must be {', '.join(get_args(By))}, got {by!r}")
    if folds is not None and folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}")
    index = np.arange(len(dataset)) if trials is None else np.asarray(trials, dtype=np.int64)
    groups = groups_of(dataset, by)[index]
    n = len(set(groups))
    if n < (folds or 2):
        raise ValueError(f"{folds or 'left-out'} folds by {by} need {folds or 2} of them, got {n}")
    if folds is None:
        parts = LeaveOneGroupOut().split(index, groups=groups)
    elif by == "trial":
        parts = KFold(folds, shuffle=True, random_state=seed).split(index)
    else:
        parts = GroupKFold(folds, shuffle=True, random_state=seed).split(index, groups=groups)
    return [(index[train], index[test]) for train, test in parts]


def groups_of(dataset: Dataset, by: By) -> np.ndarray:
    """(trials,) the layout, person or target of each trial, or the trial's own index, as text."""
    if by == "layout":
        names = [dataset.scenes[t.scene].layout for t in dataset.trials]
    elif by == "person":
        names = [t.person for t in dataset.trials]
    elif by == "target":
        sought = [dataset.scenes[t.scene].sought for t in dataset.trials]
        if None in sought:
            scene = dataset.trials[sought.index(None)].scene
            raise ValueError(f"a split by target needs one in every scene, {scene} has none")
        names = [str(s) for s in sought]
    else:
        names = [str(k) for k in range(len(dataset))]
    return np.array(names, dtype=object).astype(str)


def shared(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Fractions of test trials whose layout, person and target also occur in training, to be reported with a result.

    Example:
        >>> from voxelwave.scanpath.scene import Scene, SceneObject, Trial
        >>> scene = Scene("a", (9, 9), (SceneObject("cup", (0, 0, 9, 9)),), target=0)
        >>> path = np.zeros(1, int), np.zeros((1, 2))
        >>> two = Dataset({"a": scene}, (Trial("a", "Ann", *path), Trial("a", "Bob", *path)))
        >>> shared(two, np.array([0]), np.array([1]))
        {'layout': 1.0, 'person': 0.0, 'target': 1.0}
    """
    told: dict[str, float] = {}
    names: tuple[By, ...] = ("layout", "person", "target")
    for by in names:
        if by == "target" and any(dataset.scene_of(int(k)).sought is None for k in (*train, *test)):
            continue
        groups = groups_of(dataset.subset((*train, *test)), by)
        seen = set(groups[: len(train)])
        told[by] = float(np.mean([g in seen for g in groups[len(train) :]]))
    return told
