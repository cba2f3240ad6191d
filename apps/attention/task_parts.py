"""The parts of `voxelwave attention tasks`: each trains its models and describes the result."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ...attention_analysis.context_task import ContextRun, ContextTask, train_in_context
from ...attention_analysis.display_task import grounding_result, train_displays
from ...attention_analysis.importance import Interval
from ...attention_analysis.masking_task import run_curriculum
from ...attention_analysis.nested_task import NestedTask, gaps, partner_solver, stack_solver, train_nested
from ...attention_analysis.pictures import curves, panels
from ...attention_analysis.regression_task import RegressionTask, closed_form_optimum, train_heads

MIXERS = ("softmax", "recurrent", "relative_convolution(reach=16)")


@dataclass(frozen=True)
class Part:
    """A section of the page: text, tables as lists of rows, pictures as SVG, and the figures for the record."""

    title: str
    text: list[str]
    tables: list[list[dict[str, str]]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)  # SVG, caption
    record: dict[str, Any] = field(default_factory=dict)


def icl(*, quick: bool, seeds: int, seed: int, tell: Callable[[str], None]) -> Part:
    """C4: onset curves of several seeds, and the control with as many labels as pairs."""
    steps = 40 if quick else 4000
    small = ContextTask(pairs=4, features=31, labels=16, classes=4096)  # the jump comes within minutes
    tasks = {"16 labels": small, "4 labels, as many as pairs": replace(small, labels=4)}
    runs: dict[str, list[ContextRun]] = {name: [] for name in tasks}
    for name, task in tasks.items():
        for number in range(seeds):
            run = train_in_context(
                task, steps=steps, batch=64, rate=3e-3, seed=seed + number, test=64 if quick else 512
            )
            runs[name].append(run)
            tell(f"icl, {name}, seed {run.seed}: accuracy on new classes {run.progress[-1].novel:.2f}")
    rows = [
        {
            "task": name,
            "seed": str(run.seed),
            "accuracy on new classes": f"{run.progress[-1].novel:.2f}",
            "swapped labels": f"{run.progress[-1].swapped:.2f}",
            "target absent": f"{run.progress[-1].absent:.2f}",
            "plateau before": f"{run.plateau:.2f}",
            "steepest rise": f"{run.rise:.2f}",
            "jump": "yes" if run.jumps else "no",
            "order of onsets (step)": ", ".join(f"{n} {s:.0f}" for n, s in run.onsets() if s == s),
        }
        for name, found in runs.items()
        for run in found
    ]
    shown = {"accuracy, new classes": "novel", "ILA1": "item_label", "TILA2": "target_label", "CLA": "context_label"}
    pictures = [
        (
            panels(
                {
                    f"seed {run.seed}": {
                        label: ([p.step for p in run.progress], [getattr(p, key) for p in run.progress])
                        for label, key in shown.items()
                    }
                    for run in found
                },
                x="training step",
                y="share",
                log=True,
            ),
            f"{name}. ILA1: weight of a label on its own item in the first layer; TILA2: weight of the target on the "
            "correct labels in the second; CLA: probability of a label from the context.",
        )
        for name, found in runs.items()
    ]
    text = [
        "A network of two attention layers sees four pairs of an item and a label, and a fifth item. New classes have "
        "labels that only the context gives. A random label from the context is right in 1 of 4 cases. A run jumps if "
        "its accuracy rises by more than 0.5 while the number of steps grows by half.",
        "Idea after arXiv 2312.03002, in a smaller world (four pairs, 31 features, 16 labels, 4,096 classes) and with "
        "another optimizer.",
    ]
    record = {
        name: [{"seed": r.seed, "progress": [p._asdict() for p in r.progress]} for r in found]
        for name, found in runs.items()
    }
    return Part("Classification in context", text, [rows], pictures, record)


def regression(*, quick: bool, seeds: int, seed: int, tell: Callable[[str], None]) -> Part:
    """C5: the optimum of reduced heads, and trained layers."""
    task = RegressionTask()
    sizes = {"train": 1000, "test": 2000, "steps": 40} if quick else {}
    best = closed_form_optimum(task, seed=seed, **sizes)
    tell(f"regression: {best}")
    rows = [
        {"predictor": name, "mean squared error": f"{value:.4f}"}
        for name, value in zip(
            ("one head", "two heads", "debiased gradient step", "ridge regression"), best, strict=True
        )
    ]
    trained = []
    for heads in (1, 2, 4):
        found = train_heads(task, heads, steps=50 if quick else 3000, seed=seed)
        tell(f"regression, {heads} trained heads: {found.error.mean:.3f}")
        trained.append(
            {
                "trained heads": str(heads),
                "mean squared error (95 % interval)": _interval(found.error),
                "signs": " ".join(found.scores.sign),
                "off-diagonal share of KQ": " ".join(f"{v:.2f}" for v in found.scores.diagonality.tolist()),
                "sum of OV / sum of sizes": f"{found.scores.zero_sum:.2f}",
                "distance from the debiased step": f"{found.from_step:.2f}",
            }
        )
    text = [
        f"One softmax layer reads {task.examples} examples with {task.features} features, noise {task.noise:g}, and "
        "predicts the value of a query. Two heads of opposite sign do what a debiased step of gradient descent does; "
        "a single head cannot. None of them is near ridge regression at this noise.",
        "Idea after arXiv 2503.12734.",
    ]
    return Part("Regression in context", text, [rows, trained], [], {"optimum": best._asdict(), "trained": trained})


def shortcut(*, quick: bool, seeds: int, seed: int, tell: Callable[[str], None]) -> Part:
    """C6: the gap by depth of three mechanisms beside two solvers."""
    task = NestedTask()
    found = {
        "stack solver": gaps(task, lambda given: stack_solver(task, given), batch=200),
        "partner solver": gaps(task, lambda given: partner_solver(task, given), batch=200),
    }
    accuracy = []
    for mixer in MIXERS:
        result = train_nested(task, mixer, steps=30 if quick else 1500, batch=96, dim=48, seed=seed)
        found[mixer] = result.gaps
        accuracy.append({"mechanism": mixer, **{f"{q}?": f"{value:.2f}" for q, value in result.accuracy.items()}})
        tell(f"shortcut, {mixer}: gaps {', '.join(f'{gap.gap:.2f}' for gap in result.gaps)}")
    rows = [
        {"answers by": name, **{f"depth {gap.depth}": f"{gap.gap:.2f}" for gap in each}} for name, each in found.items()
    ]
    picture = curves(
        {name: ([g.depth for g in each], [g.gap for g in each]) for name, each in found.items()},
        x="depth",
        y="gap",
        limits=(-0.05, 1.05),
    )
    text = [
        "Actors and actions are nested like brackets, and in training nine of ten pairs are frequent ones. The gap is "
        "the accuracy of 'who did this?' with frequent pairs, less that with rare pairs in the same structure: 0 for a "
        "solver that reads the structure, 1 for one that remembers frequent pairs.",
        "Idea after arXiv 2510.20543.",
    ]
    record = {name: [gap._asdict() for gap in each] for name, each in found.items()}
    return Part("Structure or shortcut", text, [rows, accuracy], [(picture, "The gap against the depth.")], record)


def grounding(*, quick: bool, seeds: int, seed: int, tell: Callable[[str], None]) -> Part:
    """C7: where a trained network looks for the target of a display, and for a lesion."""
    network = train_displays(steps=50 if quick else 3000, seed=seed)
    results = [grounding_result(network, kind) for kind in ("display", "lesion")]
    for one in results:
        tell(f"grounding, {one.kind}: answers {one.accuracy:.2f}, hits {one.hits.mean:.2f}")
    rows = [
        {
            "images": one.kind,
            "right answers": f"{one.accuracy:.2f}",
            "hits": _interval(one.hits),
            "hits of a random patch": f"{one.random_hits:.2f}",
            "distance in patches": _interval(one.distance),
            "overlap of boxes (IoU)": _interval(one.iou),
        }
        for one in results
    ]
    text = [
        "A small transformer answers which shape the item of a named colour has, and of which kind the lesion is. All "
        "heads are combined into one map, weighted by how well they fit the similarity of the hidden states; a hit is "
        "a point in the box of the target. A network that answers well need not have a map that points at the target.",
        "Idea after arXiv 2511.00810.",
    ]
    return Part("Grounding", text, [rows], [], {"results": rows})


def curriculum(*, quick: bool, seeds: int, seed: int, tell: Callable[[str], None]) -> Part:
    """C8: pre-training under a growing mask, and training from scratch."""
    found = run_curriculum(steps=20 if quick else 400, seed=seed, test=100 if quick else 1000)
    tell(f"curriculum: scratch {found.scratch.mean:.2f}, pre-trained {found.pretrained.mean:.2f} under occlusion")
    rows = [
        {"measure": "accuracy from scratch, half of the patches hidden", "value": _interval(found.scratch)},
        {"measure": "accuracy of a linear probe after pre-training", "value": _interval(found.pretrained)},
        {"measure": "difference on the same pictures", "value": _interval(found.gain)},
        {
            "measure": "attention to the object before pre-training, 1 = uniform",
            "value": f"{found.foreground_before:.2f}",
        },
        {"measure": "attention to the object after pre-training", "value": f"{found.foreground_after:.2f}"},
    ]
    text = [
        "A network first matches views of moving shapes, then views of which a growing part (10 to 60 %) is hidden. A "
        "linear probe on it is compared with a network trained from scratch on the same 64 labelled pictures.",
        "Idea after arXiv 2508.06107.",
    ]
    return Part("Masking curriculum", text, [rows], [], {"results": rows})


PARTS = {
    "icl": icl,
    "regression": regression,
    "shortcut": shortcut,
    "grounding": grounding,
    "curriculum": curriculum,
}


def _interval(value: Interval) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"
