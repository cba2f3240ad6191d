"""Cells: units of work that take JSON and produce a folder; they run locally, on a Dask cluster or with Slurm.

A cell is a dictionary of plain values: the keys of `Cell` and the arguments of its function. The function is called
with the cell and an empty folder, and returns a dictionary of plain values. The folder of a cell (cell.json,
result.json and the files of the function) is published complete or not at all, so a run that was killed at any moment
continues from the finished cells.
"""

import json
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, TypedDict

from .files import flush
from .functions import load_function, with_present_names
from .json_files import write_json
from .threads import limited_threads

Result = dict[str, Any]  # plain values; each function has its own keys


class Cell(TypedDict):
    """The keys that every cell has.

    Args:
        id: name of the cell's folder.
        function: name of the function that processes the cell, see `functions`.
        threads: CPU threads of the work.
    """

    id: str
    function: str
    threads: int


def run_cell(folder: str, cell: Cell) -> Result:
    """Run a cell, unless it is finished, and return its result with "seconds".

    Args:
        folder: the parent of all cells' folders.
        cell: the cell.

    Raises:
        ValueError: the cell's folder holds another cell, or a number of its result is not finite (an undefined figure
            must be None, or be written to a .csv file). Errors of the function are passed on.
    """
    done = find_result(Path(folder), cell)
    if done is not None:
        return done
    temporary = Path(folder) / f".{cell['id']}.{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    try:
        write_json(temporary / "cell.json", cell)
        started = time.perf_counter()
        with limited_threads(cell["threads"]):
            result = load_function(cell["function"])(cell, temporary)
        result["seconds"] = round(time.perf_counter() - started, 3)
        write_json(temporary / "result.json", result)
        _publish(temporary, Path(folder) / cell["id"])
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    written: Result = json.loads(json.dumps(result))  # the numbers that a later run reads
    return written


def find_result(folder: Path, cell: Cell) -> Result | None:
    """The result of a finished cell, or None.

    Raises:
        ValueError: the cell's folder holds another cell.
    """
    path = folder / cell["id"]
    if not path.is_dir():
        return None
    if with_present_names(json.loads((path / "cell.json").read_text())) != cell:
        raise ValueError(f"{path} holds a cell with other content; choose another --output")
    result: Result = json.loads((path / "result.json").read_text())
    return result


def _publish(temporary: Path, target: Path) -> None:
    """Rename a finished folder once its files are on the disk, unless another worker has done this already."""
    flush(temporary)
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)
