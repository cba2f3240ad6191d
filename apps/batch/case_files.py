"""The files of each case, for the owner of the results: a table beside the folder of results, which only its owner can
read, since the paths may identify a person.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from ...runs.archives import original_of
from ...runs.files import atomic_path
from .case import Case

_HEADER = ("case", "file")


def case_files_path(output: Path) -> Path:
    """The place of the table: beside the folder, so that it stays behind when the folder is passed on."""
    output = output.absolute()
    return output.with_name(f"{output.name}.files.tsv")


def write_case_files(output: Path, cases: Sequence[Case]) -> Path:
    """Write the table, with mode 600; lines about cases of earlier runs are kept.

    Args:
        output: the folder of results.
        cases: the cases of this run.

    Returns:
        The path of the table.
    """
    path = case_files_path(output)
    lines: dict[str, list[str]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            for row in list(csv.reader(stream, delimiter="\t"))[1:]:
                if len(row) == len(_HEADER):
                    lines.setdefault(row[0], []).append(row[1])
    for case in cases:
        lines[case.identifier] = list(dict.fromkeys(str(original_of(file).absolute()) for file in case.inputs))
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(_HEADER)
            writer.writerows((name, file) for name in sorted(lines) for file in lines[name])
    return path
