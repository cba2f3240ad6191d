"""`voxelwave bench FIELD` and `bench all`: the speed of each part, beside a peer in the same run.

The rows of the kernels are a part of `all` only: `bench kernels` is a command of its own with more figures.
"""

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...runs.files import atomic_path
from ...runs.record import command_line, hardware, package_versions
from ...runs.tables import print_rows
from .options import Speed
from .rows.row import Row

FIELDS = ("kernels", "restoration", "registration", "eeg", "scanpath", "start")


def restoration(options: Speed) -> None:
    """Run the rows of restoration."""
    _run(("restoration",), options)


def registration(options: Speed) -> None:
    """Run the rows of registration."""
    _run(("registration",), options)


def eeg(options: Speed) -> None:
    """Run the rows of EEG."""
    _run(("eeg",), options)


def scanpath(options: Speed) -> None:
    """Run the rows of scanpaths."""
    _run(("scanpath",), options)


def start(options: Speed) -> None:
    """Run the rows of the start of commands, of reading and of batches."""
    _run(("start",), options)


def everything(options: Speed) -> None:
    """Run the rows of all fields."""
    _run(FIELDS, options)


def _run(fields: Sequence[str], options: Speed) -> None:
    torch.set_num_threads(1)
    started = time.perf_counter()
    tables: dict[str, list[Row]] = {}
    for field in fields:
        tables[field] = importlib.import_module(f"{__package__}.rows.{field}").rows(quick=options.quick)
        print_rows(f"{field}, one thread", [row.record() for row in tables[field]])
    if options.output is not None:
        _write_page(options.output, tables, time.perf_counter() - started)
        print(f"wrote {options.output}")


def _write_page(path: Path, tables: dict[str, list[Row]], seconds: float) -> None:
    """Write the tables as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    lines = ["# Speed", ""]
    lines += [f"Written by `{command_line()}` on {time.strftime('%Y-%m-%d')} in {seconds:.0f} s, with one thread.", ""]
    lines += [f"Machine: {hardware()}. Versions: {versions}.", ""]
    lines += [
        "Each figure and that of its peer come from the same run. The ratio is our figure divided by the peer's.",
        "",
    ]
    for field, rows in tables.items():
        records: list[dict[str, Any]] = [row.record() for row in rows]
        lines += [f"## {field}", "", _line(list(records[0])), _line(["---"] * len(records[0]))]
        lines += [_line(list(record.values())) for record in records]
        lines += [""]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
