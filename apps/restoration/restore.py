"""`voxelwave restoration restore`: restore images, volumes and DICOM series with trained weights."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...restoration.settings import RestoreSettings
from ...restoration.suffixes import BITMAP_SUFFIXES
from ...runs.catalogue import find_weights
from ...runs.exit import DONE, REFUSED, SOME_FAILED
from ..batch.bids_derivatives import print_derivatives, write_derivatives
from ..batch.case import Case
from ..batch.find import Found, choose, find_cases
from ..batch.run import FolderRun, run_batch
from .options import Restore


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
    if not options.for_folder and _is_one_series(options.input, found.cases):
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
    code = run_batch(cases, run, options)
    if not options.dry_run and code in (DONE, SOME_FAILED, REFUSED):
        found_bids = write_derivatives(cases, options.input, options.output, keep_identifiers=options.keep_identifiers)
        print_derivatives(found_bids)
    return code


def _restore_single(options: Restore) -> int:
    from .single import restore_single

    return restore_single(options, _work_arguments(options))


def _is_one_series(folder: Path, cases: Sequence[Case]) -> bool:
    """Whether a folder holds the files of one DICOM series and nothing else to restore."""
    return len(cases) == 1 and cases[0].kind == "dicom" and all(path.parent == folder for path in cases[0].inputs)


def _work_arguments(options: Restore) -> dict[str, Any]:
    """The arguments of `batch_work` without the weights."""
    return {"task": options.task, "device": options.device, **asdict(RestoreSettings.of(options))}
