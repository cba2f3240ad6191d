"""Train a restoration network: read images, draw patches, fit with checkpoints, and write the averaged weights.

settings = TrainingSettings(module={...}, degradation={"kind": "gaussian", "sigma": 0.1})
trained = train(Path("images/train"), Path("images/validation"), Path("denoiser"), settings)
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

from ..runs.checks import check_resume
from ..runs.training import MetricsFile, quiet_lightning
from ..runs.weight_file import check_resumable
from .data import Pair, load_clean, load_pairs
from .epochs import RestorationData, Stage
from .mair import MaIR
from .module import RestorationModule
from .settings import ModuleSettings, TrainingSettings
from .unit_order import sort_units
from .weights import Network, read_info

LAST, WEIGHTS = "last.ckpt", "weights.safetensors"
_DEFAULT_STAGE = {"steps": 1000, "batch": 4, "patch": 64}

T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """A finished or interrupted training.

    Args:
        module: the network with its averaged weights.
        steps: optimizer steps, including those before a resume.
        metrics: the last logged figures, such as "psnr" in dB.
        interrupted: whether Ctrl-C ended it.
    """

    module: RestorationModule
    steps: int
    metrics: dict[str, float]
    interrupted: bool


def train(
    train_images: Path,
    validation_images: Path,
    output: Path,
    settings: TrainingSettings,
    *,
    resume: bool = False,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> Trained:
    """Train a network; write last.ckpt and metrics.csv at each validation, and weights.safetensors at the end.

    Seeds torch's global generator, from which the parameters and the dropped paths are drawn.

    Args:
        train_images: a folder of images, or one image.
        validation_images: images of other people or scenes.
        output: the folder to write to.
        settings: all settings on which the results depend.
        resume: continue from last.ckpt in `output`.
        device: "cpu" or "cuda".
        report: called with a line of text about the images and the network.

    Raises:
        FileNotFoundError: images are missing, or last.ckpt is missing with `resume`.
        ValueError: last.ckpt exists without `resume`, or settings or images do not fit.
    """
    checkpoint = output / LAST
    check_resume(checkpoint, resume)
    stages = [_build(Stage, stage, "a stage") for stage in settings.stages or [_DEFAULT_STAGE]]
    torch.manual_seed(settings.seed)
    module = RestorationModule(_build(ModuleSettings, settings.module or {}, "module"))
    training, validation = read_images(train_images, validation_images, settings)
    _check_channels([*training, *validation], module.network, settings.slices)
    data = RestorationData(training, validation, stages=stages, scale=module.network.scale, settings=settings)
    if settings.degradation is not None:  # RestorationData has checked it
        module.degradation = str(settings.degradation["kind"])
    if not resume:
        _sort_for_sizes(module, data)
    parameters = sum(p.numel() for p in module.network.parameters())
    counts = f"{len(training)} training images, {len(validation)} for validation"
    report(f"{counts}; {parameters} parameters; {data.steps} steps")
    trainer = fit(module, data, output, settings, resume_from=checkpoint if resume else None, device=device)
    notes = {"seed": str(settings.seed), "steps": str(trainer.global_step)}
    module.export(output / WEIGHTS, notes=notes)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return Trained(module, trainer.global_step, metrics, bool(trainer.interrupted))


def _sort_for_sizes(module: RestorationModule, data: RestorationData) -> None:
    """Sort the units of initial weights of one size by importance, if the training gives several sizes."""
    start = module.settings.start_from
    if module.nested is None or start is None or not isinstance(module.network, MaIR):
        return
    info = read_info(start)
    if info is None or not info.sizes:  # otherwise the order has a meaning already
        sort_units(module.network, next(iter(data.train_dataloader()))["degraded"])
        module.ema.load_state_dict(module.network.state_dict())


def read_images(
    train_images: Path, validation_images: Path, settings: TrainingSettings
) -> tuple[list[Pair], list[Pair]]:
    """Read the images of both parts, with their degraded partners if the settings name them.

    Raises:
        ValueError: only one part has degraded partners.
    """
    degraded = settings.train_degraded, settings.validation_degraded
    if degraded[0] is not None and degraded[1] is not None:
        return (
            load_pairs(degraded[0], train_images, **settings.reading),
            load_pairs(degraded[1], validation_images, **settings.reading),
        )
    if degraded != (None, None):
        raise ValueError("train_degraded and validation_degraded must be given together, got one of them")
    return load_clean(train_images, **settings.reading), load_clean(validation_images, **settings.reading)


def fit(
    module: RestorationModule,
    data: RestorationData,
    output: Path,
    settings: TrainingSettings,
    *,
    resume_from: Path | None,
    device: str,
) -> Trainer:
    """Run the epochs of `data` and return the trainer."""
    with quiet_lightning():
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            max_epochs=data.epochs,
            reload_dataloaders_every_n_epochs=1,
            gradient_clip_val=settings.gradient_clip,
            logger=MetricsFile(output),
            callbacks=[
                ModelCheckpoint(output, filename="last", every_n_epochs=1, save_top_k=1, enable_version_counter=False),
                RichProgressBar(),
            ],
            enable_model_summary=False,
            log_every_n_steps=50,
            num_sanity_val_steps=0,
        )
        if resume_from is not None:
            check_resumable(resume_from, "a restoration training", module)
        trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    return trainer


def _build(kind: Callable[..., T], options: dict[str, Any], name: str) -> T:
    """Build an object from the options of a configuration.

    Raises:
        ValueError: an option is unknown or missing; lists the known ones.
    """
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ValueError(f"{name} takes {', '.join(inspect.signature(kind).parameters)}: {error}") from None
    return kind(**options)


def _check_channels(pairs: Sequence[Pair], network: Network, slices: int) -> None:
    """Refuse images that the network cannot take, before the training begins."""
    for pair in pairs:
        channels = pair.clean.shape[1]
        if (slices * channels, channels) != (network.in_channels, network.out_channels):
            hint = "; --grey takes the luminance of colour images" if channels == 3 else ""
            raise ValueError(
                f"{pair.name} has {channels} channel(s) and --slices is {slices}, but the network takes"
                f" {network.in_channels} channel(s) and returns {network.out_channels}{hint}"
            )
