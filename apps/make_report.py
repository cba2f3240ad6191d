"""`voxelwave report`: write the report of a finished run again."""

from ..runs.extras import in_words
from .nested_cv.measured_report import is_measured, write_measured_report
from .nested_cv.report import read_results, write_report
from .report_options import Report


def report(options: Report) -> None:
    """Run the command."""
    if is_measured(options.run_folder):
        print(f"wrote {write_measured_report(options.run_folder, options.output)}")
        return
    read_results(options.run_folder)  # so that an error appears before the slow part
    try:
        from .eeg.explain import explain_run  # only for a run of EEG networks, which need the extra "eeg"

        explain_run(options.run_folder)
    except (OSError, ValueError, ImportError) as error:
        reason = in_words(error) if isinstance(error, ImportError) else error
        print(f"note: the report has no explanation of the network: {reason}")
    print(f"wrote {write_report(options.run_folder, options.output)}")
