"""`voxelwave eeg explain`: what trained networks look at, on people they were not trained on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from .explanation import (
    EXPLANATION,
    FACTORY,
    FOLDER,
    PLAN,
    Case,
    cases_of_run,
    explain_one,
    is_network,
    percent,
    plan_of,
    single_case,
    summarise,
)

# torch, mne and their friends load in the functions, so that --help answers at once


def explain(
    weights: Path,
    *,
    study: Path | None = None,
    output: Path | None = None,
    model: str = "adhdeepnet",
    positive: str | None = None,
    trained: bool = False,
    most_windows: int = 600,
    steps: int = 24,
    seed: int = 0,
    threads: int | None = None,
) -> None:
    """Show what a network looks at: channels, frequency bands, its filters and its last features.

    WEIGHTS is the folder of a nested cross-validation, whose networks are each asked about their own outer test
    subjects and averaged; or one model.safetensors with --study, whose subjects are asked that it was not trained on.
    OUTPUT receives explanation.json and pictures: integrated gradients by channel on a scalp map and by band (baseline
    zero; how far they are from adding up is in the file), what hiding a channel or a band costs, the temporal filters'
    frequency responses, spatial filters beside their patterns, and a t-SNE of the last features, coloured by class and
    by subject.

    Args:
        weights: the folder of a nested run, or model.safetensors with its model.json.
        study: the recordings, for one file of weights.
        output: the folder to write to; default explain/ in a nested run.
        model: which of a nested run's networks.
        positive: the class that is diagnosed, if the study does not tell.
        trained: ask a single file of weights about the subjects it was trained on too; the result says so.
        most_windows: asked of each network; more are thinned out evenly, subject by subject.
        steps: of the integrated gradients.
        seed: of the t-SNE.
        threads: of the CPU; default all.
    """
    from ...runs.checks import at_least, use_threads

    at_least(1, most_windows=most_windows, steps=steps, threads=threads)
    use_threads(threads)
    notes: list[str] = []
    if (weights / PLAN).is_file():
        output = output or weights / FOLDER
        cases = cases_of_run(weights, model)
    else:
        if study is None or output is None:
            raise ValueError(f"{weights} is no folder of a nested run, so --study and --output must be given")
        case, notes = single_case(weights, study, positive, trained)
        cases = [case]
    content = _write_explanation(output, cases, notes, most_windows=most_windows, steps=steps, seed=seed)
    bands = sorted(content["bands"], key=lambda row: -row["importance"])
    channels = sorted(content["channels"], key=lambda row: -row["importance"])
    print(f"{len(cases)} network(s), {content['subjects']} subjects; completeness error {percent(content)}")
    print("bands:    " + ", ".join(f"{row['band']} {row['importance']:.2f}" for row in bands))
    print("channels: " + ", ".join(f"{row['channel']} {row['importance']:.3f}" for row in channels[:6]))
    print(f"wrote {output}/: {EXPLANATION}, {', '.join(content['images'].values())}")


def explain_run(folder: Path, *, most_windows: int = 300, threads: int = 1) -> str | None:
    """Explain the first network of a finished nested run for its report, unless that was done before.

    Args:
        folder: of the run; explain/ in it receives what `explain` writes.
        most_windows: asked of each outer fold's network.
        threads: of the CPU.

    Returns:
        The name of the network; None where the run holds no network of EEG that was fitted on outer training parts.
    """
    from ...runs.cells import limited_threads

    plan = plan_of(folder)
    if plan is None or plan.get("design", {}).get("protocol") == "published":
        return None
    networks = [name for name, spec in plan["models"].items() if spec.get("factory") == FACTORY and is_network(name)]
    if not networks:
        return None
    if not (folder / FOLDER / EXPLANATION).is_file():
        with limited_threads(threads):
            cases = cases_of_run(folder, networks[0])
            print(f"asking {len(cases)} outer fits of {networks[0]} what they look at")
            _write_explanation(folder / FOLDER, cases, [], most_windows=most_windows)
    return networks[0]


def _write_explanation(
    output: Path, cases: "list[Case]", notes: list[str], *, most_windows: int, steps: int = 24, seed: int = 0
) -> dict[str, Any]:
    from ...runs.files import atomic_path
    from .explain_figures import draw

    found = [explain_one(case, most_windows, steps, seed) for case in cases]
    content = {"model": cases[0].model, **summarise(found, cases, notes)}
    content["images"], content["captions"] = draw(output, found, cases[0].windows, content)
    with atomic_path(output / EXPLANATION) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return content
