"""Train NestedMorph on pairs of scans or on synthetic images: from a list or a folder to weights for `register`."""

import os
import platform
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from monai.data import DataLoader

from ..runs.checks import check_resume, check_same_options
from ..runs.compute import choose_device
from ..runs.json_files import finite_or_none, write_json
from ..runs.training import quiet_lightning
from ..runs.weight_file import check_resumable, read_checkpoint
from .choices import Split
from .data import pair_dataset
from .module import ADDED, RegistrationModule, export_network
from .pairs import Pair, find_pairs, read_pairs, split_by_subject
from .synthetic import LabelMap, read_label_maps
from .synthetic_data import EpochNumbers, SyntheticPairs, ValidationPairs, held_out
from .training_settings import CHECKPOINT, TrainingSettings

_MAY_CHANGE_ON_RESUME = {"epochs"}
_DRAWN = ("seed", "epoch_steps", "one_contrast_epochs", "batch_size", "accumulate", "longest_gradient")
# options that some trainings do not record
_UNRECORDED = ADDED | {"flow_head": "published", "one_contrast_epochs": 0, "longest_gradient": 0.0}
_WHAT = "a registration training"


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Args:
        weights: the best network, for `voxelwave registration register --weights`.
        checkpoint: the same network as a Lightning checkpoint.
        metric: name of the metric that decided which epoch is best.
        value: its value in that epoch.
        test: metrics of the best network on the test pairs; empty without test pairs.
        subjects: the subjects of each split.
    """

    weights: Path
    checkpoint: Path
    metric: str
    value: float
    test: dict[str, float]
    subjects: dict[Split, list[str]]


def train(
    pairs: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    settings: TrainingSettings = TrainingSettings(),  # noqa: B008  it is frozen
    *,
    device: str = "auto",
    resume: bool = False,
) -> TrainingResult:
    """Train NestedMorph on pairs of scans, or on images drawn from label maps, and keep the best weights.

    Subjects are divided into train (80 %), val and test (10 % each); of label maps, the last three by name are val, and
    each of them gives the same pairs in every training. The best epoch is the one with the highest
    "val_dice", or without label maps the lowest "val_loss". OUTPUT receives network.safetensors (the best weights),
    checkpoints/, logs/ (a table of metrics per epoch), cache/ (affine results and prepared images) and training.json.

    Args:
        pairs: a list of pairs (.csv, .tsv or .json with columns moving, fixed and, where known, moving_labels,
            fixed_labels, subject, split), or a BIDS-like folder (sub-*/anat/*_T1w.nii.gz, sub-*/dwi/*_dwi.nii.gz);
            None if `settings.synthetic` names a folder of label maps.
        output: the folder to write to.
        settings: the data, the loss and the optimizer.
        device: "auto", "cpu" or "cuda"; "auto" uses a GPU if there is one.
        resume: continue from the last checkpoint in OUTPUT.

    Raises:
        ValueError: the pairs cannot be used, OUTPUT already holds a training and `resume` is not set, or the settings
            differ from those of the training to resume.
        FileNotFoundError: a file, or the checkpoint to resume from, is missing.
    """
    accelerator = "gpu" if choose_device(device) == "cuda" else "cpu"
    output = Path(output)
    last = output / CHECKPOINT
    check_resume(last, resume)
    torch.manual_seed(settings.seed)  # weights, and the order of the training pairs
    data = _scans(pairs, settings, output / "cache") if settings.synthetic is None else _synthetic(settings)
    module = RegistrationModule(
        similarity=settings.similarity,
        similarity_weight=settings.similarity_weight,
        smoothness=settings.smoothness,
        label_weight=settings.label_weight,
        correspondence_weight=settings.correspondence_weight,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        diffeomorphic=settings.diffeomorphic,
        flow_head=settings.flow_head,
        mixer=settings.mixer,
        width=settings.width,
        norm=settings.norm,
        synthetic=data.drawn,
        spacing_mm=settings.spacing_mm,
    )
    if resume:
        _check_same_options(last, module)
    mode = "max" if data.monitor == "val_dice" else "min"
    best = ModelCheckpoint(last.parent, "best-{epoch}", monitor=data.monitor, mode=mode)
    with quiet_lightning():
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=settings.epochs,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.longest_gradient or None,
            callbacks=[best, ModelCheckpoint(last.parent, last.stem, enable_version_counter=False)],
            logger=CSVLogger(output / "logs", name=None),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
        if resume:
            check_resumable(last, _WHAT, module)
        loaders = data.loaders
        trainer.fit(module, loaders["train"], loaders.get("val"), ckpt_path=last if resume else None, weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        test: dict[str, float] = {}
        if "test" in loaders:
            (values,) = trainer.test(
                module, loaders["test"], ckpt_path=best.best_model_path, weights_only=True, verbose=False
            )
            test = {name: float(value) for name, value in values.items()}
    return _finish(output, module, best, test, data)


@dataclass(frozen=True)
class _Data:
    """The data of a training.

    Args:
        loaders: the batches of each split that is not empty.
        subjects: the subjects of each split.
        pairs: the number of pairs of each split.
        monitor: the metric that decides which epoch is best.
        drawn: how pairs are drawn from label maps; None for pairs of scans.
    """

    loaders: dict[Split, DataLoader]
    subjects: dict[Split, list[str]]
    pairs: dict[Split, int]
    monitor: str
    drawn: dict[str, Any] | None = None


def _synthetic(settings: TrainingSettings) -> _Data:
    assert settings.synthetic is not None
    training, validation = held_out(read_label_maps(settings.synthetic))
    grid: dict[str, Any] = {"size": settings.size, "spacing_mm": settings.spacing_mm}
    count = settings.epoch_steps * settings.accumulate * settings.batch_size
    pairs = SyntheticPairs(training, seed=settings.seed, alike=count * settings.one_contrast_epochs, **grid)
    of_val = ValidationPairs(validation, **grid)
    loaders: dict[Split, DataLoader] = {
        "train": DataLoader(
            pairs,
            batch_size=settings.batch_size,
            sampler=EpochNumbers(count),
            num_workers=settings.workers,
            persistent_workers=settings.workers > 0,
        ),
        "val": DataLoader(of_val, batch_size=1),
    }
    drawn = {name: getattr(settings, name) for name in _DRAWN}
    names: dict[Split, list[str]] = {"train": _names(training), "val": _names(validation), "test": []}
    return _Data(
        loaders,
        names,
        {"train": count * settings.epochs, "val": len(of_val), "test": 0},
        "val_dice",
        drawn | {"size": list(settings.size), "maps": names["train"]},
    )


def _names(maps: list[LabelMap]) -> list[str]:
    return [labels.name for labels in maps]


def _scans(pairs: str | os.PathLike[str] | None, settings: TrainingSettings, cache: Path) -> _Data:
    if pairs is None:
        raise ValueError("pairs must be given, or synthetic in the settings, got neither")
    splits = _splits(pairs, settings)
    if not splits["val"]:
        warnings.warn("no pairs are left for validation: the best epoch is chosen by the training loss", stacklevel=3)
        monitor = "train_loss"
    else:
        monitor = "val_dice" if splits["val"][0].has_labels else "val_loss"
    return _Data(
        {split: _loader(split, kept, settings, cache) for split, kept in splits.items() if kept},
        {split: sorted({pair.subject for pair in kept}) for split, kept in splits.items()},
        {split: len(kept) for split, kept in splits.items()},
        monitor,
    )


def _splits(pairs: str | os.PathLike[str], settings: TrainingSettings) -> dict[Split, list[Pair]]:
    if Path(pairs).is_dir():
        found = find_pairs(pairs, settings.task, contrast=settings.contrast, atlas=settings.atlas)
    else:
        found = read_pairs(pairs)
    if any(pair.moving_mask or pair.fixed_mask for pair in found):
        warnings.warn("the masks in the list are not used: a training compares all voxels", stacklevel=4)
    splits = split_by_subject(found, seed=settings.seed)
    if not splits["train"]:
        raise ValueError(f"pairs must leave one for training after the split by subject, got {len(found)} in all")
    return splits


def _loader(split: Split, pairs: list[Pair], settings: TrainingSettings, cache: Path) -> DataLoader:
    data = pair_dataset(
        pairs,
        spacing_mm=settings.spacing_mm,
        size=settings.size,
        augment=split == "train",
        seed=settings.seed,
        cache_dir=cache,
    )
    return DataLoader(data, batch_size=settings.batch_size if split == "train" else 1, shuffle=split == "train")


def _check_same_options(checkpoint: Path, module: RegistrationModule) -> None:
    before, now = (
        _UNRECORDED | dict(options) | (options.get("synthetic") or {})
        for options in (read_checkpoint(checkpoint, _WHAT)["hyper_parameters"], module.hparams)
    )
    check_same_options(before, now, may_change=_MAY_CHANGE_ON_RESUME | {"synthetic"})


def _finish(
    output: Path,
    module: RegistrationModule,
    best: ModelCheckpoint,
    test: dict[str, float],
    data: _Data,
) -> TrainingResult:
    """Export the best weights and write training.json."""
    checkpoint = Path(best.best_model_path)
    module.load_state_dict(read_checkpoint(checkpoint, _WHAT)["state_dict"])
    export_network(output / "network.safetensors", module)
    assert best.best_model_score is not None
    result = TrainingResult(
        output / "network.safetensors", checkpoint, str(best.monitor), float(best.best_model_score), test, data.subjects
    )
    record = {
        "options": dict(module.hparams),
        "subjects": data.subjects,
        "pairs": data.pairs,
        "best": {"metric": result.metric, "value": finite_or_none(result.value), "checkpoint": checkpoint.name},
        "test": {name: finite_or_none(value) for name, value in test.items()},
        "versions": {name: version(name) for name in ("torch", "lightning", "monai", "antspyx")},
        "python": platform.python_version(),
    }
    write_json(output / "training.json", record, indent=2)
    return result
