"""`voxelwave eeg train`: train one network on the recordings of a study."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass
from ...runs.tables import write_table

LAST, CURVE = "last.ckpt", "curve.csv"
# torch, mne and their friends load in the functions, so that --help answers at once


def train(
    study: Path,
    *,
    output: Path,
    network: Literal["adhdeepnet", "eegnet", "shallow"] = "adhdeepnet",
    settings: dict[str, Any] | None = None,
    windows: dict[str, Any] | None = None,
    positive: str | None = None,
    validation_share: float = 0.2,
    epochs: int = 100,
    patience: int = 15,
    reduce_patience: int = 10,
    batch: int = 64,
    class_weights: bool = True,
    monitor: Literal["validation_loss", "validation_accuracy"] = "validation_loss",
    cache: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Train one network on the recordings of STUDY, for use with `diagnose` and `explain`.

    A share of the subjects, of both classes alike, is kept for validation: it decides when to stop, which epoch is
    kept, and the threshold. So its figures flatter; for honest ones run `voxelwave eeg nested-cv`. OUTPUT receives
    model.safetensors and model.json, curve.csv (a row per epoch), last.ckpt and record.json.

    Args:
        study: subjects.tsv or its folder, a BIDS folder, or a folder with one sub-folder or .zip per class.
        output: the folder to write into.
        network: adhdeepnet, eegnet or shallow.
        settings: of the training (lr, augmentation such as 1,2x0.1) and of the network (for adhdeepnet F1, D,
            kernel_length, se_nodes, max_norm, drop_prob).
        windows: how recordings are cut: seconds, overlap, sfreq, band, reference, channels, scaling and so on.
        positive: the class that is diagnosed; default the one not called control, healthy or normal.
        validation_share: of the subjects.
        epochs: at most.
        patience: epochs without a better validation loss until it stops.
        reduce_patience: the same until the learning rate halves.
        batch: windows per step.
        class_weights: weigh the classes by their windows.
        monitor: what the kept epoch has best.
        cache: a folder for cut windows, to start faster the next time.
        resume: go on from last.ckpt of the output folder.
        seed: of the split, parameters, order, noise and dropout.
        threads: of the CPU; default all.
        device: where it trains; auto takes a GPU if there is one.
    """
    import logging

    import numpy as np
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

    from ...eeg.estimators import balanced_weights, network_arguments, parse_augmentation, tensors_of
    from ...eeg.fast_layers import keep_freed_memory
    from ...eeg.module import BestEpoch, EEGModule, WindowData, predict_windows
    from ...eeg.networks import CARD, WEIGHTS, ModelCard, save_network
    from ...eeg.study import read_study
    from ...eeg.windows import Scaler, WindowOptions, load_windows
    from ...runs.checks import at_least, check_resume, choose_device, use_threads
    from ...runs.record import write_record
    from ..nested_cv.statistics import choose_threshold

    at_least(1, epochs=epochs, patience=patience, reduce_patience=reduce_patience, threads=threads)
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[choose_device(device)]
    checkpoint = output / LAST
    check_resume(checkpoint, resume)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # advertisements and hardware lists
    use_threads(threads)
    keep_freed_memory()
    data = load_windows(read_study(study, positive), WindowOptions.of(windows), cache)
    for note in data.notes:
        print(f"note: {note}")
    subjects = validation_split(data.labels, validation_share, seed)
    rows = [data.rows(part) for part in subjects]
    scaler = Scaler.fit(data.x[rows[0]]) if data.options.scaling == "fold" else None
    chosen = settings or {}
    sigmas, magnifications = parse_augmentation(chosen.get("augmentation", "none"))
    arguments = network_arguments(data, chosen)
    seed_everything(seed, verbose=False)
    module = EEGModule(
        network=network,
        arguments=arguments,
        lr=chosen.get("lr", 1e-3),
        class_weights=balanced_weights(data.labels[data.subject[rows[0]]]) if class_weights else None,
        sigmas=sigmas,
        magnifications=magnifications,
        reduce_patience=reduce_patience,
        seed=seed,
    )
    training, validation = (
        WindowData(*tensors_of(data, part, scaler), levels=levels)
        for part, levels in zip(rows, (module.levels, [0.0]), strict=True)
    )
    parameters = sum(p.numel() for p in module.network.parameters())
    print(
        f"{len(subjects[0])} training subjects with {len(rows[0])} windows, {len(subjects[1])} for validation with "
        f"{len(rows[1])}; {network} with {parameters} parameters"
    )
    best = BestEpoch(monitor, patience=patience)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=epochs,
            logger=False,
            callbacks=[
                best,
                ModelCheckpoint(output, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
                RichProgressBar(),
            ],
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loaders = training.loader(batch, shuffle=module.order), validation.loader(128)
        trainer.fit(module, *loaders, ckpt_path=checkpoint if resume else None, weights_only=True)
    best.restore(module)
    write_table(output / CURVE, best.curve)
    label = data.labels[np.asarray(subjects[1])]
    probability = predict_windows(module.network.cpu(), validation.x)
    scores = np.array([probability[validation.subject.numpy() == one].mean() for one in subjects[1]])
    threshold = choose_threshold(label, scores)
    card = ModelCard(
        network=network,
        arguments=arguments,
        classes=data.classes,
        channels=data.channels,
        sfreq=data.sfreq,
        windows=asdict(data.options),
        unit=data.unit,
        scaler=None if scaler is None else {"mean": scaler.mean.tolist(), "sd": scaler.sd.tolist()},
        threshold=threshold,
        subjects=data.subjects,
        notes={
            "settings": chosen,
            "seed": seed,
            "epochs": best.epoch,
            "validation": [data.subjects[i] for i in subjects[1]],
        },
    )
    save_network(output, module.network, card)
    figures = best.curve[best.epoch - 1]
    write_record(
        output / "record.json",
        inputs={},
        options={"study": study, "network": network, "settings": chosen, "windows": asdict(data.options), "seed": seed}
        | {"epochs": epochs, "patience": patience, "batch": batch, "monitor": monitor, "class_weights": class_weights},
        metrics={**figures, "threshold": threshold},
    )
    if trainer.interrupted:
        raise KeyboardInterrupt
    print(
        f"wrote {output}/: {WEIGHTS}, {CARD}, {CURVE}; epoch {best.epoch} of {len(best.curve)} kept, AUC of "
        f"{len(label)} validation subjects {figures['validation_auc']:.2f} (they chose it, so it flatters)"
    )


def validation_split(labels: Any, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and validation subjects, both classes alike.

    Example:
        >>> [len(part) for part in validation_split([0, 1] * 10, 0.2, seed=0)]
        [16, 4]
    """
    import numpy as np
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, got {share}")
    everyone = np.arange(len(labels))
    try:
        train_part, validation = train_test_split(everyone, test_size=share, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ValueError(f"{len(everyone)} subjects cannot be split with validation_share {share}: {error}") from None
    return sorted(train_part.tolist()), sorted(validation.tolist())
