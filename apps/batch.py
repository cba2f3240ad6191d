"""Many cases through one piece of work: weights loaded once per worker, each case whole or not at all, none lost.

A folder of results holds, for each case, a folder of its name (what the work wrote, and case.json: what it was made
from), manifest.jsonl (a line per case), index.html, and .voxelwave (locks and what is under way). A case whose inputs,
options and weights hash as case.json says is not done again. A second run on the folder, a part of a job array or a
worker of a cluster waits for a case that is being done elsewhere and then finds it done.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

from ..volumes.files import atomic_path
from .batch_find import Case, printable, relative, shown_name, shown_path
from .cells import Cell, LocalProcesses, Pool, Result, limited_threads, load_object, open_pool
from .cli import DONE, ERROR, INTERRUPTED, REFUSED, SOME_FAILED, TERMINATED
from .record import package_versions, sha256

MANIFEST, CASE, STATE = "manifest.jsonl", "case.json", ".voxelwave"
WorkSpec = dict[str, Any]  # {"factory": "module:function", "arguments": {...}}, plain values
Entry = dict[str, Any]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IDENTIFYING = (
    *("PatientName", "PatientID", "PatientBirthDate", "OtherPatientNames", "OtherPatientIDs", "PatientComments"),
    *("PatientAddress", "PatientTelephoneNumbers", "AccessionNumber", "InstitutionName", "ReferringPhysicianName"),
    *("PerformingPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription", "ProtocolName"),
)


class CaseRefused(ValueError):
    """The work is not made for this case; a result would look fine and be wrong."""


class Work(Protocol):
    """What is done with a case. A work may have `smaller()`, which gives one that needs less memory, or None."""

    def __call__(self, case: Case, folder: Path) -> dict[str, Any]:
        """Do a case and write its results into a folder.

        Args:
            case: its inputs, where a DICOM series is one folder that holds nothing else.
            folder: empty.

        Returns:
            "metrics": plain values; "warnings": lines, if any.

        Raises:
            CaseRefused, ValueError, OSError, MemoryError: one line that says why it could not be done.
        """


@dataclass(frozen=True)
class Batch:
    """Where and how the cases of a run are done.

    Args:
        work: how to build the work.
        output: the folder of results.
        root: what paths are shown relative to.
        options: what the results depend on beside inputs and weights.
        threads: of a case.
        keep_identifiers: names of files and patients may be shown and written.
    """

    work: WorkSpec
    output: Path
    root: Path
    options: dict[str, Any]
    threads: int = 1
    keep_identifiers: bool = False

    @property
    def state(self) -> Path:
        """The folder of locks and of what is under way."""
        return self.output / STATE


@dataclass
class Counts:
    """How many cases of a run ended how."""

    done: int = 0
    found: int = 0
    failed: int = 0
    refused: int = 0

    @property
    def ended(self) -> int:
        """All that are over."""
        return self.done + self.found + self.failed + self.refused

    def words(self, everything: int) -> str:
        """A line about them."""
        parts = [f"{self.done} of {everything} done"]
        parts += [f"{self.found} done before and unchanged"] if self.found else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.refused} refused"] if self.refused else []
        return ", ".join(parts)


class DiskFullError(OSError):
    """There is no room for results."""


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
        options: what the results depend on beside inputs and weights, as plain values.
        weights: the file of weights; its hash is recorded.
        jobs: processes on this machine, default 1; on a cluster how many cases may be under way at once.
        cluster: see `cells.open_pool`.
        slurm: submitit's parameters.
        part: "i/n": only the i-th of n parts; the parts together are the whole.
        dry_run: only show the plan.
        threads: of a case; default the cores of this machine by the jobs.
        keep_identifiers: names of files and patients may be shown and written.
        notes: lines about what was found and is no case.
        finish: called with the folder at the end, to write what is about all cases.
        open_workers: gives the pool, in place of jobs and cluster.

    Returns:
        The exit code: 0 all done, 1 the disk is full, 3 some failed, 4 all were refused, 130 or 143 interrupted.

    Raises:
        ValueError, OSError: nothing to do, or the work cannot be built or the folder not be written.
    """
    if not cases:
        raise ValueError(f"there is no work in {root}: {'; '.join(notes) or 'it holds no files'}")
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
            _Run(batch, hashes, folder, workers, counts, _Display(cases, counts)).drive(cases)
            code = _exit_code(counts)
    except KeyboardInterrupt as error:
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        print(
            f"voxelwave: interrupted: {counts.words(len(cases))}; run the same command again to go on", file=sys.stderr
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
        print("names that may identify a person are shown as ~hashes: --dry-run --keep-identifiers tells them")
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


def read_manifest(output: Path) -> dict[str, Entry]:
    """The last line of each case, by its name; a line that was cut off by a kill does not count."""
    path = output / MANIFEST
    entries: dict[str, Entry] = {}
    if path.is_file():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                entries[entry["case"]] = entry
    return entries


def run_case(cell: Cell, folder: Path) -> Result:
    """Do one case in a worker: the function of a cell.

    Returns:
        "status": "done", "found" (done before and unchanged), "failed", "refused", "busy" (another run is at it),
        "full" (no room for results), "unusable" (the work cannot be built); "error": why.
    """
    from filelock import FileLock, Timeout

    case = Case.from_dict(cell["case"])
    places: dict[str, Any] = {k: Path(cell["batch"][k]) for k in ("output", "root")}
    batch = Batch(**{**cell["batch"], **places})
    lock = FileLock(batch.state / "locks" / f"{case.identifier}.lock")
    try:
        with lock.acquire(timeout=-1 if cell["wait"] else 0):
            return _Task(case, batch, tuple(cell["hashes"]), folder).run(recorded=cell["recorded"])
    except Timeout:
        return {"status": "busy"}
    except OSError as error:
        if _is_full(error):
            return {"status": "full", "error": _full_words(batch.output)}
        raise


@lru_cache(maxsize=2)
def _built(spec: str) -> Work:
    content = json.loads(spec)
    return load_object(content["factory"])(**content["arguments"])


class _Unusable(ValueError):
    """The work cannot be built, for any case."""


@dataclass
class _Task:
    """One case at its turn, under its lock."""

    case: Case
    batch: Batch
    hashes: tuple[str, str | None]
    scratch: Path
    notes: list[str] = field(default_factory=list)

    def run(self, *, recorded: bool) -> Result:
        """Skip, do or fail the case, and record it; `recorded` says whether the manifest has it as done."""
        started, clock = datetime.now(UTC), time.perf_counter()
        entry = self.first_entry()
        status, error = "done", None
        try:
            entry["inputs"] = self._inputs()
            before = finished_case(self.batch.output, self.case.identifier)
            if before is not None and all(before.get(k) == entry[k] for k in entry):
                # a kill may have come between the results and their line
                if not recorded and not is_recorded(read_manifest(self.batch.output), self.case, self.hashes):
                    append_line(self.batch.output, _manifest_entry(before, "done", None, started, None))
                return {"status": "found"}
            entry |= self._work(entry)
        except _Unusable as problem:
            return {"status": "unusable", "error": str(problem), "refused": isinstance(problem.__cause__, CaseRefused)}
        except Exception as problem:  # libraries fail in many ways on damaged data
            if _is_full(problem):
                return {"status": "full", "error": _full_words(self.batch.output)}
            if os.environ.get("VOXELWAVE_DEBUG"):
                traceback.print_exc()
            status = "refused" if isinstance(problem, CaseRefused) else "failed"
            error = self._clean(_in_words(problem))
            entry |= {"outputs": [], "bytes": [], "metrics": {}, "warnings": self._warnings()}
        seconds = round(time.perf_counter() - clock, 3)
        words = f"refused: {error}" if status == "refused" else error
        line = _manifest_entry(entry, "done" if error is None else "failed", words, started, seconds)
        append_line(self.batch.output, line)
        return {"status": status, "error": error, "took": seconds}

    def first_entry(self) -> Entry:
        """What is known of the case before it is looked at."""
        return {
            "case": self.case.identifier,
            "kind": self.case.kind,
            "inputs": [],
            "options": json.loads(json.dumps(self.batch.options)),
            "options_sha256": self.hashes[0],
            "weights_sha256": self.hashes[1],
        }

    def _inputs(self) -> list[dict[str, Any]]:
        """Place and hash of what goes in; a DICOM series is one line."""
        paths = [*self.case.inputs, *_sidecars(self.case)]
        shown = [shown_path(p, self.batch.root, keep_identifiers=self.batch.keep_identifiers) for p in paths]
        hashes = [sha256(path) for path in paths]
        if self.case.kind == "dicom":
            place = shown[0].rpartition("/")[0] or "."
            both = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
            return [{"path": place, "files": len(paths), "sha256": both}]
        roles = self.case.roles or (None,)
        lines = [{"path": place, "sha256": value} for place, value in zip(shown, hashes, strict=True)]
        for line, role in zip(lines, roles, strict=False):
            if role:
                line["role"] = role
        return lines

    def _work(self, entry: Entry) -> Entry:
        """Run the work, with less memory where it ran out of it, and put the results in place."""
        from .batch_preview import write_preview

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            work = self._build()
            staged = self._staged()
            while True:
                results = self.scratch / "results"
                shutil.rmtree(results, ignore_errors=True)
                results.mkdir()
                try:
                    with limited_threads(self.batch.threads):  # torch may have been loaded just now
                        told = work(staged, results)
                    break
                except Exception as error:
                    if not _is_out_of_memory(error):
                        raise
                    work = self._smaller(work, error)
                finally:
                    ours = (w for w in caught if "voxelwave" in getattr(w.category, "__module__", ""))
                    self.notes += [str(w.message) for w in ours]
                    caught.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say of the input was said
            self.notes += [*told.get("warnings", []), *write_preview(staged, results)]
        files = sorted(p for p in results.rglob("*") if p.is_file())
        result: Entry = {
            "outputs": [f"{self.case.identifier}/{p.relative_to(results).as_posix()}" for p in files],
            "bytes": [p.stat().st_size for p in files],
            "metrics": json.loads(json.dumps(told.get("metrics", {}), default=_plain)),
            "warnings": self._warnings(),
        }
        (results / CASE).write_text(json.dumps({**entry, **result}, indent=1) + "\n")
        publish(results, self.batch.output / self.case.identifier)
        return result

    def _build(self) -> Work:
        try:
            with limited_threads(self.batch.threads):
                return _built(json.dumps(self.batch.work, sort_keys=True))
        except Exception as error:
            raise _Unusable(_in_words(error)) from error

    def _staged(self) -> Case:
        """A DICOM series as a folder of its own, whose file names are numbers."""
        if self.case.kind != "dicom":
            return self.case
        folder = self.scratch / "series"
        folder.mkdir()
        for number, path in enumerate(self.case.inputs, start=1):
            _link(path.absolute(), folder / _staged_name(number))
        return replace(self.case, inputs=(folder,))

    def _smaller(self, work: Work, error: Exception) -> Work:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = getattr(work, "smaller", lambda: None)()
        if smaller is None:
            raise MemoryError("not enough memory, and the work cannot be cut smaller") from error
        self.notes.append(f"memory ran out; tried again with {smaller.size_in_words}")
        return smaller

    def _warnings(self) -> list[str]:
        return list(dict.fromkeys(self._clean(note) for note in (*self.case.warnings, *self.notes)))

    def _clean(self, text: str) -> str:
        """A message in one line, without places on this machine and, unless they may stay, names."""
        batch, keep = self.batch, self.batch.keep_identifiers
        place = shown_path(self.case.inputs[0].parent, batch.root, keep_identifiers=keep)
        swaps = [(str(self.scratch / "series"), place), (str(self.scratch / "results"), self.case.identifier)]
        for path in self.case.inputs:
            shown = shown_path(path, batch.root, keep_identifiers=keep)
            swaps += [(str(path.absolute()), shown), (str(path), shown)]
        swaps += [(str(self.scratch), ""), (str(batch.output), "OUTPUT"), (str(batch.root), "INPUT")]
        if self.case.kind == "dicom":
            swaps += [
                (_staged_name(number), shown_name(path.name, keep_identifiers=keep))
                for number, path in enumerate(self.case.inputs, start=1)
            ]
        text = " ".join(text.split())
        for old, new in sorted(swaps, key=lambda pair: -len(pair[0])):
            text = text.replace(old, new)
        if not keep:
            for word in sorted(self._names(), key=len, reverse=True):
                text = text.replace(word, "[...]")
        return printable(text)

    def _names(self) -> set[str]:
        """Words in names of files and in the header that say who it is."""
        words = set()
        for path in self.case.inputs:
            for part in relative(path, self.batch.root).split("/"):
                if shown_name(part) != part:
                    words |= {part, part.split(".")[0]}
        if self.case.kind == "dicom":
            words |= _header_words(self.case.inputs[0])
        return {word for word in words if len(word) > 2}


class _Run:
    """Cases on their way through workers."""

    def __init__(
        self,
        batch: Batch,
        hashes: tuple[str, str | None],
        folder: Path,
        workers: Callable[[], Pool],
        counts: Counts,
        display: "_Display",
    ):
        self.batch, self.hashes, self.folder, self.workers = batch, hashes, folder, workers
        self.counts, self.display = counts, display

    def drive(self, cases: Sequence[Case]) -> None:
        """Bring all cases to their end.

        Raises:
            DiskFullError: no room; what is done stays.
            ValueError, OSError: the work cannot be built, or the folder cannot be written.
        """
        queue: deque[tuple[Case, bool]] = deque()  # with whether to wait for another run that is at it
        suspects: deque[Case] = deque()  # were under way when a worker died; each gets one try alone
        running: list[tuple[Case, bool, Any]] = []  # with whether it runs alone
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
                            self._fail(case, "the process that worked on it ended abruptly (too little memory?)")
                        elif result["status"] == "died":
                            suspects.append(case)
                        elif result["status"] == "busy":
                            queue.append((case, True))
                        else:
                            self._take(case, result)
                        died = died or result["status"] == "died"
                    if died and isinstance(pool, LocalProcesses):  # the others are gone with it
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
            if _is_full(error):
                raise DiskFullError(_full_words(self.batch.output)) from error
            if error.errno is not None:  # the folder of results cannot be written
                raise
            return {"status": "died"}

    def _take(self, case: Case, result: Result) -> None:
        status = result["status"]
        if status == "full":
            raise DiskFullError(result["error"])
        if status == "unusable":
            raise CaseRefused(result["error"]) if result["refused"] else ValueError(result["error"])
        name = {"done": "done", "found": "found", "failed": "failed", "refused": "refused"}[status]
        setattr(self.counts, name, getattr(self.counts, name) + 1)
        self.display.tell(case, status, result.get("error"), result.get("took"))

    def _fail(self, case: Case, reason: str) -> None:
        """Record a case that no worker could take."""
        task = _Task(case, self.batch, self.hashes, self.folder)
        entry = task.first_entry()
        reason = task._clean(reason)
        entry |= {"outputs": [], "bytes": [], "metrics": {}, "warnings": task._warnings()}
        with _full_disk_is_an_error(self.batch.output):
            append_line(self.batch.output, _manifest_entry(entry, "failed", reason, datetime.now(UTC), 0.0))
        self.counts.failed += 1
        self.display.tell(case, "failed", reason, None)

    def _cell(self, case: Case, wait: bool) -> Cell:
        batch = self.batch
        places = {"output": str(batch.output.resolve()), "root": str(batch.root.absolute())}
        inputs = [str(path.absolute()) for path in case.inputs]
        return {
            "id": f"{case.identifier}-{secrets.token_hex(3)}",
            "function": f"{__name__}:run_case",
            "threads": batch.threads,
            "case": {**case.as_dict(), "inputs": inputs},
            "batch": {**batch.__dict__, **places},
            "recorded": is_recorded(self.manifest, case, self.hashes),
            "hashes": list(self.hashes),
            "wait": wait,
        }


class _Display:
    """Progress with the time left: a bar on a terminal, and a line for each case that ended."""

    def __init__(self, cases: Sequence[Case], counts: Counts):
        self.counts, self.everything = counts, len(cases)
        self.total = sum(max(case.size, 1) for case in cases)
        self.over, self.worked, self.clock = 0, 0, time.perf_counter()
        self.bar: Any = None

    def __enter__(self) -> "_Display":
        self.clock = time.perf_counter()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.fields[ended]}"), BarColumn(), TextColumn("{task.fields[left]}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("", total=self.total, ended=f"0 of {self.everything}", left="")
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def tell(self, case: Case, status: str, error: str | None, seconds: float | None) -> None:
        """Show that a case ended."""
        self.over += max(case.size, 1)
        if status != "found":
            self.worked += max(case.size, 1)
        left = self._left()
        place = f"[{self.counts.ended}/{self.everything}] {case.identifier}"
        if status in ("failed", "refused"):
            line = f"voxelwave: {status}: {place}: {error}"
        else:
            words = {"done": "done", "found": "done before and unchanged"}[status]
            line = f"{place}: {words}" + (f" in {seconds:.1f} s" if seconds is not None else "")
            line += f", {left} left" if left else ""
        if self.bar is None:
            print(line, file=sys.stderr if error else sys.stdout, flush=True)
        else:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self.bar.update(
                self.task,
                completed=self.over,
                ended=f"{self.counts.ended} of {self.everything}",
                left=f"{left} left" if left else "",
            )

    def _left(self) -> str:
        if not self.worked or self.over >= self.total:
            return ""
        return in_time((time.perf_counter() - self.clock) / self.worked * (self.total - self.over))


