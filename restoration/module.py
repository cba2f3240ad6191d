"""Training of a restoration network as a LightningModule: losses, learning-rate schedules, averaged weights."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ..kernels.attention.elastic import draw_budget
from ..runs.catalogue import find_weights
from ..runs.muon import Muon
from ..runs.pretraining import hide_blocks, mask_ratio
from ..runs.training import SteppedModule, update_average
from ..runs.weight_file import read_checkpoint
from .data import Patches
from .elastic import FULL, NestedSizes
from .mair import MaIR
from .settings import ModuleSettings
from .views import middle_channels
from .weights import NETWORKS, Network, load_weights, model_from_variant, read_parameters, save_weights

_FIRST = ("conv_first.weight", "patch_embed.proj.weight")  # (width, channels, 3, 3) of MaIR and of MaIRUNet


def charbonnier(restored: Tensor, clean: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """The mean of sqrt(difference^2 + epsilon^2), an L1 loss that is smooth at 0 (Charbonnier et al. 1994).

    The published denoising code uses an epsilon of 1e-6, the paper reportedly 1e-3.

    Example:
        >>> round(float(charbonnier(torch.tensor([3.0]), torch.tensor([0.0]), epsilon=4.0)), 6)
        5.0
    """
    return torch.sqrt((restored - clean).square() + epsilon**2).mean()


def psnr_loss(restored: Tensor, clean: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """The mean over the images of 10 log10(mean squared difference + epsilon), in decibels.

    It is the negative PSNR of images whose range is 1 (Chen et al., HINet, CVPRW 2021), so that images count equally at
    each noise level; with the other losses, those with strong noise count most.

    Example:
        >>> round(float(psnr_loss(torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 1, 2, 2))), 3)
        -20.0
    """
    return 10 * torch.log10((restored - clean).square().flatten(1).mean(dim=1) + epsilon).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "charbonnier": charbonnier,
    "mse": F.mse_loss,
    "psnr": psnr_loss,
}


def halved(step: int, *, milestones: Sequence[int]) -> float:
    """The factor of a learning rate that halves at each of the steps in `milestones`.

    Example:
        >>> [halved(step, milestones=[10, 20]) for step in (9, 10, 20)]
        [1.0, 0.5, 0.25]
    """
    return 0.5 ** sum(step >= milestone for milestone in milestones)


def held_then_cosine(step: int, *, warmup: int, hold: int, steps: int, floor: float) -> float:
    """The factor of a learning rate: a linear warm-up, then 1 until `hold`, then half a cosine down to `floor`.

    Args:
        step: step of the optimizer, from 0.
        warmup: number of steps of the linear warm-up.
        hold: the step at which the factor begins to fall.
        steps: the step at which the factor reaches `floor`, where it stays.
        floor: the last factor.

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


