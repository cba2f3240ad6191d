"""Measure the results of a network and of classical methods on the same degraded images."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..runs.files import atomic_path
from ..volumes.head import head_region
from .baselines import DENOISERS, estimated_sigma
from .data import Pair, ValidationDataset, downsampled, load_pairs, unit_stack
from .degradations import bicubic_resize, known_sigma, make_degradation
from .images import Image, IntensityRange, choose_range, find_images, read_image
from .inference import Refused, RestorationNetwork, fitting_range, restore
from .known_noise import NoiseHandling, restore_known_noise
from .metrics import psnr, ssim, y_channel
from .rician import without_rician_bias
from .settings import EvaluationSettings, Region, TileSettings
from .views import middle_channels
from .weights import WeightsInfo

Scores = tuple[float, float]
"""PSNR in dB and SSIM."""


@dataclass(frozen=True, eq=False)
class EvaluationImage:
    """A clean image with its degraded version, for the measurement.

    Args:
        name: name of the image in the table.
        clean: (C, H * scale, W * scale), scaled so that the ends of the range are 0 and 1.
        degraded: (C_in, H, W); C_in is C times the number of neighbouring slices.
        sigma: level of the added Gaussian or Rician noise as a fraction of the range; None if it is not one number.
        rician: whether the added noise was Rician.
        intensity_range: the intensities that were mapped to 0 and 1.
        whole: whether the image holds whole numbers, to which results are rounded.
    """

    name: str
    clean: np.ndarray
    degraded: np.ndarray
    sigma: float | None
    intensity_range: IntensityRange
    whole: bool
    rician: bool = False

    @cached_property
    def head(self) -> np.ndarray:
        """(H, W) bool, the head in the clean image, see `head_region`."""
        return head_region(np.clip(self.clean, 0, 1).mean(axis=0), (1.0, 1.0))

    @property
    def middle(self) -> np.ndarray:
        """(C, H, W), the degraded slice without its neighbours."""
        return self.degraded[middle_channels(len(self.degraded), len(self.clean))]


@dataclass
class Evaluation:
    """The scores of each image by each method.

    Args:
        network: the model, or None.
        methods: names in `baselines.DENOISERS`; None for all that are installed.
        scale: the super-resolution factor, which must be the network's; if it is above 1, bicubic interpolation
            replaces the methods.
        y_channel: measure colour images on the Y channel.
        border: pixels left out at each side.
        region: measure all pixels, or only those of the head (`volumes.head.head_region` of the clean image).
        tiles: the tiles in which the network restores an image.
        device: where the network runs.
        handling: how the network takes a known level of Rician noise.
        rows: name of the image -> method -> scores; filled by `measure`.
    """

    network: RestorationNetwork | None = None
    methods: Sequence[str] | None = None
    scale: int = 1
    y_channel: bool = False
    border: int = 0
    region: Region = "all"
    tiles: TileSettings = field(default_factory=TileSettings)
    device: str = "cpu"
    handling: NoiseHandling = field(default_factory=NoiseHandling)
    rows: dict[str, dict[str, Scores]] = field(default_factory=dict)
    _ranges: set[str] = field(default_factory=set)
    _rician: bool = False

    def __post_init__(self) -> None:
        if self.network is not None and self.scale != self.network.scale:
            raise ValueError(f"scale must be the network's, {self.network.scale}, got {self.scale}")
        unknown = [name for name in self.methods or () if name not in DENOISERS]
        if unknown:
            raise ValueError(f"methods must be of {', '.join(DENOISERS)}, got {', '.join(unknown)}")
        if self.methods is None:
            has_bm3d = importlib.util.find_spec("bm3d") is not None
            self.methods = [name for name in DENOISERS if name != "bm3d" or has_bm3d]
        if self.scale > 1:
            self.methods = []

    def measure(self, image: EvaluationImage) -> dict[str, Scores]:
        """Restore one image with every method and store the scores (PSNR in dB, SSIM) of each."""
        biased = image.rician and image.sigma is not None
        results = self._classical(image, unbiased=biased)
        if self.network is not None:
            blind = self._restored(self.network, self._stack(self.network, image))
            results["network"] = _middle_of(blind)
            if biased:
                results["network-sigma"] = self._told_sigma(self.network, image, blind)
        self._rician |= biased
        self._ranges.add(str(image.intensity_range))
        row = {name: self._scores(result, image) for name, result in results.items()}
        self.rows[image.name] = row
        return row

    def score(
        self, image: EvaluationImage, method: str, *, strength: float = 1.0, unbiased: bool | None = None
    ) -> Scores:
        """PSNR in dB and SSIM of one method on one image.

        Args:
            image: the image.
            method: "network", "input", "bicubic" (for super-resolution), or a name in `baselines.DENOISERS`.
            strength: factor on the noise level that a classical method is given.
            unbiased: whether to remove the bias of Rician noise of a known level; by default for classical methods.
        """
        if method == "network":
            assert self.network is not None  # the caller has one
            result = _middle_of(self._restored(self.network, self._stack(self.network, image)))
        elif method == "bicubic":
            result = bicubic_resize(torch.from_numpy(image.middle), self.scale).numpy()
        elif method == "input":
            result = image.middle
        else:
            sigma = estimated_sigma(image.middle) if image.sigma is None else image.sigma
            result = DENOISERS[method](image.middle, strength * sigma)
        default = method in DENOISERS
        if image.rician and image.sigma is not None and (default if unbiased is None else unbiased):
            result = _unbiased(result, image)
        return self._scores(result, image)

    def _classical(self, image: EvaluationImage, *, unbiased: bool) -> dict[str, np.ndarray]:
        """The degraded image and the results of the classical methods."""
        middle = image.middle
        if self.scale > 1:
            return {"bicubic": bicubic_resize(torch.from_numpy(middle), self.scale).numpy()}
        results = {"input": middle}
        if not self.methods:
            return results
        sigma = estimated_sigma(middle) if image.sigma is None else image.sigma
        for name in self.methods:
            denoised = DENOISERS[name](middle, sigma)
            results[name] = _unbiased(denoised, image) if unbiased else denoised
        return results

    def _told_sigma(self, network: RestorationNetwork, image: EvaluationImage, blind: np.ndarray) -> np.ndarray:
        """The result of the network with the noise level, as by `restore --sigma`.

        Args:
            network: the network.
            image: an image with Rician noise of a known level.
            blind: the result of the network without it, for its stack of slices.
        """
        assert image.sigma is not None  # the caller has checked
        stack = self._stack(network, image)

        def restored(scaled: np.ndarray) -> np.ndarray:
            return blind if np.array_equal(scaled, stack) else self._restored(network, scaled)

        level, chosen = image.sigma * image.intensity_range.span, image.intensity_range
        told, _ = restore_known_noise(restored, stack, level, intensity_range=chosen, handling=self.handling)
        return _middle_of(told)

    def _restored(self, network: RestorationNetwork, stack: np.ndarray) -> np.ndarray:
        return restore(network, stack, **asdict(self.tiles), device=self.device)

    def _stack(self, network: RestorationNetwork, image: EvaluationImage) -> np.ndarray:
        """(N, C, H, W), the slice with those neighbours that the network takes."""
        middle = image.middle
        stack = image.degraded.reshape(-1, *middle.shape)
        return stack if network.in_channels != len(middle) else middle[None]

    def line(self) -> str:
        """The scores of the last image."""
        name = list(self.rows)[-1]
        return _line(name, self.rows[name])

    def means(self) -> dict[str, Scores]:
        """Method -> mean PSNR and SSIM over all images."""
        rows = list(self.rows.values())
        return {
            name: (float(np.mean([row[name][0] for row in rows])), float(np.mean([row[name][1] for row in rows])))
            for name in (rows[0] if rows else {})
        }

    def mean_line(self) -> str:
        """The means; for several images, also the standard deviation of the PSNR over images."""
        rows = list(self.rows.values())
        if len(rows) < 2:
            return _line(f"mean of {len(rows)}", self.means())
        spreads = {name: np.std([row[name][0] for row in rows], ddof=1) for name in rows[0]}
        spread = "  ".join(f"{name} {value:6.2f}" for name, value in spreads.items())
        return f"{_line(f'mean of {len(rows)}', self.means())}\n{'standard deviation (dB)':<24}  {spread}"

    def conditions(self) -> str:
        """Description of how PSNR and SSIM were computed."""
        channel = "Y channel (BT.601)" if self.y_channel else "all channels"
        where = ", inside the head only" if self.region == "head" else ""
        ranges = "; ".join(sorted(self._ranges)) if len(self._ranges) < 4 else f"{len(self._ranges)} ranges"
        return (
            f"PSNR (dB) / SSIM (11 x 11 Gaussian, sigma 1.5): data_range is the whole range [{ranges}], {channel},"
            f" {self.border} pixels left out at each side{where}, results and references clipped to the range"
            + (", Rician bias of the true sigma removed from all but input and network" if self._rician else "")
            + (", network-sigma is told the true sigma" if self._rician and self.network is not None else "")
        )

    def _scores(self, result: np.ndarray, image: EvaluationImage) -> Scores:
        values, clean = (
            np.clip(result, 0, 1),
            np.clip(image.clean, 0, 1),
        )  # values outside the range are not visible in a window
        if image.whole:
            values = _whole(values, image.intensity_range)
        both = [values, clean]
        if self.y_channel and len(clean) == 3:
            both = [y_channel(x, data_range=1) for x in both]
        region = image.head if self.region == "head" else None
        where: dict[str, Any] = {"data_range": 1, "border": self.border, "region": region}
        return psnr(*both, **where), ssim(*both, **where)


def evaluation_images(
    clean: str | os.PathLike[str], settings: EvaluationSettings, *, info: WeightsInfo | None = None
) -> Iterator[EvaluationImage]:
    """Degrade the images of a folder one after the other, or read their degraded partners.

    Args:
        clean: a folder or one image.
        settings: the degradation, the intensity range and the slices. For super-resolution, clean images are
            downsampled by `degradations.bicubic_resize` and, if they hold whole numbers, rounded like the small images
            of benchmark sets.
        info: the description of the weights, whose range, scale and channels are used; None without a network.

    Raises:
        Refused: the weights do not apply to an image.
        ValueError: settings that do not go together, or images that do not fit.
    """
    scale = settings.scale or (1 if info is None else info.scale)
    settings.check_degradation(scale)
    files = find_images(clean)
    partners: list[Path] | list[None] = [None] * len(files)
    if settings.degraded is not None:
        partners = find_images(settings.degraded)
    if len(partners) != len(files):
        raise ValueError(
            f"{clean} and {settings.degraded} must hold equally many images, got {len(files)} and {len(partners)}"
        )
    for number, (file, partner) in enumerate(zip(files, partners, strict=True)):
        yield from _slices_of(file, partner, settings, info, scale, seed=settings.seed + number)


def _slices_of(
    file: Path, partner: Path | None, settings: EvaluationSettings, info: WeightsInfo | None, scale: int, *, seed: int
) -> Iterator[EvaluationImage]:
    """The degraded slices of one image."""
    image = read_image(file, slice_axis=settings.slice_axis)
    chosen = choose_range(image, settings.range) if info is None else fitting_range(image, info, settings.range)
    pair, noise = _pair(image, partner, chosen, settings, scale)
    channels = pair.clean.shape[1]
    if info is not None and channels != info.arguments["out_channels"]:
        raise Refused(
            f"the weights are for {info.arguments['out_channels']} channel(s), got {file} with {channels}; --grey takes"
            " the luminance of colour images"
        )
    items = ValidationDataset(
        [pair],
        degrade=None if noise is None else make_degradation(**noise),
        seed=seed,
        slices=1 if info is None else info.slices,
        per_stack=settings.slices_per_volume,
        crop=None,
    )
    for k in range(len(items)):
        yield EvaluationImage(
            name=file.name if len(items) == 1 else f"{file.name} #{k}",
            clean=items[k]["clean"].numpy(),
            degraded=items[k]["degraded"].numpy(),
            sigma=None if noise is None else known_sigma(**noise),
            intensity_range=chosen,
            whole=image.dtype.kind in "iu",
            rician=noise is not None and noise["kind"] == "rician",
        )


def _pair(
    image: Image, partner: Path | None, chosen: IntensityRange, settings: EvaluationSettings, scale: int
) -> tuple[Pair, dict[str, Any] | None]:
    """The clean image with its degraded partner, or the degradation that is still to be applied to it."""
    if partner is not None:
        (pair,) = load_pairs(
            partner,
            image.path,
            intensity_range=(chosen.low, chosen.high),
            slice_axis=settings.slice_axis,
            grey=settings.grey,
        )
        if pair.scale != scale:
            raise ValueError(f"{image.path} must have {scale} times the size of {partner}, got {pair.scale} times")
        return pair, None
    pair = Pair(unit_stack(image, chosen, grey=settings.grey), name=image.path.name, intensity_range=chosen)
    if scale > 1:
        whole = chosen if image.dtype.kind in "iu" else None
        (pair,) = downsampled([pair], partial(_reduced, scale=scale, whole=whole), scale)
        return pair, None
    noise = dict(settings.noise or {"kind": "gaussian"})
    if settings.sigma is not None:
        noise["sigma"] = settings.sigma / chosen.span
    return pair, noise


def write_table(path: Path, evaluation: Evaluation) -> None:
    """Write a tab-separated table with a line per image and method (image, method, psnr, ssim); means are last."""
    lines = ["image\tmethod\tpsnr\tssim"]
    for name, row in {**evaluation.rows, "mean": evaluation.means()}.items():
        lines += [f"{name}\t{method}\t{p:.4f}\t{s:.5f}" for method, (p, s) in row.items()]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _middle_of(stack: np.ndarray) -> np.ndarray:
    """The slice that is measured; the others are its neighbours."""
    return np.asarray(stack[len(stack) // 2])


def _unbiased(result: np.ndarray, image: EvaluationImage) -> np.ndarray:
    """Remove the Rician bias of a denoised magnitude, which depends on the distance from the image's own 0."""
    assert image.sigma is not None
    zero = image.intensity_range.low / image.intensity_range.span
    return without_rician_bias(result + zero, image.sigma) - zero


def _reduced(clean: torch.Tensor, *, scale: int, whole: IntensityRange | None) -> torch.Tensor:
    """Downsample with bicubic interpolation; if `whole` is given, also clip to this range and round."""
    small = bicubic_resize(clean, 1 / scale)
    return small if whole is None else torch.from_numpy(_whole(small.clamp(0, 1).numpy(), whole).astype(np.float32))


def _whole(values: np.ndarray, intensity_range: IntensityRange) -> np.ndarray:
    """Round values with 0 and 1 at the ends of the range to the nearest whole intensities."""
    rounded: np.ndarray = np.rint(intensity_range.from_unit(values))
    return (rounded - intensity_range.low) / intensity_range.span


def _line(name: str, row: dict[str, Scores]) -> str:
    figures = "  ".join(f"{method} {p:6.2f} / {s:.4f}" for method, (p, s) in row.items())
    return f"{name:<24}  {figures}"
