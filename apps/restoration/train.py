"""`voxelwave restoration train`: train a restoration network."""

from ...restoration.settings import TrainingSettings
from ...restoration.training import LAST, WEIGHTS
from ...restoration.training import train as train_network
from ...runs.compute import choose_device, use_threads
from ...runs.files import output_lock
from ...runs.record import write_record
from .options import Train


def train(options: Train) -> None:
    """Run the training and write its record.

    Raises:
        KeyboardInterrupt: it was interrupted; the weights and the record so far are written.
    """
    with output_lock(options.output), options.earlier_set_aside():
        _train(options)


def _train(options: Train) -> None:
    use_threads(options.threads)
    settings, output = TrainingSettings.of(options), options.output
    trained = train_network(
        options.train_images,
        options.validation_images,
        output,
        settings,
        resume=options.resume,
        device=choose_device(options.device),
    )
    images = ("train_images", "validation_images", "train_degraded", "validation_degraded")
    write_record(
        output / "record.json",
        inputs={name: getattr(options, name) for name in images},
        options={
            "module": dict(trained.module.hparams),
            "stages": settings.stages,
            "degradation": settings.degradation,
            "seed": settings.seed,
            **settings.reading,
        },
        metrics={**trained.metrics, "steps": trained.steps},
    )
    if trained.interrupted:
        raise KeyboardInterrupt
    print(f"wrote {output}/: {WEIGHTS}, {LAST}; validation PSNR {trained.metrics.get('psnr', float('nan')):.2f} dB")
