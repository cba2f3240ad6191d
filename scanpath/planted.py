"""An observer with known probabilities, who prefers near objects, some colours, and objects not seen before.

Scenes and paths are generated from a seed, so they may be distributed. The result of a network on them can be compared
with the best possible one, the observer's own entropy.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import log_softmax

from .scene import Dataset, Scene, SceneObject, Trial

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.15, 0.15),
    "green": (0.20, 0.60, 0.25),
    "blue": (0.15, 0.35, 0.75),
    "yellow": (0.90, 0.80, 0.20),
    "white": (0.92, 0.92, 0.90),
    "black": (0.12, 0.12, 0.14),
}
FEATURES = ("red", "green", "blue")  # components of the mean colour, 0 to 1
SIZE = (800, 600)


@dataclass(frozen=True)
class PlantedObserver:
    """An observer who chooses the next object by a softmax of -distance / scale + preference - `seen` or `stay`.

    The distance of the first fixation is measured from the middle of the picture. A path ends with the same probability
    after each fixation.

    Args:
        scale: distance, in units of the scene's spacing, that lowers the probability of an object by a factor of e.
        preference: colour -> nats added for objects of this colour; a colour is the name of its objects.
        seen: nats subtracted for an object that was fixated before.
        stay: nats subtracted for the current object.
        end: probability that the path ends after a fixation.
        name: name for display.
    """

    scale: float = 0.7
    preference: dict[str, float] = field(default_factory=lambda: {"red": 2.0, "yellow": 1.0})
    seen: float = 1.5
    stay: float = 1.5
    end: float = 0.12
    name: str = "planted observer"

    def log_probabilities(self, scene: Scene, sequence: Sequence[int] | np.ndarray) -> np.ndarray:
        """Exact log-probabilities, (steps + 1, n + 1) nats; see `baselines.Baseline.log_probabilities`."""
        path = np.asarray(sequence, dtype=np.int64)
        liking = np.array([self.preference.get(o.name, 0.0) for o in scene.objects])
        middle = np.array(scene.size, dtype=np.float64) / 2
        places = np.concatenate([middle[None], scene.centres[path]])  # (steps + 1, 2)
        distance = np.linalg.norm(scene.centres[None] - places[:, None], axis=-1) / scene.spacing
        score = liking - distance / self.scale
        before = np.zeros_like(score, dtype=bool)
        for step, chosen in enumerate(path, start=1):
            before[step:, chosen] = True
        score -= self.seen * before
        now = np.arange(1, len(path) + 1), path
        score[now] += self.seen - self.stay
        objects = log_softmax(score, axis=1)
        end = np.full((len(path) + 1, 1), np.log(self.end))
        end[0] = -np.inf
        objects[1:] += np.log1p(-self.end)
        return np.concatenate([objects, end], axis=1)

    def sample(self, scene: Scene, n: int, *, seed: int = 0, max_length: int = 100) -> list[np.ndarray]:
        """Random paths; see `baselines.Baseline.sample`."""
        paths = []
        for k in range(n):
            rng = np.random.default_rng([seed, zlib.crc32(scene.identifier.encode()), k])
            path: list[int] = []
            while len(path) < max_length:
                share = np.exp(self.log_probabilities(scene, path)[-1]).cumsum()
                drawn = int(np.searchsorted(share, rng.random() * share[-1], side="right"))
                if drawn == len(scene):
                    break
                path.append(drawn)
            paths.append(np.array(path, dtype=np.int64))
        return paths


def planted_scene(identifier: str, seed: int, *, fewest: int = 10, most: int = 16) -> Scene:
    """A scene of coloured objects at random places without overlap; their features are their red, green and blue.

    Args:
        identifier: identifier of the scene.
        seed: seed of places and colours.
        fewest, most: smallest and largest number of objects.
    """
    rng = np.random.default_rng(seed)
    side = np.array([70.0, 70.0])
    wanted = int(rng.integers(fewest, most + 1))
    centres: list[np.ndarray] = []
    while len(centres) < wanted:
        centre = side / 2 + rng.random(2) * (np.array(SIZE) - side)
        if all(np.linalg.norm(centre - other) >= 95 for other in centres):
            centres.append(centre)
    objects = []
    for x, y in centres:
        name = str(rng.choice(list(COLOURS)))
        colour = np.clip(np.array(COLOURS[name]) + 0.05 * rng.normal(size=3), 0, 1).astype(np.float32)
        objects.append(SceneObject(name, (x - 35.0, y - 35.0, 70.0, 70.0), colour))
    return Scene(identifier, SIZE, tuple(objects))


def planted_dataset(
    scenes: int, *, paths: int = 1, seed: int = 0, observer: PlantedObserver | None = None, most: int = 16
) -> Dataset:
    """Scenes with paths of the observer on them.

    Args:
        scenes: number of scenes.
        paths: number of paths on each scene.
        seed: seed of scenes and paths; another seed gives other scenes.
        observer: the observer who looks at the scenes.
        most: largest number of objects in a scene.
    """
    observer = observer or PlantedObserver()
    made = [planted_scene(f"planted-{seed}-{k}", int(s), most=most) for k, s in enumerate(_seeds(seed, scenes))]
    trials = [
        Trial(scene.identifier, f"observer {k + 1}", path, scene.centres[path])
        for scene in made
        for k, path in enumerate(observer.sample(scene, paths, seed=seed))
    ]
    return Dataset({scene.identifier: scene for scene in made}, tuple(trials))


def entropy(observer: PlantedObserver, dataset: Dataset) -> float:
    """Mean entropy of the observer's next choice over all prefixes of the paths, nats per token.

    Apart from chance, no model can reach a lower negative log-likelihood per token.
    """
    values = []
    for k, trial in enumerate(dataset.trials):
        log_p = observer.log_probabilities(dataset.scene_of(k), trial.objects)
        values.append(-(np.exp(log_p) * np.where(np.isfinite(log_p), log_p, 0)).sum(1))
    return float(np.concatenate(values).mean())


def _seeds(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2**31, size=count)
