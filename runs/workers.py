"""Places to run cells: this process, local processes, a Dask cluster or Slurm."""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from .cells import Cell, Result, run_cell

_ASK_AGAIN = "run the same command again to continue from the finished cells"


class Pool(Protocol):
    """A place to run cells.

    `slots` is the largest number of cells that run at once, `pause` the seconds between two polls, and `shared` is True
    if workers may outlive a killed run.
    """

    slots: int
    pause: float
    shared: bool

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Any]:
        """Start cells and return one future for each."""

    def result(self, future: Any) -> Result:
        """The result of a finished future; raises OSError if the worker died."""

    def close(self, *, now: bool) -> None:
        """Stop the workers; with `now`, without waiting for busy ones."""


class InProcess:
    """Runs one cell after the other in this process."""

    slots, pause, shared = 1, 0.0, False

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Future[Result]]:
        futures = []
        for cell in cells:
            future: Future[Result] = Future[Result]()
            try:
                future.set_result(run_cell(str(folder), cell))
            except Exception as error:
                future.set_exception(error)
            futures.append(future)
        return futures

    def result(self, future: Future[Result]) -> Result:
        return future.result()

    def close(self, *, now: bool) -> None:
        pass


class LocalProcesses:
    """`jobs` new processes on this machine; they end with this process, also if it is killed."""

    pause, shared = 0.02, False

    def __init__(self, jobs: int):
        self.slots = jobs
        context = get_context("spawn")
        self._ours, self._theirs = context.Pipe()
        self._executor = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_follow_parent, initargs=(self._theirs,)
        )

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Future[Result]]:
        return [self._executor.submit(run_cell, str(folder), cell) for cell in cells]

    def result(self, future: Future[Result]) -> Result:
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
    """The workers of a running Dask scheduler; they must have access to the folder of the run."""

    pause, shared = 0.05, True

    def __init__(self, address: str, folder: Path, slots: int | None = None):
        try:
            from distributed import Client  # optional package
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
                f"Dask worker {blind[0]} has no access to {folder}: --output must be on a disk that all workers share"
            )
        self.slots = slots or 2 * sum(self._client.nthreads().values())

    def submit(self, folder: Path, cells: Sequence[Cell]) -> list[Any]:
        # the key contains the folder, since a scheduler returns one result for two submissions with the same key
        return [
            self._client.submit(run_cell, str(folder), cell, key=f"{folder}/{cell['id']}", pure=False) for cell in cells
        ]

    def result(self, future: Any) -> Result:
        from distributed import KilledWorker  # optional package

        try:
            result: Result = future.result()
        except KilledWorker as error:
            raise OSError(f"Dask workers ended abruptly; {_ASK_AGAIN}") from error
        return result

    def close(self, *, now: bool) -> None:
        self._client.close()


class Slurm:
    """Job arrays of a Slurm cluster; `parameters` are those of submitit, e.g. slurm_partition, mem_gb, timeout_min."""

    shared = True

    def __init__(self, folder: Path, parameters: dict[str, Any], slots: int | None = None, *, cluster: str = "slurm"):
        try:
            import submitit  # optional package
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
        from submitit.core.utils import FailedJobError, UncompletedJobError  # optional package

        try:
            result: Result = future.result()
        except (FailedJobError, UncompletedJobError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise OSError(f"job {future.job_id} failed: {reason} (log: {future.paths.stderr}); {_ASK_AGAIN}") from error
        return result

    def close(self, *, now: bool) -> None:
        for job in self._jobs:
            if now and not job.done():
                job.cancel(check=False)


def open_pool(
    folder: Path, *, jobs: int | None = None, cluster: str | None = None, slurm: dict[str, Any] | None = None
) -> Pool:
    """Open a pool of workers.

    Args:
        folder: the folder of the run; the workers of a cluster must have access to it.
        jobs: number of processes on this machine; on a cluster, the largest number of cells that run at once.
        cluster: "dask://host:port", "slurm", "slurm-local" (Slurm jobs as processes on this machine), or None.
        slurm: parameters of submitit.

    Raises:
        ValueError: an option is out of range.
        OSError: the cluster cannot be reached.
        ImportError: the package for the cluster is missing.
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


def _follow_parent(connection: Connection) -> None:
    """In a worker: ignore Ctrl-C, which the parent handles, and exit once the parent closes its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(OSError, EOFError):
            connection.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sees(folder: str) -> bool:
    return Path(folder).is_dir()
