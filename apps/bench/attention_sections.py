"""The tables and curves of `voxelwave bench attention`."""

import io
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...attention_analysis.benchmark_scores import Estimate, Scores
from ...attention_analysis.benchmark_training import CONTROL, Trial
from ...kernels.attention.benchmark import PEER, Cost, Costs, Fit, FitRow, Row
from ...kernels.attention.benchmark_streaming import StreamCost

NONE = "–"  # of a mechanism that does not support a pattern, and of a number that does not exist
_PATTERNS = {
    "NS": "non-causal self",
    "CS": "causal self",
    "NC": "non-causal cross",
    "CC": "causal cross",
}
_NAMES = {"forward": "Forward", "backward": "Forward and backward"}


class Table(NamedTuple):
    """A table whose first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def records(self) -> list[dict[str, str]]:
        """The rows as dictionaries; a repeated column name gets a number."""
        names: list[str] = []
        for name in self.columns:
            names.append(name if name not in names else f"{name} {names.count(name) + 1}")
        return [dict(zip(names, row, strict=True)) for row in self.rows]


class Section(NamedTuple):
    """A section of the page."""

    title: str
    text: str
    tables: list[Table]
    picture: Markup | None = None
    caption: str = ""


def cost_section(part: str, rows: Sequence[Row], costs: Costs) -> Section:
    """Times and ratios of one pass."""
    columns = ("method", "pattern", "tokens", "ms", "ratio", "goal", "exponent", "goal of exponent")
    table = Table(
        f"{_NAMES[part]}: cost", (*columns, "peak MiB", "efficiency length", "met"), [_cost_cells(row) for row in rows]
    )
    text = (
        "The ratio is the CPU time of PyTorch's fused attention divided by that of the method; above 1, the method is "
        "faster. The efficiency length is the smallest number of tokens above which the method is always faster. The "
        "exponent is b in time ~ length^b at the three largest lengths."
    )
    caption = "Time of one call against the number of tokens; both axes are logarithmic."
    return Section(f"{_NAMES[part]}: time and memory", text, [table], _cost_curves(costs), caption)


def _cost_cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        row.pattern,
        f"{row.length:,}",
        f"{1000 * row.seconds:.3g}",
        _number(row.ratio),
        NONE if row.goal is None else f"≥ {row.goal:g}",
        _number(row.exponent),
        NONE if row.most_exponent is None else f"≤ {row.most_exponent:g}",
        f"{row.peak_mib:.0f}",
        NONE if row.efficiency_length is None else f"{row.efficiency_length:,}",
        {None: NONE, True: "yes", False: "no"}[row.met],
    )


def fit_section(part: str, fits: Sequence[FitRow]) -> Section:
    """The models of time and memory of one pass."""
    columns = ("method", "pattern", "time, ms of L in thousands", "R²", "faster from", "memory, MiB", "R²", "less from")
    rows = [
        (
            fit.method,
            fit.pattern,
            _model(fit.time, 1e3),
            NONE if fit.time is None else f"{fit.time.r2:.3f}",
            _since(fit.time_from),
            _model(fit.memory, 1.0),
            NONE if fit.memory is None else f"{fit.memory.r2:.3f}",
            _since(fit.memory_from),
        )
        for fit in fits
    ]
    text = (
        "Models fitted to CPU time and peak memory from 256 to 8,192 tokens: a L² + b L + c for plain attention and "
        "d L + e for the other methods (CAB). A method is better from the larger root of the difference of the models."
    )
    return Section(f"{_NAMES[part]}: fitted models", text, [Table(f"{_NAMES[part]}: fitted models", columns, rows)])


def _model(fit: Fit | None, unit: float) -> str:
    if fit is None:
        return NONE
    a, b, c = fit.quadratic * 1e6 * unit, fit.linear * 1e3 * unit, fit.constant * unit
    square = f"{a:.3g} L² + " if fit.quadratic else ""
    return f"{square}{b:.3g} L + {c:.2g}".replace("+ -", "− ").replace("-", "−")


def _since(value: int | str | None) -> str:
    return NONE if value is None else value if isinstance(value, str) else f"{value:,}"


def streaming_section(costs: Sequence[StreamCost]) -> Section:
    """State and time of streams."""
    columns = ("method", "tokens", "bytes of the state", "µs per token, 64 at once", "µs per token, one at once")
    rows = [
        (
            cost.method,
            f"{cost.tokens:,}",
            f"{cost.state_bytes:,}",
            f"{cost.chunk_microseconds:.1f}",
            f"{cost.step_microseconds:.0f}",
        )
        for cost in costs
    ]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, unit in ((axes[0], "state_bytes", "bytes"), (axes[1], "chunk_microseconds", "µs per token")):
        for number, method in enumerate(dict.fromkeys(cost.method for cost in costs)):
            own = [cost for cost in costs if cost.method == method]
            axis.loglog(
                [c.tokens for c in own], [getattr(c, name) for c in own], "o-", color=f"C{number}", label=method
            )
        axis.set_xlabel("tokens")
        axis.set_ylabel(unit)
        axis.grid(color="0.9")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    text = (
        "Each method reads a stream of random tokens and keeps its state. A constant state takes as many bytes and as "
        "much time per token after a million tokens as after a thousand; dynamic sparse and relative convolution keep "
        "all tokens and are shown for comparison. CPU time, one thread."
    )
    caption = "Bytes of the state, and CPU time per token in calls of 64 tokens."
    return Section("Streaming", text, [Table("Streaming", columns, rows)], _svg(figure), caption)


def task_sections(scores: Scores) -> list[Section]:
    """The composite index; scores, benefit of attention and scores at other lengths by task; the needle's grid."""
    seeds = len({trial.seed for trial in scores.trials})
    patterns = list(dict.fromkeys(scores.patterns[task] for task in scores.tasks))
    index = {pattern: scores.index(pattern) for pattern in patterns}
    mechanisms = [method for method in scores.methods if method != CONTROL]
    rows = [(m, *(_signed(index[p].get(m)) for p in patterns)) for m in mechanisms]
    titles = tuple(f"{p}: {_PATTERNS[p]}" for p in patterns)
    first = Section(
        "Composite index",
        "The mean z-score over the measures of a task, then over the tasks of a pattern. Positive is better than the "
        f"mean of the mechanisms that support the pattern; {NONE} marks a pattern that a mechanism does not support.",
        [Table("Composite index", ("method", *titles), rows)],
        _svg(_index_bars(mechanisms, index)),
        "Composite index of each mechanism.",
    )
    return [first, _score_section(scores, seeds), *([_needle(scores)] if "needle" in scores.tasks else [])]


