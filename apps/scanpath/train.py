"""`voxelwave scanpath train`: train OAT on scanpaths."""

import hashlib
from dataclasses import fields

from ...runs.checks import check_same_training
from ...runs.compute import choose_device, use_threads
from ...runs.files import output_lock
from ...runs.json_files import write_json
from ...runs.record import command_line, write_record
from ...runs.tables import write_table
from ...scanpath.estimators import WEIGHTS, read_dataset
from ...scanpath.scene import Dataset
from ...scanpath.training import Training, training_split
from ...scanpath.training import train as train_network
from ...scanpath.training_settings import TrainingSettings
from ...scanpath.weights import save_model
from .options import Train

CURVE = "curve.csv"
BEGUN = "training.json"  # the facts that must be unchanged for --resume
_MAY_CHANGE = ("epochs", "patience")


def train(options: Train) -> None:
    """Run the command."""
    with output_lock(options.output), options.earlier_set_aside():
        _train(options)


def _train(options: Train) -> None:
    use_threads(options.threads)
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[choose_device(options.device)]
    dataset = read_dataset(options.data, long_trials=options.long_trials, duplicates=options.duplicates)
    dataset = dataset.with_target_position(options.target_position)
    for note in dataset.notes:
        print(f"note: {note}")
    if options.appearance == "none" and any(scene.features is not None for scene in dataset.scenes.values()):
        print("note: the objects have features, which the network does not see; use --appearance features")
    settings = TrainingSettings(**{f.name: getattr(options, f.name) for f in fields(TrainingSettings)})
    parts = training_split(dataset, settings)
    print(
        f"{len(parts[0])} training and {len(parts[1])} validation scanpaths, which share no {options.split};"
        f" position of the target {options.target_position}"
    )
    begun = {f.name: getattr(options, f.name) for f in fields(TrainingSettings) if f.name not in _MAY_CHANGE}
    begun |= {"scanpaths": _digest(dataset)}
    if options.resume:
        check_same_training(options.output / BEGUN, begun)
    write_json(options.output / BEGUN, begun)
    notes = {"data": options.data.name, "command": command_line()}
    done = train_network(dataset, settings, options.output, accelerator=accelerator, resume=options.resume, notes=notes)
    _write(options, done)
    if done.interrupted:
        raise KeyboardInterrupt
    best = done.best
    print(
        f"wrote {options.output}/: {WEIGHTS}, {CURVE}; epoch {best.epoch} of {len(best.curve)} kept,"
        f" {best.curve[best.epoch - 1]['validation_nats']:.3f} nats per token on the validation part (optimistic, since"
        " it chose the epoch)"
    )


def _digest(dataset: Dataset) -> str:
    """SHA-256 over scenes, people and objects of all trials, in their order."""
    digest = hashlib.sha256()
    for trial in dataset.trials:
        digest.update(f"{trial.scene}\t{trial.person}\t{trial.objects.tolist()}\n".encode())
    return digest.hexdigest()


def _write(options: Train, done: Training) -> None:
    """Write the weights, the curve and the record."""
    save_model(options.output / WEIGHTS, done.network, done.info)
    write_table(options.output / CURVE, done.best.curve)
    recorded = (
        "appearance",
        "split",
        "long_trials",
        "validation_share",
        "epochs",
        "patience",
        "batch",
        "mirror",
        "alike",
    )
    write_record(
        options.output / "record.json",
        inputs={"data": options.data},
        options={**dict(done.module.hparams), **{name: getattr(options, name) for name in recorded}},
        metrics=done.best.curve[done.best.epoch - 1],
    )
