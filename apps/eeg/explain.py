"""`voxelwave eeg explain`: the channels and bands that networks use, on subjects outside their training data."""

from pathlib import Path

from ...runs.compute import use_threads
from ...runs.files import outputs_together
from ...runs.json_files import write_json
from ...runs.threads import limited_threads
from ..nested_cv.records import Explanation
from .explain_figures import draw
from .explanation import (
    EXPLANATION,
    FOLDER,
    Case,
    cases_of_run,
    explain_one,
    first_network,
    single_case,
    summarise,
)
from .nested_options import Explain


def explain(options: Explain) -> None:
    """Run the command."""
    use_threads(options.threads)
    notes: list[str] = []
    output = options.output or options.weights / FOLDER
    if options.of_run:
        cases = cases_of_run(options.weights, options.model)
    else:
        assert options.study is not None  # `Explain.check`
        case, notes = single_case(
            options.weights,
            options.study,
            options.positive,
            options.trained,
            label_column=options.label_column,
            person_column=options.person_column,
        )
        cases = [case]
    content = _write_explanation(
        output, cases, notes, most_windows=options.most_windows, steps=options.steps, seed=options.seed
    )
    bands = sorted(content["bands"], key=lambda row: -row["importance"])
    channels = sorted(content["channels"], key=lambda row: -row["importance"])
    error = 100 * content["completeness_error"]
    print(f"{len(cases)} network(s), {content['subjects']} subjects; completeness error {error:.2g} %")
    print("bands:    " + ", ".join(f"{row['band']} {row['importance']:.2f}" for row in bands))
    print("channels: " + ", ".join(f"{row['channel']} {row['importance']:.3f}" for row in channels[:6]))
    print(f"wrote {output}/: {EXPLANATION}, {', '.join(content['images'].values())}")


def explain_run(folder: Path, *, most_windows: int = 300, threads: int = 1) -> str | None:
    """Explain the first network of a finished nested run for its report, unless the explanation exists.

    Args:
        folder: the folder of the run; its subfolder explain/ receives the files of `explain`.
        most_windows: largest number of windows for each outer fold.
        threads: CPU threads.

    Returns:
        The name of the network; None if the run holds no EEG network that was fitted on outer training parts.
    """
    network = first_network(folder)
    if network is not None and not (folder / FOLDER / EXPLANATION).is_file():
        with limited_threads(threads):
            cases = cases_of_run(folder, network)
            print(f"explaining the {len(cases)} outer fits of {network}")
            _write_explanation(folder / FOLDER, cases, [], most_windows=most_windows)
    return network


def _write_explanation(
    output: Path, cases: list[Case], notes: list[str], *, most_windows: int, steps: int = 24, seed: int = 0
) -> Explanation:
    found = [explain_one(case, most_windows, steps, seed) for case in cases]
    summary = summarise(found, cases, notes)
    with outputs_together(output) as together:
        images, captions = draw(together, found, cases[0].windows, summary)
        content: Explanation = {"model": cases[0].model, **summary, "images": images, "captions": captions}
        write_json(together / EXPLANATION, content)
    return content
