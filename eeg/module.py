"""Training of a network on windows of EEG: loss, augmentation, schedule and stopping, as a LightningModule."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..runs.auc import auc
from ..runs.training import Batches, BestEpoch, SeededModule, from_all_processes
from ..runs.weight_file import read_checkpoint
from .adhdeepnet import ADHDeepNet
from .networks import build_network
from .training_options import Monitor

Batch = dict[str, Tensor]
PREDICTED_AT_ONCE = 128


def noise_levels(sigmas: Sequence[float], magnifications: Sequence[float]) -> list[float]:
    """Standard deviations of the noise on the copies of a window: 0 for the window itself, then one for each pair.

    The noise is additive and Gaussian, as published: x + m e with e of standard deviation s, for every m and s. The
    training part grows by the factor 1 + len(sigmas) * len(magnifications).

    Example:
        >>> noise_levels([0.1, 0.01], [1, 2])
        [0.0, 0.1, 0.01, 0.2, 0.02]
    """
    if any(not value > 0 for value in (*sigmas, *magnifications)):
        raise ValueError(f"sigmas and magnifications must be above 0, got {list(sigmas)} and {list(magnifications)}")
    return [0.0, *(m * s for m in magnifications for s in sigmas)]


class WindowData(Dataset[Batch]):
    """Batches of windows from lists of indices; with noise levels, index i is copy i // n of window i % n.

    Args:
        x: (n, channels, times).
        label: (n,) 0 or 1.
        subject: (n,) index of the subject.
        levels: see `noise_levels`; items carry only the level, and `EEGModule.training_step` draws the noise.
    """

    def __init__(self, x: Tensor, label: Tensor, subject: Tensor, *, levels: Sequence[float] = (0.0,)):
        self.x, self.label, self.subject = x, label, subject
        self.levels = torch.tensor(list(levels), dtype=x.dtype)

    def __len__(self) -> int:
        return len(self.x) * len(self.levels)

    def __getitem__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        window = index % len(self.x)
        return {
            "x": self.x[window],
            "label": self.label[window],
            "subject": self.subject[window],
            "noise": self.levels[index // len(self.x)],
            "row": index,
        }

    def loader(self, batch: int, *, shuffle: Callable[[], np.random.Generator] | None = None) -> DataLoader[Batch]:
        """Batches in order; with `shuffle`, in an order drawn with the generator that it returns for each epoch."""
        if batch < 2:
            raise ValueError(f"batch must be at least 2, got {batch}")
        return DataLoader(self, sampler=Batches(len(self), batch, shuffle), batch_size=None)


class KerasAdam(torch.optim.Adam):
    """Adam with the epsilon of Keras: lr_t m / (sqrt(v) + eps), lr_t = lr sqrt(1 - b2^t) / (1 - b1^t)."""

    def __init__(self, parameters: Any, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999)):
        super().__init__(parameters, lr=lr, betas=betas, eps=1e-7)

    def step(self, closure: Any = None) -> Any:
        """One step; PyTorch's epsilon is that of Keras divided by sqrt(1 - b2^t)."""
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            group["eps"] = 1e-7 / math.sqrt(1 - group["betas"][1] ** group["steps"])
        return super().step(closure)


