"""The settings of a training of OAT, which a notebook and the command share."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of a training of OAT.

    Args:
        network: arguments of the network: d_appearance, d_position, heads, layers, feed_forward, dropout,
            attention_dropout, object_heads, positions, sigma, steps; mixer, the mechanism by which objects attend to
            each other, such as workspace(slots=4) or graph_window(hops=1); gates, such as
            mixture_of_heads(shared=1, active=2); prior_share, the share of a Markov model in the probabilities.
        appearance: description of objects that the network gets: none, the feature vectors of the file, or crops of
            the images (cnn).
        target_position: whether the network is given the position of the target; hide it to model search.
        split: the unit of the split; training and validation have no layout (or person, or target) in common.
        validation_share: share of the layouts, people or targets that is kept for validation.
        epochs: largest number of epochs.
        patience: epochs without a better validation loss before training stops.
        batch: scanpaths per step.
        lr: learning rate.
        weight_decay: weight decay of AdamW.
        ema_decay: decay of the moving average of the weights, which is validated and kept; 0 turns averaging off.
        mirror: also train on each scanpath in the mirrored scene.
        alike: put scanpaths of similar length into one batch, which cuts the time to a third if some are long.
        feature_names: meaning of the numbers of the feature vectors, stored with the weights.
        task: what people did, stored with the weights; by default search, or free viewing if no scene has a target.
        seed: seed of the split, the parameters, the order and the dropout.
    """

    network: dict[str, Any] | None = None
    appearance: Literal["none", "features", "cnn"] = "none"
    target_position: Literal["hidden", "given"] = "hidden"
    split: Literal["layout", "person", "target"] = "layout"
    validation_share: float = 0.2
    epochs: int = 500
    patience: int = 30
    batch: int = 20
    lr: float = 1e-4
    weight_decay: float = 0.0
    ema_decay: float = 0.0
    mirror: bool = False
    alike: bool = False
    feature_names: list[str] | None = None
    task: str | None = None
    seed: int = 0
