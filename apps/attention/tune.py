"""`voxelwave attention tune`: changes of attention without training, chosen on one half and measured on the other."""

from markupsafe import Markup

from ...attention_analysis.pictures import intervals
from ...attention_analysis.tuning import KEPT, Tuned, dependent_on, interventions, tune
from ...eeg.long_recording import LongRecordingNet
from ...eeg.networks import load_network
from ...runs.compute import use_threads
from ...runs.exit import DONE, SOME_FAILED
from ...runs.files import outputs_together
from ...runs.json_files import write_json
from ...runs.words import plural
from ...scanpath.weights import load_model
from .explain import of_eeg, render
from .options import Tune
from .subject import plain
from .tunable import Tunable, recording_tunable, scanpath_tunable

PAGE, RECORD = "tune.html", "tune.json"
_SHOWN = 20  # attempts in the picture


def tune_network(options: Tune) -> int:
    """Run the command and return its exit code."""
    use_threads(options.threads)
    on = _tunable(options)
    groups = {group: dependent_on(on.model, group, on.calibration) for group in on.groups}
    candidates = interventions(on.model, causal=on.causal, levers=on.levers, groups=groups)
    found = tune(on.model, candidates, on.calibration, on.held_out)
    words = in_words(found, on)
    with outputs_together(options.output) as output:
        write_json(output / RECORD, _record(found, on, words))
        shown = [(attempt.name, *attempt.gain) for attempt in found.attempts[:_SHOWN]]
        page = render(
            "tune.html.jinja",
            found=found,
            on=on,
            words=words,
            picture=Markup(intervals(shown, label=f"gain ({on.loss_unit.split(',')[0]})")),
            kept=KEPT,
        )
        (output / PAGE).write_text(page, encoding="utf-8")
    for name, reason in on.failed:
        print(f"{name}: failed: {reason}")
    print(words)
    print(f"wrote {options.output}/: {PAGE}, {RECORD}")
    return SOME_FAILED if on.failed else DONE


def _tunable(options: Tune) -> Tunable:
    how = {"most": options.most, "seed": options.seed}
    if not of_eeg(options.weights):
        return scanpath_tunable(load_model(options.weights), options.input, **how)
    network, card = load_network(options.weights)
    if not isinstance(network, LongRecordingNet):
        raise ValueError(f"only weights of long_recording have attention to tune, got those of {card.network}")
    return recording_tunable(network, card, options.input, **how)


def in_words(found: Tuned, on: Tunable) -> str:
    """The result in a sentence or two."""
    best = found.attempts[0]
    tried = f"Of {len(found.attempts)} changes tried on {plural(len(on.halves[0]), on.noun)}, whose loss is "
    tried += f"{found.loss:.3f} nats"
    if found.chosen == KEPT or found.held_out is None:
        return (
            f"{tried}, none is better beyond what the number of attempts explains (the best, '{best.name}', by "
            f"{best.gain.mean:.4f} nats, {best.gain.low:.4f} to {best.gain.high:.4f}). The network is kept as it is."
        )
    gain = found.held_out
    end = "It also helps there." if found.helps else "It does not help there, so the network should be kept as it is."
    return (
        f"{tried}, '{found.chosen}' was chosen. On {len(on.halves[1])} other {on.noun}s it gains {gain.mean:.4f} nats "
        f"(95 % interval {gain.low:.4f} to {gain.high:.4f}). {end}"
    )


def _record(found: Tuned, on: Tunable, words: str) -> dict[str, object]:
    return {
        "unit": on.loss_unit,
        f"calibration_{on.noun}s": on.halves[0],
        f"held_out_{on.noun}s": on.halves[1],
        "loss": found.loss,
        "chosen": found.chosen,
        "held_out": None if found.held_out is None else plain(found.held_out),
        "helps": found.helps,
        "attempts": [{"name": attempt.name, "gain": plain(attempt.gain)} for attempt in found.attempts],
        "failed": [{"input": name, "reason": reason} for name, reason in on.failed],
        "summary": words,
    }
