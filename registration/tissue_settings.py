"""Settings of a training of the tissue network, shared by `tissue_training` and the command. Loads no heavy library."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TissueTrainingSettings:
    """How the network that finds tissues in scans of any contrast is trained.

    Args:
        start_from: initial weights: the file of an earlier training, or the name of weights that come with the package.
        spacing_mm: voxel spacing of the images, the same along all axes.
        size: size of the images in voxels.
        width: channels of the first stage of the network, a multiple of 8.
        learning_rate: learning rate of the Muon optimizer; it rises to this value over the first 100 steps and falls to
            a fiftieth over the last 30 %.
        epochs: number of epochs, after each of which the network is validated.
        epoch_steps: number of steps of an epoch, each with one image.
        workers: number of further processes that draw images while the network learns from the ones before; the results
            do not depend on it.
        precision: float32, or bfloat16 for the maps of the network, which takes 0.6 of the time on processors that
            compute with it.
        seed: seed of the weights and of the images.
    """

    start_from: str | None = None
    spacing_mm: float = 2.0
    size: tuple[int, int, int] = (80, 96, 80)
    width: int = 16
    learning_rate: float = 1.5e-3
    epochs: int = 12
    epoch_steps: int = 250
    workers: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
