"""Train the network that finds tissues in scans of any contrast, on images drawn from label maps."""

import copy
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..runs.catalogue import find_weights
from ..runs.checks import check_resume, check_same_options
from ..runs.compute import choose_device
from ..runs.json_files import finite_or_none, write_json
from ..runs.muon import Muon
from ..runs.training import MetricsFile, SteppedModule, quiet_lightning, update_average
from ..runs.weight_file import check_resumable, read_checkpoint
from .synthetic import LabelMap, SyntheticScan, read_label_maps, synthetic_scan
from .synthetic_data import EpochNumbers, held_out
from .tissue_settings import TissueTrainingSettings
from .tissues import TissueNet, TrainedTissueNet, read_tissue_net, save_tissue_net
from .training_settings import CHECKPOINT

_SAMPLES = 8  # of a voxel, see `SyntheticScan`
_SCANS_OF_A_MAP = 3  # for validation
_VALIDATION_SEED = 99
_WARM_UP = 100  # steps
_FALLING = 0.3  # of the training, at its end
_LOWEST = 0.02  # of the learning rate
_LONGEST_GRADIENT = 5.0
_AVERAGING = 0.99
_MAY_CHANGE_ON_RESUME = {"epochs", "workers"}
_WHAT = "a training of the tissue network"


class SyntheticScans(Dataset[SyntheticScan]):
    """Scan number i shows label map i modulo their number, and depends only on the seed and on i.

    Args:
        maps: the label maps.
        size: the training grid in voxels.
        spacing_mm: its voxel spacing.
        seed: seed of all scans.
        count: number of scans; None for no end.
    """

    def __init__(
        self, maps: Sequence[LabelMap], *, size: Sequence[int], spacing_mm: float, seed: int, count: int | None = None
    ):
        self.maps, self.size, self.spacing_mm, self.seed, self.count = list(maps), size, spacing_mm, seed, count

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError("scans without an end have no length")
        return self.count

    def __getitem__(self, number: int) -> SyntheticScan:
        if self.count is not None and not 0 <= number < self.count:
            raise IndexError(f"number must be in [0, {self.count}), got {number}")
        labels = self.maps[number % len(self.maps)]
        return synthetic_scan(labels, size=self.size, spacing_mm=self.spacing_mm, seed=self.seed, number=number)