class EEGModule(SeededModule):
    """A network, its loss, noise, optimizer and schedule. Output 1 is the positive class.

    All hyper-parameters are plain values, so a checkpoint loads with `torch.load(weights_only=True)`.

    Args:
        network: a name of `networks.NETWORKS`.
        arguments: arguments of its constructor.
        lr: learning rate of Adam, as Keras computes it.
        class_weights: factor on the loss of each class; None for equal weights.
        sigmas, magnifications: parameters of the noise on copies of training windows, in the units of the scaled
            windows; the noise is drawn again in every epoch (the published code draws it once). Empty for no noise.
        reduce_patience: epochs without a better validation loss after which the learning rate is halved.
        least_lr: the smallest learning rate.
        seed: seed of order, noise and dropout in each epoch; the initial weights are drawn from torch's global
            generator.
    """

    def __init__(
        self,
        *,
        network: str = "adhdeepnet",
        arguments: dict[str, Any] | None = None,
        lr: float = 1e-3,
        class_weights: Sequence[float] | None = None,
        sigmas: Sequence[float] = (),
        magnifications: Sequence[float] = (),
        reduce_patience: int = 10,
        least_lr: float = 5e-5,
        seed: int = 0,
    ):
        super().__init__()
        if not lr > 0:
            raise ValueError(f"lr must be above 0, got {lr}")
        if bool(sigmas) != bool(magnifications):
            raise ValueError(
                f"sigmas and magnifications must be given together, got {list(sigmas)} and {list(magnifications)}"
            )
        self.save_hyperparameters(
            {
                "network": network,
                "arguments": dict(arguments or {}),
                "lr": float(lr),
                "class_weights": None if class_weights is None else [float(w) for w in class_weights],
                "sigmas": [float(s) for s in sigmas],
                "magnifications": [float(m) for m in magnifications],
                "reduce_patience": int(reduce_patience),
                "least_lr": float(least_lr),
                "seed": int(seed),
            }
        )
        self.levels = noise_levels(sigmas, magnifications)
        self.network = build_network(network, dict(arguments or {}))
        self.class_weights = None if class_weights is None else torch.tensor([float(w) for w in class_weights])

    def forward(self, x: Tensor, samples: Tensor | None = None) -> Tensor:
        """Logits (batch, 2) of windows (batch, channels, times), or of recordings with `samples` samples each."""
        logits: Tensor = self.network(x) if samples is None else self.network(x, samples)
        return logits

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch; the numbers of samples stay on the CPU, where the network reads them."""
        here = {name: tensor for name, tensor in batch.items() if name == "samples"}
        rest = {name: tensor for name, tensor in batch.items() if name not in here}
        moved: Batch = super().transfer_batch_to_device(rest, device, dataloader_idx)
        return {**moved, **here}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of a batch, with noise on the copies; over a 2-way softmax it equals binary cross-entropy."""
        x, noise = batch["x"], batch["noise"]
        if noise.device.type != "cpu" or noise.any():  # another device would have to be waited for
            x = x + noise.view(-1, 1, 1) * torch.randn_like(x)
        loss = self._loss(self(x, batch.get("samples")), batch["label"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(x), sync_dist=True)
        return loss

    def after_step(self, steps: int) -> None:
        """Apply Keras' constraints on norms."""
        if isinstance(self.network, ADHDeepNet):
            self.network.constrain()

    def on_validation_epoch_start(self) -> None:
        """Clear the predictions of the last epoch."""
        self._seen: list[Batch] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits; metrics are computed over the whole validation part."""
        kept = {name: batch[name] for name in ("label", "subject", "row")}
        self._seen.append({"logits": self(batch["x"], batch.get("samples")), **kept})

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy over windows, and AUC over subjects (mean probability)."""
        self._log_figures("validation")

    def on_test_epoch_start(self) -> None:
        """Discard earlier predictions."""
        self._seen = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits, as `validation_step` does."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of `on_validation_epoch_end` with names "test_*"."""
        self._log_figures("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probability of the positive class for each window, (batch,)."""
        probability: Tensor = self(batch["x"], batch.get("samples")).float().softmax(1)[:, 1]
        return probability

    def _log_figures(self, part: str) -> None:
        seen = {name: from_all_processes(torch.cat([one[name] for one in self._seen])) for name in self._seen[0]}
        if self.trainer.world_size > 1:  # Lightning repeats windows so that all processes get the same number
            order = seen["row"].argsort(stable=True)
            first = torch.cat([seen["row"].new_tensor([-1]), seen["row"][order][:-1]]) != seen["row"][order]
            seen = {name: values[order[first]] for name, values in seen.items()}
        logits, label = seen["logits"].float(), seen["label"]
        self.log(f"{part}_loss", self._loss(logits, label), prog_bar=True)
        self.log(f"{part}_accuracy", (logits.argmax(1) == label).float().mean())
        self.log(f"{part}_auc", subject_auc(logits.softmax(1)[:, 1], label, seen["subject"]))

    def configure_optimizers(self) -> Any:
        """Adam; with a validation part, its rate halves on a plateau as in Keras."""
        optimizer = KerasAdam(self.parameters(), lr=self.hparams["lr"])
        if not self.trainer.enable_validation:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=0.5,
            patience=max(0, self.hparams["reduce_patience"] - 1),  # Keras counts one epoch less
            threshold=1e-4,
            threshold_mode="abs",
            min_lr=self.hparams["least_lr"],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "validation_loss"}}

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        return F.cross_entropy(logits, label, weight=weights)


def best_epoch(monitor: Monitor = "validation_loss", *, patience: int = 15) -> BestEpoch:
    """A callback that keeps the best epoch and stops after `patience` epochs without a lower validation loss.

    Args:
        monitor: the figure that decides which epoch is best; the published code uses "validation_accuracy".
        patience: number of epochs.
    """
    if monitor not in ("validation_loss", "validation_accuracy"):
        raise ValueError(f'monitor must be "validation_loss" or "validation_accuracy", got {monitor!r}')
    return BestEpoch(
        monitor,
        mode="min" if monitor == "validation_loss" else "max",
        patience=patience,
        stop_on="validation_loss",
        figures=("validation_loss", "validation_accuracy", "validation_auc", "train_loss", "lr"),
    )


def set_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Set the weight of a new batch in all running averages of batch normalisation."""
    if not 0 < momentum <= 1:
        raise ValueError(f"norm_momentum must be above 0 and at most 1, got {momentum}")
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = momentum


def subject_auc(probability: Tensor, label: Tensor, subject: Tensor) -> float:
    """Area under the ROC curve over subjects, each scored by the mean of its windows; NaN if there is only one class.

    Example:
        >>> subject_auc(torch.tensor([0.1, 0.9, 0.4]), torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2]))
        1.0
    """
    names, index = subject.unique(return_inverse=True)
    counts = torch.bincount(index)
    score = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, probability.double()) / counts
    positive = torch.zeros(len(names), dtype=torch.bool)
    positive[index] = label.bool()
    return float(auc(score.numpy(), positive.numpy()))


def load_checkpoint(path: Path) -> EEGModule:
    """Load the module of a training checkpoint on the CPU; no code in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not a checkpoint of this module.
    """
    content = read_checkpoint(path, "an EEG training")
    module = EEGModule(**content["hyper_parameters"])
    module.load_state_dict(content["state_dict"])
    return module
