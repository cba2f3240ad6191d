"""Parts shared by all trainings: the order of an epoch, averaged weights, the best epoch, a quiet trainer."""

import copy
import csv
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler


class Batches(Sampler[list[int]]):
    """Lists of indices, one list for each batch.

    Args:
        items: number of items.
        batch: number of items in a batch; the last batch may be smaller.
        shuffle: function that returns the generator for the order of the next epoch; None keeps the order.
    """

    def __init__(self, items: int, batch: int, shuffle: Callable[[], np.random.Generator] | None):
        self.items, self.batch, self.shuffle = items, batch, shuffle

    def __len__(self) -> int:
        return math.ceil(self.items / self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.items)
        if self.shuffle is not None:
            self.shuffle().shuffle(order)
        return (part.tolist() for part in np.array_split(order, range(self.batch, self.items, self.batch)))


class SteppedModule(LightningModule):
    """A module that may change its weights after each optimizer step, before a callback can write a checkpoint.

    A training that continues from a checkpoint within an epoch warns, since the order of the epoch starts again.
    """

    def after_step(self, steps: int) -> None:
        """Called after each optimizer step.

        Args:
            steps: optimizer steps so far, including this one.
        """

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step as Lightning does, then call `after_step`."""
        before = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.after_step(before + 1)

    def on_train_start(self) -> None:
        """Warn if the training continues within an epoch."""
        done, batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready, self.trainer.num_training_batches
        if 0 < done < batches:
            warnings.warn(
                f"the checkpoint was written after {done} of the {batches} batches of an epoch: the rest of this epoch"
                " takes batches from its beginning, and its mean loss covers the rest only. Resume from a checkpoint"
                " written at the end of an epoch to get the weights of an uninterrupted training",
                stacklevel=2,
            )


class SeededModule(SteppedModule):
    """A module whose random draws depend only on its seed and step, so that a resumed training repeats them.

    Its hyper-parameters hold "seed"; `network` is the network that is trained.
    """

    network: nn.Module

    @property
    def averaged(self) -> nn.Module:
        """The network that validation and export use."""
        return self.network

    def order(self) -> np.random.Generator:
        """The generator for the order of this epoch; a resumed training gets the same one."""
        return np.random.default_rng([self.hparams["seed"], self.global_step])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed torch at the first batch of an epoch, differently in each process."""
        if batch_idx == 0:
            seed = [self.hparams["seed"], self.global_step]
            own = np.random.default_rng([*seed, self.global_rank]) if self.global_rank else self.order()
            torch.manual_seed(int(own.integers(2**63)))


def from_all_processes(part: Tensor) -> Tensor:
    """The rows of all processes of a training in the order of their ranks, on the device of `part`.

    Args:
        part: (n, ...) rows of this process; n may differ between processes.
    """
    if not dist.is_available() or not dist.is_initialized():
        return part
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part.cpu())
    return torch.cat(parts).to(part.device)


@torch.no_grad()
def update_average(average: nn.Module, present: nn.Module, *, decay: float, step: int) -> None:
    """Update averaged weights with the current ones: average <- d average + (1 - d) present.

    Args:
        average, present: networks with the same architecture.
        decay: the largest d; during the first steps, d is (1 + step) / (10 + step).
        step: optimizer steps so far.
    """
    d = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), present.parameters(), strict=True):
        old.lerp_(new, 1 - d)


class BestEpoch(Callback):
    """Records the figures of each epoch, keeps the weights of the best, and stops `patience` epochs after the best.

    Args:
        monitor: the figure that decides which epoch is best.
        mode: "min" if a lower figure is better, otherwise "max".
        patience: epochs without a better `stop_on` after which training stops.
        stop_on: the figure that decides when to stop, of which lower is better; by default `monitor`.
        figures: logged figures to record; "lr" records the learning rate.
    """

    def __init__(
        self,
        monitor: str,
        *,
        mode: Literal["min", "max"] = "min",
        patience: int,
        stop_on: str | None = None,
        figures: Sequence[str] = (),
    ):
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.monitor, self.patience, self.stop_on = monitor, patience, stop_on or monitor
        self.sign = 1 if mode == "min" else -1
        self.figures = tuple(dict.fromkeys([*figures, monitor, self.stop_on]))
        self.curve: list[dict[str, float]] = []
        self.epoch = 0  # the best so far, counted from 1
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the finished epoch."""
        assert isinstance(pl_module, SeededModule)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if "lr" in self.figures:
            logged["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.curve.append(
            {
                "epoch": trainer.current_epoch + 1,
                **{name: value for name, value in logged.items() if name in self.figures},
            }
        )
        if self.monitor not in logged:
            return
        best = self._best(self.monitor, self.sign)
        if best == len(self.curve):
            self.epoch, self.weights = best, copy.deepcopy(pl_module.averaged.state_dict())
        sign = self.sign if self.stop_on == self.monitor else 1
        if len(self.curve) - self._best(self.stop_on, sign) >= self.patience:
            trainer.should_stop = True

    def _best(self, name: str, sign: int) -> int:
        """The first epoch, counted from 1, with the best finite figure; 0 if there is none."""
        scores = [sign * row[name] if math.isfinite(row[name]) else math.inf for row in self.curve]
        return 0 if not any(map(math.isfinite, scores)) else 1 + int(np.argmin(scores))

    def restore(self, module: SeededModule) -> None:
        """Load the best epoch's weights into the network, if there was a validation part."""
        if self.weights:
            module.averaged.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"curve": self.curve, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.curve, self.epoch, self.weights = state_dict["curve"], state_dict["epoch"], state_dict["weights"]


class MetricsFile(CSVLogger):
    """Writes metrics.csv into a folder; a training that continues there keeps the rows of the steps before.

    Lightning's own logger deletes them.

    Args:
        folder: the folder of the training.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, name=None, version="")
        file = folder / "metrics.csv"
        self._earlier: list[dict[str, Any]] = []
        if file.exists():
            with file.open(newline="") as lines:
                self._earlier = [{name: x for name, x in row.items() if x} for row in csv.DictReader(lines)]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Record the figures of a step."""
        if self._earlier and step is not None:
            self.experiment.metrics += [row for row in self._earlier if int(row["step"]) < step]
            self._earlier = []
        super().log_metrics(metrics, step)


@contextmanager
def quiet_lightning(level: int = logging.ERROR) -> Iterator[None]:
    """Hide Lightning's log lines below `level` and its warnings about itself, within the block."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        logger.setLevel(before)


def fit_quietly(
    module: SeededModule,
    training: DataLoader[Any],
    validation: DataLoader[Any] | None,
    *,
    epochs: int,
    best: BestEpoch,
    gradient_clip: float | None = None,
) -> None:
    """Fit on the CPU without progress bars, logs or files, and load the best epoch's weights.

    Raises:
        KeyboardInterrupt: the training was interrupted.
    """
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            callbacks=[best],
            gradient_clip_val=gradient_clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, training, validation)
    if trainer.interrupted:
        raise KeyboardInterrupt
    best.restore(module)
