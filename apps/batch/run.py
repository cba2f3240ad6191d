"""Process many cases: each worker loads the weights once, and each case is done completely or not at all.

A folder of results holds a folder for each case (with the result files and case.json, which has the hashes of all data
on which they depend), manifest.jsonl (a line per case), index.html, and .voxelwave (locks and unfinished work). A case
whose inputs, options and weights match the hashes in case.json is not done again. A second run on the folder, a part of
a job array or a worker of a cluster waits for a case that is being processed elsewhere, and then finds it done.
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
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ...runs.cells import Cell, Result
from ...runs.drive import RunningCells
from ...runs.exit import DONE, ERROR, INTERRUPTED, REFUSED, SOME_FAILED, TERMINATED
from ...runs.outcome import add_outcome
from ...runs.record import sha256
from ...runs.workers import LocalProcesses, Pool, open_pool
from .case import Case
from .case_files import write_case_files
from .display import Counts, Display
from .manifest import MANIFEST, compact, finished_case, is_recorded, read_manifest
from .names import printable
from .options import FolderOptions
from .page import write_index
from .run_facts import write_run_facts
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
    """The run was terminated by SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class FolderRun:
    """The work of a run over a folder, and its inputs and outputs.

    Args:
        work: the specification by which each worker builds the work.
        output: the folder of results.
        root: the folder of inputs; paths are recorded relative to it.
        options: all other options on which the results depend, as plain values.
        weights: the file of weights; its hash is recorded.
        notes: lines about files that are not cases.
        finish: called with the folder at the end, to write files about all cases.
    """

    work: WorkSpec
    output: Path
    root: Path
    options: dict[str, Any]
    weights: Path | None = None
    notes: Sequence[str] = ()
    finish: Callable[[Path], None] | None = None


