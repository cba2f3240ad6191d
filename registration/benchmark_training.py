"""A check of training: fit NestedMorph to one pair, and measure the fall of the loss and the rise of the Dice."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from monai.data import DataLoader, Dataset
from torch import nn

from ..runs.files import atomic_path
from ..runs.json_files import write_json
from ..runs.training import quiet_lightning
from .benchmark_labels import LabelledScan
from .choices import AffineKind
from .data import prepare_volumes
from .module import RegistrationModule, common_labels, export_network
from .training_settings import TrainingSettings

OVERFIT = TrainingSettings(spacing_mm=3.0, size=(64, 64, 64), similarity="ncc", learning_rate=1e-3, epochs=300)


@dataclass(frozen=True)
class OverfitResult:
    """Measurements of a training on one pair, in evaluation mode on the training grid.

    Args:
        loss_before: loss of the untrained network.
        loss_after: loss of the trained network.
        dice_before: mean Dice after the affine alone.
        dice_after: mean Dice with the trained network.
        non_positive_jacobian_percent: folded voxels, in percent.
        sdlogj: standard deviation of the logarithm of the Jacobian determinant, by Learn2Reg's definition.
        steps: steps of the optimizer.
        seconds: wall time of the training.
        labels: number of labels that both maps have.
        weights: file of the trained network.
    """

    loss_before: float
    loss_after: float
    dice_before: float
    dice_after: float
    non_positive_jacobian_percent: float
    sdlogj: float
    steps: int
    seconds: float
    labels: int
    weights: str


def overfit(
    moving: LabelledScan,
    fixed: LabelledScan,
    output: Path,
    settings: TrainingSettings = OVERFIT,
    *,
    network: nn.Module | None = None,
    affine: AffineKind = "affine",
) -> OverfitResult:
    """Train on one affinely aligned pair of images, and measure before and after; labels are only used to measure.

    OUTPUT receives network.safetensors and network.ckpt, which `register` accepts, and overfit.json with the result and
    the loss of every step. The figures do not apply to other pairs.

    Args:
        moving: an image and its labels, (D, H, W) each.
        fixed: an image and its labels, (D, H, W) each.
        output: the folder to write to.
        settings: the grid, the loss and the optimizer; an epoch is one step.
        network: the network to train; by default a new `NestedMorph` with the flow head of the settings.
        affine: alignment before the training, see `registration.data.prepare`.
    """
    torch.manual_seed(settings.seed)
    item = prepare_volumes(
        moving.image,
        fixed.image,
        moving_labels=moving.labels,
        fixed_labels=fixed.labels,
        spacing_mm=settings.spacing_mm,
        size=settings.size,
        affine=affine,
        cache_dir=output / "cache",
    )
    module = RegistrationModule(
        network,
        similarity=settings.similarity,
        smoothness=settings.smoothness,
        learning_rate=settings.learning_rate,
        flow_head=settings.flow_head,
        epochs=settings.epochs,
        spacing_mm=settings.spacing_mm,
    )
    loader = DataLoader(Dataset([item]), batch_size=1)
    (batch,) = loader
    before = _evaluate(module, batch)
    losses = _Losses()
    started = time.perf_counter()
    trainer = _fit(module, loader, settings.epochs, losses)
    seconds = time.perf_counter() - started
    after = _evaluate(module, batch)
    export_network(output / "network.safetensors", module)
    with atomic_path(output / "network.ckpt") as temporary:
        trainer.save_checkpoint(temporary)
    result = OverfitResult(
        loss_before=before["loss"],
        loss_after=after["loss"],
        dice_before=before["affine_dice"],
        dice_after=after["dice"],
        non_positive_jacobian_percent=after["non_positive_jacobian_percent"],
        sdlogj=after["sdlogj"],
        steps=trainer.global_step,
        seconds=seconds,
        labels=len(common_labels(batch["moving_labels"], batch["fixed_labels"])),
        weights=str(output / "network.safetensors"),
    )
    content = asdict(result) | {"seed": settings.seed, "loss": losses.values}
    write_json(output / "overfit.json", content, indent=2)
    return result


def _fit(module: RegistrationModule, loader: DataLoader, epochs: int, losses: "_Losses") -> L.Trainer:
    with quiet_lightning():
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[losses],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
    return trainer


class _Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


def _evaluate(module: RegistrationModule, batch: dict[str, Any]) -> dict[str, float]:
    module.eval()
    with torch.inference_mode():
        values = module.evaluate_batch(batch)
    module.train()
    return values
