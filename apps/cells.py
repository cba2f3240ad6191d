"""Cells: units of work with JSON in and a folder out, run here, on a Dask cluster or by Slurm, and found again later.

A cell is a dictionary of plain values: "id", the name of its folder; "function", "module:name" of what does the work,
called with the cell and an empty folder and giving a JSON-ready dictionary; "threads"; and whatever the function needs.
Its folder appears whole (cell.json, result.json and what the function wrote) or not at all, so a run that was killed
at any moment goes on from the cells that are there.
"""

import contextlib
import importlib
import json
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

Cell = dict[str, Any]
Result = dict[str, Any]
T = TypeVar("T")
Group = Generator[list[Cell], list[Result], T]

_ASK_AGAIN = "run the same command again to go on from the finished cells"


def run_cell(folder: str, cell: Cell) -> Result:
    """Do one unit of work, unless its folder is there already, and give its result with "seconds".

    Args:
        folder: that holds the folders of all cells.
        cell: the unit.

    Raises:
        ValueError: its folder holds another unit; and whatever the function raises.
    """
    done = find_result(Path(folder), cell)
    if done is not None:
        return done
    temporary = Path(folder) / f".{cell['id']}.{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    try:
        _write_json(temporary / "cell.json", cell)
        started = time.perf_counter()
        with limited_threads(cell["threads"]):
            result = load_object(cell["function"])(cell, temporary)
        result["seconds"] = round(time.perf_counter() - started, 3)
        _write_json(temporary / "result.json", result)
        _publish(temporary, Path(folder) / cell["id"])
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return json.loads(json.dumps(result))  # the same numbers as a later run reads


def find_result(folder: Path, cell: Cell) -> Result | None:
    """The result of a cell that was finished before, or None.

    Raises:
        ValueError: a folder of that name holds another unit.
    """
    path = folder / cell["id"]
    if not path.is_dir():
        return None
    if json.loads((path / "cell.json").read_text()) != cell:
        raise ValueError(f"{path} holds a cell with other content; choose another --output")
    return json.loads((path / "result.json").read_text())


def load_object(path: str) -> Any:
    """What "module:name" names.

    Example:
        >>> load_object("math:sqrt")(9.0)
        3.0
    """
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let BLAS, OpenMP and torch use `count` threads: sums in another order would differ in their last digits."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before, environment = torch.get_num_threads() if torch else None, os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)  # for libraries that load later
    if torch:
        torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)
        if environment is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = environment


class Pool(Protocol):
    """Somewhere to run cells.

    `slots` is how many may be under way at once, `pause` the seconds between two looks, and `shared` says whether
    workers may outlive a run that was killed.
    """

    slots: int
    pause: float
    shared: bool

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Any]:
        """Start cells and give one future for each."""

    def result(self, future: Any) -> Result:
        """The result of a future that is done; an OSError where the worker itself came to an end."""

    def close(self, *, now: bool) -> None:
        """End the workers: `now` also those that are at work."""


class InProcess:
    """One cell after the other in this process."""

    slots, pause, shared = 1, 0.0, False

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Future]:
        futures = []
        for cell in cells:
            future: Future = Future()
            try:
                future.set_result(run_cell(str(folder), cell))
            except Exception as error:
                future.set_exception(error)
            futures.append(future)
        return futures

    def result(self, future: Future) -> Result:
        return future.result()

    def close(self, *, now: bool) -> None:
        pass


class LocalProcesses:
    """`jobs` fresh processes on this machine; they end when this one does, however it ends."""

    pause, shared = 0.02, False

    def __init__(self, jobs: int):
        self.slots = jobs
        context = get_context("spawn")
        self._ours, self._theirs = context.Pipe()
        self._executor = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_follow_parent, initargs=(self._theirs,)
        )

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Future]:
        return [self._executor.submit(run_cell, str(folder), cell) for cell in cells]

    def result(self, future: Future) -> Result:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise OSError(f"a worker process ended abruptly (too little memory?); {_ASK_AGAIN}") from error

    def close(self, *, now: bool) -> None:
        if now:
            self._ours.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._ours.close()
        self._theirs.close()


class DaskCluster:
    """The workers of a running Dask scheduler, which must see the run's folder."""

    pause, shared = 0.05, True

    def __init__(self, address: str, folder: Path, slots: int | None = None):
        try:
            from distributed import Client
        except ImportError:
            raise ImportError('--cluster dask:// needs Dask: pip install "voxelwave[cluster]"') from None

        try:
            self._client = Client(address, timeout=20, set_as_default=False)
        except OSError as error:
            raise OSError(f"no Dask scheduler answers at {address}; start one with: dask scheduler") from error
        sees = self._client.run(_sees, str(folder.resolve()))
        if not sees:
            raise OSError(f"the Dask scheduler at {address} has no workers; start some with: dask worker {address}")
        blind = sorted(worker for worker, seen in sees.items() if not seen)
        if blind:
            raise OSError(
                f"Dask worker {blind[0]} does not see {folder}: --output must lie on a disk that all workers share"
            )
        self.slots = slots or 2 * sum(self._client.nthreads().values())

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Any]:
        # the key holds the folder, since a scheduler gives two runs with the same key one result
        return [
            self._client.submit(run_cell, str(folder), cell, key=f"{folder}/{cell['id']}", pure=False) for cell in cells
        ]

    def result(self, future: Any) -> Result:
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            raise OSError(f"Dask workers ended abruptly; {_ASK_AGAIN}") from error

    def close(self, *, now: bool) -> None:
        self._client.close()


