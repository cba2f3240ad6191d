"""Training of OAT as a LightningModule: teacher forcing, and early stopping on the likelihood of held-out paths."""

import copy
import math
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runs.training import SeededModule, from_all_processes, update_average
from ..runs.weight_file import read_checkpoint
from .data import IGNORED, PathBatch, PathData, fit_prior
from .oat import OAT, log_probabilities
from .scene import TargetPosition

VALIDATION_BATCH = 64  # paths
BALANCE = 0.01  # weight of the loss that balances gated heads (Jin et al. 2024, arXiv 2410.11842)
FIGURES = ("train_loss", "validation_nats")


def path_loss(scores: Tensor, chosen: Tensor) -> Tensor:
    """Mean cross-entropy over all tokens of a batch; the classes are the objects, the end and padding, as published.

    Args:
        scores: (B, T, N + 2) scores of the network.
        chosen: (B, T), see `PathBatch`.
    """
    return F.cross_entropy(scores.flatten(0, 1), chosen.flatten(), ignore_index=IGNORED)


def path_nats(scores: Tensor, batch: PathBatch) -> tuple[Tensor, int]:
    """Negative log-likelihood of a batch in nats, and its number of tokens, including the ends.

    The padding class has probability 0, and no path ends before its first fixation.
    """
    log_p = log_probabilities(scores, first=batch.first)
    counted = batch.chosen != IGNORED
    chosen = log_p.gather(-1, batch.chosen.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -chosen[counted].double().sum(), int(counted.sum())


class ScanpathModule(SeededModule):
    """OAT, its loss and optimiser; validation and export use an average of the weights (EMA) if `ema_decay` is set.

    All hyper-parameters are plain values, so a checkpoint loads with `torch.load(weights_only=True)`.

    Args:
        arguments: arguments of `oat.OAT`; `table` as a list of lists.
        target_position: whether the network is given the position of the target.
        lr: learning rate of AdamW; the default is the published one.
        weight_decay: weight decay of matrices; 0 makes AdamW equal to Adam.
        warmup: steps of linear warm-up.
        cosine_steps: if given, the learning rate falls by half a cosine and reaches a hundredth at this step.
        ema_decay: decay of the average of the weights; 0 turns the average off.
        seed: seed of order and dropout in each epoch; the initial weights are drawn from torch's global generator.
    """

    def __init__(
        self,
        *,
        arguments: dict[str, Any],
        target_position: TargetPosition = "hidden",
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        warmup: int = 0,
        cosine_steps: int | None = None,
        ema_decay: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        if not lr > 0 or weight_decay < 0:
            raise ValueError(f"lr must be above 0 and weight_decay at least 0, got {lr} and {weight_decay}")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")
        if target_position not in ("hidden", "given"):
            raise ValueError(f'target_position must be "hidden" or "given", got {target_position!r}')
        self.save_hyperparameters(
            {
                "arguments": dict(arguments),
                "target_position": target_position,
                "lr": float(lr),
                "weight_decay": float(weight_decay),
                "warmup": int(warmup),
                "cosine_steps": None if cosine_steps is None else int(cosine_steps),
                "ema_decay": float(ema_decay),
                "seed": int(seed),
            }
        )
        table = arguments.get("table")
        self.network = OAT(**{**arguments, "table": None if table is None else torch.tensor(table)})
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval() if ema_decay else None

    def fit_prior(self, data: PathData) -> None:
        """Fit the prior of the network, if it has one, to the training paths; it stays as it is from then on."""
        network = cast(OAT, self.network)
        if network.prior is None:
            return
        fit_prior(network.prior, data)
        self.averaged.load_state_dict(network.state_dict())

    @property
    def averaged(self) -> OAT:
        """The network that validation and export use."""
        network = self.network if self.ema is None else self.ema
        assert isinstance(network, OAT)
        return network

    def with_weights(self, weights: dict[str, Tensor]) -> OAT:
        """A copy of the averaged network in evaluation mode, with the given weights in place of its own, if any."""
        network = copy.deepcopy(self.averaged).cpu()
        if weights:
            network.load_state_dict(weights)
        return network.eval()

    def training_step(self, batch: PathBatch, batch_idx: int) -> Tensor:
        """The published loss of one batch."""
        loss = path_loss(self.network(batch.scenes, batch.scene, batch.previous), batch.chosen) * batch.weight
        if (balance := cast(OAT, self.network).take_balance()) is not None:
            loss = loss + BALANCE * balance
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.scene), sync_dist=True)
        return loss

    def after_step(self, steps: int) -> None:
        """Update the averaged weights; during the first steps the average covers fewer steps."""
        if self.ema is not None:
            update_average(self.ema, self.network, decay=self.hparams["ema_decay"], step=steps)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of the last epoch."""
        self._nats, self._tokens = 0.0, 0

    def validation_step(self, batch: PathBatch, batch_idx: int) -> None:
        """Add to the sums; the loss is computed over the whole validation part at the end of the epoch."""
        nats, tokens = path_nats(self.averaged(batch.scenes, batch.scene, batch.previous), batch)
        self._nats += float(nats)
        self._tokens += tokens

    def on_validation_epoch_end(self) -> None:
        """Log the nats per token, including the ends; with several processes, a last batch may count twice."""
        self._log_nats("validation")

    def on_test_epoch_start(self) -> None:
        """Reset the sums."""
        self._nats, self._tokens = 0.0, 0

    def test_step(self, batch: PathBatch, batch_idx: int) -> None:
        """Add to the sums, as `validation_step` does."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log "test_nats", computed as in `on_validation_epoch_end`."""
        self._log_nats("test")

    def predict_step(self, batch: PathBatch, batch_idx: int) -> Tensor:
        """Log-probabilities of each fixation, given the previous ones: (B, T, N + 1), where the end is last."""
        scores = self.averaged(batch.scenes, batch.scene, batch.previous)
        return log_probabilities(scores, first=batch.first)

    def _log_nats(self, part: str) -> None:
        sums = from_all_processes(torch.tensor([[self._nats, self._tokens]], dtype=torch.float64)).sum(0)
        self.log(f"{part}_nats", float(sums[0] / sums[1]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW without weight decay of biases and norms; the learning rate is constant, or has a warm-up and falls."""
        options = self.hparams
        matrices = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": options["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=options["lr"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        warmup, steps = self.hparams["warmup"], self.hparams["cosine_steps"]
        if step < warmup:
            result: float = (step + 1) / warmup
            return result
        if steps is None:
            return 1.0
        part = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2


@torch.inference_mode()
def nats_per_token(network: OAT, data: PathData) -> tuple[float, int]:
    """Mean negative log-likelihood over all tokens, including the ends, and the number of tokens."""
    total, tokens = 0.0, 0
    for k in range(0, len(data), VALIDATION_BATCH):
        batch = data[list(range(k, min(k + VALIDATION_BATCH, len(data))))]
        nats, some = path_nats(network.eval()(batch.scenes, batch.scene, batch.previous), batch)
        total, tokens = total + float(nats), tokens + some
    return total / tokens, tokens


def load_checkpoint(path: Path) -> ScanpathModule:
    """Load the module of a training checkpoint on the CPU; no code in the file is executed.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a checkpoint of this module.
    """
    content = read_checkpoint(path, "a scanpath training")
    if "arguments" not in content["hyper_parameters"]:
        raise ValueError(f"{path} is not a checkpoint of a scanpath training")
    module = ScanpathModule(**content["hyper_parameters"])
    module.load_state_dict(content["state_dict"])
    return module
