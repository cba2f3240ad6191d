"""Tables: on the screen, and as CSV files that are written whole or not at all."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .files import atomic_path
from .json_files import write_json

__all__ = ["print_rows", "write_json", "write_table"]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the columns are all keys, in the order in which they first appear."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        if rows:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with common columns as a table; a single row becomes a list."""
    if not rows:
        return
    if len(rows) == 1:
        print(title)
        print("\n".join(f"  {name:<34}{_cell(value)}" for name, value in rows[0].items()))
        return
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*[_cell(row.get(name)) for name in columns])
    Console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