def run_batch(
    cases: Sequence[Case], run: FolderRun, how: FolderOptions, *, open_workers: Callable[[], Pool] | None = None
) -> int:
    """Process all cases that are not done yet, and record each.

    Args:
        cases: the cases; their names must be unique.
        run: the work, its inputs and its outputs.
        how: the user's options: jobs, cluster, part and so on.
        open_workers: function that returns the pool, in place of jobs and cluster.

    Returns:
        The exit code: 0 all done, 1 the disk is full, 3 some failed, 4 all were refused, 130 or 143 interrupted.

    Raises:
        ValueError, OSError: there is nothing to do, the work cannot be built, or the folder cannot be written.
    """
    if not cases:
        raise ValueError(f"nothing to do in {run.root}: {'; '.join(run.notes) or 'it holds no files'}")
    _check_names(cases)
    cases = choose_part(cases, how.part)
    batch = Batch(
        work=run.work,
        output=run.output,
        root=run.root,
        options=run.options,
        threads=how.threads or max(1, (os.cpu_count() or 1) // (how.jobs or 1 if how.cluster is None else 1)),
        keep_identifiers=how.keep_identifiers,
        again=how.overwrite,
    )
    hashes = _hash_of(run.options), None if run.weights is None else sha256(run.weights)
    for note in run.notes:
        print(f"note: {printable(note)}")
    if how.dry_run:
        _show_plan(cases, batch, hashes)
        return DONE
    batch.state.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    try:
        with full_disk_is_an_error(batch.output):
            files = write_case_files(batch.output, cases)
            write_run_facts(batch.output, run.work["factory"], run.options, run.weights, hashes[1])
        with _ended_by_sigterm(), _run_folder(batch, shared=how.cluster is not None) as folder:
            several = how.cluster is not None or (how.jobs or 1) > 1
            workers = open_workers or partial(_open_workers, how, batch.state.resolve())
            _Run(batch, hashes, folder, workers, counts, Display(cases, counts), several).drive(cases)
            code = _exit_code(counts)
    except (KeyboardInterrupt, DiskFullError) as error:
        return _report_unfinished(error, counts.words(len(cases)))
    _write_pages(batch, run.finish)
    entries = read_manifest(batch.output)
    add_outcome(
        counts=counts.__dict__,
        cases={
            name: {key: entry.get(key) for key in ("status", "error", "metrics")} for name, entry in entries.items()
        },
    )
    print(f"{counts.words(len(cases))}; wrote {batch.output}/{MANIFEST} and index.html")
    if code != DONE and not batch.keep_identifiers:
        print(
            "names that could identify a person are shown as hashes (~...); the files of each case are listed in"
            f" {files.name} beside the folder of results, which only you can read"
        )
    return code


def _open_workers(how: FolderOptions, folder: Path) -> Pool:
    if how.cluster is None:  # even one job has its own process: a decoder that crashes must not end the run
        return LocalProcesses(how.jobs or 1)
    return open_pool(folder, jobs=how.jobs, cluster=how.cluster, slurm=how.slurm)


def _report_unfinished(error: BaseException, counts: str) -> int:
    """Report the state of an interrupted run, and return its exit code."""
    if isinstance(error, DiskFullError):
        print(
            f"voxelwave: error: {error}; {counts}; free some space and run the same command again",
            file=sys.stderr,
        )
        return ERROR
    print(f"voxelwave: interrupted: {counts}; run the same command again to continue", file=sys.stderr)
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


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


class Attempt(NamedTuple):
    """A running case, and whether it runs alone."""

    case: Case
    alone: bool = False


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
        several: bool = False,
    ):
        self.batch, self.hashes, self.folder, self.workers = batch, hashes, folder, workers
        self.counts, self.display, self.several = counts, display, several
        self.queue: deque[tuple[Attempt, Cell]] = deque()
        self.suspects: deque[Case] = deque()  # cases that ran when a worker died; each is tried once more, alone

    def drive(self, cases: Sequence[Case]) -> None:
        """Process all cases.

        Raises:
            DiskFullError: the disk is full; finished cases are kept.
            ValueError, OSError: the work cannot be built, or the folder cannot be written.
        """
        self.manifest = read_manifest(self.batch.output)
        with self.display:
            for case in cases:
                if case.reason is not None:
                    self._fail(case, case.reason)
                elif not self.queue and self._was_done(case):
                    self._take(case, {"status": "found"})
                else:
                    self._enqueue(case)
            if not self.queue:
                return
            running: RunningCells[Attempt] = RunningCells(self.workers(), self.folder)
            whole = False
            try:
                while self.queue or self.suspects or running:
                    running = self._step(running)
                whole = True
            finally:
                running.pool.close(now=not whole)

    def _step(self, running: RunningCells[Attempt]) -> RunningCells[Attempt]:
        """Start cases on free workers, and collect the results of finished ones.

        Returns:
            The running cells; they have new processes if one of a local pool died, since the others died with it.
        """
        if self.queue or running:
            running.start(self.queue)
        elif self.suspects:  # alone, so that its death takes no other case with it
            case = self.suspects.popleft()
            running.start(deque([(Attempt(case, alone=True), self._cell(case))]))
        died = False
        for (case, alone), _, future in running.take_ended():
            result = self._result(running.pool, future)
            if result["status"] != "died":
                self._take(case, result)
            elif alone:
                self._fail(case, "its process ended abruptly (too little memory?)")
                died = True
            else:
                self.suspects.append(case)
                died = True
        if not (died and isinstance(running.pool, LocalProcesses)):
            return running
        self.suspects += [attempt.case for attempt in running.abandon()]
        running.pool.close(now=True)
        return RunningCells(self.workers(), self.folder)

    def _was_done(self, case: Case) -> bool:
        """Whether a case needs no worker, whose start takes seconds. Several workers check cases faster."""
        if self.several or not is_recorded(self.manifest, case, self.hashes):
            return False
        places = replace(self.batch, output=self.batch.output.resolve(), root=self.batch.root.absolute())
        return Task(case, places, self.hashes, self.folder).is_done()

    def _enqueue(self, case: Case, *, wait: bool = False) -> None:
        """Put a case at the end of the queue; with `wait`, its worker waits until another run has finished it."""
        self.queue.append((Attempt(case), self._cell(case, wait=wait)))

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
        if status == "busy":
            self._enqueue(case, wait=True)
            return
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

    def _cell(self, case: Case, *, wait: bool = False) -> CaseCell:
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
        if not shared:  # workers of a cluster may outlive the run that started them
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
    """Within the block, SIGTERM interrupts like Ctrl-C."""
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
        elif not batch.again and before is not None and (before["options_sha256"], before["weights_sha256"]) == hashes:
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
