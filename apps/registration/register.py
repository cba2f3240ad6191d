"""`voxelwave registration register`: align two scans, or all pairs of a folder."""

import time
from pathlib import Path
from typing import Any

from ...runs.record import write_record
from ..batch.case import Case
from ..batch.find import choose
from ..batch.pairs import pairs_of_bids, pairs_of_table
from ..batch.run import run_batch
from .options import PAIR_LISTS, Register
from .scans import collected_notes
from .work import AFFINE, FORWARD, INVERSE, batch_work


def register(options: Register) -> int:
    """Run the command; gives its exit code."""
    how = {
        "method": options.chosen_method,
        "similarity": options.similarity,
        "diffeomorphic": options.diffeomorphic,
        "device": options.device,
        "seed": options.seed,
    }
    return _register_folder(options, how) if options.of_folder else _register_pair(options, how)


def _register_folder(options: Register, how: dict[str, Any]) -> int:
    """All pairs of a folder or a table."""
    root = options.input or Path(str(options.pairs)).parent
    weights, cache = (None if path is None else str(path.resolve()) for path in (options.weights, options.cache))
    results_depend_on = {name: value for name, value in how.items() if name != "device"} | {"dicom": options.dicom}
    return run_batch(
        choose(_find_pairs(options, root), include=options.include),
        {"factory": "align", "arguments": {**how, "weights": weights, "dicom": options.dicom, "cache": cache}},
        options.output,
        root=root,
        options=results_depend_on,
        weights=options.weights,
        **options.run_options(),
    )


def _find_pairs(options: Register, root: Path) -> list[Case]:
    if options.bids is not None:
        moving, fixed = (name.strip() for name in options.bids.split(","))
        return pairs_of_bids(root, moving, fixed)
    table = options.pairs or next(root / name for name in PAIR_LISTS if (root / name).is_file())
    return pairs_of_table(table, options.input and root, keep_identifiers=options.keep_identifiers)


def _register_pair(options: Register, how: dict[str, Any]) -> int:
    """One pair, with its record and its figures on the screen."""
    started = time.perf_counter()
    weights, cache = (None if path is None else str(path) for path in (options.weights, options.cache))
    files = {name: getattr(options, name) for name in ("moving", "fixed", "moving_labels", "fixed_labels")}
    with collected_notes() as notes:
        work = batch_work(weights=weights, dicom=options.dicom, cache=cache, **how)
        done = work.align(files, options.output, progress=lambda text: print(f"  {text}", flush=True))
    seconds = {**done["seconds"], "all": time.perf_counter() - started}
    write_record(
        options.output / "record.json",
        inputs={**files, "weights": options.weights},
        options=how,
        metrics=done["metrics"],
        seconds=seconds,
        notes=notes,
    )
    for name, value in done["metrics"].items():
        print(f"  {name:<32}{value:.4g}")
    dicom = ("warped_dicom/", "registration.dcm") if done["dicom"] else ()
    written = ", ".join(["warped.nii.gz", FORWARD, INVERSE, AFFINE, *dicom])
    print(f"wrote {options.output}/ in {seconds['all']:.0f} s: {written}, picture.png")
    return 0
