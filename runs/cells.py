"""Cells: units of work with JSON in and a folder out, run here, on a Dask cluster or by Slurm, and found again later.

A cell is a dictionary of plain values: "id", the name of its folder; "function", the name of the function that does the
work (see `functions`), which is called with the cell and an empty folder and returns a JSON-ready dictionary;
"threads"; and whatever the function needs. Its folder appears whole (cell.json, result.json and what the function
wrote) or not at all, so that a run that was killed at any moment continues from the finished cells.
"""

import contextlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from .functions import load_function, with_present_names

Cell = dict[str, Any]
Result = dict[str, Any]


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
            result = load_function(cell["function"])(cell, temporary)
        result["seconds"] = round(time.perf_counter() - started, 3)
        _write_json(temporary / "result.json", result)
        _publish(temporary, Path(folder) / cell["id"])
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    written: Result = json.loads(json.dumps(result))  # the same numbers as a later run reads
    return written


def find_result(folder: Path, cell: Cell) -> Result | None:
    """The result of a cell that was finished before, or None.

    Raises:
        ValueError: a folder of that name holds another unit.
    """
    path = folder / cell["id"]
    if not path.is_dir():
        return None
    if with_present_names(json.loads((path / "cell.json").read_text())) != cell:
        raise ValueError(f"{path} holds a cell with other content; choose another --output")
    result: Result = json.loads((path / "result.json").read_text())
    return result


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let BLAS, OpenMP and torch use `count` threads: sums in another order would differ in their last digits."""

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
