"""`voxelwave scanpath train`: train OAT on scanpaths."""

import csv
from pathlib import Path
from typing import Any, Literal

# torch and its friends load in the functions, so that --help answers at once

LAST, CURVE = "last.ckpt", "curve.csv"


def train(
    data: Path,
    *,
    output: Path,
    network: dict[str, Any] | None = None,
    appearance: Literal["none", "features", "cnn"] = "none",
    target_position: Literal["hidden", "given"] = "hidden",
    split: Literal["layout", "person", "target"] = "layout",
    validation_share: float = 0.2,
    epochs: int = 500,
    patience: int = 30,
    batch: int = 20,
    lr: float = 1e-4,
    weight_decay: float = 0.0,
    ema_decay: float = 0.0,
    mirror: bool = False,
    alike: bool = False,
    long_trials: Literal["keep", "drop"] = "keep",
    duplicates: Literal["error", "drop"] = "error",
    feature_names: list[str] | None = None,
    task: str | None = None,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Train OAT on the scanpaths of DATA, for use with `predict` and `evaluate`.

    A share of the layouts (or people, or targets) is kept for validation: its likelihood decides when to stop and which
    epoch is kept, so it flatters; for honest figures run `voxelwave scanpath cross-validate`. OUTPUT receives
    model.safetensors, curve.csv (a row per epoch), last.ckpt and record.json.

    Args:
        data: scanpaths: a .json file of our own or of Search Target Inference, a folder with three .csv tables, or one
            with COCO boxes and COCO-Search18 fixations.
        output: the folder to write into.
        network: arguments of the network: d_appearance, d_position, heads, layers, feed_forward, dropout,
            attention_dropout, object_heads, positions, sigma, steps.
        appearance: what is known of how objects look: nothing, the feature vectors of the file, or crops of its images.
        target_position: whether the network is told where the target is. A search is only one if it is hidden.
        split: what training and validation do not share.
        validation_share: of the layouts, people or targets.
        epochs: at most.
        patience: epochs without better validation until it stops.
        batch: scanpaths per step.
        lr: learning rate of Adam.
        weight_decay: of AdamW.
        ema_decay: of the average of the weights that is validated and kept; 0 takes the weights themselves.
        mirror: also learn each scanpath in the mirrored scene, for people who look alike to both sides.
        alike: batches hold scanpaths of like lengths: a third of the time, where some are long.
        long_trials: drop leaves out trials longer than the mean plus three standard deviations, as published.
        duplicates: what to do with trials that are copies of each other: an error, or drop them.
        feature_names: what each number of the feature vectors means, kept in the weights.
        task: what people did, kept in the weights; default search, or free viewing where no scene has a target.
        resume: go on from last.ckpt of the output folder.
        seed: of the split, parameters, order and dropout.
        threads: of the CPU; default all.
        device: where it trains; auto takes a GPU if there is one.
    """
    import logging
    import warnings

    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

    from ...runs.checks import check_resume, choose_device, use_threads
    from ...runs.record import command_line, write_record
    from ...scanpath.data import PathData
    from ...scanpath.estimators import WEIGHTS, build_module, model_info, read_dataset
    from ...scanpath.module import BestEpoch
    from ...scanpath.splits import split as split_trials
    from ...scanpath.weights import save_model

    checkpoint = output / LAST
    check_resume(checkpoint, resume)
    if not 0 < validation_share <= 0.5:
        raise ValueError(f"validation_share must be above 0 and at most 0.5, got {validation_share}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # advertisements and hardware lists
    use_threads(threads)
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[choose_device(device)]
    dataset = read_dataset(data, long_trials=long_trials, duplicates=duplicates).with_target_position(target_position)
    for note in dataset.notes:
        print(f"note: {note}")
    if appearance == "none" and any(scene.features is not None for scene in dataset.scenes.values()):
        print("note: objects have features, which the network does not see; --appearance features shows them")
    parts = split_trials(dataset, split, folds=round(1 / validation_share), seed=seed)[0]
    seed_everything(seed, verbose=False)
    settings = {"lr": lr, "weight_decay": weight_decay, "ema_decay": ema_decay, **(network or {})}
    module = build_module(dataset, settings, appearance=appearance, seed=seed)
    training, validation = (
        PathData(dataset, part, appearance=appearance, mirror=mirrored)
        for part, mirrored in zip(parts, (mirror, False), strict=True)
    )
    parameters = sum(p.numel() for p in module.network.parameters())
    print(
        f"{len(parts[0])} training and {len(parts[1])} validation scanpaths, apart by {split}; {parameters} parameters;"
        f" target's place {target_position}"
    )
    best = BestEpoch(patience=patience)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=epochs,
            gradient_clip_val=1.0,
            logger=False,
            callbacks=[
                best,
                ModelCheckpoint(output, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
                RichProgressBar(),
            ],
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loaders = training.loader(batch, shuffle=module.order, alike=alike), validation.loader(64)
        trainer.fit(module, *loaders, ckpt_path=checkpoint if resume else None, weights_only=True)
    kept = best.best(module)
    notes = {"data": data.name, "command": command_line(), "seed": str(seed), "epoch": str(best.epoch)}
    info = model_info(
        dataset, [*parts[0], *parts[1]], kept.arguments, task=task, features=feature_names or (), notes=notes
    )
    save_model(output / WEIGHTS, kept, info)
    _write_curve(output / CURVE, best.curve)
    figures = best.curve[best.epoch - 1]
    training_options = {"epochs": epochs, "patience": patience, "batch": batch, "mirror": mirror, "alike": alike}
    write_record(
        output / "record.json",
        inputs={"data": data},
        options={**dict(module.hparams), "appearance": appearance, "split": split, "long_trials": long_trials}
        | {"validation_share": validation_share, **training_options},
        metrics=figures,
    )
    if trainer.interrupted:
        raise KeyboardInterrupt
    print(
        f"wrote {output}/: {WEIGHTS}, {CURVE}; epoch {best.epoch} of {len(best.curve)} kept,"
        f" {figures['validation_nats']:.3f} nats per token of the validation part (which chose it, so it flatters)"
    )


def _write_curve(path: Path, rows: list[dict[str, float]]) -> None:
    from ...runs.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
