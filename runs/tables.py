"""Tables on the screen, and as CSV files that are written completely or not at all."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .files import atomic_path
from .json_files import write_json
from .words import why_no_text

_UNFOLDED = 10_000  # characters: more than any table has

__all__ = ["print_rows", "read_table", "show_table", "write_json", "write_table"]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the columns are all keys, in the order in which they first appear."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        if rows:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a .csv or .tsv file whose first line names the columns.

    Returns:
        The names of the columns; and for each further row its line number and a dictionary column -> cell.

    Raises:
        ValueError: the file is not a table in UTF-8, or a row has another number of cells.
        OSError: the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            rows = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a table in UTF-8: {why_no_text(error)}") from None
    for line, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{path}:{line} must have {len(columns)} columns, as many as the first line")
    return columns, rows


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
        table.add_column(name)
    for row in rows:
        table.add_row(*[_cell(row.get(name)) for name in columns])
    show_table(table)


def show_table(table: Table) -> None:
    """Print a table: folded to the width of a terminal, and whole into a file or a pipe; no cell is cut."""
    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNFOLDED)
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
