"""Weight files with their description, and a trained network with the interface of the baselines."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runs.catalogue import find_weights
from ..runs.json_files import parse_json
from ..runs.json_types import check_record
from ..runs.weight_file import check_claims, check_number_kinds, read_weights, write_weights
from .data import scene_batch
from .decoding import beam, greedy, sample
from .oat import BEGIN, OAT, Memory, SceneBatch, log_probabilities
from .scene import Scene, TargetPosition

FORMAT = "voxelwave-scanpath-1"
_TABLE = "position.table"  # stored in addition to the parameters, since no state_dict holds it


@dataclass(frozen=True)
class WeightsInfo:
    """The description of a weight file.

    Attributes:
        arguments: arguments of `oat.OAT`, without the table.
        target_position: whether the network needs the target's position.
        task: what people did, such as "search".
        grid: whether scenes are on the grid given by the arguments (otherwise they have free layouts).
        trained_on: identifiers of the layouts used for training and validation.
        features: meaning of each number of a feature vector.
        longest: number of fixations of the longest training path.
        notes: free text for a reader, such as data, licence, command and seed.
    """

    arguments: dict[str, Any]
    target_position: TargetPosition
    task: str
    grid: bool
    trained_on: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    longest: int = 100
    notes: dict[str, str] = field(default_factory=dict)


def save_model(path: str | os.PathLike[str], network: OAT, info: WeightsInfo) -> None:
    """Write a network as a safetensors file, with its position table and its description.

    Args:
        path: the file to write, which ends in .safetensors.
        network: the network with the parameters.
        info: the description; its arguments are replaced by those of the network.
    """
    content: dict[str, Any] = {**info.__dict__, "arguments": network.arguments}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if network.position.kind == "learned":
        n = max(network.rows, network.columns)
        state[_TABLE] = network.position.table[:n].cpu().contiguous()
    write_weights(path, state, {"format": FORMAT, "info": json.dumps(content)})


def load_model(weights: str | os.PathLike[str]) -> "NetworkModel":
    """Load a trained network as a model of scanpaths. No code in the file is executed.

    Args:
        weights: a file that `save_model` wrote, or the name of weights that come with the package.

    Raises:
        FileNotFoundError: there is no such file or name.
        ValueError: the file holds no such weights, is damaged, or its parameters do not fit its description.
    """
    path = find_weights(weights, "scanpath")
    state, metadata = read_weights(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path.name} must be weights of voxelwave scanpath train ({FORMAT}), got {metadata.get('format')!r};"
            " parameters under the published names are read by OAT.load_published"
        )
    table = state.pop(_TABLE, None)
    try:
        content = parse_json(metadata["info"], "its description")
        check_record(content, WeightsInfo, "its description")
        lists = {name: tuple(content[name]) for name in ("trained_on", "features") if name in content}
        info = WeightsInfo(**{**content, **lists})
        check_claims(path, info.arguments)
        if info.longest < 1:
            raise ValueError(f"longest must be at least 1, got {info.longest}")
        network = OAT(**info.arguments, table=table)
        check_number_kinds(path, state, network.state_dict())
        network.load_published(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name} is damaged or was written for another version: {error}") from None
    return NetworkModel(network.eval(), info)


class NetworkModel:
    """A network with the interface of the baselines (`baselines.ScanpathModel`).

    Args:
        network: the network in evaluation mode.
        info: its description.
        name: name for display.
    """

    def __init__(self, network: OAT, info: WeightsInfo, name: str = "OAT"):
        self.network, self.info, self.name = network, info, name
        self._latest: tuple[Scene, Memory] | None = None

    def check(self, scene: Scene) -> None:
        """Raise a ValueError with the reason if a scene does not fit the network."""
        rows, columns = self.network.rows, self.network.columns
        if self.info.grid and (scene.rows, scene.columns) != (rows, columns):
            came = "a free layout" if scene.rows is None else f"{scene.rows} x {scene.columns}"
            raise ValueError(
                f"scene {scene.identifier} must be a grid of {rows} x {columns}, as the weights require, got {came}"
            )
        if not self.info.grid and scene.rows is not None:
            raise ValueError(
                f"scene {scene.identifier} must be a free layout, as the weights require, got a grid of"
                f" {scene.rows} x {scene.columns}"
            )
        features = len(self.info.features)
        if self.network.appearance == "features" and features:
            given = 0 if scene.features is None else scene.features.shape[1]
            if given != features:
                raise ValueError(
                    f"objects of scene {scene.identifier} must have {features} features"
                    f" ({', '.join(self.info.features)}), got {given}"
                )

    def batch(self, scenes: Sequence[Scene]) -> SceneBatch:
        """Scenes in the form of the network's input."""
        for scene in scenes:
            self.check(scene)
        return scene_batch(scenes, appearance=self.network.appearance, target_position=self.info.target_position)

    @torch.inference_mode()
    def log_probabilities(self, scene: Scene, sequence: Sequence[int] | np.ndarray) -> np.ndarray:
        """Log-probabilities of the next fixation after each prefix of a path, as those of `baselines.Baseline`."""
        scores, _ = self._read(scene, sequence, weights=False)
        first = torch.arange(scores.shape[1]).unsqueeze(0) == 0
        return log_probabilities(scores.double(), first=first)[0].numpy()

    @torch.inference_mode()
    def attention(self, scene: Scene, sequence: Sequence[int] | np.ndarray) -> np.ndarray:
        """The attention of each step to each object: weights of the decoder's last layer, averaged over heads.

        Returns:
            (steps + 1, n + 1), the last column is the target's token; rows sum to 1.
        """
        _, weights = self._read(scene, sequence, weights=True)
        return weights[-1][0].mean(0).double().numpy()

    def sample(self, scene: Scene, n: int, *, seed: int = 0, max_length: int = 100) -> list[np.ndarray]:
        """Random paths of object indices.

        Args:
            scene: the scene that the person looks at.
            n: number of paths.
            seed: seed of the draws, which also depend on the scene's name and the number of the path.
            max_length: a path that has not ended before is cut at this length.
        """
        paths = self.decode([scene], "sample", samples=n, seed=seed, max_length=max_length)[0]
        return [np.array(path, dtype=np.int64) for path in paths]

    def decode(
        self,
        scenes: Sequence[Scene],
        how: str = "sample",
        *,
        samples: int = 10,
        temperature: float = 1.0,
        width: int = 8,
        seed: int = 0,
        max_length: int | None = None,
    ) -> list[list[list[int]]]:
        """Decode paths for several scenes in one batch.

        Args:
            scenes: the scenes; their numbers of objects may differ.
            how: "greedy" and "beam" give one path for each scene, "sample" gives `samples` paths.
            samples: number of paths to draw for each scene.
            temperature: temperature of the draws.
            width: width of the beam.
            seed: seed of the draws.
            max_length: largest number of fixations; by default that of the longest training path.
        """
        longest = min(max_length or self.info.longest, self.network.arguments["steps"])
        batch = self.batch(scenes)
        if how == "greedy":
            return [[path] for path in greedy(self.network, batch, max_length=longest)]
        if how == "beam":
            return [[path] for path in beam(self.network, batch, width=width, max_length=longest)]
        if how != "sample":
            raise ValueError(f'how must be "greedy", "sample" or "beam", got {how!r}')
        names = [scene.identifier for scene in scenes]
        return sample(
            self.network,
            batch,
            samples=samples,
            temperature=temperature,
            seed=seed,
            names=names,
            max_length=longest,
        )

    def _read(
        self, scene: Scene, sequence: Sequence[int] | np.ndarray, *, weights: bool
    ) -> tuple[Tensor, list[Tensor]]:
        path = np.asarray(sequence, dtype=np.int64)
        if len(path) and (path.min() < 0 or path.max() >= len(scene)):
            raise ValueError(f"objects must be 0 to {len(scene) - 1}, got {path.min()} to {path.max()}")
        if self._latest is None or self._latest[0] is not scene:  # most calls in a row are about the same scene
            self._latest = scene, self.network.encode(self.batch([scene]))
        state = self.network.start(self._latest[1], torch.tensor([0]))
        previous = torch.from_numpy(np.concatenate([[BEGIN], path])).unsqueeze(0)
        scores, _, seen = self.network.step(state, previous, return_weights=weights)
        return scores, seen
