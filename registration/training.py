"""Train NestedMorph on pairs of scans: from a list or a folder to weights that `register` takes."""

import json
import os
import platform
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from monai.data import DataLoader

from ..runs.files import atomic_path
from .data import pair_dataset
from .module import RegistrationModule, Similarity, export_network
from .pairs import Contrast, Pair, Task, find_pairs, read_pairs, split_by_subject

_MAY_CHANGE_ON_RESUME = {"epochs"}


@dataclass(frozen=True)
class TrainingResult:
    """What a training left behind.

    Args:
        weights: the best network, for `voxelwave registration register --weights`.
        checkpoint: the same as a Lightning checkpoint.
        metric: the name of the metric that decided which epoch is best.
        value: its value there.
        test: metrics of the best network on the test pairs; empty without any.
        subjects: the subjects of each split.
    """

    weights: Path
    checkpoint: Path
    metric: str
    value: float
    test: dict[str, float]
    subjects: dict[str, list[str]]


def train(
    pairs: str | os.PathLike,
    output: str | os.PathLike,
    *,
    task: Task = "t1-dwi",
    contrast: Contrast = "b0",
    atlas: str | os.PathLike | None = None,
    spacing_mm: float = 2.0,
    size: tuple[int, int, int] = (96, 96, 96),
    similarity: Similarity = "mi",
    smoothness: float = 1.0,
    label_weight: float = 0.0,
    diffeomorphic: bool = False,
    learning_rate: float = 1e-4,
    epochs: int = 500,
    batch_size: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    resume: bool = False,
) -> TrainingResult:
    """Train NestedMorph on pairs of scans and keep the best weights.

    Subjects are shared out to train (80 %), val and test (10 % each). The best epoch is the one with the highest
    "val_dice", or without label maps the lowest "val_loss". OUTPUT receives network.safetensors (the best weights),
    checkpoints/, logs/ (a table of metrics per epoch), cache/ (affine results and prepared images) and training.json.

    Args:
        pairs: a list of pairs (.csv, .tsv or .json with columns moving, fixed and, where known, moving_labels,
            fixed_labels, subject, split), or a BIDS-like folder (sub-*/anat/*_T1w.nii.gz, sub-*/dwi/*_dwi.nii.gz).
        output: the folder to write to.
        task: of a folder: "t1-dwi" within a subject, "atlas-to-patient", or "patient-to-patient". A list says it.
        contrast: of a folder's diffusion series: "b0" (mean), "dwi" (mean of the weighted volumes) or "fa".
        atlas: the atlas image, for "atlas-to-patient".
        spacing_mm: spacing of the grid that the network sees, the same along all axes.
        size: voxels of that grid; scans are cropped or padded to it.
        similarity: "ncc" (one contrast), "mi" or "mind" (any two contrasts).
        smoothness: weight of the displacement's roughness (mean squared first derivatives, in voxels).
        label_weight: weight of the soft Dice loss; 0 does not use label maps for training.
        diffeomorphic: integrate the network's output as a velocity, so that nothing folds.
        learning_rate: of the first epoch; it falls to 0 as (1 - epoch / epochs)^0.9.
        epochs: passes through the training pairs.
        batch_size: pairs per step.
        device: "auto" takes CUDA if there is one.
        seed: of the split, the weights and the augmentation.
        resume: go on from the last checkpoint in OUTPUT.

    Raises:
        ValueError: for pairs that cannot be used, or options that differ from those of the training to resume.
        FileNotFoundError: for files that are not there, or nothing to resume.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device must be "auto", "cpu" or "cuda", got {device!r}')
    output = Path(output)
    last = output / "checkpoints" / "last.ckpt"
    if resume and not last.is_file():
        raise FileNotFoundError(f"nothing to resume: no {last}")
    if last.is_file() and not resume:
        raise ValueError(f"output {output} already holds a training: resume it, or choose another folder")

    L.seed_everything(seed, workers=True, verbose=False)
    found = find_pairs(pairs, task, contrast=contrast, atlas=atlas) if Path(pairs).is_dir() else read_pairs(pairs)
    splits = split_by_subject(found, seed=seed)
    if not splits["train"]:
        raise ValueError(f"pairs must leave one for training after the split by subject, got {len(found)} in all")
    module = RegistrationModule(
        similarity=similarity,
        smoothness=smoothness,
        label_weight=label_weight,
        learning_rate=learning_rate,
        epochs=epochs,
        diffeomorphic=diffeomorphic,
        spacing_mm=spacing_mm,
    )
    if resume:
        _check_same_options(last, module)
    loaders = {
        split: DataLoader(
            pair_dataset(
                kept,
                spacing_mm=spacing_mm,
                size=size,
                augment=split == "train",
                seed=seed,
                cache_dir=output / "cache",
            ),
            batch_size=batch_size if split == "train" else 1,
            shuffle=split == "train",
        )
        for split, kept in splits.items()
        if kept
    }
    best, last_only = _checkpoints(output / "checkpoints", splits)
    trainer = L.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[device],
        devices=1,
        max_epochs=epochs,
        callbacks=[best, last_only],
        logger=CSVLogger(output / "logs", name=None),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    trainer.fit(module, loaders["train"], loaders.get("val"), ckpt_path=last if resume else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    test: dict[str, float] = {}
    if "test" in loaders:
        (values,) = trainer.test(
            module, loaders["test"], ckpt_path=best.best_model_path, weights_only=True, verbose=False
        )
        test = {name: float(value) for name, value in values.items()}
    return _finish(output, module, best, {name: float(v) for name, v in test.items()}, splits)


def _checkpoints(folder: Path, splits: dict[Any, list[Pair]]) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    if not splits["val"]:
        warnings.warn("no pairs are left for validation: the best epoch is chosen by the training loss", stacklevel=3)
        monitor = "train_loss"
    else:
        monitor = "val_dice" if splits["val"][0].has_labels else "val_loss"
    best = ModelCheckpoint(folder, "best-{epoch}", monitor=monitor, mode="max" if monitor == "val_dice" else "min")
    return best, ModelCheckpoint(folder, "last", enable_version_counter=False)


def _check_same_options(checkpoint: Path, module: RegistrationModule) -> None:
    before = torch.load(checkpoint, map_location="cpu", weights_only=True)["hyper_parameters"]
    now = dict(module.hparams)
    changed = [name for name in now if name not in _MAY_CHANGE_ON_RESUME and before.get(name) != now[name]]
    if changed:
        words = ", ".join(f"{name} ({before.get(name)} before, {now[name]} now)" for name in changed)
        raise ValueError(f"a resumed training must keep its options, got another {words}")


def _finish(
    output: Path,
    module: RegistrationModule,
    best: ModelCheckpoint,
    test: dict[str, float],
    splits: dict[Any, list[Pair]],
) -> TrainingResult:
    checkpoint = Path(best.best_model_path)
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    export_network(output / "network.safetensors", module)
    assert best.best_model_score is not None
    subjects = {split: sorted({pair.subject for pair in kept}) for split, kept in splits.items()}
    result = TrainingResult(
        output / "network.safetensors", checkpoint, str(best.monitor), float(best.best_model_score), test, subjects
    )
    record = {
        "options": dict(module.hparams),
        "subjects": subjects,
        "pairs": {split: len(kept) for split, kept in splits.items()},
        "best": {"metric": result.metric, "value": result.value, "checkpoint": checkpoint.name},
        "test": test,
        "versions": {name: version(name) for name in ("torch", "lightning", "monai", "antspyx")},
        "python": platform.python_version(),
    }
    with atomic_path(output / "training.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2))
    return result
