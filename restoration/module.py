"""Training of a restoration network: losses, schedules, and an average of the weights, as a LightningModule."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from .mair import MaIR
from .mair_unet import MaIRUNet
from .weights import load_weights, model_from_variant, read_checkpoint, read_parameters, save_weights

NETWORKS: dict[str, type[MaIR] | type[MaIRUNet]] = {"MaIR": MaIR, "MaIRUNet": MaIRUNet}


def charbonnier(restored: Tensor, clean: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """The mean of sqrt(difference^2 + epsilon^2): L1 with a rounded corner (Charbonnier et al. 1994).

    The published denoising code has epsilon 1e-6, the paper reportedly 1e-3.

    Example:
        >>> round(float(charbonnier(torch.tensor([3.0]), torch.tensor([0.0]), epsilon=4.0)), 6)
        5.0
    """
    return torch.sqrt((restored - clean).square() + epsilon**2).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "charbonnier": charbonnier,
    "mse": F.mse_loss,
}


def halved(step: int, *, milestones: Sequence[int]) -> float:
    """The factor on the learning rate that halves at each of the steps in `milestones`.

    Example:
        >>> [halved(step, milestones=[10, 20]) for step in (9, 10, 20)]
        [1.0, 0.5, 0.25]
    """
    return 0.5 ** sum(step >= milestone for milestone in milestones)


def held_then_cosine(step: int, *, warmup: int, hold: int, steps: int, floor: float) -> float:
    """The factor on the learning rate: a linear warm-up, then 1 until `hold`, then half a cosine down to `floor`.

    Args:
        step: of the optimiser, from 0.
        warmup: steps of the linear start.
        hold: the step at which it begins to fall.
        steps: the step at which it reaches `floor`; it stays there.
        floor: final factor.

    Example:
        >>> [round(held_then_cosine(s, warmup=0, hold=10, steps=30, floor=0.1), 3) for s in (0, 10, 20, 30, 40)]
        [1.0, 1.0, 0.55, 0.1, 0.1]
    """
    if step < warmup:
        return (step + 1) / warmup
    if step <= hold:
        return 1.0
    part = min((step - hold) / max(steps - hold, 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * part)) / 2


class RestorationModule(LightningModule):
    """A network, its loss and optimiser; validation and export use an exponential moving average (EMA) of its weights.

    Batches are {"degraded": (B, C_in, H, W), "clean": (B, C, H * scale, W * scale)}, 0 and 1 at the ends of the range.
    All hyper-parameters are plain values, so a checkpoint loads with `torch.load(weights_only=True)`.

    Args:
        network: "MaIR" or "MaIRUNet", or a published variant's name such as "mair-t-x2".
        arguments: of the network's constructor; for a variant those that differ.
        loss: "l1", "charbonnier" or "mse".
        optimizer: "adam" or "adamw".
        lr: learning rate.
        betas: of the optimiser.
        weight_decay: of AdamW; the scan's decay rates, skips, norms and biases are left out.
        schedule: "halved" (at `milestones`), "cosine" (after `hold`, down to `lr_min` at `steps`) or "constant".
        milestones: steps at which the rate halves.
        warmup: steps of linear warm-up before the cosine.
        hold: step at which the cosine begins.
        steps: step at which the cosine ends.
        lr_min: the cosine's last learning rate.
        ema_decay: of the average; early on it is shorter, (1 + n) / (10 + n) after n steps. 0 turns it off.
        mixup: parameter of the Beta distribution whose draws mix samples of half the batches; None for none.
        start_from: weights to begin with: a file of ours, or published parameters; names or shapes that do not fit
            (another scale's head) keep their random start.
        task, intensity_range, intensity_unit: written into exported weights (see `weights.WeightsInfo`).
    """

    averaged_steps: Tensor

    def __init__(
        self,
        *,
        network: str = "MaIR",
        arguments: dict[str, Any] | None = None,
        loss: Literal["l1", "charbonnier", "mse"] = "l1",
        optimizer: Literal["adam", "adamw"] = "adam",
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        schedule: Literal["halved", "cosine", "constant"] = "constant",
        milestones: Sequence[int] = (),
        warmup: int = 0,
        hold: int = 0,
        steps: int = 0,
        lr_min: float = 1e-6,
        ema_decay: float = 0.999,
        mixup: float | None = None,
        start_from: str | None = None,
        task: str = "denoise",
        intensity_range: tuple[float, float] = (0.0, 1.0),
        intensity_unit: str = "relative",
    ):
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if optimizer not in ("adam", "adamw"):
            raise ValueError(f'optimizer must be "adam" or "adamw", got {optimizer!r}')
        if schedule not in ("halved", "cosine", "constant"):
            raise ValueError(f'schedule must be "halved", "cosine" or "constant", got {schedule!r}')
        if schedule == "cosine" and steps <= hold:
            raise ValueError(f"steps must be above hold ({hold}) with schedule cosine, got {steps}")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")
        self.save_hyperparameters(
            {
                "network": network,
                "arguments": dict(arguments or {}),
                "loss": loss,
                "optimizer": optimizer,
                "lr": float(lr),
                "betas": [float(beta) for beta in betas],
                "weight_decay": float(weight_decay),
                "schedule": schedule,
                "milestones": [int(milestone) for milestone in milestones],
                "warmup": int(warmup),
                "hold": int(hold),
                "steps": int(steps),
                "lr_min": float(lr_min),
                "ema_decay": float(ema_decay),
                "mixup": mixup,
                "start_from": start_from,
                "task": task,
                "intensity_range": [float(value) for value in intensity_range],
                "intensity_unit": intensity_unit,
            }
        )
        self.network = _build(network, dict(arguments or {}))
        if start_from is not None:
            _start_from(self.network, Path(start_from))
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        # A buffer, so that a resumed training goes on averaging where it stopped.
        self.register_buffer("averaged_steps", torch.tensor(0))
        self._mixing = torch.Generator()

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H * scale, W * scale) by the averaged weights."""
        return self.averaged(image)

    @property
    def averaged(self) -> MaIR | MaIRUNet:
        """The network that validation and export use."""
        return self.ema if self.hparams["ema_decay"] else self.network

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        degraded, clean = batch["degraded"], batch["clean"]
        if self.hparams["mixup"] is not None:
            degraded, clean = self._mix(degraded, clean, self.global_step)
        loss = LOSSES[self.hparams["loss"]](self.network(degraded), clean)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the averaged weights a little towards the present ones."""
        self.averaged_steps += 1
        n = int(self.averaged_steps)
        decay = min(self.hparams["ema_decay"], (1 + n) / (10 + n))
        with torch.no_grad():
            for average, present in zip(self.ema.parameters(), self.network.parameters(), strict=True):
                average.lerp_(present, 1 - decay)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """PSNR (dB, data_range 1, values cut to [0, 1], no border left out) of averaged weights and input."""
        clean = batch["clean"]
        restored = self.averaged(batch["degraded"])
        self.log("psnr", _psnr(restored, clean), prog_bar=True, on_epoch=True, batch_size=1)
        middle = batch["degraded"][:, self.network.middle]
        if middle.shape == clean.shape:
            self.log("psnr_input", _psnr(middle, clean), on_epoch=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        """Adam or AdamW with a learning rate that changes every step."""
        options = self.hparams
        kind = torch.optim.AdamW if options["optimizer"] == "adamw" else torch.optim.Adam
        groups = _with_and_without_decay(self.network, options["weight_decay"])
        optimizer = kind(groups, lr=options["lr"], betas=tuple(options["betas"]))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def export(self, path: Path, *, notes: dict[str, str] | None = None) -> None:
        """Write the averaged weights as safetensors, with what they are made for.

        Args:
            path: ends in .safetensors.
            notes: words for a reader: data, licence, command, seed.
        """
        options = self.hparams
        low, high = options["intensity_range"]
        save_weights(
            path,
            self.averaged,
            task=options["task"],
            intensity_range=(low, high),
            intensity_unit=options["intensity_unit"],
            notes={"averaged_steps": str(int(self.averaged_steps)), **(notes or {})},
        )

    def _lr_factor(self, step: int) -> float:
        options = self.hparams
        if options["schedule"] == "halved":
            return halved(step, milestones=options["milestones"])
        if options["schedule"] == "cosine":
            return held_then_cosine(
                step,
                warmup=options["warmup"],
                hold=options["hold"],
                steps=options["steps"],
                floor=options["lr_min"] / options["lr"],
            )
        return 1.0

    def _mix(self, degraded: Tensor, clean: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Half the batches blended with a shuffled copy of themselves, by draws that depend on the step alone."""
        generator = self._mixing.manual_seed(step)
        if torch.rand(1, generator=generator) < 0.5:
            return degraded, clean
        alpha = float(self.hparams["mixup"])
        share = torch._sample_dirichlet(torch.tensor([alpha, alpha]), generator=generator)[0].to(degraded)
        other = torch.randperm(len(degraded), generator=generator).to(degraded.device)
        return torch.lerp(degraded[other], degraded, share), torch.lerp(clean[other], clean, share)


def load_checkpoint(path: Path) -> RestorationModule:
    """The module of a training checkpoint, on the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a checkpoint of this module.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or "hyper_parameters" not in content:
        raise ValueError(f"{path} is not a checkpoint of a restoration training")
    module = RestorationModule(**{**content["hyper_parameters"], "start_from": None})
    module.load_state_dict(content["state_dict"])
    return module


def _build(network: str, arguments: dict[str, Any]) -> MaIR | MaIRUNet:
    """The network with random parameters."""
    try:
        return NETWORKS[network](**arguments) if network in NETWORKS else model_from_variant(network, **arguments)
    except TypeError as error:
        reason = str(error).partition("__init__() ")[2] or error
        raise ValueError(f"arguments of {network} do not fit: {reason}") from None


def _start_from(network: nn.Module, path: Path) -> None:
    """Copy the parameters of a file whose names and shapes fit; at least half of them must."""
    own = network.state_dict()
    found = load_weights(path)[0].state_dict() if path.suffix == ".safetensors" else read_parameters(path)
    fitting = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    if 2 * len(fitting) < len(own):
        raise ValueError(f"start_from {path} fits only {len(fitting)} of the network's {len(own)} parameters")
    network.load_state_dict({**own, **fitting})


def _with_and_without_decay(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; the scan's A and D, norms, skips and biases do not."""
    if not weight_decay:
        return [{"params": list(network.parameters())}]
    spared = ("A_logs", "Ds", "dt_projs_bias")
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (others if parameter.ndim < 2 or name.endswith(spared) else decaying).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean over the batch of -10 log10(MSE), both images cut to [0, 1]."""
    difference = restored.clamp(0, 1) - clean.clamp(0, 1)
    return (-10 * torch.log10(difference.square().flatten(1).mean(1).clamp(min=1e-12))).mean()
