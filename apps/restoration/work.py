"""Restore images, volumes and series, with the network in memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...restoration.images import Image, IntensityRange, check_target, read_image, to_pixels, write_image
from ...restoration.inference import (
    Change,
    Progress,
    Refused,
    check_card,
    fitting_range,
    measure_change,
    slices_of,
)
from ...restoration.inference import restore as restore_stack
from ...restoration.known_noise import KnownNoise, NoiseHandling, check_noise_level, restore_image
from ...restoration.settings import RestoreSettings
from ...restoration.suffixes import file_stem
from ...restoration.weights import Network, WeightsInfo, load_weights
from ...runs.catalogue import entry_of, find_weights
from ...runs.compute import choose_device
from ...volumes.dicom import holds_tilted
from ..batch.case import Case
from ..batch.task import CaseRefused

SMALLEST_TILE = 32  # the tile is not halved below this many pixels


@dataclass(frozen=True)
class Restored:
    """A written result.

    Args:
        written: the file or folder.
        intensity_range: the intensities that were mapped to 0 and 1 for the network.
        change: the difference between result and input.
        seconds: computing time of the network.
        noise: what was done with the noise level that was given, if any.
        middle: (2, C, H, W), the middle slice of the input, enlarged to the size of the result, and of the result.
    """

    written: Path
    intensity_range: IntensityRange
    change: Change
    seconds: float
    noise: KnownNoise | None
    middle: np.ndarray


@dataclass(frozen=True)
class Restoration:
    """Restores images with the weights in memory.

    Args:
        model: the network.
        info: the description of its weights.
        weights: the weight file.
        settings: the settings of the restoration.
        device: the device on which the network runs.
    """

    model: Network
    info: WeightsInfo
    weights: Path
    settings: RestoreSettings
    device: str

    def __call__(self, case: Case, folder: Path) -> dict[str, Any]:
        """Restore one case of a batch.

        Raises:
            CaseRefused: the weights do not apply to the case.
        """
        source = case.inputs[0]
        name = "series" if case.kind == "dicom" else f"{case.identifier}{_ending(source)}"
        if case.kind == "dicom" and self.settings.fix_tilt and holds_tilted(source):
            name = f"{case.identifier}.nii.gz"  # its slices are no longer those of the series
        try:
            done = self.restore(source, folder / name)
        except Refused as error:
            raise CaseRefused(str(error)) from error
        figures = {"intensity_range": str(done.intensity_range), "tile": self.settings.tile}
        if done.noise is not None:
            figures |= {"noise_level": done.noise.sigma, "given_back": done.noise.given_back}
        return {"metrics": {**done.change.as_dict(), **figures}}

    def smaller(self) -> "Restoration | None":
        """The same work with tiles of half the size; None if they would be smaller than the smallest tile."""
        tile = self.settings.tile // 2
        return replace(self, settings=replace(self.settings, tile=tile)) if tile >= SMALLEST_TILE else None

    @property
    def size_in_words(self) -> str:
        """The option that `smaller` changes, with its value."""
        return f"--tile {self.settings.tile}"

    def restore(
        self,
        source: Path,
        target: Path,
        *,
        write_to: Path | None = None,
        show: Callable[[Image, IntensityRange], None] | None = None,
        progress: Progress | None = None,
    ) -> Restored:
        """Restore one image from file to file.

        Args:
            source: an image, see `read_image`.
            target: the file or folder to write, see `write_image`.
            write_to: a temporary path to write to instead, which the caller moves to `target`.
            show: called with the image and its range before the network starts.
            progress: called after each slice.

        Raises:
            Refused: the weights do not apply to the image, or the mean of the result differs too much from the input's.
            ValueError, OSError: the image cannot be read, or the result cannot be written.
        """
        image = read_image(source, slice_axis=self.settings.slice_axis, fix_tilt=self.settings.fix_tilt)
        check_target(target, image)
        slices_of(self.model, image.channels)
        entry = entry_of(self.weights)
        if entry is not None and not self.settings.ignore_card:
            check_card(image, entry)
        intensity_range = fitting_range(image, self.info, self.settings.range)
        if show:
            show(image, intensity_range)
        sigma = self.settings.sigma
        if sigma is not None:
            check_noise_level(image, sigma, scale=self.model.scale)
        network = partial(
            restore_stack,
            self.model,
            tile=self.settings.tile,
            overlap=self.settings.overlap,
            self_ensemble=self.settings.self_ensemble,
            groups=image.groups,
            device=self.device,
            progress=progress,
        )
        started = time.perf_counter()
        handling = NoiseHandling.of(entry, self.info)
        unit, noise = restore_image(network, image, sigma, intensity_range=intensity_range, handling=handling)
        seconds = time.perf_counter() - started
        restored = intensity_range.from_unit(unit)
        change = measure_change(
            image.stack, to_pixels(restored, image.dtype), intensity_range=intensity_range, scale=self.model.scale
        )
        most = self.settings.max_bias
        if most is not None and abs(change.bias) > most:
            raise Refused(f"the result's mean differs by {change.bias:+.4g} from the input's, more than {most:g}")
        words = f"{self.info.task} by {self.info.architecture} weights {self.weights.name}, intensity range"
        words = f"{words} {intensity_range}" + ("" if sigma is None else f", noise level {sigma:g}")
        written = write_image(write_to or target, restored, image, scale=self.model.scale, description=words)
        k = len(restored) // 2
        before = image.stack[k].repeat(self.model.scale, axis=-2).repeat(self.model.scale, axis=-1)
        middle = np.stack([before, to_pixels(restored[k], image.dtype)])
        return Restored(written, intensity_range, change, seconds, noise, middle)


def batch_work(*, weights: str, task: str | None, device: str, **settings: Any) -> Restoration:
    """Load weights, from plain values.

    Args:
        weights: a file, or the name of weights that come with the package.
        task: the required task of the weights; None for any task.
        device: "auto", "cpu" or "cuda".
        settings: the fields of `RestoreSettings`.

    Raises:
        CaseRefused: the weights are for another task.
    """
    how = RestoreSettings(**settings)
    file = find_weights(weights, "restoration")
    model, info = load_weights(file, variant=how.variant, stripe_width=how.stripe_width, size=how.size)
    if task is not None and task != info.task:
        raise CaseRefused(f"{file.name} is made for {info.task}, got --task {task}")
    return Restoration(model, info, file, how, choose_device(device))


def _ending(source: Path) -> str:
    """The suffix of the result in an output folder: that of its input, or of a format that is written without loss."""
    ending = source.name[len(file_stem(source)) :]
    if ending.lower() == ".nrrd":
        return ".nii.gz"
    return ".png" if ending.lower() in (".jpg", ".jpeg", ".webp") else ending
