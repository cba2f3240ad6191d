"""Options of a training of one network; nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Any, Literal

Monitor = Literal["validation_loss", "validation_accuracy"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of a training of one network.

    Args:
        network: adhdeepnet, eegnet or shallow, which read windows; long_recording reads each recording at once.
        settings: settings of the training (lr, augmentation such as 1,2x0.1) and of the network (for adhdeepnet F1, D,
            kernel_length, se_nodes, max_norm, drop_prob; for long_recording mixer, dim, heads, depth, filters,
            components, electrode_hops, drop_prob, drop_seconds).
        validation_share: share of the subjects kept for validation.
        epochs: the largest number of epochs.
        patience: epochs without a lower validation loss after which training stops.
        reduce_patience: epochs without a lower validation loss after which the learning rate is halved.
        batch: windows per step; for long_recording, recordings per step, of which there are at most 8.
        class_weights: weight each class inversely to its number of windows.
        monitor: the figure that decides which epoch is kept.
        seed: seed of the split, the initial weights, the order of the windows, noise and dropout.
    """

    network: Literal["adhdeepnet", "eegnet", "shallow", "long_recording"] = "adhdeepnet"
    settings: dict[str, Any] | None = None
    validation_share: float = 0.2
    epochs: int = 100
    patience: int = 15
    reduce_patience: int = 10
    batch: int = 64
    class_weights: bool = True
    monitor: Monitor = "validation_loss"
    seed: int = 0
