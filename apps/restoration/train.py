"""`voxelwave restoration train` and `images`: train a restoration network, and gather open images to train on."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ...restoration.data import Pair

# torch and its friends load in the functions, so that --help answers at once

LAST, WEIGHTS = "last.ckpt", "weights.safetensors"


def train(
    train_images: Path,
    validation_images: Path,
    *,
    output: Path,
    module: dict[str, Any] | None = None,
    degradation: dict[str, Any] | None = None,
    train_degraded: Path | None = None,
    validation_degraded: Path | None = None,
    intensity_range: str = "auto",
    slice_axis: int = 2,
    grey: bool = False,
    slices: int = 1,
    stages: list[dict[str, int]] | None = None,
    epoch_steps: int = 500,
    validation_crop: int = 128,
    margin: int | None = None,
    gradient_clip: float | None = None,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Train a network on the images of TRAIN_IMAGES, and validate it on those of VALIDATION_IMAGES.

    Patches are degraded as they are drawn, or real pairs are learnt: TRAIN_IMAGES are then the clean images and
    --train-degraded their degraded partners, in the same order of names. Everything that is drawn follows from the
    seed and the step, so a training that was broken off and goes on with --resume sees what it would have seen.

    Args:
        train_images: a folder of PNG, TIFF, NIfTI files or DICOM series, or one of them.
        validation_images: the same kind, of other people or scenes.
        output: the folder to write into: last.ckpt, weights.safetensors (averaged), metrics.csv, record.json.
        module: options of the training: network, arguments, loss, optimizer, lr, schedule, ema_decay and so on.
        degradation: kind (gaussian, rician, ct, gaussian-blur, box-blur) and its parameters, e.g. sigma [0.02, 0.2] as
            shares of the range; ct has photons [3000, 300000] and a range in HU, gaussian-blur has sigma_px.
        train_degraded: degraded partners of TRAIN_IMAGES.
        validation_degraded: degraded partners of VALIDATION_IMAGES.
        intensity_range: what becomes 0 and 1: auto, dtype, LOW,HIGH, hu:LOW,HIGH or percentiles:LOW,HIGH.
        slice_axis: array axis of NIfTI volumes along which slices lie.
        grey: turn colour images into their luminance.
        slices: an odd number of neighbouring slices as input channels (2.5-D).
        stages: one after the other, each with steps, batch and patch.
        epoch_steps: steps between validations; a checkpoint is written at each.
        validation_crop: validation looks at the middle square of so many pixels of each slice.
        margin: pixels around each patch that are degraded along and cut off; default what the degradation looks at.
        gradient_clip: largest norm of the gradient.
        resume: go on from last.ckpt of the output folder.
        seed: of parameters, patches and degradations.
        threads: of the CPU; default all.
        device: where it trains; auto takes a GPU if there is one.
    """
    import logging

    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
    from lightning.pytorch.loggers import CSVLogger

    from ...restoration.data import RestorationData, Stage, load_clean, load_pairs
    from ...restoration.module import RestorationModule
    from ...runs.checks import check_resume, choose_device, use_threads
    from ...runs.record import write_record

    checkpoint = output / LAST
    check_resume(checkpoint, resume)
    if (train_degraded is None) != (validation_degraded is None):
        raise ValueError("train_degraded and validation_degraded are given both or not at all")
    plan = [_made(Stage, stage, "a stage") for stage in stages or [{"steps": 1000, "batch": 4, "patch": 64}]]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # advertisements and hardware lists
    use_threads(threads)
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[choose_device(device)]
    seed_everything(seed, verbose=False)
    network = _made(RestorationModule, module or {}, "module")
    reading: dict[str, Any] = {"intensity_range": intensity_range, "slice_axis": slice_axis, "grey": grey}
    if train_degraded is None or validation_degraded is None:
        pairs, held_out = load_clean(train_images, **reading), load_clean(validation_images, **reading)
    else:
        pairs = load_pairs(train_degraded, train_images, **reading)
        held_out = load_pairs(validation_degraded, validation_images, **reading)
    _check_channels([*pairs, *held_out], network.network, slices)
    data = RestorationData(
        pairs,
        held_out,
        stages=plan,
        epoch_steps=epoch_steps,
        degradation=degradation,
        scale=network.network.scale,
        slices=slices,
        validation_crop=validation_crop,
        margin=margin,
        seed=seed,
    )
    parameters = sum(p.numel() for p in network.network.parameters())
    print(f"{len(pairs)} training images, {len(held_out)} for validation; {parameters} parameters; {data.steps} steps")
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=data.epochs,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=gradient_clip,
        logger=CSVLogger(output, name=None, version=""),
        callbacks=[
            ModelCheckpoint(output, filename="last", every_n_epochs=1, save_top_k=1, enable_version_counter=False),
            RichProgressBar(),
        ],
        enable_model_summary=False,
        log_every_n_steps=50,
        num_sanity_val_steps=0,
    )
    trainer.fit(network, datamodule=data, ckpt_path=checkpoint if resume else None, weights_only=True)
    network.export(output / WEIGHTS, notes={"seed": str(seed), "steps": str(trainer.global_step)})
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    write_record(
        output / "record.json",
        inputs={
            "train_images": train_images,
            "validation_images": validation_images,
            "train_degraded": train_degraded,
            "validation_degraded": validation_degraded,
        },
        options={
            "module": dict(network.hparams),
            "stages": stages,
            "degradation": degradation,
            "seed": seed,
            **reading,
        },
        metrics={**metrics, "steps": trainer.global_step},
    )
    if trainer.interrupted:
        raise KeyboardInterrupt
    print(f"wrote {output}/: {WEIGHTS}, {LAST}; validation PSNR {metrics.get('psnr', float('nan')):.2f} dB")


def _made(kind: Callable[..., Any], options: dict[str, Any], words: str) -> Any:
    """What a function or class makes of options from a configuration."""
    try:
        bound = inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ValueError(f"{words} takes {', '.join(inspect.signature(kind).parameters)}: {error}") from None
    return kind(*bound.args, **bound.kwargs)


def _check_channels(pairs: "list[Pair]", network: Any, slices: int) -> None:
    """Refuse images that the network cannot take, before the training begins."""
    for pair in pairs:
        channels = pair.clean.shape[1]
        if (slices * channels, channels) != (network.in_channels, network.out_channels):
            hint = "; --grey takes the luminance of colour images" if channels == 3 else ""
            raise ValueError(
                f"{pair.name} has {channels} channel(s) and --slices is {slices}, but the network takes"
                f" {network.in_channels} channel(s) and gives {network.out_channels}{hint}"
            )