class Slurm:
    """Jobs of a Slurm cluster in arrays; `parameters` are submitit's, e.g. slurm_partition, mem_gb, timeout_min."""

    shared = True

    def __init__(self, folder: Path, parameters: dict[str, Any], slots: int | None = None, *, cluster: str = "slurm"):
        try:
            import submitit
        except ImportError:
            raise ImportError('--cluster slurm needs submitit: pip install "voxelwave[cluster]"') from None

        self.slots = slots or (1000 if cluster == "slurm" else os.cpu_count() or 1)
        self._jobs: list[Any] = []
        self.pause = 0.1 if cluster != "slurm" else 2.0
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise OSError(
                "--cluster slurm needs sbatch, which is not on this machine's PATH; use slurm-local to try it out"
            )
        self._executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
        try:
            self._executor.update_parameters(**{"timeout_min": 240, "name": "voxelwave", **parameters})
        except (TypeError, NameError) as error:
            raise ValueError(f"--slurm takes submitit's parameters: {error}") from error

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Any]:
        with self._executor.batch():
            jobs = [self._executor.submit(run_cell, str(folder), cell) for cell in cells]
        self._jobs += jobs
        return jobs

    def result(self, future: Any) -> Result:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return future.result()
        except (FailedJobError, UncompletedJobError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise OSError(f"job {future.job_id} failed: {reason} (log: {future.paths.stderr}); {_ASK_AGAIN}") from error

    def close(self, *, now: bool) -> None:
        for job in self._jobs:
            if now and not job.done():
                job.cancel(check=False)


def open_pool(
    folder: Path, *, jobs: int | None = None, cluster: str | None = None, slurm: dict[str, Any] | None = None
) -> Pool:
    """Where cells run.

    Args:
        folder: of the run, which the workers of a cluster must see.
        jobs: processes on this machine; on a cluster how many cells may be under way at once.
        cluster: "dask://host:port", "slurm", "slurm-local" (the same jobs as processes here, to try it out), or None.
        slurm: submitit's parameters.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if cluster is None:
        return InProcess() if jobs in (None, 1) else LocalProcesses(jobs or 1)
    if cluster.startswith("dask://"):
        return DaskCluster("tcp://" + cluster.removeprefix("dask://"), folder, jobs)
    if cluster in ("slurm", "slurm-local"):
        return Slurm(folder, slurm or {}, jobs, cluster={"slurm": "slurm", "slurm-local": "local"}[cluster])
    raise ValueError(f'cluster must be "dask://host:port", "slurm" or "slurm-local", got {cluster!r}')


def drive(
    groups: Sequence[Group[T]], pool: Pool, folder: Path, tell: Callable[[Cell, Result, bool], None] | None = None
) -> list[T]:
    """Run groups of cells side by side to their ends.

    A group is a generator: it yields the cells it needs next, is sent their results in the same order, and returns
    its outcome. What it asks for depends on results only, never on the order in which cells happen to finish.

    Args:
        groups: the generators, those that matter most first.
        pool: where cells run.
        folder: of the cells' folders.
        tell: called with each cell, its result, and whether it was found rather than run.

    Raises:
        ValueError, OSError: the first cell that failed, by name.
    """
    folder = folder.resolve()  # workers may have another working directory
    outcomes: dict[int, T] = {}
    asked: dict[int, list[Cell]] = {}
    results: dict[str, Result] = {}
    queue: deque[tuple[int, Cell]] = deque()
    running: dict[str, tuple[int, Cell, Any]] = {}

    def advance(index: int, answers: list[Result] | None) -> None:
        while True:
            try:
                cells = next(groups[index]) if answers is None else groups[index].send(answers)
            except StopIteration as end:
                outcomes[index] = end.value
                asked.pop(index, None)
                return
            asked[index] = cells
            for cell in cells:
                found = find_result(folder, cell)
                if found is None:
                    queue.append((index, cell))
                else:
                    results[cell["id"]] = found
                    if tell:
                        tell(cell, found, True)
            if not all(cell["id"] in results for cell in cells):
                return
            answers = [results[cell["id"]] for cell in cells]

    for index in range(len(groups)):
        advance(index, None)
    while queue or running:
        fresh = [queue.popleft() for _ in range(min(pool.slots - len(running), len(queue)))]
        futures = pool.submit(folder, [cell for _, cell in fresh]) if fresh else []
        running |= {cell["id"]: (i, cell, f) for (i, cell), f in zip(fresh, futures, strict=True)}
        ended = [name for name, (_, _, future) in running.items() if future.done()]
        if not ended:
            time.sleep(pool.pause)
        for name in ended:
            index, cell, future = running.pop(name)
            try:
                results[name] = pool.result(future)
            except OSError as error:
                raise OSError(f"cell {name}: {error}") from error
            except (ValueError, MemoryError) as error:
                raise ValueError(f"cell {name}: {error}") from error
            if tell:
                tell(cell, results[name], False)
            if all(c["id"] in results for c in asked[index]):
                advance(index, [results[c["id"]] for c in asked[index]])
    return [outcomes[index] for index in range(len(groups))]


def remove_unfinished(folder: Path) -> None:
    """Take away what killed cells left behind."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _follow_parent(connection: Connection) -> None:
    """In a worker: leave Ctrl-C to the parent, and end at once when its end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(OSError, EOFError):
            connection.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sees(folder: str) -> bool:
    return Path(folder).is_dir()


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _publish(temporary: Path, target: Path) -> None:
    """Rename a finished folder once its files are on the disk; another worker with the same result may be first."""
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)