class TissueModule(SteppedModule):
    """A `TissueNet`, its loss and its optimizer; validation and export use averaged weights.

    The loss is the cross-entropy with the most frequent tissue of each voxel, plus 1 - the mean soft Dice of the
    tissues, 2 sum(p t) / sum(p^2 + t^2). Hyper-parameters are plain values.

    Args:
        settings: the fields of `TissueTrainingSettings`.
        maps: the names of the label maps for training; stored with the weights.
    """

    def __init__(self, settings: dict[str, Any], maps: list[str]):
        super().__init__()
        self.save_hyperparameters()
        self.settings = TissueTrainingSettings(**settings)
        start = self.settings.start_from
        self.network = TissueNet(width=self.settings.width)
        if start is not None:
            earlier = read_tissue_net(find_weights(start, "registration")).network
            if earlier.config != self.network.config:
                raise ValueError(f"start_from must be a network of the same layout, got {start} of {earlier.config}")
            self.network.load_state_dict(earlier.state_dict())
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()

    def forward(self, scan: Tensor) -> Tensor:
        """The logits of the averaged network."""
        logits: Tensor = self.average(scan)
        return logits

    def training_step(self, batch: SyntheticScan, batch_idx: int) -> Tensor:
        """Return the loss of one scan."""
        loss, _ = tissue_loss(self.network(batch["image"]), batch["tissues"])
        self.log("train_loss", loss.detach(), prog_bar=True, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return loss

    def validation_step(self, batch: SyntheticScan, batch_idx: int) -> None:
        """Log "val_loss" and "val_dice" of the averaged network."""
        loss, dice = tissue_loss(self(batch["image"]), batch["tissues"])
        values = {"val_loss": loss, "val_dice": dice.mean()}
        self.log_dict(values, prog_bar=True, batch_size=1, sync_dist=True)

    def after_step(self, steps: int) -> None:
        """Update the averaged weights."""
        update_average(self.average, self.network, decay=_AVERAGING, step=steps)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Muon, with a learning rate that changes every step."""
        total = self.settings.epochs * self.settings.epoch_steps

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / _WARM_UP) * min(1.0, max(_LOWEST, (total - step) / (_FALLING * total)))

        optimizer = Muon(self.network.named_parameters(), lr=self.settings.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def tissue_loss(logits: Tensor, tissues: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of `TissueModule`, and the soft Dice of each tissue.

    Args:
        logits: (B, K, D, H, W).
        tissues: (B, K, D, H, W) uint8, samples of a voxel in each tissue.

    Returns:
        A number, and (B, K).
    """
    logits, shares = logits.float(), tissues.float() / _SAMPLES
    found = logits.softmax(dim=1)
    both, each = (found * shares).sum(dim=(2, 3, 4)), (found.square() + shares.square()).sum(dim=(2, 3, 4))
    dice = (2 * both + 1) / (each + 1)
    return F.cross_entropy(logits, tissues.argmax(dim=1)) + 1 - dice.mean(), dice


def train_tissues(
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: TissueTrainingSettings = TissueTrainingSettings(),  # noqa: B008  it is frozen
    *,
    device: str = "auto",
    resume: bool = False,
) -> Path:
    """Train the network on images drawn from label maps.

    The last three label maps by name are for validation. OUTPUT receives network.safetensors (the averaged weights of
    the last epoch), checkpoints/, metrics.csv and training.json.

    Args:
        labels: a folder of label maps with FreeSurfer's numbers.
        output: the folder to write to.
        settings: the images, the network and the optimizer.
        device: "auto", "cpu" or "cuda"; "auto" uses a GPU if there is one.
        resume: continue from the last checkpoint in OUTPUT.

    Returns:
        The weights, for `voxelwave registration register --weights`.

    Raises:
        ValueError: the label maps cannot be used, OUTPUT already holds a training and `resume` is not set, or the
            settings differ from those of the training to resume.
        FileNotFoundError: a file, or the checkpoint to resume from, is missing.
    """
    accelerator = "gpu" if choose_device(device) == "cuda" else "cpu"
    output = Path(output)
    last = output / CHECKPOINT
    check_resume(last, resume)
    torch.manual_seed(settings.seed)
    training, validation = held_out(read_label_maps(labels))
    module = TissueModule(asdict(settings), [one.name for one in training])
    if resume:
        _check_same_options(last, module)
    grid: dict[str, Any] = {"size": settings.size, "spacing_mm": settings.spacing_mm}
    count = _SCANS_OF_A_MAP * len(validation)
    loaders = (
        DataLoader(
            SyntheticScans(training, seed=settings.seed, **grid),
            sampler=EpochNumbers(settings.epoch_steps),
            num_workers=settings.workers,
            persistent_workers=settings.workers > 0,
        ),
        DataLoader(SyntheticScans(validation, seed=_VALIDATION_SEED, count=count, **grid)),
    )
    with quiet_lightning():
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=settings.epochs,
            precision="bf16-mixed" if settings.precision == "bfloat16" else "32-true",
            gradient_clip_val=_LONGEST_GRADIENT,
            callbacks=[ModelCheckpoint(last.parent, last.stem, enable_version_counter=False)],
            logger=MetricsFile(output),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
        if resume:
            check_resumable(last, _WHAT, module)
        trainer.fit(module, *loaders, ckpt_path=last if resume else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return _finish(output, module, {name: float(value) for name, value in trainer.callback_metrics.items()})


def _check_same_options(checkpoint: Path, module: TissueModule) -> None:
    before = read_checkpoint(checkpoint, _WHAT)["hyper_parameters"]
    earlier, now = (options["settings"] | {"maps": options["maps"]} for options in (before, module.hparams))
    check_same_options(earlier, now, may_change=_MAY_CHANGE_ON_RESUME)


def _finish(output: Path, module: TissueModule, metrics: dict[str, float]) -> Path:
    """Write the averaged weights and training.json."""
    weights = output / "network.safetensors"
    save_tissue_net(weights, TrainedTissueNet(module.average, module.settings.spacing_mm), {})
    record = {
        "options": asdict(module.settings),
        "maps": module.hparams["maps"],
        "metrics": {name: finite_or_none(value) for name, value in metrics.items()},
        "versions": {name: version(name) for name in ("torch", "lightning")},
        "python": platform.python_version(),
    }
    write_json(output / "training.json", record, indent=2)
    return weights
