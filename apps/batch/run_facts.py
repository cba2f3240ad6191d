"""What a run did, for its page: the command, the weights and the options, without paths."""

from pathlib import Path
from typing import Any

from ...runs.catalogue import entry_of
from ...runs.json_files import null_where_undefined, read_json, write_json
from .manifest import STATE
from .names import shown_name

_FILE = "run.json"
_COMMANDS = {"align": "registration register", "restore": "restoration restore", "diagnose": "eeg diagnose"}


def write_run_facts(
    output: Path, factory: str, options: dict[str, Any], weights: Path | None, weights_hash: str | None
) -> None:
    """Write the facts to the hidden folder of the results.

    Args:
        output: the folder of results.
        factory: the name of the work.
        options: the options on which the results depend.
        weights: the file of weights.
        weights_hash: its SHA-256.
    """
    facts = {
        "command": f"voxelwave {_COMMANDS.get(factory, factory)}",
        "weights": None if weights is None else {"name": _name(weights), "sha256": weights_hash},
        "options": {name: value for name, value in options.items() if value is not None},
    }
    write_json(output / STATE / _FILE, null_where_undefined(facts), default=str)


def _name(weights: Path) -> str:
    """The name by which weights are found, if they have one; else that of the file, as it may be shown."""
    entry = entry_of(weights) if weights.is_file() else None
    return shown_name(weights.name) if entry is None else entry.name


def read_run_facts(output: Path) -> dict[str, Any]:
    """The facts; empty if the results were written by an earlier version."""
    path = output / STATE / _FILE
    if not path.is_file():
        return {}
    found = read_json(path)
    return found if isinstance(found, dict) else {}