def in_time(seconds: float) -> str:
    """A span of time in words.

    Example:
        >>> [in_time(seconds) for seconds in (8, 200, 9000)]
        ['about 8 s', 'about 3 min', 'about 2.5 h']
    """
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def is_recorded(manifest: dict[str, Entry], case: Case, hashes: tuple[str, str | None]) -> bool:
    """Whether the manifest has the case as done with these options and weights."""
    entry = manifest.get(case.identifier, {})
    return entry.get("status") == "done" and (entry["options_sha256"], entry["weights_sha256"]) == hashes


def finished_case(output: Path, identifier: str) -> Entry | None:
    """What case.json of a finished case says, if its results are all there."""
    try:
        entry = json.loads((output / identifier / CASE).read_text())
        for name, size in zip(entry["outputs"], entry["bytes"], strict=True):
            if (output / name).stat().st_size != size:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry


def publish(temporary: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one, once its files are on the disk."""
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    old = temporary.with_name("old")
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


def append_line(output: Path, entry: Entry) -> None:
    """Add a line to the manifest; it is on the disk afterwards, or not there at all."""
    line = json.dumps(entry).encode() + b"\n"
    with _manifest_lock(output), (output / MANIFEST).open("ab+") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":  # a line that a kill cut off
                line = b"\n" + line
        try:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(stream.fileno(), end)
            raise


def compact(output: Path) -> None:
    """Keep the last line of each case, in order of name."""
    with _manifest_lock(output):
        entries = read_manifest(output)
        with atomic_path(output / MANIFEST) as temporary:
            temporary.write_text("".join(json.dumps(entries[name]) + "\n" for name in sorted(entries)))


@contextmanager
def _manifest_lock(output: Path) -> Iterator[None]:
    from filelock import FileLock

    state = output / STATE
    state.mkdir(parents=True, exist_ok=True)
    with FileLock(state / "manifest.lock"):
        yield


def _manifest_entry(
    entry: Entry, status: Literal["done", "failed"], error: str | None, started: datetime, seconds: float | None
) -> Entry:
    return {
        "case": entry["case"],
        "status": status,
        **{name: value for name, value in entry.items() if name != "case"},
        "error": error,
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "versions": package_versions(),
    }


@contextmanager
def _run_folder(batch: Batch, *, shared: bool) -> Iterator[Path]:
    """A folder for what is under way; those of runs that were killed are taken away."""
    from filelock import FileLock, Timeout

    with _full_disk_is_an_error(batch.output):
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
def _full_disk_is_an_error(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if _is_full(error):
            raise DiskFullError(_full_words(output)) from error
        raise


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
    from filelock import FileLock

    from .batch_page import write_index

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
        words = _Task(case, batch, hashes, batch.state / "none")._clean(words)
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


def _sidecars(case: Case) -> list[Path]:
    """Files beside the inputs that the result depends on too."""
    endings = {".nii": (".bval", ".bvec"), ".vhdr": (".eeg", ".vmrk", ".dat"), ".set": (".fdt",)}
    found = []
    for path in case.inputs:
        plain = path.with_name(path.name.removesuffix(".gz"))
        beside = endings.get(plain.suffix.lower(), ()) if case.kind in ("pair", "eeg") else ()
        found += [file for ending in beside if (file := plain.with_suffix(ending)).is_file()]
    return found


def _staged_name(number: int) -> str:
    return f"{number:05d}.dcm"


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError as error:  # a file system without links
        if _is_full(error):
            raise
        shutil.copyfile(source, target)


def _header_words(path: Path) -> set[str]:
    """What a DICOM header says about the person, the place and in free text, whole and word by word."""
    import pydicom

    words: set[str] = set()
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_IDENTIFYING), force=True)
        for keyword in _IDENTIFYING:
            value = str(header.get(keyword) or "")
            words |= {value, *value.replace("^", " ").split()}
    except Exception:  # a damaged header
        return words
    return words


def _plain(value: Any) -> Any:
    """Numbers of NumPy as those of Python."""
    return value.item() if hasattr(value, "item") else str(value)


def _hash_of(options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()


def _in_words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:500]
    if _is_out_of_memory(error):
        return text if text.startswith("not enough memory") else "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    return any(isinstance(one, OSError) and one.errno in _FULL for one in _chain(error))


def _full_words(output: Path) -> str:
    return f"no space left for results in {output}"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory", "CUDA out of memory")
    )
