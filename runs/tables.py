"""Tables on the screen, and CSV and JSON files written whole or not at all."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
import csv
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .files import atomic_path


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:

    from .files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        if rows:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)


def write_json(path: Path, content: dict[str, Any]) -> None:

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows with common columns as a table."""
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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
