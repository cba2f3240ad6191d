"""`voxelwave eeg train`: train one network on the recordings of a study."""

from dataclasses import asdict

import numpy as np

from ...eeg.fast_layers import keep_freed_memory
from ...eeg.networks import CARD, WEIGHTS, ModelCard, save_network
from ...eeg.study import read_study
from ...eeg.training import Parts, fit, prepare, validation_scores
from ...eeg.windows import WindowOptions, Windows, load_windows
from ...runs.compute import choose_device, use_threads
from ...runs.record import write_record
from ...runs.tables import write_table
from ..nested_cv.statistics import choose_threshold
from .options import CHECKPOINT, Train

CURVE = "curve.csv"


def train(options: Train) -> None:
    """Run the command."""
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[choose_device(options.device)]
    use_threads(options.threads)
    keep_freed_memory()
    data = load_windows(read_study(options.study, options.positive), WindowOptions.of(options.windows), options.cache)
    for note in data.notes:
        print(f"note: {note}")
    parts = prepare(data, options)
    (trained, validated), network = parts.subjects, parts.module.network
    print(
        f"{len(trained)} training subjects with {len(parts.training.x)} windows, {len(validated)} validation subjects "
        f"with {len(parts.validation.x)} windows; {options.network} with "
        f"{sum(p.numel() for p in network.parameters())} parameters"
    )
    best, interrupted = fit(parts, options, options.output / CHECKPOINT, accelerator=accelerator, resume=options.resume)
    if not best.curve:  # interrupted within the first epoch
        raise KeyboardInterrupt
    write_table(options.output / CURVE, best.curve)
    threshold = choose_threshold(data.labels[np.asarray(validated)], validation_scores(parts))
    save_network(options.output, network, _card(options, data, parts, threshold=threshold, epochs=best.epoch))
    figures = best.curve[best.epoch - 1]
    _write_record(options, data, {**figures, "threshold": threshold})
    if interrupted:
        raise KeyboardInterrupt
    print(
        f"wrote {options.output}/: {WEIGHTS}, {CARD}, {CURVE}; kept epoch {best.epoch} of {len(best.curve)}, AUC of "
        f"{len(validated)} validation subjects {figures['validation_auc']:.2f} (optimistic: they chose the epoch)"
    )


def _card(options: Train, data: Windows, parts: Parts, *, threshold: float, epochs: int) -> ModelCard:
    scaler = parts.scaler
    return ModelCard(
        network=options.network,
        arguments=parts.arguments,
        classes=data.classes,
        channels=data.channels,
        sfreq=data.sfreq,
        windows=asdict(data.options),
        unit=data.unit,
        scaler=None if scaler is None else {"mean": scaler.mean.tolist(), "sd": scaler.sd.tolist()},
        threshold=threshold,
        subjects=data.subjects,
        notes={
            "settings": options.settings or {},
            "seed": options.seed,
            "epochs": epochs,
            "validation": [data.subjects[i] for i in parts.subjects[1]],
        },
    )


def _write_record(options: Train, data: Windows, metrics: dict[str, float]) -> None:
    names = ("study", "network", "seed", "epochs", "patience", "batch", "monitor", "class_weights")
    write_record(
        options.output / "record.json",
        inputs={},
        options={name: getattr(options, name) for name in names}
        | {"settings": options.settings or {}, "windows": asdict(data.options)},
        metrics=metrics,
    )
