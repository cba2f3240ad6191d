"""Many cases through one piece of work: weights loaded once per worker, each case whole or not at all, none lost.

A folder of results holds a folder for each case (the files that the work wrote, and case.json, the hashes of everything
they depend on), manifest.jsonl (a line per case), index.html, and .voxelwave (locks and unfinished work). A case whose
inputs, options and weights match the hashes in case.json is not done again. A second run on the folder, a part of a job
array or a worker of a cluster waits for a case that is being processed elsewhere, and then finds it done.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...runs.cells import Result
from ...runs.exit import DONE, ERROR, INTERRUPTED, REFUSED, SOME_FAILED, TERMINATED
from ...runs.record import sha256
from ...runs.workers import LocalProcesses, Pool, open_pool
from .case import Case
from .display import Counts, Display
from .manifest import MANIFEST, compact, finished_case, is_recorded, read_manifest
from .names import printable
from .page import write_index
from .task import (
    Batch,
    CaseCell,
    CaseRefused,
    DiskFullError,
    Task,
    WorkSpec,
    full_disk_is_an_error,
    full_words,
    is_full,
)


class Terminated(KeyboardInterrupt):
    """The run was asked to end by SIGTERM."""


def run_batch(
    cases: Sequence[Case],
    work: WorkSpec,
    output: Path,
    *,
    root: Path,
    options: dict[str, Any],
    weights: Path | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    slurm: dict[str, Any] | None = None,
    part: str | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    keep_identifiers: bool = False,
    notes: Sequence[str] = (),
    finish: Callable[[Path], None] | None = None,
    open_workers: Callable[[], Pool] | None = None,
) -> int:
    """Do all cases that are not done yet, and record each.

    Args:
        cases: with unique names.
        work: {"factory": "module:function", "arguments": {...}} in plain values, built once per worker.
        output: the folder of results.
        root: the folder of inputs; paths are recorded relative to it.
        options: everything else that the results depend on, as plain values.
        weights: the file of weights; its hash is recorded.
        jobs: processes on this machine, default 1; on a cluster how many cases may be under way at once.
        cluster: see `cells.open_pool`.
        slurm: submitit's parameters.
        part: "i/n": only the i-th of n parts; the parts together are the whole.
        dry_run: only show the plan.
        threads: of a case; default the cores of this machine by the jobs.
        keep_identifiers: names of files and patients may be shown and written.
        notes: lines about what was found and is no case.
        finish: called with the folder at the end, to write files about all cases.
        open_workers: gives the pool, in place of jobs and cluster.

    Returns:
        The exit code: 0 all done, 1 the disk is full, 3 some failed, 4 all were refused, 130 or 143 interrupted.

    Raises:
        ValueError, OSError: nothing to do, or the work cannot be built or the folder not be written.
    """
    if not cases:
        raise ValueError(f"nothing to do in {root}: {'; '.join(notes) or 'it holds no files'}")
    _check_names(cases)
    cases = choose_part(cases, part)
    batch = Batch(
        work=work,
        output=output,
        root=root,
        options=options,
        threads=threads or max(1, (os.cpu_count() or 1) // (jobs or 1 if cluster is None else 1)),
        keep_identifiers=keep_identifiers,
    )
    hashes = _hash_of(options), None if weights is None else sha256(weights)
    for note in notes:
        print(f"note: {printable(note)}")
    if dry_run:
        _show_plan(cases, batch, hashes)
        return DONE
    batch.state.mkdir(parents=True, exist_ok=True)

    def workers() -> Pool:
        if open_workers is not None:
            return open_workers()
        if cluster is None:  # even one job has its own process: a decoder that crashes must not end the run
            return LocalProcesses(jobs or 1)
        return open_pool(batch.state.resolve(), jobs=jobs, cluster=cluster, slurm=slurm)

    counts = Counts()
    try:
        with _ended_by_sigterm(), _run_folder(batch, shared=cluster is not None) as folder:
            _Run(batch, hashes, folder, workers, counts, Display(cases, counts)).drive(cases)
            code = _exit_code(counts)
    except KeyboardInterrupt as error:
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        print(
            f"voxelwave: interrupted: {counts.words(len(cases))}; run the same command again to continue",
            file=sys.stderr,
        )
        return code
    except DiskFullError as error:
        print(
            f"voxelwave: error: {error}; {counts.words(len(cases))}; make room and run the same command again",
            file=sys.stderr,
        )
        return ERROR
    _write_pages(batch, finish)
    print(f"{counts.words(len(cases))}; wrote {output}/{MANIFEST} and index.html")
    if code != DONE and not keep_identifiers:
        print(
            "names that could identify a person are shown as hashes (~...); add --dry-run --keep-identifiers"
            " to see them"
        )
    return code


def choose_part(cases: Sequence[Case], part: str | None) -> list[Case]:
    """The cases of one part of a job array.

    Example:
        >>> cases = [Case(name, (), "image", "") for name in "abcde"]
        >>> [case.identifier for case in choose_part(cases, "2/3")]
        ['b', 'e']
    """
    ordered = sorted(cases, key=lambda case: case.identifier)
    if part is None:
        return ordered
    number, _, count = part.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"part must be i/n with i from 1 to n, such as 2/10, got {part!r}")
    return ordered[int(number) - 1 :: int(count)]


class _Run:
    """Hands cases to the workers and collects their results."""

    def __init__(
        self,
        batch: Batch,
        hashes: tuple[str, str | None],
        folder: Path,
        workers: Callable[[], Pool],
        counts: Counts,
        display: "Display",
    ):
        self.batch, self.hashes, self.folder, self.workers = batch, hashes, folder, workers
        self.counts, self.display = counts, display

    def drive(self, cases: Sequence[Case]) -> None:
        """Process all cases.

        Raises:
            DiskFullError: the disk is full; finished cases are kept.
            ValueError, OSError: the work cannot be built, or the folder cannot be written.
        """
        queue: deque[tuple[Case, bool]] = deque()  # each with whether to wait for another run that processes it
        suspects: deque[Case] = deque()  # cases that ran when a worker died; each is tried once more, alone
        running: list[tuple[Case, bool, Any]] = []  # each with whether it runs alone
        self.manifest = read_manifest(self.batch.output)
        with self.display:
            for case in cases:
                if case.reason is None:
                    queue.append((case, False))
                else:
                    self._fail(case, case.reason)
            pool = self.workers() if queue else None
            whole = False
            try:
                while pool is not None and (queue or suspects or running):
                    alone = not queue and not running and bool(suspects)
                    if alone:
                        fresh = [(suspects.popleft(), True)]
                    else:
                        fresh = [queue.popleft() for _ in range(min(pool.slots - len(running), len(queue)))]
                    futures = pool.submit(self.folder, [self._cell(*one) for one in fresh]) if fresh else []
                    running += [(case, alone, future) for (case, _), future in zip(fresh, futures, strict=True)]
                    ended = [one for one in running if one[2].done()]
                    if not ended:
                        time.sleep(pool.pause)
                    running = [one for one in running if one not in ended]
                    died = False
                    for case, alone, future in ended:
                        result = self._result(pool, future)
                        if result["status"] == "died" and alone:
                            self._fail(case, "its process ended abruptly (too little memory?)")
                        elif result["status"] == "died":
                            suspects.append(case)
                        elif result["status"] == "busy":
                            queue.append((case, True))
                        else:
                            self._take(case, result)
                        died = died or result["status"] == "died"
                    if died and isinstance(pool, LocalProcesses):  # the other processes of the pool died with it
                        suspects += [case for case, _, _ in running]
                        running = []
                        pool.close(now=True)
                        pool = self.workers()
                whole = True
            finally:
                if pool is not None:
                    pool.close(now=not whole)

    def _result(self, pool: Pool, future: Any) -> Result:
        try:
            return pool.result(future)
        except OSError as error:
            if is_full(error):
                raise DiskFullError(full_words(self.batch.output)) from error
            if error.errno is not None:  # the folder of results cannot be written
                raise
            return {"status": "died"}

    def _take(self, case: Case, result: Result) -> None:
        status = result["status"]
        if status == "full":
            raise DiskFullError(result["error"])
        if status == "unusable":
            raise CaseRefused(result["error"]) if result["refused"] else ValueError(result["error"])
        self.counts.add(status)
        self.display.tell(case, status, result.get("error"), result.get("took"))

    def _fail(self, case: Case, reason: str) -> None:
        """Record a case that no worker could process."""
        with full_disk_is_an_error(self.batch.output):
            shown = Task(case, self.batch, self.hashes, self.folder).record_failure(reason)
        self.counts.add("failed")
        self.display.tell(case, "failed", shown, None)

    def _cell(self, case: Case, wait: bool) -> CaseCell:
        batch = self.batch
        places = {"output": str(batch.output.resolve()), "root": str(batch.root.absolute())}
        inputs = [str(path.absolute()) for path in case.inputs]
        return {
            "id": f"{case.identifier}-{secrets.token_hex(3)}",
            "function": "case",
            "threads": batch.threads,
            "case": {**case.as_dict(), "inputs": inputs},
            "batch": {**batch.__dict__, **places},
            "recorded": is_recorded(self.manifest, case, self.hashes),
            "hashes": list(self.hashes),
            "wait": wait,
        }


@contextmanager
def _run_folder(batch: Batch, *, shared: bool) -> Iterator[Path]:
    """A folder for unfinished work; the folders of killed runs are removed."""

    with full_disk_is_an_error(batch.output):
        (batch.state / "locks").mkdir(exist_ok=True)
        if not shared:  # workers of a cluster may outlive the run that asked for them
            for old in batch.state.glob("run-*.lock"):
                with contextlib.suppress(Timeout), FileLock(old, timeout=0):
                    shutil.rmtree(old.with_suffix(""), ignore_errors=True)
                    old.unlink(missing_ok=True)
        folder = batch.state.resolve() / f"run-{secrets.token_hex(4)}"
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_pages(batch: Batch, finish: Callable[[Path], None] | None) -> None:

    with FileLock(batch.state / "pages.lock"):
        compact(batch.output)
        if finish is not None:
            finish(batch.output)
        write_index(batch.output)


def _show_plan(cases: Sequence[Case], batch: Batch, hashes: tuple[str, str | None]) -> None:
    width = max(len(case.identifier) for case in cases)
    for case in cases:
        before = finished_case(batch.output, case.identifier)
        state = "to do"
        if case.reason is not None:
            state = "broken"
        elif before is not None and (before["options_sha256"], before["weights_sha256"]) == hashes:
            state = "done before"
        words = case.description + (f": {case.reason}" if case.reason else "")
        words = Task(case, batch, hashes, batch.state / "none").redacted(words)
        if batch.keep_identifiers:
            words += f"; {printable(case.label.partition(chr(9))[2])}"
        print(f"{case.identifier:<{width}}  {state:<11}  {words}")
    total = sum(case.size for case in cases)
    print(f"{len(cases)} cases, {total / 1e6:.1f} MB; nothing was done (--dry-run)")


def _check_names(cases: Sequence[Case]) -> None:
    names = [case.identifier.lower() for case in cases]
    if len(set(names)) < len(names):
        raise ValueError("cases must have unique names")


def _exit_code(counts: Counts) -> int:
    if counts.refused and counts.refused == counts.ended:
        return REFUSED
    return SOME_FAILED if counts.failed or counts.refused else DONE


def _hash_of(options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()
