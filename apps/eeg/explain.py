"""`voxelwave eeg explain`: what trained networks rely on, measured on subjects outside their training data."""

from pathlib import Path
from typing import Any

from ...runs.cells import limited_threads
from ...runs.compute import use_threads
from ...runs.json_files import write_json
from .explain_figures import draw
from .explanation import (
    EXPLANATION,
    FACTORY,
    FOLDER,
    Case,
    cases_of_run,
    explain_one,
    is_network,
    percent,
    plan_of,
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
        case, notes = single_case(options.weights, options.study, options.positive, options.trained)
        cases = [case]
    content = _write_explanation(
        output, cases, notes, most_windows=options.most_windows, steps=options.steps, seed=options.seed
    )
    bands = sorted(content["bands"], key=lambda row: -row["importance"])
    channels = sorted(content["channels"], key=lambda row: -row["importance"])
    print(f"{len(cases)} network(s), {content['subjects']} subjects; completeness error {percent(content)}")
    print("bands:    " + ", ".join(f"{row['band']} {row['importance']:.2f}" for row in bands))
    print("channels: " + ", ".join(f"{row['channel']} {row['importance']:.3f}" for row in channels[:6]))
    print(f"wrote {output}/: {EXPLANATION}, {', '.join(content['images'].values())}")


def explain_run(folder: Path, *, most_windows: int = 300, threads: int = 1) -> str | None:
    """Explain the first network of a finished nested run for its report, unless that was done before.

    Args:
        folder: the folder of the run; the files of `explain` go to explain/ in it.
        most_windows: largest number of windows for each outer fold.
        threads: CPU threads.

    Returns:
        The name of the network; None if the run holds no EEG network that was fitted on outer training parts.
    """

    plan = plan_of(folder)
    if plan is None or plan.get("design", {}).get("protocol") == "published":
        return None
    networks = [name for name, spec in plan["models"].items() if spec.get("factory") == FACTORY and is_network(name)]
    if not networks:
        return None
    if not (folder / FOLDER / EXPLANATION).is_file():
        with limited_threads(threads):
            cases = cases_of_run(folder, networks[0])
            print(f"explaining the {len(cases)} outer fits of {networks[0]}")
            _write_explanation(folder / FOLDER, cases, [], most_windows=most_windows)
    result: str | None = networks[0]
    return result


def _write_explanation(
    output: Path, cases: list[Case], notes: list[str], *, most_windows: int, steps: int = 24, seed: int = 0
) -> dict[str, Any]:
    found = [explain_one(case, most_windows, steps, seed) for case in cases]
    content = {"model": cases[0].model, **summarise(found, cases, notes)}
    content["images"], content["captions"] = draw(output, found, cases[0].windows, content)
    write_json(output / EXPLANATION, content)
    return content
