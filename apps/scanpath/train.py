"""`voxelwave scanpath train`: train OAT on scanpaths."""

from dataclasses import fields

from ...runs.compute import choose_device, use_threads
from ...runs.record import command_line, write_record
from ...runs.tables import write_table
from ...scanpath.estimators import WEIGHTS, read_dataset
from ...scanpath.training import Training, training_split
from ...scanpath.training import train as train_network
from ...scanpath.training_settings import TrainingSettings
from ...scanpath.weights import save_model
from .options import Train

CURVE = "curve.csv"


def train(options: Train) -> None:
    """Run the command."""
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


def _write(options: Train, done: Training) -> None:
    """The weights, the curve and the record."""
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
