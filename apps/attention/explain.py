"""`voxelwave attention explain`: what the heads of a trained network do, as one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ...attention_analysis.importance import Interval
from ...attention_analysis.pictures import Curve, curves, head_matrix, map_gallery
from ...attention_analysis.trace import Head
from ...eeg.adhdeepnet import ADHDeepNet
from ...eeg.long_recording import LongRecordingNet
from ...eeg.networks import load_network
from ...registration.nestedmorph_files import RECORD as OF_REGISTRATION
from ...registration.nestedmorph_files import read_trained_network
from ...runs.catalogue import list_weights
from ...runs.compute import use_threads
from ...runs.exit import DONE, SOME_FAILED
from ...runs.files import outputs_together
from ...runs.json_files import write_json
from ...runs.weight_file import read_metadata
from ...runs.words import plural
from ...scanpath.weights import load_model
from .gates import GateSubject, gate_page, gate_subject
from .heads import HeadRow, Removal, describe_heads, removal, removal_counts
from .options import Explain
from .pairs import look_at_pairs, pair_subject, pairs_at
from .recordings import look_at_recordings, recording_subject
from .scenes import look_at_scenes, scene_subject
from .subject import Subject, plain
from .where import Where

PAGE, RECORD = "attention.html", "attention.json"
LOOK = {"scene": look_at_scenes, "recording": look_at_recordings, "pair": look_at_pairs}
_TEMPLATE = Path(__file__).parent / "template"
_STYLE = Path(__file__).parents[1] / "page" / "report.css"
_SHOWN = 48  # heads in the gallery
_SMALL = 0.01  # values below are shown in thousandths


def explain(options: Explain) -> int:
    """Run the command and return its exit code."""
    use_threads(options.threads)
    subject = _subject(options)
    if not subject.cases:
        reason = subject.failed[0][1] if subject.failed else "none was found"
        raise ValueError(f"{options.input} holds no {subject.kind} that fits the weights: {reason}")
    if isinstance(subject, GateSubject):
        summary, shown, record = gate_page(subject)
        template = "gates.html.jinja"
    else:
        rows = describe_heads(subject)
        curve = removal(subject, rows)
        where = LOOK[subject.kind](subject)
        summary = in_words(subject, rows, curve, where)
        template, shown = "explain.html.jinja", _shown(subject, rows, curve, where)
        record = _record(subject, rows, curve, where)
    with outputs_together(options.output) as output:
        failed = [{"input": name, "reason": reason} for name, reason in subject.failed]
        write_json(output / RECORD, {**record, "failed": failed, "summary": summary})
        page = render(template, subject=subject, summary=summary, **shown)
        (output / PAGE).write_text(page, encoding="utf-8")
    for name, reason in subject.failed:
        print(f"{name}: failed: {reason}")
    print(" ".join(summary))
    print(f"wrote {options.output}/: {PAGE}, {RECORD}; {len(subject.failed)} failed")
    return SOME_FAILED if subject.failed else DONE


def _subject(options: Explain) -> Subject | GateSubject:
    """The network and its inputs, by the kind of the weights."""
    weights = options.weights
    if options.fixed is not None or _of_registration(weights):
        network = read_trained_network(weights)
        return pair_subject(network, pairs_at(options.input, options.fixed, options.label), options.most)
    if not of_eeg(weights):
        return scene_subject(load_model(weights), options.input, options.most)
    eeg, card = load_network(weights)
    if isinstance(eeg, ADHDeepNet):
        return gate_subject(eeg, card, options.input, options.most)
    if not isinstance(eeg, LongRecordingNet):
        raise ValueError(
            f"only weights of long_recording have attention, and those of adhdeepnet gates, that can be explained, got "
            f"those of {card.network}; see voxelwave eeg explain"
        )
    return recording_subject(eeg, card, options.input, options.most)


def of_eeg(weights: Path) -> bool:
    """Whether weights are those of an EEG network, which are a folder or two files, or a name in the catalogue."""
    names = {entry.name for entry in list_weights("eeg")}
    return weights.is_dir() or weights.with_suffix(".json").is_file() or str(weights) in names


def _of_registration(weights: Path) -> bool:
    if weights.suffix == ".safetensors" and weights.is_file():
        return OF_REGISTRATION in read_metadata(weights)
    return weights.suffix in (".ckpt", ".pth", ".tar")


def render(template: str, **shown: Any) -> str:
    """A page of this folder with the style of our reports."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    tools = {"style": Markup(_STYLE.read_text()), "safe": Markup, "number": _number, "limits": _limits}
    return environment.get_template(template).render(**tools, **shown)


