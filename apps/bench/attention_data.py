"""The small recordings of the package from which the tasks of `voxelwave bench attention` cut their sequences."""

from importlib.resources import as_file, files

import numpy as np
import torch

from ...attention_analysis.benchmark_tasks import TaskData
from ...eeg.synthetic import synthetic_signal
from ...restoration.images import read_image
from ...scanpath.readers import read_scanpaths

_CHANNELS = ("Fz", "Cz", "Pz", "O1")
_PEOPLE, _SECONDS, _ALPHA_UV = (8, 4), 60.0, 30.0
_TRAIN, _TEST = slice(8, 26), slice(30, 42)  # axial slices of the scan, at least 12 mm apart


def task_data(seed: int = 0) -> TaskData:
    """Slices of the scan, simulated EEG of a few people, and the colours of the drawn shelf."""
    with as_file(files(__package__) / "data" / "t1w.nii.gz") as path:
        slices = read_image(path).stack[:, 0]  # (slices, H, W)
    images = torch.from_numpy(slices / np.percentile(slices, 99.5)).float()
    generator = np.random.default_rng(seed)
    people = [
        synthetic_signal(generator, planted_uv=_ALPHA_UV, seconds=_SECONDS, channels=_CHANNELS, planted=("Pz", "O1"))
        for _ in range(sum(_PEOPLE))
    ]
    signals = torch.from_numpy(np.stack([x / x.std(1, keepdims=True) for x in people])).float()
    with as_file(files("voxelwave.apps.demo") / "data" / "shelf.json") as path:
        scene = next(iter(read_scanpaths(path).scenes.values()))
    colours = torch.tensor(np.stack([thing.features for thing in scene.objects if thing.features is not None]))
    return TaskData((images[_TRAIN], images[_TEST]), (signals[: _PEOPLE[0]], signals[_PEOPLE[0] :]), colours.float())
