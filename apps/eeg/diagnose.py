"""`voxelwave eeg diagnose`: estimate the probability of the diagnosed class for recordings with a trained network."""

from dataclasses import replace

from ...eeg.file_people import without_later_parts
from ...eeg.readers import SUFFIXES
from ...runs.compute import use_threads
from ..batch.find import choose, find_cases
from ..batch.run import FolderRun, run_batch
from .options import Diagnose
from .people_table import read_people
from .work import batch_work, diagnose_single


def diagnose(options: Diagnose) -> int:
    """Run the command and return its exit code."""
    use_threads(options.threads)
    streamed = {"stream": True} if options.stream else {}
    work = batch_work(
        weights=str(options.weights_file), threshold=options.threshold, abstain=options.abstain, **streamed
    )
    work = replace(work, people=read_people(options))
    if options.input.is_file():
        diagnose_single(options.input, options.output, work)
        return 0
    found = find_cases(
        options.input,
        ("eeg",),
        output=options.output,
        suffixes={"eeg": SUFFIXES},
        keep_identifiers=options.keep_identifiers,
    )
    whole = set(without_later_parts(case.inputs[0] for case in found.cases))
    found.left_out["later parts of split FIF recordings"] += len(found.cases) - len(whole)
    found = replace(found, cases=[case for case in found.cases if case.inputs[0] in whole], left_out=+found.left_out)
    if not found.cases:
        raise FileNotFoundError(f"{options.input} holds no recording ({', '.join(SUFFIXES)})")
    how = {"threshold": work.threshold, "abstain": options.abstain, **streamed}
    run = FolderRun(
        work={"factory": "diagnose", "arguments": {"weights": str(options.weights_file.resolve()), **how}},
        output=options.output,
        root=options.input,
        options=how,
        weights=options.weights_file,
        notes=found.notes,
        finish=work.write_all,
    )
    return run_batch(choose(found.cases, include=options.include), run, options)
