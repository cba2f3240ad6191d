"""Measure restored images: a network and classical methods on the same degraded images, with all conditions said."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..runs.files import atomic_path
from .baselines import DENOISERS, estimated_sigma
from .data import Pair, ValidationDataset, downsampled, load_pairs, unit_stack
from .degradations import bicubic_resize, known_sigma, make_degradation
from .images import IntensityRange, choose_range, find_images, read_image
from .inference import Refused, fitting_range, restore
from .metrics import psnr, ssim, y_channel
from .rician import without_rician_bias
from .weights import WeightsInfo


@dataclass(frozen=True, eq=False)
class EvaluationImage:
    """One image to measure on.

    Args:
        name: for the table.
        clean: (C, H * scale, W * scale), 0 and 1 at the ends of the range.
        degraded: (C_in, H, W); C_in is C times the number of neighbouring slices.
        sigma: of the Gaussian or Rician noise that was added, as a share of the range; None where it is not one number.
        rician: whether that noise was Rician.
        intensity_range: of the image.
        whole: whether the image holds whole numbers, to which results are rounded.
    """

    name: str
    clean: np.ndarray
    degraded: np.ndarray
    sigma: float | None
    intensity_range: IntensityRange
    whole: bool
    rician: bool = False


@dataclass
class Evaluation:
    """Results, image by image.

    Args:
        network: the model, or None.
        methods: names in `baselines.DENOISERS`; None for all that are installed.
        scale: of super-resolution, which must be the network's; bicubic then stands in the place of the methods.
        y_channel: measure colour on the Y channel.
        border: pixels left out at each side.
        options: of `inference.restore`.
        rows: name of the image -> method -> (psnr, ssim); filled by `measure`.
    """

    network: nn.Module | None = None
    methods: Sequence[str] | None = None
    scale: int = 1
    y_channel: bool = False
    border: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    _ranges: set[str] = field(default_factory=set)
    _rician: bool = False

    def __post_init__(self) -> None:
        if self.network is not None and self.scale != self.network.scale:
            raise ValueError(f"scale must be the network's, {self.network.scale}, got {self.scale}")
        unknown = [name for name in self.methods or () if name not in DENOISERS]
        if unknown:
            raise ValueError(f"methods must be of {', '.join(DENOISERS)}, got {', '.join(unknown)}")
        if self.methods is None:
            bm3d_there = importlib.util.find_spec("bm3d") is not None
            self.methods = [name for name in DENOISERS if name != "bm3d" or bm3d_there]
        if self.scale > 1:
            self.methods = []

    def measure(self, image: EvaluationImage) -> dict[str, tuple[float, float]]:
        """Restore one image by every method and keep (PSNR in dB, SSIM) of each."""
        channels = len(image.clean)
        first = (len(image.degraded) - channels) // 2
        middle = image.degraded[first : first + channels]
        results: dict[str, np.ndarray] = {}
        if self.scale > 1:
            results["bicubic"] = bicubic_resize(torch.from_numpy(middle), self.scale).numpy()
        else:
            results["input"] = middle
        sigma = estimated_sigma(middle) if image.sigma is None else image.sigma
        for name in self.methods or ():
            results[name] = DENOISERS[name](middle, sigma)
            if image.rician and image.sigma is not None:
                results[name] = _unbiased(results[name], image)
        if self.network is not None:
            stack = image.degraded.reshape(-1, channels, *middle.shape[1:])
            if len(stack) > 1 and self.network.in_channels != channels:
                results["network"] = restore(self.network, stack, **self.options)[len(stack) // 2]
            else:
                results["network"] = restore(self.network, middle, **self.options)
            if image.rician and image.sigma is not None:
                results["network-unbiased"] = _unbiased(results["network"], image)
        self._rician |= image.rician and image.sigma is not None
        self._ranges.add(str(image.intensity_range))
        row = {name: self._figures(result, image) for name, result in results.items()}
        self.rows[image.name] = row
        return row

    def line(self) -> str:
        """The last image's figures."""
        name = list(self.rows)[-1]
        return _line(name, self.rows[name])

    def means(self) -> dict[str, tuple[float, float]]:
        """Method -> mean PSNR and SSIM over all images."""
        rows = list(self.rows.values())
        return {
            name: (float(np.mean([row[name][0] for row in rows])), float(np.mean([row[name][1] for row in rows])))
            for name in (rows[0] if rows else {})
        }

    def mean_line(self) -> str:
        """The means, and of several images also the standard deviation of the PSNR from image to image."""
        rows = list(self.rows.values())
        if len(rows) < 2:
            return _line(f"mean of {len(rows)}", self.means())
        spreads = {name: np.std([row[name][0] for row in rows], ddof=1) for name in rows[0]}
        spread = "  ".join(f"{name} {value:6.2f}" for name, value in spreads.items())
        return f"{_line(f'mean of {len(rows)}', self.means())}\n{'standard deviation (dB)':<24}  {spread}"

    def conditions(self) -> str:
        """What the figures mean."""
        channel = "Y channel (BT.601)" if self.y_channel else "all channels"
        ranges = "; ".join(sorted(self._ranges)) if len(self._ranges) < 4 else f"{len(self._ranges)} ranges"
        return (
            f"PSNR (dB) / SSIM (11 x 11 Gaussian, sigma 1.5): data_range is the whole range [{ranges}], {channel},"
            f" {self.border} pixels left out at each side, results and references cut to the range"
            + (", Rician bias of the true sigma taken out of all but input and network" if self._rician else "")
        )

    def _figures(self, result: np.ndarray, image: EvaluationImage) -> tuple[float, float]:
        values, clean = np.clip(result, 0, 1), np.clip(image.clean, 0, 1)  # a window shows no more of either
        if image.whole:
            values = _whole(values, image.intensity_range)
        both = [values, clean]
        if self.y_channel and len(clean) == 3:
            both = [y_channel(x, data_range=1) for x in both]
        return psnr(*both, data_range=1, border=self.border), ssim(*both, data_range=1, border=self.border)