class RestorationModule(SteppedModule):
    """A network, its loss and optimizer; validation and export use an exponential moving average (EMA) of its weights.

    Batches are {"degraded": (B, C_in, H, W), "clean": (B, C, H * scale, W * scale)}, scaled to the range 0 to 1.
    All hyper-parameters are plain values, so a checkpoint loads with `torch.load(weights_only=True)`.

    Args:
        settings: the hyper-parameters.

    Attributes:
        degradation: the kind of degradation of the training, such as "rician", a note of the exported weights.

    Raises:
        ValueError: the network does not take its arguments, or `start_from` does not fit it.
    """

    averaged_steps: Tensor

    def __init__(self, settings: ModuleSettings):
        super().__init__()
        self.settings = settings
        self.save_hyperparameters(settings.plain())
        self.network = _build(settings.network, dict(settings.arguments or {}))
        self.nested = _nested(self.network, settings)
        complete = settings.start_from is not None and _start_from(
            self.network, find_weights(settings.start_from, "restoration")
        )
        taught = self.nested is not None and settings.start_from is not None and settings.distillation > 0
        if taught and not complete:
            warnings.warn(
                f"{settings.start_from} is not this whole network, so smaller sizes learn from clean images only",
                stacklevel=2,
            )
        # in a list, so that checkpoints do not contain it
        taught = taught and complete
        self._teacher = [copy.deepcopy(self.network).requires_grad_(False).eval()] if taught else []
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.degradation: str | None = None
        # a buffer, so that a resumed training continues to average where it stopped
        self.register_buffer("averaged_steps", torch.tensor(0))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H * scale, W * scale) by the averaged weights."""
        restored: Tensor = self.averaged(image)
        return restored

    @property
    def averaged(self) -> Network:
        """The network that validation and export use."""
        return self.ema if self.settings.ema_decay else self.network

    def training_step(self, batch: Patches, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        degraded, clean = batch["degraded"], batch["clean"]
        if self.settings.mixup is not None:
            degraded, clean = self._mix(degraded, clean, self.settings.mixup, self.global_step)
        if self.global_step < self.settings.mask_steps:
            ratio = mask_ratio(self.global_step, self.settings.mask_steps)
            degraded = hide_blocks(degraded, ratio, torch.Generator().manual_seed(self.global_step))
        loss = self._loss(degraded, clean)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def _loss(self, degraded: Tensor, clean: Tensor) -> Tensor:
        """The loss of the full network, or of the size that is drawn for this step."""
        loss, share = LOSSES[self.settings.loss], self.settings.distillation
        size = FULL if self.nested is None else self._drawn_size(self.nested, self.global_step)
        if self.nested is None or size == FULL:
            return loss(self.network(degraded), clean)
        assert isinstance(self.network, MaIR)
        restored = self.nested.restore(self.network, size, degraded)
        if not share or not self._teacher:
            return loss(restored, clean)
        with torch.no_grad():
            taught = self._teacher[0].to(degraded.device)(degraded)
        return (1 - share) * loss(restored, clean) + share * loss(restored, taught)

    def _drawn_size(self, nested: NestedSizes, step: int) -> str:
        """The size that a step trains; the draw depends on the step alone."""
        start = self.settings.larger_from
        stage = 1 if start is None or step < start else 2
        return nested.names[draw_budget(len(nested.names), stage, torch.Generator().manual_seed(step))]

    def after_step(self, steps: int) -> None:
        """Update the averaged weights."""
        self.averaged_steps += 1
        update_average(self.ema, self.network, decay=self.settings.ema_decay, step=int(self.averaged_steps))

    def validation_step(self, batch: Patches, batch_idx: int) -> None:
        """Log the PSNR (dB, data_range 1, values clipped to [0, 1], no border left out) of the result and the input."""
        self._log_psnr("", batch)

    def test_step(self, batch: Patches, batch_idx: int) -> None:
        """Log the figures of `validation_step` with names "test_*"."""
        self._log_psnr("test_", batch)

    def predict_step(self, batch: Patches, batch_idx: int) -> Tensor:
        """The restored images, as `forward`."""
        return self.forward(batch["degraded"])

    def _log_psnr(self, prefix: str, batch: Patches) -> None:
        clean = batch["clean"]
        restored = self.averaged(batch["degraded"])
        self.log(f"{prefix}psnr", _psnr(restored, clean), prog_bar=True, on_epoch=True, batch_size=1, sync_dist=True)
        if self.nested is not None and isinstance(self.averaged, MaIR):
            for size in self.nested.names[:-1]:
                smaller = self.nested.restore(self.averaged, size, batch["degraded"])
                self.log(f"{prefix}psnr_{size}", _psnr(smaller, clean), on_epoch=True, batch_size=1, sync_dist=True)
        middle = batch["degraded"][:, self.network.middle]
        if middle.shape == clean.shape:
            self.log(f"{prefix}psnr_input", _psnr(middle, clean), on_epoch=True, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer with a learning rate that changes every step."""
        optimizer = self._optimizer()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        first, second = settings.betas
        if settings.optimizer == "muon":
            return Muon(self.network.named_parameters(), lr=settings.lr, betas=(first, second))
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        groups = _with_and_without_decay(self.network, settings.weight_decay)
        return kind(groups, lr=settings.lr, betas=(first, second))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is neither a weight nor a hyper-parameter."""
        checkpoint["degradation"] = self.degradation

    def export(self, path: Path, *, notes: dict[str, str] | None = None) -> None:
        """Write the averaged weights as safetensors, with their task and intensity range.

        Args:
            path: the file to write, which ends in .safetensors.
            notes: free text for a reader, such as data, licence, command and seed.
        """
        low, high = self.settings.intensity_range
        trained = {} if self.degradation is None else {"degradation": self.degradation}
        save_weights(
            path,
            self.averaged,
            task=self.settings.task,
            intensity_range=(low, high),
            intensity_unit=self.settings.intensity_unit,
            notes={"averaged_steps": str(int(self.averaged_steps)), **trained, **(notes or {})},
            sizes=self.settings.sizes,
        )

    def _lr_factor(self, step: int) -> float:
        settings = self.settings
        if settings.schedule == "halved":
            return halved(step, milestones=settings.milestones)
        if settings.schedule == "cosine":
            floor = settings.lr_min / settings.lr
            return held_then_cosine(step, warmup=settings.warmup, hold=settings.hold, steps=settings.steps, floor=floor)
        return 1.0

    def _mix(self, degraded: Tensor, clean: Tensor, alpha: float, step: int) -> tuple[Tensor, Tensor]:
        """Blend half the batches with a shuffled copy of themselves; the draws depend on the step alone."""
        generator = torch.Generator().manual_seed(step)
        if torch.rand(1, generator=generator, dtype=torch.float32) < 0.5:
            return degraded, clean
        concentration = torch.tensor([alpha, alpha], dtype=torch.float32)  # there is no Dirichlet in bfloat16
        share = torch._sample_dirichlet(concentration, generator=generator)[0].to(degraded)
        other = torch.randperm(len(degraded), generator=generator).to(degraded.device)
        return torch.lerp(degraded[other], degraded, share), torch.lerp(clean[other], clean, share)


def load_checkpoint(path: Path) -> RestorationModule:
    """Load the module of a training checkpoint on the CPU; no code in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this module.
    """
    content = read_checkpoint(path, "a restoration training")
    try:
        settings = ModuleSettings(**{**content["hyper_parameters"], "start_from": None})
    except TypeError as error:
        raise ValueError(f"{path} is not a checkpoint of a restoration training: {error}") from None
    module = RestorationModule(settings)
    module.load_state_dict(content["state_dict"])
    degradation = content.get("degradation")
    module.degradation = degradation if isinstance(degradation, str) else None
    return module


def _build(network: str, arguments: dict[str, Any]) -> Network:
    """The network with random parameters."""
    try:
        return NETWORKS[network](**arguments) if network in NETWORKS else model_from_variant(network, **arguments)
    except TypeError as error:
        reason = str(error).partition("__init__() ")[2] or error
        raise ValueError(f"arguments of {network} do not fit: {reason}") from None


def _nested(network: Network, settings: ModuleSettings) -> NestedSizes | None:
    if not settings.sizes:
        return None
    if not isinstance(network, MaIR):
        raise ValueError(f"sizes need the network MaIR, got {settings.network}")
    return NestedSizes(network.arguments, settings.sizes)


def _start_from(network: Network, path: Path) -> bool:
    """Copy the parameters whose name and shape fit from a file; at least half of the network's parameters must fit.

    Kernels of a first convolution for one slice go to the middle one of several slices, the kernels of the other slices
    become 0: the network begins with the results of the file.

    Returns:
        Whether the file holds exactly the parameters of the network, so that its results are those of the file.
    """
    own = network.state_dict()
    found = load_weights(path)[0].state_dict() if path.suffix == ".safetensors" else read_parameters(path)
    for name in found.keys() & own.keys() & set(_FIRST):
        first, kernels = found[name], own[name]
        is_of_one_slice = first.shape[1] * network.in_channels == kernels.shape[1] * network.out_channels
        if is_of_one_slice and first.shape[1] < kernels.shape[1]:
            found[name] = torch.zeros_like(kernels)
            found[name][:, middle_channels(kernels.shape[1], first.shape[1])] = first
    fitting = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    if 2 * len(fitting) < len(own):
        raise ValueError(f"start_from {path} fits only {len(fitting)} of the network's {len(own)} parameters")
    network.load_state_dict({**own, **fitting})
    return fitting.keys() == own.keys() == found.keys()


def _with_and_without_decay(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for matrices and kernels; none for the scan's A and D, norms, skips and biases."""
    if not weight_decay:
        return [{"params": list(network.parameters())}]
    spared = ("A_logs", "Ds", "dt_projs_bias")
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (others if parameter.ndim < 2 or name.endswith(spared) else decaying).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean over the batch of -10 log10(MSE), both images clipped to [0, 1]."""
    difference = restored.clamp(0, 1) - clean.clamp(0, 1)
    return (-10 * torch.log10(difference.square().flatten(1).mean(1).clamp(min=1e-12))).mean()
