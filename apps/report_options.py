"""Options of `voxelwave report`."""

from dataclasses import dataclass, field
from pathlib import Path

from .options import OutputOptions, must_exist


@dataclass(frozen=True, kw_only=True)
class Report(OutputOptions):
    """Write the report of a finished run again, from the results in RUN_FOLDER.

    The report is one HTML file: it loads nothing, opens in any browser, and can be printed to PDF. If an EEG run has no
    explain/ folder yet, its first network is explained, which needs the recordings.

    Args:
        run_folder: the folder of the run, with results.json; predictions.csv and explain/ are used if present.
        output: the file to write; by default report.html in RUN_FOLDER, which is replaced.
    """

    output_is = "file"

    run_folder: Path = field(kw_only=False)
    output: Path | None = None

    def check(self) -> None:
        super().check()
        must_exist(self.run_folder, "folder of a run")