def _score_section(scores: Scores, seeds: int) -> Section:
    spread = f"mean and 95 % interval of {seeds} seeds (Student's t)" if seeds > 1 else "one seed"
    text = (
        f"Scores on test sequences: {spread}. 1 is perfect; explained variance is 0 for the mean of the target. The "
        "benefit of attention is the first score (for recall, the mean of the scores) less that of the same model with "
        f"a gated unit in place of attention ({CONTROL}), which does not mix tokens and has as many weights; it is "
        "paired by seed. The last columns are the first score on sequences of half, twice and four times the length in "
        "training. Recall is trained and tested at four lengths."
    )
    tables = [_task_table(scores, task) for task in scores.tasks]
    caption = "The first score of a task against the length of the test sequences."
    return Section("Scores", text, tables, _svg(_length_curves(scores)), caption)


def _task_table(scores: Scores, task: str) -> Table:
    measures = scores.measures(task)
    factors = [] if task == "recall" else [f for f in _factors(scores, task) if f != "1"]
    rows = []
    for method in scores.methods:
        cells = [scores.value(method, task, partial(_score, measure=measure)) for measure in measures]
        others = [scores.value(method, task, partial(_at_length, factor=factor)) for factor in factors]
        benefit = _pair(scores.benefit(method, task), signed=True)
        rows.append((method, *map(_pair, cells), benefit, *map(_pair, others)))
    columns = ("method", *measures, "benefit", *(f"{factor} × length" for factor in factors))
    pattern = scores.patterns[task]
    return Table(f"{task[0].upper()}{task[1:]} ({pattern}: {_PATTERNS[pattern]})", columns, rows)


def _factors(scores: Scores, task: str) -> list[str]:
    return list(next(t for t in scores.trials if t.task == task).lengths)


def _score(trial: Trial, measure: str) -> float | None:
    return trial.scores.get(measure)


def _at_length(trial: Trial, factor: str) -> float | None:
    return trial.lengths.get(factor)


