"""Does training work? One network, one pair, a few hundred steps: the loss must fall and the Dice must rise."""

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from monai.data import DataLoader, Dataset
from torch import nn

from ..runs.files import atomic_path
from ..volumes import Volume
from .data import prepare_volumes
from .module import RegistrationModule, Similarity, common_labels, export_network


def overfit(
    moving: Volume,
    fixed: Volume,
    output: Path,
    *,
    moving_labels: Volume,
    fixed_labels: Volume,
    network: nn.Module | None = None,
    spacing_mm: float = 3.0,
    size: Sequence[int] | None = (64, 64, 64),
    steps: int = 300,
    learning_rate: float = 1e-3,
    similarity: Similarity = "ncc",
    smoothness: float = 1.0,
    affine: Literal["affine", "rigid", "none"] = "affine",
    seed: int = 0,
) -> dict[str, Any]:
    """Train on one pair of images, the affine applied, and measure before and after; labels are for measuring only.

    `output` receives network.safetensors and network.ckpt, which `register` takes, and overfit.json with the row and
    the loss of every step. Nothing about other pairs follows from these figures.

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        output: the folder to write to.
        moving_labels: label map in the world of `moving`.
        fixed_labels: label map in the world of `fixed`.
        network: what to train; a new `NestedMorph` if not given.
        spacing_mm: of the training grid.
        size: of the training grid in voxels.
        steps: of the optimiser.
        learning_rate: of the first step; it falls to 0 as (1 - step / steps)^0.9.
        similarity: see `RegistrationModule`.
        smoothness: see `RegistrationModule`.
        affine: pre-alignment, see `registration.data.prepare`.
        seed: of the weights.

    Returns:
        "loss_before", "loss_after", "dice_before" (affine alone), "dice_after": in evaluation mode, on the training
        grid; "non_positive_jacobian_percent", "sdlogj", "steps", "seconds" (of the training), "labels" (how many) and
        "weights" (the file).
    """
    L.seed_everything(seed, workers=True, verbose=False)
    item = prepare_volumes(
        moving,
        fixed,
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
        spacing_mm=spacing_mm,
        size=size,
        affine=affine,
        cache_dir=output / "cache",
    )
    module = RegistrationModule(
        network,
        similarity=similarity,
        smoothness=smoothness,
        learning_rate=learning_rate,
        epochs=steps,
        spacing_mm=spacing_mm,
    )
    loader = DataLoader(Dataset([item]), batch_size=1)
    (batch,) = loader
    before = _evaluate(module, batch)
    losses = _Losses()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=steps,  # an epoch is one step
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no `val_dataloader`.*")
        trainer.fit(module, loader)
    seconds = time.perf_counter() - started
    after = _evaluate(module, batch)
    export_network(output / "network.safetensors", module)
    with atomic_path(output / "network.ckpt") as temporary:
        trainer.save_checkpoint(temporary)
    row = {
        "loss_before": before["loss"],
        "loss_after": after["loss"],
        "dice_before": before["affine_dice"],
        "dice_after": after["dice"],
        "non_positive_jacobian_percent": after["non_positive_jacobian_percent"],
        "sdlogj": after["sdlogj"],
        "steps": trainer.global_step,
        "seconds": seconds,
        "labels": len(common_labels(batch["moving_labels"], batch["fixed_labels"])),
        "weights": str(output / "network.safetensors"),
    }
    with atomic_path(output / "overfit.json") as temporary:
        temporary.write_text(json.dumps(row | {"seed": seed, "loss": losses.values}, indent=2))
    return row


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
