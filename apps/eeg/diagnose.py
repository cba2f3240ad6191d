"""`voxelwave eeg train` and `diagnose`: train a network on a study, and use one on recordings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from .work import batch_work, diagnose_single


def diagnose(
    *,
    input: Path,
    output: Path,
    weights: Path,
    threshold: float | None = None,
    abstain: float = 0.1,
    threads: int | None = None,
    dry_run: bool = False,
    include: str | None = None,
    jobs: int | None = None,
    part: str | None = None,
    cluster: str | None = None,
    slurm: dict[str, Any] | None = None,
    keep_identifiers: bool = False,
) -> int:
    """Give the probability of the diagnosed class for one recording, or for each below a folder.

    Recordings are cut and scaled as those that the weights were trained on. OUTPUT receives subjects.csv (a row per
    recording: mean probability of its windows, and "uncertain" where that is within --abstain of the threshold),
    windows.csv and diagnosis.json; for a folder also the last two for each recording in a folder of its own,
    manifest.jsonl and index.html. There a recording that is broken or does not fit the weights (channels, rate, length)
    is recorded with its reason and the others go on (exit code 3); the same command again does what is missing or
    changed. This is research software and no medical device.

    Args:
        input: a recording, or a folder of recordings.
        output: the folder to write to.
        weights: model.safetensors with model.json beside it.
        threshold: probability from which a recording counts as positive; default that of the weights.
        abstain: half the width of the band around the threshold where no decision is given.
        threads: of the CPU, per job; default all.
        dry_run: of a folder: only show what would be done.
        include: of a folder: only what these globs fit, such as "sub-01*,*rest*": file name or path.
        jobs: of a folder: processes on this machine, or recordings under way at once on a cluster.
        part: of a folder: i/n, for the i-th of n jobs of an array.
        cluster: dask://HOST:PORT, slurm, or slurm-local to try it out.
        slurm: submitit's parameters, such as slurm_partition and mem_gb.
        keep_identifiers: of a folder: name recordings by their files, and show and record these names.
    """

    from ...eeg.recording import SUFFIXES
    from ...runs.checks import at_least, use_threads
    from ..batch.find import choose, find_cases
    from ..batch.run import run_batch

    at_least(1, threads=threads, jobs=jobs)
    if not input.exists():
        raise FileNotFoundError(f"no recording or folder at {input}")
    use_threads(threads)
    work = batch_work(weights=str(weights), threshold=threshold, abstain=abstain)
    if input.is_file():
        return diagnose_single(input, output, work)
    found = find_cases(input, ("eeg",), output=output, suffixes={"eeg": SUFFIXES}, keep_identifiers=keep_identifiers)
    if not found.cases:
        raise FileNotFoundError(f"{input} holds no recording ({', '.join(SUFFIXES)})")
    options = {"threshold": work.threshold, "abstain": abstain}
    return run_batch(
        choose(found.cases, include=include),
        {"factory": "diagnose", "arguments": {"weights": str(weights.resolve()), **options}},
        output,
        root=input,
        options=options,
        weights=weights,
        jobs=jobs,
        cluster=cluster,
        slurm=slurm,
        part=part,
        dry_run=dry_run,
        threads=threads,
        keep_identifiers=keep_identifiers,
        notes=found.notes,
        finish=work.write_all,
    )
