"""Restore images, volumes and series, with the network in memory."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..batch.case import Case
_SMALLEST_TILE = 32


def is_one_series(folder: Path, cases: "list[Case]") -> bool:
    """Whether a folder holds the files of one DICOM series and no other work."""
    return len(cases) == 1 and cases[0].kind == "dicom" and all(path.parent == folder for path in cases[0].inputs)


@dataclass(frozen=True)
class Restoration:
    """Weights in memory and how they are used.

    Args:
        model: of the weights.
        info: what they are made for.
        weights: their file.
        how: the intensity range, as `choose_range` takes it.
        slice_axis: of a volume.
        max_bias: what a result may differ by in the mean.
        options: of `restoration.inference.restore`.
    """

    model: Any
    info: Any
    weights: Path
    how: str
    slice_axis: int
    max_bias: float | None
    options: dict[str, Any]

    def __call__(self, case: "Case", folder: Path) -> dict[str, Any]:
        """Restore one case of a batch."""
        from ...restoration.inference import Refused
        from ..batch.task import CaseRefused

        source = case.inputs[0]
        name = "series" if case.kind == "dicom" else f"{case.identifier}{_ending(source)}"
        try:
            done = self.restore(source, folder / name)
        except Refused as error:
            raise CaseRefused(str(error)) from error
        return {"metrics": {**done["change"], "intensity_range": done["range"], "tile": self.options["tile"]}}

    def smaller(self) -> "Restoration | None":
        """The same with tiles of half the size, down to 32 pixels."""
        tile = self.options["tile"] // 2
        return replace(self, options={**self.options, "tile": tile}) if tile >= _SMALLEST_TILE else None

    @property
    def size_in_words(self) -> str:
        """What `smaller` changes."""
        return f"--tile {self.options['tile']}"

    def restore(self, source: Path, target: Path, *, show: Any = None, progress: Any = None) -> dict[str, Any]:
        """One image from file to file; gives where it was written, its range, the change, and seconds."""
        import time

        from ...restoration.images import check_target, read_image, to_pixels, write_image
        from ...restoration.inference import Refused, fitting_range, measure_change, slices_of
        from ...restoration.inference import restore as restore_stack

        image = read_image(source, slice_axis=self.slice_axis)
        check_target(target, image)
        slices_of(self.model, image.channels)
        intensity_range = fitting_range(image, self.info, self.how)
        if show:
            show(image, intensity_range)
        started = time.perf_counter()
        unit = intensity_range.to_unit(image.stack)
        unit = restore_stack(self.model, unit, groups=image.groups, progress=progress, **self.options)
        seconds = time.perf_counter() - started
        restored = intensity_range.from_unit(unit)
        change = measure_change(
            image.stack, to_pixels(restored, image.dtype), intensity_range=intensity_range, scale=self.model.scale
        )
        if self.max_bias is not None and abs(change.bias) > self.max_bias:
            raise Refused(
                f"the result's mean differs by {change.bias:+.4g} from the input's, more than {self.max_bias:g}"
            )
        words = f"{self.info.task} by {self.info.architecture} weights {self.weights.name}, intensity range"
        written = write_image(target, restored, image, scale=self.model.scale, description=f"{words} {intensity_range}")
        return {
            "written": written,
            "range": str(intensity_range),
            "change": change.as_dict(),
            "lines": change.lines(),
            "seconds": seconds,
        }


def batch_work(
    *,
    weights: str,
    task: str | None,
    how: str,
    variant: str | None,
    stripe_width: int | None,
    slice_axis: int,
    max_bias: float | None,
    device: str,
    **options: Any,
) -> Restoration:
    """Weights made ready, from plain values.

    Raises:
        CaseRefused: they are made for another task.
    """
    from ...restoration.weights import load_weights
    from ...runs.checks import choose_device
    from ..batch.task import CaseRefused

    file = find_weights(Path(weights))
    model, info = load_weights(file, variant=variant, stripe_width=stripe_width)
    if task is not None and task != info.task:
        raise CaseRefused(f"{file.name} is made for {info.task}, got --task {task}")
    return Restoration(model, info, file, how, slice_axis, max_bias, {**options, "device": choose_device(device)})


def find_weights(weights: Path) -> Path:
    from ...restoration.weight_files import weights_file

    return weights_file(weights)


def stem(path: Path) -> str:
    return path.name if path.is_dir() else path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _ending(source: Path) -> str:
    """The result's ending in an output folder: the same, but formats that would lose values become PNG."""
    ending = source.name[len(stem(source)) :]
    return ".png" if ending.lower() in (".jpg", ".jpeg", ".webp") else ending
