"""`voxelwave eeg train`: train one network on the recordings of a study."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from ...eeg.audit import APART, SHARED, audit
from ...eeg.check import Check, failed
from ...eeg.fast_layers import keep_freed_memory
from ...eeg.networks import CARD, LONG_RECORDING, WEIGHTS, ModelCard, save_network
from ...eeg.pretraining import pretrain
from ...eeg.split_file import WHOLE, Fold, SplitFile
from ...eeg.study import Study
from ...eeg.training import Parts, fit, prepare, validation_scores
from ...eeg.windows import WindowOptions, Windows, load_windows
from ...runs.checks import check_same_training
from ...runs.compute import choose_device, use_threads
from ...runs.exit import DONE, REFUSED
from ...runs.files import output_lock
from ...runs.json_files import write_json
from ...runs.record import write_record
from ...runs.tables import write_table
from ..nested_cv.statistics import choose_threshold
from .guard import may_train, persons_of, read_study_of
from .options import CHECKPOINT, Train

CURVE = "curve.csv"
BEGUN = "training.json"  # data and options of the training, which must be the same for --resume


def train(options: Train) -> int:
    """Run the command and return its exit code."""
    with output_lock(options.output), options.earlier_set_aside():
        return _train(options)


def _train(options: Train) -> int:
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[choose_device(options.device)]
    use_threads(options.threads)
    keep_freed_memory()
    study = read_study_of(options)
    data = load_windows(study, WindowOptions.of(options.windows), options.cache)
    for note in data.notes:
        print(f"note: {note}")
    persons = persons_of(study, data)
    parts = prepare(data, options, persons)
    begun = _begun_with(options, data, parts)
    if options.resume:
        check_same_training(options.output / BEGUN, begun)
    checks = [] if options.no_audit else _audit(options, study, data, parts, persons)
    if not may_train(checks, options):
        return REFUSED
    write_json(options.output / BEGUN, begun)
    (trained, validated), network = parts.subjects, parts.module.network
    items = "recordings" if options.network == LONG_RECORDING else "windows"
    print(
        f"{len(trained)} training subjects with {len(parts.training.x)} {items}, {len(validated)} validation subjects "
        f"with {len(parts.validation.x)} {items}; {options.network} with "
        f"{sum(p.numel() for p in network.parameters())} parameters"
    )
    if options.mask_epochs and not options.resume:
        _pretrain(options, parts)
    best, interrupted = fit(parts, options, options.output / CHECKPOINT, accelerator=accelerator, resume=options.resume)
    if not best.curve:  # interrupted within the first epoch
        raise KeyboardInterrupt
    write_table(options.output / CURVE, best.curve)
    threshold = choose_threshold(data.labels[np.asarray(validated)], validation_scores(parts))
    save_network(options.output, network, _card(options, data, parts, checks, threshold=threshold, epochs=best.epoch))
    figures = best.curve[best.epoch - 1]
    _write_record(options, data, {**figures, "threshold": threshold})
    if interrupted:
        raise KeyboardInterrupt
    print(
        f"wrote {options.output}/: {WEIGHTS}, {CARD}, {CURVE}; kept epoch {best.epoch} of {len(best.curve)}, AUC of "
        f"{len(validated)} validation subjects {figures['validation_auc']:.2f} (optimistic: they chose the epoch)"
    )
    return DONE


def _pretrain(options: Train, parts: Parts) -> None:
    """Pre-train the network on the training part under a growing mask."""
    losses = pretrain(
        parts.module.network,
        parts.training,
        epochs=options.mask_epochs,
        batch=options.batch,
        lr=parts.module.hparams["lr"],
        seed=options.seed,
        device=choose_device(options.device),
    )
    first, last = losses[0], losses[-1]
    print(f"pre-trained under a growing mask for {len(losses)} epochs; loss {first:.3f} at first, {last:.3f} at last")


def _audit(options: Train, study: Study, data: Windows, parts: Parts, persons: Sequence[str]) -> list[Check]:
    """Check whether training and validation subjects share EEG or people."""
    sides = [frozenset((data.subjects[i], WHOLE) for i in part) for part in parts.subjects]
    fold = Fold(0, "validation", dict(zip(("train", "validation"), sides, strict=True)))
    splits = SplitFile(options.study, (fold,), persons=dict(zip(data.subjects, persons, strict=True)))
    checks = audit(study, options=data.options, splits=splits, cache=options.cache, confounds=False, finished=False)
    return [check for check in checks if check.check in (APART, SHARED)]


def _begun_with(options: Train, data: Windows, parts: Parts) -> dict[str, object]:
    """The data and options that must be the same when a training is resumed."""
    names = ("network", "validation_share", "batch", "class_weights", "monitor", "reduce_patience", "seed")
    return {
        **{name: getattr(options, name) for name in names},
        "settings": options.settings or {},
        **_masked(options),
        "windows": asdict(data.options),
        "classes": data.classes,
        "channels": data.channels,
        "subjects": data.subjects,
        "validation": [data.subjects[i] for i in parts.subjects[1]],
        "recordings": data.digest,
    }


def _masked(options: Train) -> dict[str, int]:
    """The entry of the pre-training in records; none without it, as in earlier versions."""
    return {"mask_epochs": options.mask_epochs} if options.mask_epochs else {}


def _card(
    options: Train, data: Windows, parts: Parts, checks: Sequence[Check], *, threshold: float, epochs: int
) -> ModelCard:
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
            **_masked(options),
            "seed": options.seed,
            "epochs": epochs,
            "validation": [data.subjects[i] for i in parts.subjects[1]],
            **({"audit": [check.as_dict() for check in checks]} if failed(checks) else {}),
        },
    )


def _write_record(options: Train, data: Windows, metrics: dict[str, float]) -> None:
    names = ("study", "network", "seed", "epochs", "patience", "batch", "monitor", "class_weights")
    write_record(
        options.output / "record.json",
        inputs={},
        options={name: getattr(options, name) for name in names}
        | {"settings": options.settings or {}, **_masked(options), "windows": asdict(data.options)},
        metrics=metrics,
    )
