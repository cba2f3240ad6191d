"""`voxelwave restoration restore`: restore images, volumes and DICOM series by trained weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass
from .work import batch_work, find_weights, is_one_series, stem

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
    dry_run: bool = False,
    include: str | None = None,
    modality: str | None = None,
    series: str | None = None,
    jobs: int | None = None,
    part: str | None = None,
    cluster: str | None = None,
    slurm: dict[str, Any] | None = None,
    keep_identifiers: bool = False,
) -> int:
    """Restore an image, a volume or a DICOM series, or all that are below a folder.

    The result has the type, the intensity scale and the place of its input; of a DICOM series it is a derived series.
    Weights that are made for another intensity range or number of channels are refused (exit code 4). For one input a
    report of how far the result left it is printed, and written beside it. For a folder, OUTPUT receives a folder per
    image or series, manifest.jsonl and index.html; a case that fails is recorded with its reason and the others go on
    (exit code 3); the same command again does what is missing or changed.

    Args:
        input: a PNG, TIFF, NIfTI or .mgz file, a folder with one DICOM series, or a folder with any number of these in
            any nesting.
        output: the file to write; a folder for a DICOM series (or a .nii.gz file for it) and for a folder.
        weights: the name of weights that come with the package (denoise-grey), a .safetensors file of ours, or
            published weights (.pth) with --variant and --stripe-width.
        task: refuse weights that are made for another task.
        range: intensities that become 0 and 1: auto, dtype, LOW,HIGH, hu:LOW,HIGH or percentiles:LOW,HIGH. Nothing is
            cut off at its ends.
        tile: largest side of a tile in pixels; bounds the memory. In a folder it is made smaller where memory runs out.
        overlap: what a tile sees of its neighbours, as a share of it.
        self_ensemble: mean over eight mirrorings and rotations; better by about 0.1 dB, eight times slower.
        slice_axis: array axis of a NIfTI volume along which its slices lie.
        variant: name of the published configuration, for published weights.
        stripe_width: of the scan, for published weights.
        max_bias: refuse to write a result whose mean differs from its input's by more than this, in the image's unit.
        threads: of the CPU, per job; default all.
        device: where it runs; auto takes a GPU if there is one.
        dry_run: of a folder: only show what would be done.
        include: of a folder: only what these globs fit, such as "T1*,*FLAIR*": series description, file name or path.
        modality: of a folder: only these DICOM modalities, such as MR or MR,CT.
        series: of a folder: only DICOM series whose description these globs fit.
        jobs: of a folder: processes on this machine, or cases under way at once on a cluster.
        part: of a folder: i/n, for the i-th of n jobs of an array.
        cluster: dask://HOST:PORT, slurm, or slurm-local to try it out.
        slurm: submitit's parameters, such as slurm_partition and mem_gb.
        keep_identifiers: of a folder: name cases by patient, series and file, and show and record these names.
    """
    from ...runs.checks import check_threads

    check_threads(threads)
    if max_bias is not None and max_bias < 0:
        raise ValueError(f"--max-bias must be at least 0, got {max_bias}")
    how = {
        "weights": str(weights),
        "task": task,
        "how": range,
        "tile": tile,
        "overlap": overlap,
        "self_ensemble": self_ensemble,
        "slice_axis": slice_axis,
        "variant": variant,
        "stripe_width": stripe_width,
        "max_bias": max_bias,
        "device": device,
    }
    several = dry_run or any(value is not None for value in (include, modality, series, part, cluster))
    if not input.is_dir():
        if several:
            raise ValueError(f"--dry-run, --include and the like need a folder as --input, got {input}")
        return _restore_single(input, output, how, threads)
    from ...restoration.images import BITMAP_SUFFIXES
    from ..batch.find import choose, find_cases
    from ..batch.run import run_batch

    found = find_cases(
        input,
        ("dicom", "nifti", "image"),
        output=output,
        suffixes={"image": BITMAP_SUFFIXES},
        keep_identifiers=keep_identifiers,
    )
    if not several and is_one_series(input, found.cases):
        return _restore_single(input, output, how, threads)
    file = find_weights(weights)
    if file.resolve() == output.resolve() or output.is_file():
        raise ValueError(f"--output must be a folder for the results of a folder, got the file {output}")
    return run_batch(
        choose(found.cases, include=include, modality=modality, series=series),
        {"factory": "restore", "arguments": {**how, "weights": str(file)}},
        output,
        root=input,
        options={"range": range, **{k: v for k, v in how.items() if k not in ("how", "weights", "task", "device")}},
        weights=file,
        jobs=jobs,
        cluster=cluster,
        slurm=slurm,
        part=part,
        dry_run=dry_run,
        threads=threads,
        keep_identifiers=keep_identifiers,
        notes=found.notes,
    )


def _restore_single(source: Path, target: Path, how: dict[str, Any], threads: int | None) -> int:
    """One input, with its report on the screen."""
    import sys

    from ...restoration.inference import Refused
    from ...runs.checks import use_threads
    from ...runs.record import write_record
    from ..batch.task import CaseRefused

    use_threads(threads)
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    if target.resolve() == source.resolve():
        raise ValueError(f"--output must be another path than the input, got {target}")

    def show(image: Any, intensity_range: Any) -> None:
        shape = " x ".join(map(str, image.stack.shape))
        print(f"{source}: {shape} {image.dtype}, 0 to 1 is {intensity_range}", flush=True)

    def progress(done: int, count: int) -> None:
        if sys.stderr.isatty() and count > 1:
            print(f"\r  slice {done} of {count}", end="\n" if done == count else "", file=sys.stderr, flush=True)

    try:
        work = batch_work(**how)
        done = work.restore(source, target, show=show, progress=progress)
    except CaseRefused as error:
        print(f"voxelwave: refused: {error}", file=sys.stderr)
        return 4
    except Refused as error:
        print(f"voxelwave: refused: {source}: {error}", file=sys.stderr)
        return 4
    written = done["written"]
    for line in done["lines"]:
        print(f"  {line}")
    write_record(
        written.with_name(f"{stem(written)}.{REPORT}"),  # beside a series, whose folder holds nothing but DICOM
        inputs={"input": source, "weights": work.weights},
        options={**work.options, "range": done["range"], "slice_axis": work.slice_axis},
        change=done["change"],
        seconds=done["seconds"],
    )
    print(f"  wrote {written} in {done['seconds']:.1f} s")
    return 0
