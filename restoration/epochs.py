"""The epochs of a training in stages, as a LightningDataModule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from .data import Pair, PatchDataset, Patches, ValidationDataset, downsampled
from .degradations import bicubic_resize, degradation_margin, make_degradation
from .settings import TrainingSettings


@dataclass(frozen=True)
class Stage:
    """A stage of a progressive training.

    Args:
        steps: optimizer steps.
        batch: patches per step.
        patch: side of the degraded patch in pixels.
    """

    steps: int
    batch: int
    patch: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a stage must be at least 1, got {getattr(self, name)}")


class _Epoch(NamedTuple):
    """The steps between two validations."""

    stage: Stage
    steps: int
    first: int  # number of the epoch's first item


class RestorationData(LightningDataModule):
    """The patches of a training, one epoch at a time, and whole slices for validation.

    An epoch consists of the steps between two validations. The trainer must request a new loader for every epoch
    (`reload_dataloaders_every_n_epochs=1`); the numbers of its items continue those of the previous epoch.

    Args:
        train: images or pairs for training.
        validation: other images or pairs for validation.
        stages: the stages in order; each is divided into epochs separately.
        scale: the super-resolution factor, by which clean images without partners are downsampled.
        settings: the degradation, its margin, the length of an epoch, the slices and the seed.

    Raises:
        ValueError: settings that are out of range, or a degradation with super-resolution.
    """

    def __init__(
        self,
        train: Sequence[Pair],
        validation: Sequence[Pair],
        *,
        stages: Sequence[Stage],
        scale: int = 1,
        settings: TrainingSettings,
    ):
        super().__init__()
        if settings.epoch_steps < 1:
            raise ValueError(f"epoch_steps must be at least 1, got {settings.epoch_steps}")
        self.steps = sum(stage.steps for stage in stages)
        self._plan = _planned_epochs(stages, settings.epoch_steps)
        degradation = settings.degradation
        if scale > 1 and any(pair.degraded is None for pair in (*train, *validation)):
            if degradation is not None:
                raise ValueError(
                    "degradation must be left out with super-resolution, which downsamples the images instead"
                )
            train, validation = (
                downsampled(pairs, lambda clean: bicubic_resize(clean, 1 / scale), scale)
                for pairs in (train, validation)
            )
        self.train, self.seed, self.slices = list(train), settings.seed, settings.slices
        self.single_slices = settings.single_slices
        self.degrade = None if degradation is None else make_degradation(**degradation)
        self.margin = settings.margin
        if self.margin is None:
            self.margin = 0 if degradation is None else degradation_margin(**degradation)
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0, got {self.margin}")
        self.validation = ValidationDataset(
            validation,
            degrade=self.degrade,
            seed=self.seed,
            slices=self.slices,
            crop=settings.validation_crop,
            margin=self.margin,
        )

    @property
    def epochs(self) -> int:
        """The number of epochs of all stages."""
        return len(self._plan)

    def train_dataloader(self) -> DataLoader[Patches]:
        """The patches of the trainer's current epoch."""
        number = self.trainer.current_epoch if self.trainer is not None else 0
        epoch = self._plan[min(number, len(self._plan) - 1)]
        patches = PatchDataset(
            self.train,
            patch=epoch.stage.patch,
            length=epoch.steps * epoch.stage.batch,
            degrade=self.degrade,
            seed=self.seed,
            first=epoch.first,
            slices=self.slices,
            single_slices=self.single_slices,
            margin=self.margin or 0,
        )
        return DataLoader(patches, batch_size=epoch.stage.batch)

    def val_dataloader(self) -> DataLoader[Patches]:
        """The validation slices one by one, since they differ in size."""
        return DataLoader(self.validation, batch_size=1)


def _planned_epochs(stages: Sequence[Stage], epoch_steps: int) -> list[_Epoch]:
    """The epochs of all stages; the last epoch of a stage may be shorter."""
    plan: list[_Epoch] = []
    item = 0
    for stage in stages:
        for begin in range(0, stage.steps, epoch_steps):
            steps = min(epoch_steps, stage.steps - begin)
            plan.append(_Epoch(stage, steps, item))
            item += steps * stage.batch
    return plan
