"""Settings that the functions of this folder and the commands share; plain values, so that `--help` loads no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

Loss = Literal["l1", "charbonnier", "mse", "psnr"]
Optimizer = Literal["adam", "adamw", "muon"]
Schedule = Literal["halved", "cosine", "constant"]
Region = Literal["all", "head"]
Size = Literal["small", "medium", "full"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings."""

    @classmethod
    def of(cls, options: Any) -> Self:
        """Extract this group from a larger group that inherits it."""
        return cls(**{each.name: getattr(options, each.name) for each in fields(cls)})


TILE = 288
"""The largest side of a tile in pixels by default: a slice of 256 x 256 is one tile, one of 512 x 512 four."""


@dataclass(frozen=True, kw_only=True)
class TileSettings(Settings):
    """How an image is restored in tiles.

    Args:
        tile: the largest side of a tile in pixels, which limits the memory. For a folder, it is halved when memory runs
            out.
        overlap: the overlap with the neighbouring tiles on each side, as a fraction of the tile.
        self_ensemble: average the results of eight flips and rotations; better by about 0.1 dB, eight times slower.
    """

    tile: int = TILE
    overlap: float = 0.1
    self_ensemble: bool = False


@dataclass(frozen=True, kw_only=True)
class SizeSettings(Settings):
    """Which of the networks in a weight file is used.

    Args:
        size: the size of the network, for weights that contain several; `voxelwave weights` lists them. A smaller size
            is faster, needs less memory and restores less well.
    """

    size: Size = "full"


