"""Train OAT on a dataset of scanpaths and keep the epoch with the best validation loss."""

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

from ..runs.training import BestEpoch, quiet_lightning
from ..runs.weight_file import check_resumable
from .data import PathData
from .estimators import build_module, model_info
from .module import FIGURES, VALIDATION_BATCH, ScanpathModule
from .oat import OAT
from .scene import Dataset
from .splits import Split, split
from .training_settings import TrainingSettings
from .weights import WeightsInfo

LAST = "last.ckpt"


@dataclass(frozen=True)
class Training:
    """A finished training.

    Args:
        network: the network with the weights of the best epoch.
        info: the description of the weights.
        module: the module after the last epoch.
        best: the learning curve, and the number of the best epoch.
        interrupted: whether the user stopped the training.
    """

    network: OAT
    info: WeightsInfo
    module: ScanpathModule
    best: BestEpoch
    interrupted: bool


def training_split(dataset: Dataset, settings: TrainingSettings) -> Split:
    """The trials of the training and the validation part."""
    folds = round(1 / settings.validation_share)
    return split(dataset, settings.split, folds=folds, seed=settings.seed)[0]


def train(
    dataset: Dataset,
    settings: TrainingSettings,
    folder: Path,
    *,
    accelerator: str = "cpu",
    resume: bool = False,
    notes: dict[str, str] | None = None,
) -> Training:
    """Train with a progress bar, and write folder/last.ckpt after each epoch.

    Args:
        dataset: the scanpaths, with the position of the target hidden or given as in the settings.
        settings: the settings of the training.
        folder: the folder for the checkpoint.
        accelerator: Lightning's accelerator, "cpu" or "gpu".
        resume: continue from folder/last.ckpt.
        notes: stored with the weights.
    """
    parts = training_split(dataset, settings)
    seed_everything(settings.seed, verbose=False)
    rates = {name: getattr(settings, name) for name in ("lr", "weight_decay", "ema_decay")}
    module = build_module(
        dataset, {**rates, **(settings.network or {})}, appearance=settings.appearance, seed=settings.seed
    )
    training, validation = (
        PathData(dataset, part, appearance=settings.appearance, mirror=mirrored)
        for part, mirrored in zip(parts, (settings.mirror, False), strict=True)
    )
    if not resume:
        module.fit_prior(training)
    best = BestEpoch("validation_nats", patience=settings.patience, figures=FIGURES)
    checkpoint = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    with quiet_lightning():
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=settings.epochs,
            gradient_clip_val=1.0,
            logger=False,
            callbacks=[best, checkpoint, RichProgressBar()],
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loaders = (
            training.loader(settings.batch, shuffle=module.order, alike=settings.alike),
            validation.loader(VALIDATION_BATCH),
        )
        if resume:
            check_resumable(folder / LAST, "a scanpath training", module)
        trainer.fit(module, *loaders, ckpt_path=folder / LAST if resume else None, weights_only=True)
    network = module.with_weights(best.weights)
    info = model_info(
        dataset,
        [*parts[0], *parts[1]],
        network.arguments,
        task=settings.task,
        features=settings.feature_names or (),
        notes={**(notes or {}), "seed": str(settings.seed), "epoch": str(best.epoch)},
    )
    return Training(network, info, module, best, trainer.interrupted)