def in_words(subject: Subject, rows: list[HeadRow], curve: Removal, where: Where) -> list[str]:
    """Sentences that follow from the figures, and what they do not show."""
    ranked = sorted(rows, key=lambda row: -row.importance.mean)
    first = ranked[0]
    what, units = subject.decisions, len(set(subject.units))
    over = f" of {plural(units, subject.unit)}" if subject.unit and units != len(subject.cases) else ""
    place = f"head {first.head.head} of layer {first.head.layer} ({subject.layers[first.head.layer]})"
    words = [
        f"On {plural(len(subject.cases), subject.kind)}{over}, the head that matters most is {place}: without it, "
        f"{100 * first.changed.mean:.0f} % of the {what} change."
    ]
    idle = [row for row in rows if row.importance.mean < 0.01 * max(first.importance.mean, 1e-12)]
    if idle:
        words.append(
            f"{len(idle)} of {len(rows)} heads have less than a hundredth of its effect, so their patterns say nothing "
            f"about the {what}."
        )
    last = curve.largest_first[-1].mean
    end = "."
    if last >= 0.9:
        alone = first.changed.mean > 0.1
        end = ": the removals cancel out." if alone else ", so attention hardly decides anything on these inputs."
    words.append(f"With all heads removed, {100 * last:.0f} % of the {what} stay the same{end}")
    if curve.right:
        words.append(
            f"With all heads removed, {100 * curve.right[-1].mean:.0f} % of the {what} are right, with all heads "
            f"{100 * curve.right[0].mean:.0f} %."
        )
    uniform = [row for row in rows if row.entropy.mean > 0.95]
    if uniform:
        words.append(f"{plural(len(uniform), 'head')} attend almost equally to everything that they can see.")
    words += where.sentences
    if set(subject.trained_on) & {name for case in subject.cases for name in names_of(case.name)}:
        words.append("Some of these inputs were used in the training, so the figures are optimistic.")
    words.append(
        f"The figures show where information enters the {what} of this network on these inputs. They do not show "
        "that a result is right, nor why a person would decide in this way, and removing several heads can have "
        "another effect than the single removals suggest."
    )
    return [*where.warnings, *words]


def names_of(name: str) -> set[str]:
    """The names under which an input may stand in a list of subjects."""
    stem = Path(name).stem
    return {name, stem, stem.split("_")[0]}


def _shown(subject: Subject, rows: list[HeadRow], curve: Removal, where: Where) -> dict[str, Any]:
    mapped = [row for row in sorted(rows, key=lambda row: -row.importance.mean) if row.map is not None][:_SHOWN]
    gallery = None
    if mapped:
        maps = [np.sqrt(row.map.numpy()) for row in mapped if row.map is not None]
        gallery = Markup(map_gallery(maps, [f"{row.head.layer}.{row.head.head}" for row in mapped]))
    needed = _matrix(rows, where.dependence, "share of the output") if where.dependence else None
    return {
        "rows": rows,
        "where": where,
        "matrix": _matrix(rows, {row.head: row.importance.mean for row in rows}, subject.effect.unit),
        "removed": _removal_picture(subject, curve, len(rows)),
        "gallery": gallery,
        "needed": needed,
    }


def _matrix(rows: Sequence[HeadRow], values: Mapping[Head, float], label: str) -> Markup:
    found = np.full((1 + max(row.head.layer for row in rows), 1 + max(row.head.head for row in rows)), np.nan)
    small = max(values.values()) < _SMALL
    for head, value in values.items():
        found[head.layer, head.head] = 1000 * value if small else value
    label = f"{label} / 1000" if small else label
    return Markup(head_matrix(found, label=label))


def _removal_picture(subject: Subject, curve: Removal, heads: int) -> Markup:
    counts = removal_counts(heads)
    named = {
        "largest effect first": curve.largest_first,
        "at random": curve.random,
        "smallest effect first": curve.smallest_first,
    }
    if curve.right:
        named["right decisions, largest effect first"] = curve.right
    found: dict[str, Curve] = {name: (counts, [one.mean for one in values]) for name, values in named.items()}
    bands: dict[str, Curve] = {}
    if subject.several:
        bands = {name: ([one.low for one in values], [one.high for one in values]) for name, values in named.items()}
    y = f"share of {subject.decisions}" if curve.right else f"unchanged {subject.decisions}"
    return Markup(curves(found, x="removed heads", y=y, limits=(-0.03, 1.03), bands=bands))


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"


def _limits(value: Interval, form: str = "{:.2f}", factor: float = 1.0) -> str:
    """The limits of an interval; empty if there is none."""
    if value.low != value.low:
        return ""
    return f"{form.format(factor * value.low)} to {form.format(factor * value.high)}"


def _record(subject: Subject, rows: list[HeadRow], curve: Removal, where: Where) -> dict[str, Any]:
    return {
        "inputs": [case.name for case in subject.cases],
        "units": subject.units,
        "layers": subject.layers,
        "unit_of_effects": subject.effect.unit,
        "heads": [
            {
                "layer": row.head.layer,
                "head": row.head.head,
                "effect": plain(row.importance),
                "changed": plain(row.changed),
                "entropy": plain(row.entropy),
                "concentration": plain(row.concentration),
                "first_token": plain(row.first),
                "sinks": row.sinks,
                "pattern": row.pattern,
                "dependence": where.dependence.get(row.head),
            }
            for row in rows
        ],
        "removed_heads": removal_counts(len(rows)),
        "removal": {name: [plain(one) for one in values] for name, values in curve._asdict().items()},
        "reliance": [
            {"part": one.part, "effect": plain(one.effect), "changed": plain(one.changed)} for one in where.reliance
        ],
        "dependence_on": where.dependence_on,
    }
