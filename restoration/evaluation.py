"""Measure restored images: a network and classical methods on the same degraded images, with all conditions said."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..volumes.files import atomic_path
from .baselines import DENOISERS, estimated_sigma
from .data import ValidationDataset, bicubic_resize, downsampled, load_clean, load_pairs, make_degradation
from .images import IntensityRange, choose_range, find_images, read_image
from .inference import Refused, fitting_range, restore
from .weights import WeightsInfo


@dataclass(frozen=True, eq=False)
class EvaluationImage:
    """One image to measure on.

    Args:
        name: for the table.
        clean: (C, H * scale, W * scale), 0 and 1 at the ends of the range.
        degraded: (C_in, H, W); C_in is C times the number of neighbouring slices.
        sigma: of the Gaussian noise that was added, as a share of the range; None where it is not known.
        intensity_range: of the image.
        whole: whether the image holds whole numbers, to which results are rounded.
    """

    name: str
    clean: np.ndarray
    degraded: np.ndarray
    sigma: float | None
    intensity_range: IntensityRange
    whole: bool


@dataclass
class Evaluation:
    """Results, image by image.

    Args:
        network: the model, or None.
        methods: names in `baselines.DENOISERS`; None for all that are installed.
        y_channel: measure colour on the Y channel.
        border: pixels left out at each side.
        options: of `inference.restore`.
        rows: name of the image -> method -> (psnr, ssim); filled by `measure`.
    """

    network: nn.Module | None = None
    methods: Sequence[str] | None = None
    y_channel: bool = False
    border: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    _ranges: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.scale = 1 if self.network is None else int(self.network.scale)  # type: ignore[arg-type]
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
            results["bicubic"] = bicubic_resize(torch.from_numpy(middle[None]), self.scale)[0].numpy()
        else:
            results["input"] = middle
        sigma = estimated_sigma(middle) if image.sigma is None else image.sigma
        for name in self.methods or ():
            results[name] = DENOISERS[name](middle, sigma)
        if self.network is not None:
            stack = image.degraded.reshape(-1, channels, *middle.shape[1:])
            if len(stack) > 1 and self.network.in_channels != channels:
                results["network"] = restore(self.network, stack, **self.options)[len(stack) // 2]
            else:
                results["network"] = restore(self.network, middle, **self.options)
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
        """The means, and the standard deviation of the PSNR over the images."""
        return _line(f"mean of {len(self.rows)}", self.means())

    def conditions(self) -> str:
        """What the figures mean."""
        channel = "Y channel (BT.601)" if self.y_channel else "all channels"
        ranges = "; ".join(sorted(self._ranges)) if len(self._ranges) < 4 else f"{len(self._ranges)} ranges"
        return (
            f"PSNR (dB) / SSIM (11 x 11 Gaussian): data_range is the whole range [{ranges}], {channel},"
            f" {self.border} pixels left out at each side, results cut to the range"
        )

    def _figures(self, result: np.ndarray, image: EvaluationImage) -> tuple[float, float]:
        values = np.clip(result, 0, 1)
        if image.whole:
            span = image.intensity_range.span
            values = np.rint(values * span) / span
        both = [x.astype(np.float64) for x in (values, image.clean)]
        if self.y_channel and len(image.clean) == 3:
            both = [_y_channel(x) for x in both]
        if self.border:
            both = [x[:, self.border : -self.border, self.border : -self.border] for x in both]
        return psnr(*both), ssim(*both)


def psnr(restored: np.ndarray, clean: np.ndarray) -> float:
    """-10 log10 of the mean squared error of (C, H, W) with data_range 1, in dB."""
    return float(-10 * np.log10(max(np.square(restored - clean).mean(), 1e-12)))


def ssim(restored: np.ndarray, clean: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of (C, H, W), data_range 1, 11 x 11 Gaussian of sigma 1.5."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            restored,
            clean,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _y_channel(image: np.ndarray) -> np.ndarray:
    """(1, H, W) luma of (3, H, W) by BT.601 for 8 bits: 16 to 235 of 255."""
    return (np.tensordot([65.481, 128.553, 24.966], image, 1)[None] + 16) / 255


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
        degradation: kind and parameters of `data.make_degradation`; or
        sigma: standard deviation of Gaussian noise in the images' unit.
        info: of the weights, whose demands on the range are checked.
        how: of `images.choose_range`.
        slice_axis, grey: as in `data.load_clean`.
        per_volume: at most so many slices of each volume.
        scale: of super-resolution.
        slices: neighbouring slices (2.5-D).
        seed: of the degradations.
    """
    files = find_images(clean)
    partners: list[Path] | list[None] = [None] * len(files) if degraded is None else find_images(degraded)
    if len(partners) != len(files):
        raise ValueError(f"{clean} and {degraded} must hold equally many images, got {len(files)} and {len(partners)}")
    for number, (file, partner) in enumerate(zip(files, partners, strict=True)):
        image = read_image(file, slice_axis=slice_axis)
        chosen = choose_range(image, how) if info is None else fitting_range(image, info, how)
        ends = (chosen.low, chosen.high)
        share = None if sigma is None else sigma / chosen.span
        degrade = None
        if partner is not None:
            pairs = load_pairs(partner, file, intensity_range=ends, slice_axis=slice_axis, grey=grey)
        else:
            pairs = load_clean(file, intensity_range=ends, slice_axis=slice_axis, grey=grey)
            spec = {"kind": "gaussian", "sigma": share} if degradation is None else degradation
            degrade = make_degradation(**spec)
        if scale > 1 and partner is None:
            pairs = downsampled(pairs, lambda x: bicubic_resize(x, 1 / scale), scale)
            degrade = None
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
                sigma=share if degradation is None else None,
                intensity_range=chosen,
                whole=image.dtype.kind in "iu",
            )


def write_table(path: Path, evaluation: Evaluation) -> None:
    """One line per image and method, tab-separated: image, method, psnr, ssim; the means last."""
    lines = ["image\tmethod\tpsnr\tssim"]
    for name, row in {**evaluation.rows, "mean": evaluation.means()}.items():
        lines += [f"{name}\t{method}\t{p:.4f}\t{s:.5f}" for method, (p, s) in row.items()]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _line(name: str, row: dict[str, tuple[float, float]]) -> str:
    figures = "  ".join(f"{method} {p:6.2f} / {s:.4f}" for method, (p, s) in row.items())
    return f"{name:<24}  {figures}"
