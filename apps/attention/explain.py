"""`voxelwave attention explain`: what the heads of a trained network do, as one page."""

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ...attention_analysis.pictures import curves, head_matrix, map_gallery
from ...runs.catalogue import list_weights
from ...runs.compute import use_threads
from ...runs.exit import DONE, SOME_FAILED
from ...runs.files import outputs_together
from ...runs.json_files import write_json
from ...scanpath.weights import load_model
from .heads import HeadRow, Removal, describe_heads, removal, removal_counts
from .options import Explain
from .subject import Subject, recording_subject, scene_subject
from .where import Where, as_values, look_at_recordings, look_at_scenes

PAGE, RECORD = "attention.html", "attention.json"
_TEMPLATE = Path(__file__).parent / "template"
_STYLE = Path(__file__).parents[1] / "page" / "report.css"
_SHOWN = 48  # heads in the gallery


def explain(options: Explain) -> int:
    """Run the command and return its exit code."""
    use_threads(options.threads)
    subject = _subject(options)
    if not subject.cases:
        reason = subject.failed[0][1] if subject.failed else "none was found"
        raise ValueError(f"{options.input} holds no {subject.kind} that fits the weights: {reason}")
    rows = describe_heads(subject)
    curve = removal(subject, rows)
    where = look_at_scenes(subject) if subject.kind == "scene" else look_at_recordings(subject)
    summary = in_words(subject, rows, curve, where)
    with outputs_together(options.output) as output:
        write_json(output / RECORD, _record(subject, rows, curve, where, summary))
        (output / PAGE).write_text(_page(subject, rows, curve, where, summary), encoding="utf-8")
    for name, reason in subject.failed:
        print(f"{name}: failed: {reason}")
    print(" ".join(summary))
    print(f"wrote {options.output}/: {PAGE}, {RECORD}; {len(subject.failed)} failed")
    return SOME_FAILED if subject.failed else DONE


def _subject(options: Explain) -> Subject:
    weights = options.weights
    names = {entry.name for entry in list_weights("eeg")}
    if weights.is_dir() or weights.with_suffix(".json").is_file() or str(weights) in names:
        return recording_subject(weights, options.input, options.most)
    return scene_subject(load_model(weights), options.input, options.most)


def in_words(subject: Subject, rows: list[HeadRow], curve: Removal, where: Where) -> list[str]:
    """Sentences that follow from the figures, and what they do not show."""
    ranked = sorted(rows, key=lambda row: -row.importance.mean)
    first = ranked[0]
    count = len(subject.cases)
    words = [
        f"On {count} {subject.kind}{'s' if count > 1 else ''}, the head that matters most is head {first.head.head} of "
        f"{subject.layers[first.head.layer]}: without it, {100 * first.changed:.0f} % of the decisions change."
    ]
    idle = [row for row in rows if row.importance.mean < 0.01 * max(first.importance.mean, 1e-12)]
    words.append(
        f"{len(idle)} of {len(rows)} heads have less than a hundredth of its effect, so their patterns say nothing "
        "about the decisions."
    )
    last = curve.largest_first[-1]
    words.append(
        f"With all heads removed, {100 * last:.0f} % of the decisions stay the same"
        + (", so attention hardly decides anything on these inputs." if last > 0.9 else ".")
    )
    uniform = [row for row in rows if row.entropy > 0.95]
    if uniform:
        words.append(f"{len(uniform)} heads attend almost equally to everything that they can see.")
    words += where.sentences
    if where.reliance:
        most, other = where.reliance
        words.append(
            f"Hiding {most.part} from all heads changes {100 * most.changed.mean:.0f} % of the decisions; hiding "
            f"{other.part} changes {100 * other.changed.mean:.0f} %."
        )
        if most.bits.mean < 0.01:
            words.append(f"The network hardly uses {most.part}.")
        elif most.bits.low > other.bits.high:
            words.append(f"So the network uses {most.part} more than {other.part}.")
        else:
            words.append("The intervals overlap, so there is no clear difference between the two.")
    if set(subject.trained_on) & {name for case in subject.cases for name in _names(case.name)}:
        words.append("Some of these inputs were used in the training, so the figures are optimistic.")
    words.append(
        "The figures show where information enters the decisions of this network on these inputs. They do not show "
        "that a decision is right, nor why a person would decide in this way, and removing several heads can have "
        "another effect than the single removals suggest."
    )
    return words


def _names(name: str) -> set[str]:
    stem = Path(name).stem
    return {name, stem, stem.split("_")[0]}


def _page(subject: Subject, rows: list[HeadRow], curve: Removal, where: Where, summary: list[str]) -> str:
    layers, heads = len(subject.layers), 1 + max(row.head.head for row in rows)
    importance = {(row.head.layer, row.head.head): row.importance.mean for row in rows}
    counts = removal_counts(len(rows))
    removed = {
        "largest effect first": (counts, curve.largest_first),
        "at random": (counts, curve.random),
        "smallest effect first": (counts, curve.smallest_first),
    }
    mapped = [row for row in sorted(rows, key=lambda row: -row.importance.mean) if row.map is not None][:_SHOWN]
    gallery = None
    if mapped:
        maps = [np.sqrt(row.map.numpy()) for row in mapped if row.map is not None]
        gallery = map_gallery(maps, [f"{row.head.layer}.{row.head.head}" for row in mapped])
    environment = Environment(loader=FileSystemLoader(_TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("explain.html.jinja").render(
        style=Markup(_STYLE.read_text()),
        subject=subject,
        rows=rows,
        where=where,
        summary=summary,
        matrix=Markup(head_matrix(as_values(layers, heads, importance), label="bits")),
        removed=Markup(curves(removed, x="removed heads", y="unchanged decisions", limits=(-0.03, 1.03))),
        gallery=None if gallery is None else Markup(gallery),
        safe=Markup,
        number=_number,
    )


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"


def _record(subject: Subject, rows: list[HeadRow], curve: Removal, where: Where, summary: list[str]) -> dict[str, Any]:
    return {
        "inputs": [case.name for case in subject.cases],
        "failed": [{"input": name, "reason": reason} for name, reason in subject.failed],
        "layers": subject.layers,
        "heads": [
            {
                "layer": row.head.layer,
                "head": row.head.head,
                "bits": row.importance._asdict(),
                "changed": row.changed,
                "entropy": None if row.entropy != row.entropy else row.entropy,
                "concentration": None if row.concentration != row.concentration else row.concentration,
                "first_token": None if row.first != row.first else row.first,
                "sinks": row.sinks,
                "pattern": row.pattern,
            }
            for row in rows
        ],
        "removed_heads": removal_counts(len(rows)),
        "removal": curve._asdict(),
        "reliance": [
            {"part": one.part, "bits": one.bits._asdict(), "changed": one.changed._asdict()} for one in where.reliance
        ],
        "summary": summary,
    }
