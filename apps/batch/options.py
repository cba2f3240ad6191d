"""The options of a command that works through a folder."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runs.exit import UsageError
from ..options import Options, OutputOptions, ThreadOptions, at_least, must_exist

MANIFEST = "manifest.jsonl"  # of a folder of results, a line for each case


@dataclass(frozen=True, kw_only=True)
class FolderOptions(ThreadOptions, OutputOptions):
    """Options for a folder of cases.

    Args:
        input: a file, or a folder with any number of cases.
        threads: CPU threads per job; all by default.
        dry_run: only list what would be done (folders only).
        include: only cases that match these patterns, such as "T1*,*FLAIR*", by description, file name or path
            (folders only).
        jobs: processes on this machine, or cases running at once on a cluster (folders only).
        part: i/n, to process only the i-th of n parts, for job arrays (folders only).
        cluster: run on a cluster: dask://HOST:PORT, slurm, or slurm-local to try Slurm jobs on this machine (folders
            only).
        slurm: parameters of submitit, such as slurm_partition and mem_gb.
        overwrite: replace the result of an earlier run, or do all cases of a folder again, also those that are done and
            unchanged.
        keep_identifiers: show and record file and patient names instead of hashes (folders only).
    """

    input: Path | None = None
    dry_run: bool = False
    include: str | None = None
    jobs: int | None = None
    part: str | None = None
    cluster: str | None = None
    slurm: dict[str, Any] | None = None
    keep_identifiers: bool = False

    def check(self) -> None:
        super().check()
        at_least(1, jobs=self.jobs)
        if self.part is not None and not re.fullmatch(r"\d+/\d+", self.part):
            raise UsageError(f"--part must be i/n, such as 3/10, got {self.part!r}")

    @property
    def continues(self) -> bool:
        """Whether OUTPUT holds the results of a run over a folder, which a further run continues."""
        output: Path = self.output  # type: ignore[attr-defined]  # each of these commands has one
        return (output / MANIFEST).is_file()

    @property
    def folder_only(self) -> dict[str, Any]:
        """The given options that only apply to a folder."""
        given = {name: getattr(self, name) for name in ("dry_run", "include", "part", "cluster", "slurm")}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True, kw_only=True)
class Page(Options):
    """Write the page of a folder of results again, from its manifest.jsonl.

    The page is index.html in OUTPUT, with a viewer in index_files/; it needs no network, and the whole folder can be
    moved. It shows images of patients: treat it like the images.

    Args:
        output: the output folder of a run over a folder.
    """

    output: Path = field(kw_only=False)

    def check(self) -> None:
        super().check()
        must_exist(self.output, "folder of results")
