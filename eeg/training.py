"""Training of one network on the windows of a study, with a validation part and checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from sklearn.model_selection import train_test_split

from ..runs.training import BestEpoch, quiet_lightning
from ..runs.weight_file import check_resumable
from .module import PREDICTED_AT_ONCE, EEGModule, WindowData, best_epoch
from .networks import LONG_RECORDING, predict_windows
from .recording_data import RecordingData
from .settings import Settings, balanced_weights, network_arguments, parse_augmentation, tensors_of
from .training_options import TrainingOptions
from .whole_recordings import predict_recordings
from .windows import Scaler, Windows


@dataclass(frozen=True, eq=False)
class Parts:
    """A network that is ready for training, and its data.

    Args:
        module: the network with its loss and optimizer.
        training, validation: windows, or whole recordings, of the two parts.
        subjects: indices of the (training, validation) subjects.
        scaler: a scaler fitted on the training windows, if the windows are scaled by fold.
        arguments: arguments of the network.
    """

    module: EEGModule
    training: WindowData | RecordingData
    validation: WindowData | RecordingData
    subjects: tuple[list[int], list[int]]
    scaler: Scaler | None
    arguments: Settings


def prepare(data: Windows, options: TrainingOptions, persons: Sequence[str] = ()) -> Parts:
    """Split the subjects and build the network and its data.

    Args:
        data: the windows of the study.
        options: of the training.
        persons: the person of each subject of `data`; a person is never split. By default each subject is a person.

    Raises:
        ValueError: the study cannot be split, or a setting is unknown or out of range.
    """
    subjects = validation_split(data.labels, options.validation_share, options.seed, persons)
    rows = [data.rows(part) for part in subjects]
    scaler = Scaler.fit(data.x[rows[0]]) if data.options.scaling == "fold" else None
    arguments = network_arguments(data, options.settings or {}, options.network)
    labels = data.labels[subjects[0] if options.network == LONG_RECORDING else data.subject[rows[0]]]
    module = seeded_module(
        options.network,
        arguments,
        options.settings or {},
        class_weights=balanced_weights(labels) if options.class_weights else None,
        reduce_patience=options.reduce_patience,
        seed=options.seed,
    )
    training, validation = (
        data_of(options.network, data, part, scaler, levels)
        for part, levels in zip(subjects, (module.levels, [0.0]), strict=True)
    )
    return Parts(module, training, validation, subjects, scaler, arguments)


def data_of(
    network: str, windows: Windows, subjects: Sequence[int], scaler: Scaler | None, levels: Sequence[float] = (0.0,)
) -> WindowData | RecordingData:
    """The data of the subjects for a network of that name: their windows, or their recordings."""
    if network == LONG_RECORDING:
        return RecordingData(windows, subjects, scaler, levels=levels)
    return WindowData(*tensors_of(windows, windows.rows(subjects), scaler), levels=levels)


def seeded_module(
    network: str,
    arguments: Settings,
    settings: Settings,
    *,
    class_weights: Sequence[float] | None,
    reduce_patience: int,
    seed: int,
) -> EEGModule:
    """A module whose initial weights depend only on the seed; the state of torch's generator is unchanged.

    Args:
        network: a name of `networks.NETWORKS`.
        arguments: arguments of the network.
        settings: "lr" and "augmentation"; others are ignored.
        class_weights, reduce_patience, seed: see `EEGModule`.
    """
    sigmas, magnifications = parse_augmentation(settings.get("augmentation", "none"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EEGModule(
            network=network,
            arguments=arguments,
            lr=settings.get("lr", 1e-3),
            class_weights=class_weights,
            sigmas=sigmas,
            magnifications=magnifications,
            reduce_patience=reduce_patience,
            seed=seed,
        )


def fit(
    parts: Parts, options: TrainingOptions, checkpoint: Path, *, accelerator: str = "cpu", resume: bool = False
) -> tuple[BestEpoch, bool]:
    """Train, write a checkpoint after each epoch, and load the best epoch's weights into the network.

    Args:
        parts: the network and its data.
        options: of the training.
        checkpoint: the .ckpt file to write.
        accelerator: "cpu" or "gpu".
        resume: continue from the checkpoint.

    Returns:
        The curve with the best epoch, and whether the training was interrupted.
    """
    best = best_epoch(options.monitor, patience=options.patience)
    keep = ModelCheckpoint(
        checkpoint.parent, filename=checkpoint.stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    with quiet_lightning(), torch.random.fork_rng(devices=[]):
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=options.epochs,
            logger=False,
            callbacks=[best, keep, RichProgressBar()],
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        if resume:
            check_resumable(checkpoint, "an EEG training", parts.module)
        trainer.fit(
            parts.module,
            parts.training.loader(options.batch, shuffle=parts.module.order),
            parts.validation.loader(PREDICTED_AT_ONCE),
            ckpt_path=checkpoint if resume else None,
            weights_only=True,
        )
    best.restore(parts.module)
    parts.module.network.cpu()
    return best, trainer.interrupted


def validation_scores(parts: Parts) -> np.ndarray:
    """Probability of each validation subject, averaged over its windows, in the order of `parts.subjects[1]`."""
    if isinstance(parts.validation, RecordingData):
        return predict_recordings(parts.module.network, parts.validation.x)
    probability = predict_windows(parts.module.network, parts.validation.x)
    subject = parts.validation.subject.numpy()
    return np.array([probability[subject == one].mean() for one in parts.subjects[1]])


def validation_split(
    labels: Sequence[int] | np.ndarray, share: float, seed: int, persons: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Indices of the training and validation subjects, with the same share of each class.

    Args:
        labels: 0 or 1 per subject.
        share: share of the people in the validation part.
        seed: seed of the random split.
        persons: the person of each subject; a person is never split. By default each subject is a person.

    Example:
        >>> [len(part) for part in validation_split([0, 1] * 10, 0.2, seed=0)]
        [16, 4]
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, got {share}")
    names = np.asarray(persons or [str(k) for k in range(len(labels))])
    first = {name: k for k, name in reversed(list(enumerate(names.tolist())))}
    everyone = sorted(first.values())  # the first subject of each person
    try:
        training, validation = train_test_split(
            np.array(everyone), test_size=share, random_state=seed, stratify=np.asarray(labels)[everyone]
        )
    except ValueError as error:
        raise ValueError(f"{len(everyone)} subjects cannot be split with validation_share {share}: {error}") from None
    trained, validated = (np.flatnonzero(np.isin(names, names[part])).tolist() for part in (training, validation))
    return trained, validated