@dataclass(frozen=True, kw_only=True)
class RestoreSettings(TileSettings, SizeSettings):
    """How an image file is restored.

    Args:
        range: the intensities that are mapped to 0 and 1: auto, dtype, LOW,HIGH, hu:LOW,HIGH or percentiles:LOW,HIGH.
            Values outside this range are not clipped.
        slice_axis: the array axis of a NIfTI volume along which its slices lie.
        variant: the name of the published configuration, for published weights.
        stripe_width: the width of the stripes in the network's scan order, for published weights.
        max_bias: refuse to write a result whose mean differs from that of its input by more than this, in the unit of
            the image.
        fix_tilt: straighten the slices of a CT with a tilted gantry, with one interpolation, and write a NIfTI file;
            without this option such a CT is refused.
        sigma: the noise level of MR magnitudes, if it is known, in the unit of the image: the standard deviation of the
            noise in the real and in the imaginary part, which in air is the mean divided by 1.253. The bias of Rician
            noise is then removed also from the results of weights that leave it, strong noise is scaled to what the
            weights know, and no more than this noise is removed.
        ignore_card: restore images of modalities that the card of the weights rules out, too.
    """

    range: str = "auto"
    slice_axis: int = 2
    variant: str | None = None
    stripe_width: int | None = None
    max_bias: float | None = None
    fix_tilt: bool = False
    sigma: float | None = None
    ignore_card: bool = False

    def recorded(self) -> dict[str, Any]:
        """The values as the manifest of a folder lists them."""
        values = {"range": self.range, **asdict(self)}
        for name in ("fix_tilt", "ignore_card"):
            if not values[name]:  # so that results of earlier versions stay valid
                del values[name]
        if self.size == "full":
            del values["size"]
        if self.sigma is None:
            del values["sigma"]
        return values


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """The images of an evaluation and their degradation.

    Args:
        degraded: real degraded partners of CLEAN, in the same order of names.
        degradation: gaussian, rician, ct, gaussian-blur or box-blur; or kind and parameters as in the configuration of
            a training, such as "{kind: ct, photons: 30000}"; or bicubic for super-resolution, which shrinks the images
            as MATLAB's imresize does.
        scale: the super-resolution factor, by which the images are shrunk with bicubic interpolation; by default that
            of the network.
        sigma: the standard deviation of the noise in the unit of the images, such as 25 for images from 0 to 255; the
            noise is Gaussian unless --degradation is rician.
        range: the intensities that are mapped to 0 and 1, and whose difference is the data_range: auto, dtype,
            LOW,HIGH, hu:LOW,HIGH or percentiles:LOW,HIGH.
        slice_axis: the array axis of NIfTI volumes along which their slices lie.
        slices_per_volume: the largest number of slices measured per volume, evenly spaced.
        grey: convert colour images to their luminance first.
        seed: seed of the noise; each image has its own draw.
    """

    degraded: Path | None = None
    degradation: str | dict[str, Any] | None = None
    scale: int | None = None
    sigma: float | None = None
    range: str = "auto"
    slice_axis: int = 2
    slices_per_volume: int = 10
    grey: bool = False
    seed: int = 0

    @property
    def noise(self) -> dict[str, Any] | None:
        """Kind and parameters of the degradation; None if there is none or it is bicubic."""
        if isinstance(self.degradation, str):
            return None if self.degradation == "bicubic" else {"kind": self.degradation}
        return None if self.degradation == {"kind": "bicubic"} else self.degradation

    def check_degradation(self, scale: int) -> None:
        """Refuse degradations that do not go together or with the scale.

        Args:
            scale: the scale of the network, or the given one.

        Raises:
            ValueError: names the options.
        """
        made = self.degradation is not None or self.sigma is not None
        if self.degraded is not None and made:
            raise ValueError("give either --degraded, or --degradation and --sigma, got both")
        if self.sigma is not None and "sigma" in (self.noise or {}):
            raise ValueError(f"give sigma once: --sigma is {self.sigma}, and --degradation is {self.noise}")
        if self.degradation is not None and self.noise is None and scale == 1:
            raise ValueError("--degradation bicubic needs --scale or weights for super-resolution")
        if scale > 1 and (self.noise is not None or self.sigma is not None):
            raise ValueError(f"--degradation must be bicubic and --sigma left out for super-resolution by {scale}")
        if scale == 1 and self.degraded is None and not made:
            raise ValueError("give one of --degraded, --degradation and --sigma")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Images, degradations and stages of a training.

    Args:
        module: the options of the training: network, arguments, loss, optimizer, lr, schedule, ema_decay and so on.
        degradation: kind (gaussian, rician, ct, gaussian-blur, box-blur) and its parameters, such as sigma [0.02, 0.2]
            as fractions of the range; ct takes photons [3000, 300000] and needs a range in HU, gaussian-blur takes
            sigma_px.
        train_degraded: the degraded partners of TRAIN_IMAGES.
        validation_degraded: the degraded partners of VALIDATION_IMAGES.
        intensity_range: the intensities that are mapped to 0 and 1: auto, dtype, LOW,HIGH, hu:LOW,HIGH or
            percentiles:LOW,HIGH.
        slice_axis: the array axis of NIfTI volumes along which their slices lie.
        grey: convert colour images to their luminance.
        slices: an odd number of neighbouring slices as input channels (2.5-D).
        single_slices: the fraction of patches whose neighbours are copies of the middle slice, so that the network also
            restores images without neighbours.
        stages: the stages of the training in order, each with steps, batch and patch.
        epoch_steps: steps between validations; a checkpoint is written after each validation.
        validation_crop: side in pixels of the central square of each slice that validation uses.
        margin: pixels around each patch that are degraded with it and then cut off; by default the reach of the
            degradation.
        gradient_clip: the largest norm of the gradient; a larger gradient is scaled down.
        seed: seed of parameters, patches and degradations.
    """

    module: dict[str, Any] | None = None
    degradation: dict[str, Any] | None = None
    train_degraded: Path | None = None
    validation_degraded: Path | None = None
    intensity_range: str = "auto"
    slice_axis: int = 2
    grey: bool = False
    slices: int = 1
    single_slices: float = 0.0
    stages: list[dict[str, int]] | None = None
    epoch_steps: int = 500
    validation_crop: int = 128
    margin: int | None = None
    gradient_clip: float | None = None
    seed: int = 0

    @property
    def reading(self) -> dict[str, Any]:
        """The settings of `data.load_clean` and `data.load_pairs`."""
        return {"intensity_range": self.intensity_range, "slice_axis": self.slice_axis, "grey": self.grey}


@dataclass(frozen=True, kw_only=True)
class ModuleSettings(Settings):
    """The hyper-parameters of a `RestorationModule`.

    Args:
        network: "MaIR" or "MaIRUNet", or the name of a published variant such as "mair-t-x2".
        arguments: the network's constructor arguments; for a variant only the arguments that differ.
        loss: "l1", "charbonnier", "mse", or "psnr" (the logarithm of each image's squared error, so that all noise
            levels count equally).
        optimizer: "adam", "adamw", or "muon", which orthogonalises the updates of kernels and matrices and leaves the
            other parameters to Adam (`runs.muon.Muon`).
        lr: the learning rate.
        betas: the decay rates of the optimizer's two moments.
        weight_decay: the weight decay of AdamW; it is not applied to the scan's decay rates, skips, norms and biases.
        schedule: "halved" (at `milestones`), "cosine" (after `hold`, down to `lr_min` at `steps`) or "constant".
        milestones: the steps at which the rate halves.
        warmup: steps of linear warm-up before the cosine.
        hold: the step at which the cosine begins.
        steps: the step at which the cosine ends.
        lr_min: the last learning rate of the cosine.
        ema_decay: the decay of the averaged weights; during the first steps it is (1 + n) / (10 + n) after n steps. 0
            turns the average off.
        mixup: the parameter of the Beta distribution from which the mixing factors of mixup are drawn, for half of the
            batches; None turns mixup off.
        start_from: initial weights: a weight file of this package, the name of weights that come with it, or published
            parameters; parameters whose name or shape does not fit (such as the head for another scale) keep their
            random initial values. A network for several slices begins with the results of weights for one.
        sizes: smaller networks that the weights shall contain besides the full one: small, medium or both, each with
            its width, depths, expansion or mlp_ratio. Each step trains one size, drawn at random, at the cost of that
            size. The units of `start_from`, if it has one size, are first sorted by importance. For MaIR only.
        larger_from: the step from which size n of 3, counted from the smallest, is drawn n times as often as the
            smallest; by default all sizes are drawn equally often.
        distillation: the share of the loss of a smaller size that is measured against the result of the network of
            `start_from`, which stays as it is for this; the rest is measured against the clean image. Everything is if
            there is no `start_from`, or if only a part of its parameters fits.
        mask_steps: the first steps in which a growing share (10 to 60 %) of square blocks of the degraded patches is
            hidden, so that the encoder learns to use the surroundings (pre-training under a growing mask, an idea after
            arXiv 2508.06107); 0 for none.
        task, intensity_range, intensity_unit: written into exported weights (see `weights.WeightsInfo`).

    Raises:
        ValueError: a value is unknown, out of range, or incompatible with another one.
    """

    network: str = "MaIR"
    arguments: dict[str, Any] | None = field(default_factory=dict)
    loss: Loss = "l1"
    optimizer: Optimizer = "adam"
    lr: float = 2e-4
    betas: Sequence[float] = (0.9, 0.99)
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    milestones: Sequence[int] = ()
    warmup: int = 0
    hold: int = 0
    steps: int = 0
    lr_min: float = 1e-6
    ema_decay: float = 0.999
    mixup: float | None = None
    start_from: str | None = None
    sizes: dict[str, dict[str, Any]] | None = None
    larger_from: int | None = None
    distillation: float = 0.5
    mask_steps: int = 0
    task: str = "denoise"
    intensity_range: Sequence[float] = (0.0, 1.0)
    intensity_unit: str = "relative"

    def __post_init__(self) -> None:
        for name, choices in (("loss", Loss), ("optimizer", Optimizer), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        if self.optimizer != "adamw" and self.weight_decay:
            raise ValueError(f"weight_decay needs the optimizer adamw, got {self.optimizer}")
        if self.schedule == "cosine" and self.steps <= self.hold:
            raise ValueError(f"steps must be above hold ({self.hold}) with schedule cosine, got {self.steps}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation must be from 0 to 1, got {self.distillation}")
        if self.mask_steps < 0:
            raise ValueError(f"mask_steps must be at least 0, got {self.mask_steps}")

    def plain(self) -> dict[str, Any]:
        """The values as checkpoints hold them: numbers, strings, lists and dictionaries only."""
        values = asdict(self)
        if not self.sizes:  # as in earlier versions
            for name in ("sizes", "larger_from", "distillation"):
                del values[name]
        if not self.mask_steps:
            del values["mask_steps"]
        return {
            **values,
            "arguments": dict(self.arguments or {}),
            "lr": float(self.lr),
            "betas": [float(beta) for beta in self.betas],
            "weight_decay": float(self.weight_decay),
            "milestones": [int(milestone) for milestone in self.milestones],
            "lr_min": float(self.lr_min),
            "ema_decay": float(self.ema_decay),
            "intensity_range": [float(value) for value in self.intensity_range],
            "start_from": None if self.start_from is None else str(self.start_from),
        }
