"""Work for cells, which workers import by name."""

import os
from pathlib import Path


def double(cell: dict, folder: Path) -> dict:
    """Twice the number; every call writes a line to the log."""
    with open(cell["log"], "a") as stream:
        stream.write(cell["id"] + "\n")
    (folder / "note.txt").write_text("written by the work")
    return {"value": 2 * cell["number"]}


def undefined(cell: dict, folder: Path) -> dict:
    return {"value": float(cell["value"])}


def fail(cell: dict, folder: Path) -> dict:
    (folder / "half.txt").write_text("half")
    raise ValueError("the number must be even")


def die(cell: dict, folder: Path) -> dict:
    os._exit(9)


def where(cell: dict, folder: Path) -> dict:
    return {"value": cell["number"], "threads": os.environ["OMP_NUM_THREADS"]}
