"""`voxelwave registration register`: align two scans, or all pairs of a folder."""

import sys
import time
from dataclasses import asdict
from pathlib import Path

from ...registration.network_files import read_network
from ...registration.pairs import MASK_FILES, PAIR_FILES, Pair
from ...runs.exit import DONE, REFUSED, SOME_FAILED
from ...runs.files import outputs_together
from ...runs.outcome import add_outcome
from ...runs.record import write_record
from ..batch.bids_derivatives import print_derivatives, write_derivatives
from ..batch.case import Case
from ..batch.find import choose
from ..batch.pairs import pairs_of_bids, pairs_of_table
from ..batch.run import FolderRun, run_batch
from ..batch.task import CaseRefused
from ..page.case_page import write_case_page
from .options import AFFINE, FORWARD, INVERSE, PAIR_LISTS, Register
from .scans import REGISTRATION_DICOM, collected_notes
from .work import JACOBIAN, OPTIONAL_FILES, SEARCHED, Alignment

PAGE = "registration.html"
_MEANINGS = {
    "warped.nii.gz": "the moving scan on the grid of the fixed scan",
    "warped_labels.nii.gz": "its labels there",
    FORWARD: "displacement field, which moves images from the moving to the fixed scan (ITK)",
    INVERSE: "displacement field of the other direction",
    AFFINE: "the linear part",
    JACOBIAN: "Jacobian determinant of the map: change of volume",
    SEARCHED: "where the network searched",
    REGISTRATION_DICOM: "the transform as a DICOM object",
}


def register(options: Register) -> int:
    """Run the command and return its exit code."""
    if options.of_folder:
        return _register_folder(options)
    try:
        return _register_pair(options)
    except CaseRefused as error:
        print(f"voxelwave: refused: {error}", file=sys.stderr)
        return REFUSED


def _register_folder(options: Register) -> int:
    """Align all pairs of a folder or a table."""
    root = options.input or Path(str(options.pairs)).parent
    weights, cache = (None if path is None else str(path.resolve()) for path in (options.weights_file, options.cache))
    results_depend_on = {**asdict(options.settings), "dicom": options.dicom}
    if options.fix_tilt:  # not recorded otherwise, so that results of earlier versions stay valid
        results_depend_on["fix_tilt"] = True
    if options.guard != "refuse":
        results_depend_on["guard"] = options.guard
    if options.jacobian:
        results_depend_on["jacobian"] = True
    arguments = {**results_depend_on, "device": options.device, "weights": weights, "cache": cache}
    run = FolderRun(
        work={"factory": "align", "arguments": arguments},
        output=options.output,
        root=root,
        options=results_depend_on,
        weights=options.weights_file,
    )
    cases = choose(_find_pairs(options, root), include=options.include)
    code = run_batch(cases, run, options)
    if not options.dry_run and code in (DONE, SOME_FAILED, REFUSED):
        print_derivatives(write_derivatives(cases, root, options.output, keep_identifiers=options.keep_identifiers))
    return code


def _find_pairs(options: Register, root: Path) -> list[Case]:
    if options.bids is not None:
        moving, fixed = (name.strip() for name in options.bids.split(","))
        return pairs_of_bids(root, moving, fixed, output=options.output)
    table = options.pairs or next(root / name for name in PAIR_LISTS if (root / name).is_file())
    return pairs_of_table(table, options.input and root, keep_identifiers=options.keep_identifiers)


def _register_pair(options: Register) -> int:
    """Align one pair, write its record and print its figures."""
    started = time.perf_counter()
    assert options.moving is not None  # see Register.check
    assert options.fixed is not None
    pair = Pair(
        options.moving,
        options.fixed,
        "",
        options.moving_labels,
        options.fixed_labels,
        moving_mask=options.moving_mask,
        fixed_mask=options.fixed_mask,
    )
    network = None if options.weights_file is None else read_network(options.weights_file)
    with (
        outputs_together(options.output, replaces=[*OPTIONAL_FILES, *options.replaced()]) as folder,
        collected_notes() as notes,
    ):
        work = Alignment(
            options.settings,
            network,
            options.device,
            options.cache,
            options.dicom,
            options.fix_tilt,
            options.reversed_b0,
            options.guard,
            options.initial,
            options.jacobian,
        )
        done = work.align(pair, folder, progress=lambda text: print(f"  {text}", flush=True))
        seconds = {**done.seconds, "all": time.perf_counter() - started}
        write_record(
            folder / "record.json",
            inputs={
                **{name: getattr(pair, name) for name in PAIR_FILES},
                "weights": options.weights_file,
                "reversed_b0": options.reversed_b0,
                "initial": options.initial,
                **{name: getattr(pair, name) for name in MASK_FILES},
            },
            options={**asdict(options.settings), "device": options.device},
            choice=done.choice.as_json(),
            metrics=done.metrics,
            seconds=seconds,
            notes=notes,
        )
        write_case_page(
            folder / PAGE,
            folder / "record.json",
            title="Registration of two scans",
            figures="metrics",
            picture="picture.png",
            caption="Slices of both scans before and after the alignment, and the map.",
            files={name: meaning for name, meaning in _MEANINGS.items() if (folder / name).is_file()},
            lines=[str(done.choice)],
        )
    add_outcome(metrics=done.metrics, choice=done.choice.as_json(), notes=list(notes))
    for name, value in done.metrics.items():
        print(f"  {name:<32}{value:.4g}")
    dicom = ("warped_dicom/", "registration.dcm") if done.dicom else ()
    jacobian = [JACOBIAN] if options.jacobian else []
    written = ", ".join(["warped.nii.gz", FORWARD, INVERSE, AFFINE, *jacobian, *dicom])
    pictures = ", ".join([PAGE, "picture.png", *(name for name in [SEARCHED] if (options.output / name).is_file())])
    print(f"wrote {options.output}/ in {seconds['all']:.0f} s: {written}, {pictures}")
    return DONE
