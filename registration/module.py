"""Training of a registration network without ground truth, by similarity, smoothness and label overlap."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ..runs.training import SteppedModule
from ..runs.weight_file import write_weights
from .choices import FlowHead, Norm, TrainingSimilarity
from .jacobian import non_positive_jacobian_fraction, sdlogj
from .metrics import dice
from .nestedmorph import NestedMorph
from .nestedmorph_files import RECORD
from .similarity import bending_energy, diffusion_energy, local_ncc_loss, mind_loss, mutual_information_loss
from .warp import warp

SIMILARITIES: dict[str, Callable[..., Tensor]] = {
    "ncc": local_ncc_loss,
    "mi": mutual_information_loss,
    "mind": mind_loss,
}
# options that files hold only if they differ from these values, by which earlier versions trained
ADDED: dict[str, Any] = {
    "mixer": None,
    "similarity_weight": 1.0,
    "correspondence_weight": 0.0,
    "width": None,
    "norm": "batch",
    "synthetic": None,
}
_EVEN_MM = 0.03  # distances far below it count as squares
REGULARIZERS: dict[str, Callable[..., Tensor]] = {"diffusion": diffusion_energy, "bending": bending_energy}


class RegistrationModule(SteppedModule):
    """A registration network with its loss, its validation metrics and its optimizer.

    Batches hold the items of `registration.data`. The loss is similarity_weight * similarity
    + smoothness * regularizer(displacement) + label_weight * soft Dice loss. The optimizer is Adam with amsgrad; the
    learning rate of epoch e of E is round(learning_rate * (1 - e / E)^0.9, 8), as published. Hyper-parameters are plain
    values, so that checkpoints load with `weights_only=True`.

    Args:
        network: `network(moving, fixed) -> (warped, displacement)` on (B, 1, D, H, W) in [0, 1]; by default a new
            `NestedMorph`.
        similarity: "ncc" (local correlation), "mi" (mutual information) or "mind" (self-similarity context).
        similarity_weight: weight of the similarity; 0 leaves it out of the loss.
        regularizer: "diffusion" (first derivatives) or "bending" (second), of the displacement in voxels.
        smoothness: weight of the regularizer.
        label_weight: weight of the soft Dice loss over the label maps; 0 leaves them out of the loss.
        correspondence_weight: weight of `correspondence_error`, for pairs with known places; 0 leaves it out.
        learning_rate: learning rate of the first epoch.
        epochs: E above, the length of the training.
        diffeomorphic: whether a new `NestedMorph` predicts a velocity.
        flow_head: flow head of a new `NestedMorph`.
        mixer: mechanism of the coarse stages of a new `NestedMorph`.
        width: channels of the first stage of a new `NestedMorph`.
        norm: normalisation in the gates of a new `NestedMorph`.
        synthetic: how the pairs of a training on synthetic images are drawn, as plain values; stored with the weights.
        spacing_mm: spacing of the training grid; stored with the weights, since a network works at this spacing only.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        similarity: TrainingSimilarity = "ncc",
        similarity_weight: float = 1.0,
        regularizer: Literal["diffusion", "bending"] = "diffusion",
        smoothness: float = 1.0,
        label_weight: float = 0.0,
        correspondence_weight: float = 0.0,
        learning_rate: float = 1e-4,
        epochs: int = 500,
        diffeomorphic: bool = False,
        flow_head: FlowHead = "published",
        mixer: str | None = None,
        width: int | None = None,
        norm: Norm = "batch",
        synthetic: dict[str, Any] | None = None,
        spacing_mm: float = 1.0,
    ):
        super().__init__()
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")
        if regularizer not in REGULARIZERS:
            raise ValueError(f"regularizer must be one of {', '.join(REGULARIZERS)}, got {regularizer!r}")
        weights = similarity_weight, smoothness, label_weight, correspondence_weight
        if min(weights) < 0 or learning_rate <= 0 or epochs < 1:
            raise ValueError(
                "similarity_weight, smoothness, label_weight and correspondence_weight must not be negative,"
                f" learning_rate and epochs be positive, got {', '.join(map(str, weights))}, {learning_rate} and"
                f" {epochs}"
            )
        if similarity_weight == label_weight == correspondence_weight == 0:
            raise ValueError(
                "similarity_weight, label_weight or correspondence_weight must be above 0, got 0 for all three"
            )
        added = {
            "mixer": mixer,
            "similarity_weight": similarity_weight,
            "correspondence_weight": correspondence_weight,
            "width": width,
            "norm": norm,
        }
        # without these options, files stay as they were
        usual = [name for name, value in (added | {"synthetic": synthetic}).items() if value == ADDED[name]]
        self.save_hyperparameters(ignore=["network", *usual])
        if network is None:
            network = NestedMorph(diffeomorphic=diffeomorphic, flow_head=flow_head, mixer=mixer, width=width, norm=norm)
        self.network = network

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return `network(moving, fixed)`: the warped image and the displacement."""
        warped, displacement = self.network(moving, fixed)
        return warped, displacement

    def losses(self, batch: dict[str, Any], warped: Tensor, displacement: Tensor) -> dict[str, Tensor]:
        """Return the unweighted parts of the loss, and their weighted sum as "loss"."""
        options = self.hparams
        parts: dict[str, Tensor] = {}
        weight = options.get("similarity_weight", 1.0)
        if weight > 0:
            parts["similarity"] = SIMILARITIES[options["similarity"]](warped, batch["fixed"])
        parts["roughness"] = REGULARIZERS[options["regularizer"]](displacement)
        loss = options["smoothness"] * parts["roughness"]
        if weight > 0:
            loss = weight * parts["similarity"] + loss
        if options["label_weight"] > 0:
            if "fixed_labels" not in batch:
                raise ValueError(f"label_weight must be 0 for pairs without label maps, got {options['label_weight']}")
            parts["label_dice_loss"] = soft_dice_loss(batch["moving_labels"], batch["fixed_labels"], displacement)
            loss = loss + options["label_weight"] * parts["label_dice_loss"]
        if (weight := options.get("correspondence_weight", 0.0)) > 0:
            if "fixed_places" not in batch:
                raise ValueError(f"correspondence_weight must be 0 for pairs without known places, got {weight}")
            parts["correspondence_mm"] = correspondence_error(batch, displacement)
            loss = loss + weight * parts["correspondence_mm"]
        return {"loss": loss} | parts

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        parts = self.losses(batch, *self(batch["moving"], batch["fixed"]))
        values = {f"train_{name}": value.detach() for name, value in parts.items()}
        self.log_dict(
            values, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch["fixed"]), sync_dist=True
        )
        return parts["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log "val_loss" and, with label maps, "val_dice"; see `evaluate_batch`."""
        self._log_evaluation("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the same metrics as `validation_step`, with names "test_*"."""
        self._log_evaluation("test", batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return "warped" (B, 1, D, H, W) and "displacement" (B, 3, D, H, W) in voxels."""
        warped, displacement = self(batch["moving"], batch["fixed"])
        return {"warped": warped, "displacement": displacement}

    def evaluate_batch(self, batch: dict[str, Any]) -> dict[str, float]:
        """Return losses, "non_positive_jacobian_percent", "sdlogj", and with label maps "dice" and "affine_dice".

        "affine_dice" is the Dice of the same labels before the network, for comparison.
        """
        warped, displacement = self(batch["moving"], batch["fixed"])
        values = {name: float(value) for name, value in self.losses(batch, warped, displacement).items()}
        values["non_positive_jacobian_percent"] = 100 * non_positive_jacobian_fraction(displacement)
        values["sdlogj"] = sdlogj(displacement)
        if "fixed_labels" in batch:
            moving, fixed = batch["moving_labels"], batch["fixed_labels"]
            moved = warp(moving.float(), displacement, mode="nearest").round().long()
            labels = common_labels(moving, fixed)
            values["dice"] = mean_dice(moved, fixed, labels)
            values["affine_dice"] = mean_dice(moving, fixed, labels)
        return values

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return Adam (amsgrad) and the polynomial decay of the learning rate."""
        first, epochs = self.hparams["learning_rate"], self.hparams["epochs"]
        optimizer = torch.optim.Adam(self.network.parameters(), lr=first, amsgrad=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: round(first * max(0.0, 1 - epoch / epochs) ** 0.9, 8) / first
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the layout of the network, which `load_nestedmorph` needs."""
        if isinstance(self.network, NestedMorph):
            checkpoint[RECORD] = self.network.config

    def _log_evaluation(self, prefix: str, batch: dict[str, Any]) -> None:
        values = {f"{prefix}_{name}": value for name, value in self.evaluate_batch(batch).items()}
        self.log_dict(values, prog_bar=True, batch_size=len(batch["fixed"]), sync_dist=True)


def soft_dice_loss(moving_labels: Tensor, fixed_labels: Tensor, displacement: Tensor) -> Tensor:
    """Return 1 - the mean soft Dice of the labels that both maps have, except 0; differentiable in the displacement.

    Args:
        moving_labels: (B, 1, D, H, W), whole numbers.
        fixed_labels: (B, 1, D, H, W), whole numbers.
        displacement: (B, 3, D, H, W) in voxels; the mask of each label is warped linearly.

    Raises:
        ValueError: the maps have no label in common.
    """
    labels = common_labels(moving_labels, fixed_labels)
    if not labels:
        raise ValueError("moving_labels and fixed_labels must have a label in common, got none besides 0")
    wanted = torch.tensor(labels, device=fixed_labels.device).view(1, -1, 1, 1, 1)
    warped = warp((moving_labels == wanted).to(displacement.dtype), displacement)
    fixed = (fixed_labels == wanted).to(displacement.dtype)
    overlap = (warped * fixed).sum(dim=(0, 2, 3, 4))
    size = (warped + fixed).sum(dim=(0, 2, 3, 4))
    return 1 - (2 * overlap / size.clamp(min=1e-5)).mean()


def correspondence_error(batch: dict[str, Any], displacement: Tensor) -> Tensor:
    """Return the mean distance in mm between the place that a voxel shows and the place found for it, differentiable.

    It is the mean of two means: over the head, and over the labelled structures within it.

    Args:
        batch: moving_places and fixed_places, (B, 3, D, H, W) in mm; fixed_head and fixed_labels, (B, 1, D, H, W).
        displacement: (B, 3, D, H, W) in voxels.
    """
    found = warp(batch["moving_places"], displacement, padding="border")
    squares = (found - batch["fixed_places"]).square().sum(dim=1, keepdim=True)
    distance = (squares + _EVEN_MM**2).sqrt()  # the root alone has no derivative at 0
    parts = batch["fixed_head"], (batch["fixed_labels"] > 0).to(distance.dtype)
    return torch.stack([(distance * part).sum() / part.sum().clamp(min=1) for part in parts]).mean()


def common_labels(moving_labels: Tensor, fixed_labels: Tensor) -> list[int]:
    """Return the labels that occur in both maps, except 0, in increasing order."""
    both = set(moving_labels.unique().tolist()) & set(fixed_labels.unique().tolist())
    return sorted(int(label) for label in both - {0})


def mean_dice(labels: Tensor, reference: Tensor, label_list: Sequence[int]) -> float:
    """Return the mean Dice of two maps (B, 1, D, H, W) over `label_list` and the batch; absent labels are ignored."""
    scores = [
        list(dice(one[0], other[0], label_list=label_list).values())
        for one, other in zip(labels, reference, strict=True)
    ]
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def export_network(path: str | os.PathLike[str], module: RegistrationModule) -> None:
    """Write the network as safetensors, with its architecture, its layout and the options of the training as metadata.

    `load_nestedmorph` reads the network, `read_training_options` the options.
    """
    metadata = {
        "architecture": type(module.network).__name__,
        "training": json.dumps(dict(module.hparams) | {"orientation": "RAS"}),
    }
    if isinstance(module.network, NestedMorph):
        metadata[RECORD] = json.dumps(module.network.config)
    write_weights(path, module.network.state_dict(), metadata)
