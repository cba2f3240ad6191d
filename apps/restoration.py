"""`voxelwave restoration restore`: restore images, volumes and DICOM series by trained weights."""

from pathlib import Path
from typing import Any, Literal

# torch and its friends load in the functions, so that --help answers at once

REPORT = "restoration.json"


def restore(
    *,
    input: Path,
    output: Path,
    weights: Path,
    task: Literal["denoise", "super-resolution", "deblur", "dehaze"] | None = None,
    range: str = "auto",
    tile: int = 200,
    overlap: float = 0.1,
    self_ensemble: bool = False,
    slice_axis: int = 2,
    variant: str | None = None,
    stripe_width: int | None = None,
    max_bias: float | None = None,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Restore an image, a volume or a DICOM series, or all that are in a folder.

    The result has the type, the intensity scale and the place of its input; of a DICOM series it is a derived series.
    A report of how far it left the input is printed, and written beside it. Weights that are made for another
    intensity range or number of channels are refused (exit code 4).

    Args:
        input: a PNG, TIFF, NIfTI or .mgz file, a folder with one DICOM series, or a folder with several of these.
        output: the file to write; a folder for a DICOM series (or a .nii.gz file for it) and for a folder of images.
        weights: the name of weights that come with the package (denoise-grey), a .safetensors file of ours, or
            published weights (.pth) with --variant and --stripe-width.
        task: refuse weights that are made for another task.
        range: intensities that become 0 and 1: auto, dtype, LOW,HIGH, hu:LOW,HIGH or percentiles:LOW,HIGH. Nothing is
            cut off at its ends.
        tile: largest side of a tile in pixels; bounds the memory.
        overlap: what a tile sees of its neighbours, as a share of it.
        self_ensemble: mean over eight mirrorings and rotations; better by about 0.1 dB, eight times slower.
        slice_axis: array axis of a NIfTI volume along which its slices lie.
        variant: name of the published configuration, for published weights.
        stripe_width: of the scan, for published weights.
        max_bias: refuse to write a result whose mean differs from its input's by more than this, in the image's unit.
        threads: of the CPU; default all.
        device: where it runs; auto takes a GPU if there is one.
    """
    import sys

    import torch

    from ..restoration.images import find_images
    from ..restoration.inference import Refused
    from ..restoration.weights import load_weights, weights_file

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = weights_file(weights)
    model, info = load_weights(weights, variant=variant, stripe_width=stripe_width)
    options: dict[str, Any] = {"tile": tile, "overlap": overlap, "self_ensemble": self_ensemble, "device": device}
    sources = find_images(input)
    several = sources != [input]
    refused, failed = [], []
    if task is not None and task != info.task:
        print(f"voxelwave: refused: {weights.name} is made for {info.task}, got --task {task}", file=sys.stderr)
        return 4
    for source in sources:
        target = output / _result_name(source) if several else output
        try:
            _restore_one(source, target, model, info, weights, range, slice_axis, max_bias, options)
        except Refused as error:
            print(f"voxelwave: refused: {source}: {error}", file=sys.stderr)
            refused.append(source)
        except (ValueError, OSError) as error:
            if not several:
                raise
            print(f"voxelwave: error: {source}: {' '.join(str(error).split())}", file=sys.stderr)
            failed.append(source)
    if len(sources) > 1:
        print(f"{len(sources) - len(refused) - len(failed)} of {len(sources)} restored")
    if len(refused) == len(sources):
        return 4
    return 3 if refused or failed else 0


def _restore_one(
    source: Path,
    target: Path,
    model: Any,
    info: Any,
    weights: Path,
    how: str,
    slice_axis: int,
    max_bias: float | None,
    options: dict[str, Any],
) -> None:
    """One image from file to file."""
    import sys
    import time

    from ..restoration.images import read_image, to_pixels, write_image
    from ..restoration.inference import Refused, fitting_range, measure_change, slices_of
    from ..restoration.inference import restore as restore_stack
    from .record import write_record

    if target.resolve() == source.resolve():
        raise ValueError(f"--output must be another path than the input, got {target}")
    image = read_image(source, slice_axis=slice_axis)
    slices_of(model, image.channels)
    intensity_range = fitting_range(image, info, how)
    print(f"{source}: {' x '.join(map(str, image.stack.shape))} {image.dtype}, 0 to 1 is {intensity_range}", flush=True)
    started = time.perf_counter()
    show = sys.stderr.isatty() and len(image.stack) > 1

    def progress(done: int, count: int) -> None:
        if show:
            print(f"\r  slice {done} of {count}", end="\n" if done == count else "", file=sys.stderr, flush=True)

    unit = restore_stack(model, intensity_range.to_unit(image.stack), groups=image.groups, progress=progress, **options)
    seconds = time.perf_counter() - started
    restored = intensity_range.from_unit(unit)
    change = measure_change(
        image.stack, to_pixels(restored, image.dtype), intensity_range=intensity_range, scale=model.scale
    )
    for line in change.lines():
        print(f"  {line}")
    if max_bias is not None and abs(change.bias) > max_bias:
        raise Refused(f"the result's mean differs by {change.bias:+.4g} from the input's, more than {max_bias:g}")
    words = f"{info.task} by {info.architecture} weights {weights.name}, intensity range {intensity_range}"
    written = write_image(target, restored, image, scale=model.scale, description=words)
    write_record(
        written.with_name(f"{_stem(written)}.{REPORT}"),  # beside a series, whose folder holds nothing but DICOM
        inputs={"input": source, "weights": weights},
        options={**options, "range": str(intensity_range), "slice_axis": slice_axis},
        change=change.as_dict(),
        seconds=seconds,
    )
    print(f"  wrote {written} in {seconds:.1f} s")


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _result_name(source: Path) -> str:
    """The result's name in an output folder: the same, but formats that would lose values become PNG."""
    if source.is_file() and source.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        return f"{source.stem}.png"
    return source.name