def _length_curves(scores: Scores) -> Figure:
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for axis, task in zip(axes, scores.tasks, strict=False):
        factors = _factors(scores, task)
        for number, method in enumerate(scores.methods):
            found = [scores.value(method, task, partial(_at_length, factor=factor)) for factor in factors]
            if not any(found):
                continue
            means = [float("nan") if each is None else each.mean for each in found]
            strong = {"softmax": ("black", "-"), CONTROL: ("0.5", "--")}
            colour, style = strong.get(method, (f"C{number % 10}", ("-", ":", "-.")[number // 10]))
            axis.plot([float(f) for f in factors], means, style, color=colour, lw=1.4, label=method)
        axis.set_title(task, fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks([float(f) for f in factors], factors)
        axis.set_xlabel("length / shortest in training" if task == "recall" else "length / length in training")
        axis.set_ylabel(scores.measures(task)[0] if task != "recall" else "accuracy")
        axis.set_ylim(-0.15, 1.05)
        axis.grid(color="0.9")
    for axis in axes[len(scores.tasks) :]:
        axis.set_axis_off()
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _needle(scores: Scores) -> Section:
    cells = [tuple(key.split(" x ")) for key in dict.fromkeys(key for t in scores.trials for key in t.needle)]
    lengths, depths = (list(dict.fromkeys(cell[n] for cell in cells)) for n in range(2))
    methods = [method for method in scores.methods if scores.of(method, "needle")]
    tables = [
        Table(
            f"{length} × the length in training",
            ("method", *(f"depth {depth}" for depth in depths)),
            [(m, *(_needle_cell(scores, m, f"{length} x {depth}") for depth in depths)) for m in methods],
        )
        for length in lengths
    ]
    text = (
        "Accuracy at the last token by the length of the sequence and the depth of the marked token, from 0 (the "
        "first) to 1 (just before the last); chance is 1 / 8. Marked cells are not connected to the last token by the "
        "two layers: the output does not depend on that token."
    )
    return Section("Needle: length and depth", text, tables)


def _needle_cell(scores: Scores, method: str, cell: str) -> str:
    found = scores.value(method, "needle", lambda trial: trial.needle.get(cell))
    reach = scores.value(method, "needle", lambda trial: trial.reach.get(cell))
    text = NONE if found is None else f"{found.mean:.2f}"
    return f"{text} (not reached)" if reach is not None and reach.mean == 0 else text


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.2f}".replace("-", "−")


def _pair(value: Estimate | None, *, signed: bool = False) -> str:
    if value is None:
        return NONE
    mean = f"{value.mean:{'+' if signed else ''}.2f}".replace("-", "−")
    return mean if value.half is None else f"{mean} ± {value.half:.2f}"


def _cost_curves(costs: Costs) -> Markup:
    """A plot of time against length for all methods."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for number, ((name, pattern), found) in enumerate(costs.items()):
        _plot_cost(axis, number, name, pattern, found)
    axis.set_xlabel("tokens")
    axis.set_ylabel("seconds")
    axis.grid(color="0.9")
    axis.legend(fontsize=8, ncols=2)
    return _svg(figure)


def _plot_cost(axis: Axes, number: int, name: str, pattern: str, found: Sequence[Cost]) -> None:
    peer = name == PEER
    axis.loglog(
        [c.length for c in found],
        [c.seconds for c in found],
        "--" if peer else "-",
        color="black" if peer else f"C{number % 10}",
        marker="s" if pattern == "NS" else "o",
        label=f"{name} ({pattern})" if peer else name,
    )


def _index_bars(methods: Sequence[str], index: dict[str, dict[str, float]]) -> Figure:
    figure = Figure(figsize=(9, 0.22 * len(methods) + 1), layout="constrained")
    axes = figure.subplots(1, len(index), sharey=True, squeeze=False)[0]
    for axis, (pattern, values) in zip(axes, index.items(), strict=True):
        at = [n for n, method in enumerate(methods) if method in values]
        axis.barh(at, [values[methods[n]] for n in at], color="#0b63a5")
        axis.axvline(0, color="0.5", lw=0.8)
        axis.set_title(pattern, fontsize=10)
        axis.set_yticks(range(len(methods)), methods, fontsize=8)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    axes[0].invert_yaxis()
    return figure


def _svg(figure: Figure) -> Markup:
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return Markup(stream.getvalue()[stream.getvalue().index("<svg") :])
