"""`voxelwave eeg explain`: the channels and bands that networks use, on subjects outside their training data."""

import shutil
from pathlib import Path
from typing import cast

from ...runs.compute import use_threads
from ...runs.exit import UsageError
from ...runs.files import outputs_together
from ...runs.json_files import write_json
from ...runs.json_types import read_record
from ...runs.threads import limited_threads
from ..nested_cv.records import Explanation, MadeWith
from .explain_figures import draw
from .explanation import (
    EXPLANATION,
    Case,
    Found,
    cases_of_run,
    explain_one,
    first_network,
    hash_of_networks,
    single_case,
    summarise,
)
from .nested_options import FOLDER, MOST_WINDOWS, STEPS, Explain


def explain(options: Explain) -> None:
    """Run the command."""
    use_threads(options.threads)
    output = options.output or options.weights / FOLDER
    content = _explain_run_again(options, output) if options.of_run else _explain_file(options, output)
    bands = sorted(content["bands"], key=lambda row: -row["importance"])
    channels = sorted(content["channels"], key=lambda row: -row["importance"])
    error = 100 * content["completeness_error"]
    print(f"{len(content['networks'])} network(s), {content['subjects']} subjects; completeness error {error:.2g} %")
    print("bands:    " + ", ".join(f"{row['band']} {row['importance']:.2f}" for row in bands))
    print("channels: " + ", ".join(f"{row['channel']} {row['importance']:.3f}" for row in channels[:6]))
    print(f"wrote {output}/: {EXPLANATION}, {', '.join(content['images'].values())}")


def explain_run(folder: Path, *, threads: int = 1) -> str | None:
    """Explain the first network of a finished nested run for its report, unless its networks are explained already.

    Args:
        folder: the folder of the run; its subfolder explain/ receives the files of `explain`.
        threads: CPU threads.

    Returns:
        The name of the network; None if the run holds no EEG network that was fitted on outer training parts.
    """
    network = first_network(folder)
    if network is not None and not _is_explained(folder):
        with limited_threads(threads):
            _compute_for_run(folder, network, _made_with(folder, network), folder / FOLDER)
    return network


def _explain_run_again(options: Explain, output: Path) -> Explanation:
    """The explanation of a run under these options, taken from the run if it holds it, written to `output`."""
    run, model = options.weights, options.model
    made_with = _made_with(run, model, most_windows=options.most_windows, steps=options.steps, seed=options.seed)
    kept = _kept_explanation(run / FOLDER)
    if options.overwrite or kept is None or kept["model"] != model or kept.get("made_with") != made_with:
        if kept is not None and options.in_run and not options.overwrite and _still_holds(run, kept):
            raise UsageError(
                f"{run / FOLDER} holds an explanation with other settings: give --overwrite to replace it, or --output"
            )
        return _compute_for_run(run, model, made_with, output)
    print(f"the run was explained before with these settings: {run / FOLDER / EXPLANATION} is used again")
    if output.resolve() != (run / FOLDER).resolve():
        with outputs_together(output) as together:
            for name in (EXPLANATION, *kept["images"].values()):
                shutil.copy(run / FOLDER / name, together / name)
    return kept


def _is_explained(run: Path) -> bool:
    """Whether the run holds an explanation of its present networks."""
    path = run / FOLDER / EXPLANATION
    if not path.is_file():
        return False
    return _still_holds(run, cast(Explanation, read_record(path, Explanation)))


def _still_holds(run: Path, content: Explanation) -> bool:
    """Whether an explanation is of the present networks of the run; that of an earlier version is taken as one."""
    return "made_with" not in content or content["made_with"]["networks"] == hash_of_networks(run, content["model"])


def _kept_explanation(folder: Path) -> Explanation | None:
    """The explanation in a folder, or None if it is missing, damaged or lacks a picture."""
    try:
        content = cast(Explanation, read_record(folder / EXPLANATION, Explanation))
    except (OSError, ValueError):
        return None
    return content if all((folder / name).is_file() for name in content["images"].values()) else None


def _made_with(
    run: Path, model: str, *, most_windows: int = MOST_WINDOWS, steps: int = STEPS, seed: int = 0
) -> MadeWith:
    return {"most_windows": most_windows, "steps": steps, "seed": seed, "networks": hash_of_networks(run, model)}


def _compute_for_run(run: Path, model: str, made_with: MadeWith, output: Path) -> Explanation:
    cases = cases_of_run(run, model)
    found = []
    for number, case in enumerate(cases, 1):
        print(f"explaining {model}, {case.name} ({number} of {len(cases)})", flush=True)
        found.append(explain_one(case, made_with["most_windows"], made_with["steps"], made_with["seed"]))
    return _write(output, cases, found, [], {"made_with": made_with})


def _explain_file(options: Explain, output: Path) -> Explanation:
    """Explain one file of weights on a study."""
    assert options.study is not None  # `Explain.check`
    case, notes = single_case(
        options.weights,
        options.study,
        options.positive,
        options.trained,
        label_column=options.label_column,
        person_column=options.person_column,
    )
    found = explain_one(case, options.most_windows, options.steps, options.seed)
    return _write(output, [case], [found], notes, {})


def _write(
    output: Path, cases: list[Case], found: list[Found], notes: list[str], made: dict[str, MadeWith]
) -> Explanation:
    summary = summarise(found, cases, notes)
    with outputs_together(output) as together:
        images, captions = draw(together, found, cases[0].windows, summary)
        content = cast(
            Explanation, {"model": cases[0].model, **made, **summary, "images": images, "captions": captions}
        )
        write_json(together / EXPLANATION, content)
    return content
