"""`voxelwave attention tune`: changes of attention without training, chosen on one half and measured on the other."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...attention_analysis.trace import attention_layers
from ...attention_analysis.tuning import KEPT, Losses, Tuned, interventions, tune
from ...runs.compute import use_threads
from ...runs.json_files import write_json
from ...scanpath.oat import BEGIN, log_probabilities
from ...scanpath.readers import read_scanpaths
from ...scanpath.scene import Dataset
from ...scanpath.weights import NetworkModel, load_model
from .options import Tune

RECORD = "tune.json"
_LONGEST = 20  # fixations of a trial that count; later ones are few and slow


def tune_network(options: Tune) -> None:
    """Run the command."""
    use_threads(options.threads)
    model = load_model(options.weights)
    data = read_scanpaths(options.input, duplicates="drop")
    known = set(model.info.trained_on)
    layouts = sorted({data.scenes[trial.scene].layout for trial in data.trials} - known)
    if len(layouts) < 4:
        raise ValueError(
            f"tuning needs people's scanpaths on at least 4 layouts that the weights were not trained on, got "
            f"{len(layouts)} in {options.input}"
        )
    order = np.random.default_rng(options.seed).permutation(len(layouts))[: options.most]
    halves = [[layouts[i] for i in order[start::2]] for start in (0, 1)]
    calibration, held_out = (layout_losses(model, data, half) for half in halves)
    causal, levers = {}, {}
    for number, name in enumerate(attention_layers(model.network)):
        past = name.startswith("transformer_decoder") and name.endswith("self_attn")
        causal[number], levers[number] = past, 0 if past else -1  # the last token of a scene is the target's
    candidates = interventions(model.network, causal=causal, levers=levers)
    found = tune(model.network, candidates, calibration, held_out)
    write_json(
        options.output / RECORD,
        {
            "unit": "nats per fixation, mean over the trials of a layout",
            "calibration_layouts": halves[0],
            "held_out_layouts": halves[1],
            "chosen": found.chosen,
            "held_out": None if found.held_out is None else found.held_out._asdict(),
            "helps": found.helps,
            "attempts": [{"name": attempt.name, "gain": attempt.gain._asdict()} for attempt in found.attempts],
        },
    )
    print(in_words(found, len(halves[0]), len(halves[1])))
    print(f"wrote {options.output}/: {RECORD}")


def layout_losses(model: NetworkModel, data: Dataset, layouts: Sequence[str]) -> Losses:
    """A function that runs the network: the mean negative log-probability of a fixation on each layout, in nats."""
    prepared: dict[str, list[tuple[object, Tensor, Tensor]]] = {layout: [] for layout in layouts}
    batches = {}
    for trial in data.trials:
        scene = data.scenes[trial.scene]
        if scene.layout not in prepared:
            continue
        if trial.scene not in batches:
            batches[trial.scene] = model.batch([scene])
        path = torch.from_numpy(trial.objects[:_LONGEST])
        previous = torch.cat([torch.tensor([BEGIN]), path[:-1]]).unsqueeze(0)
        prepared[scene.layout].append((batches[trial.scene], previous, path))

    def losses() -> Tensor:
        found = []
        for trials in prepared.values():
            values = []
            for batch, previous, path in trials:
                scores = model.network(batch, torch.tensor([0]), previous)
                first = torch.arange(len(path)).unsqueeze(0) == 0
                likely = log_probabilities(scores.double(), first=first)[0]
                values.append(-likely[torch.arange(len(path)), path].mean())
            found.append(torch.stack(values).mean())
        return torch.stack(found)

    return losses


def in_words(found: Tuned, calibration: int, held_out: int) -> str:
    """The result in a sentence or two."""
    best = found.attempts[0]
    tried = f"Of {len(found.attempts)} changes tried on {calibration} layouts"
    if found.chosen == KEPT or found.held_out is None:
        return (
            f"{tried}, none is better beyond what the number of attempts explains (the best, {best.name}, by "
            f"{best.gain.mean:.4f} nats, {best.gain.low:.4f} to {best.gain.high:.4f}). The network is kept as it is."
        )
    gain = found.held_out
    end = "It also helps there." if found.helps else "It does not help there, so the network should be kept as it is."
    return (
        f"{tried}, '{found.chosen}' was chosen. On {held_out} other layouts it gains {gain.mean:.4f} nats per fixation "
        f"(95 % interval {gain.low:.4f} to {gain.high:.4f}). {end}"
    )