def evaluation_images(
    clean: str | os.PathLike,
    *,
    degraded: str | os.PathLike | None = None,
    degradation: dict[str, Any] | None = None,
    sigma: float | None = None,
    info: WeightsInfo | None = None,
    how: str = "auto",
    slice_axis: int = 2,
    per_volume: int = 10,
    grey: bool = False,
    scale: int = 1,
    slices: int = 1,
    seed: int = 0,
) -> Iterator[EvaluationImage]:
    """The images of a folder, degraded, one after the other.

    Args:
        clean: a folder or one image.
        degraded: real partners; else the clean ones are degraded:
        degradation: kind and parameters of `degradations.make_degradation`; left out with a scale above 1.
        sigma: of its noise in the images' unit; of Gaussian noise without a degradation.
        info: of the weights, whose demands on the range are checked.
        how: of `images.choose_range`.
        slice_axis, grey: as in `data.load_clean`.
        per_volume: at most so many slices of each volume.
        scale: of super-resolution; above 1 clean images are made smaller by `degradations.bicubic_resize`, and rounded
            where they hold whole numbers, as the small images of benchmark sets are.
        slices: neighbouring slices (2.5-D).
        seed: of the degradations.
    """
    if scale > 1 and (degradation is not None or sigma is not None):
        raise ValueError("degradation and sigma must be left out with super-resolution, got one of them")
    if degraded is None and scale == 1 and degradation is None and sigma is None:
        raise ValueError("one of degraded, degradation, sigma and a scale above 1 must be given, got none")
    files = find_images(clean)
    partners: list[Path] | list[None] = [None] * len(files) if degraded is None else find_images(degraded)
    if len(partners) != len(files):
        raise ValueError(f"{clean} and {degraded} must hold equally many images, got {len(files)} and {len(partners)}")
    for number, (file, partner) in enumerate(zip(files, partners, strict=True)):
        image = read_image(file, slice_axis=slice_axis)
        chosen = choose_range(image, how) if info is None else fitting_range(image, info, how)
        whole = image.dtype.kind in "iu"
        degrade, known = None, None
        if partner is not None:
            ends = (chosen.low, chosen.high)
            pairs = load_pairs(partner, file, intensity_range=ends, slice_axis=slice_axis, grey=grey)
            if pairs[0].scale != scale:
                raise ValueError(f"{file} must have {scale} times the size of {partner}, got {pairs[0].scale} times")
        else:
            pairs = [Pair(unit_stack(image, chosen, grey=grey), name=file.name, intensity_range=chosen)]
            if scale > 1:
                pairs = downsampled(pairs, partial(_made_smaller, scale=scale, whole=chosen if whole else None), scale)
            else:
                spec: dict[str, Any] = {"kind": "gaussian"} if degradation is None else dict(degradation)
                if sigma is not None:
                    spec["sigma"] = sigma / chosen.span
                degrade, known = make_degradation(**spec), known_sigma(**spec)
        if info is not None and pairs[0].clean.shape[1] not in (info.arguments["out_channels"],):
            raise Refused(
                f"the weights are for {info.arguments['out_channels']} channel(s), got {file} with"
                f" {pairs[0].clean.shape[1]}; --grey takes the luminance of colour images"
            )
        items = ValidationDataset(
            pairs, degrade=degrade, seed=seed + number, slices=slices, per_stack=per_volume, crop=None
        )
        for k in range(len(items)):
            item = items[k]
            yield EvaluationImage(
                name=file.name if len(items) == 1 else f"{file.name} #{k}",
                clean=item["clean"].numpy(),
                degraded=item["degraded"].numpy(),
                sigma=known,
                intensity_range=chosen,
                whole=whole,
                rician=degradation is not None and degradation.get("kind") == "rician",
            )


def write_table(path: Path, evaluation: Evaluation) -> None:
    """One line per image and method, tab-separated: image, method, psnr, ssim; the means last."""
    lines = ["image\tmethod\tpsnr\tssim"]
    for name, row in {**evaluation.rows, "mean": evaluation.means()}.items():
        lines += [f"{name}\t{method}\t{p:.4f}\t{s:.5f}" for method, (p, s) in row.items()]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _unbiased(result: np.ndarray, image: EvaluationImage) -> np.ndarray:
    """A denoised magnitude without its Rician bias, which depends on the distance from the image's own 0."""
    assert image.sigma is not None
    zero = image.intensity_range.low / image.intensity_range.span
    return without_rician_bias(result + zero, image.sigma) - zero


def _made_smaller(clean: torch.Tensor, *, scale: int, whole: IntensityRange | None) -> torch.Tensor:
    """The bicubic small version, cut to the range and rounded to whole intensities if their range is given."""
    small = bicubic_resize(clean, 1 / scale)
    return small if whole is None else torch.from_numpy(_whole(small.clamp(0, 1).numpy(), whole).astype(np.float32))


def _whole(values: np.ndarray, intensity_range: IntensityRange) -> np.ndarray:
    """Values with 0 and 1 at the ends of the range, rounded to the nearest whole intensities."""
    return (np.rint(intensity_range.from_unit(values)) - intensity_range.low) / intensity_range.span


def _line(name: str, row: dict[str, tuple[float, float]]) -> str:
    figures = "  ".join(f"{method} {p:6.2f} / {s:.4f}" for method, (p, s) in row.items())
    return f"{name:<24}  {figures}"
