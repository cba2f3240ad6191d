"""`voxelwave restoration restore`: restore images, volumes and DICOM series with trained weights."""

import sys
from dataclasses import asdict
from typing import Any

from ...restoration.bitmaps import BITMAP_SUFFIXES
from ...restoration.images import Image, IntensityRange
from ...restoration.inference import Refused
from ...restoration.settings import RestoreSettings
from ...runs.catalogue import find_weights
from ...runs.compute import use_threads
from ...runs.exit import DONE, REFUSED
from ...runs.files import outputs_beside
from ...runs.outcome import add_outcome
from ...runs.record import write_record
from ..batch.find import Found, choose, find_cases
from ..batch.run import FolderRun, run_batch
from ..batch.task import CaseRefused
from .options import Restore
from .work import Restoration, Restored, batch_work, file_stem, is_one_series

REPORT = "restoration.json"


def restore(options: Restore) -> int:
    """Run the command and return its exit code."""
    if not options.input.is_dir():
        return _restore_single(options)
    found = find_cases(
        options.input,
        ("dicom", "nifti", "image"),
        output=options.output,
        suffixes={"image": BITMAP_SUFFIXES},
        keep_identifiers=options.keep_identifiers,
    )
    if not options.for_folder and is_one_series(options.input, found.cases):
        return _restore_single(options)
    return _restore_folder(options, found)


def _restore_folder(options: Restore, found: Found) -> int:
    """Restore all cases of a folder."""
    file = find_weights(options.weights, "restoration")
    if file.resolve() == options.output.resolve() or options.output.is_file():
        raise ValueError(f"--output must be a folder for the results of a folder, got the file {options.output}")
    run = FolderRun(
        work={"factory": "restore", "arguments": {"weights": str(file), **_work_arguments(options)}},
        output=options.output,
        root=options.input,
        options=RestoreSettings.of(options).recorded(),
        weights=file,
        notes=found.notes,
    )
    cases = choose(found.cases, include=options.include, modality=options.modality, series=options.series)
    return run_batch(cases, run, options)


def _restore_single(options: Restore) -> int:
    """Restore one input, and print and write its report."""
    use_threads(options.threads)
    source, target = options.input, options.output
    if target.resolve() == source.resolve():
        raise ValueError(f"--output must be another path than the input, got {target}")

    def show(image: Image, intensity_range: IntensityRange) -> None:
        shape = " x ".join(map(str, image.stack.shape))
        print(f"{source}: {shape} {image.dtype}, 0 to 1 is {intensity_range}", flush=True)

    try:
        with outputs_beside(target) as together:
            work = batch_work(weights=str(options.weights), **_work_arguments(options))
            to = together / target.absolute().name
            done = work.restore(source, target, write_to=to, show=show, progress=_show_progress)
            _report(options, work, done)
    except (CaseRefused, Refused) as error:
        about = f"{source}: " if isinstance(error, Refused) else ""
        print(f"voxelwave: refused: {about}{error}", file=sys.stderr)
        return REFUSED
    add_outcome(intensity_range=str(done.intensity_range), change=done.change.as_dict())
    print(f"  wrote {target} in {done.seconds:.1f} s")
    return DONE


def _report(options: Restore, work: Restoration, done: Restored) -> None:
    """Print the difference to the input, and write the record."""
    for line in done.change.lines():
        print(f"  {line}")
    write_record(
        # the folder of a series holds DICOM files only, so its record is beside the folder
        done.written.with_name(f"{file_stem(done.written)}.{REPORT}"),
        inputs={"input": options.input, "weights": work.weights},
        options={
            "tile": options.tile,
            "overlap": options.overlap,
            "self_ensemble": options.self_ensemble,
            "device": work.device,
            "range": str(done.intensity_range),
            "slice_axis": options.slice_axis,
            **({} if options.size == "full" else {"size": options.size}),
        },
        change=done.change.as_dict(),
        seconds=done.seconds,
    )


def _work_arguments(options: Restore) -> dict[str, Any]:
    """The arguments of `batch_work` without the weights."""
    return {"task": options.task, "device": options.device, **asdict(RestoreSettings.of(options))}


def _show_progress(done: int, count: int) -> None:
    if sys.stderr.isatty() and count > 1:
        print(f"\r  slice {done} of {count}", end="\n" if done == count else "", file=sys.stderr, flush=True)
