"""`voxelwave report`: write the report of a finished run again."""

from pathlib import Path

from .nested_cv.report import read_results, write_report


def report(run_folder: Path, *, output: Path | None = None) -> None:
    """Make the report of a finished run again, from the results in RUN_FOLDER.

    The report is one HTML file: it loads nothing, opens in any browser, and becomes a PDF by printing it. Where a run
    of EEG has no explain/ yet, its first network is asked what it looks at; that needs the recordings.

    Args:
        run_folder: holds results.json; predictions.csv and explain/ are used where they are.
        output: the file to write; default report.html in RUN_FOLDER.
    """
    from .eeg.explain import explain_run

    read_results(run_folder)  # before anything that takes time
    try:
        explain_run(run_folder)
    except (OSError, ValueError) as error:
        print(f"note: the report has no page on what the network looks at: {error}")
    print(f"wrote {write_report(run_folder, output)}")
