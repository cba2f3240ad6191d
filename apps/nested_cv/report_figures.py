"""The figures of a report as inline SVG. The style sheet of the page colours them for light, dark and print.

Rows of a table (intervals, bars) position their marks in percent of the width and stretch with the page; plots with two
axes have a fixed frame and scale as a whole. `Markup.format` escapes all text.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from markupsafe import Markup

from .evidence_records import DecisionPoint, LearningCurve
from .records import CalibrationBin, CurveRow, Permutation, RocCurve

ROW_HEIGHT = 26
MARGIN_PERCENT = 3.0  # margin at the left and right of a stretched scale, for the marks at its ends
EMPTY = Markup("")

Span = tuple[float, float]


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`, both possibly included.

    Example:
        >>> ticks(0.4, 1.0)
        [0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def scale_of(values: Iterable[object], *, include: Sequence[float] = (), step: float = 0.1) -> Span:
    """The smallest range in whole steps that covers all finite values and `include`."""
    found = [float(v) for v in values if is_number(v)] + list(include)
    if not found:
        return 0.0, 1.0
    low = math.floor(min(found) / step + 1e-9) * step
    high = math.ceil(max(found) / step - 1e-9) * step
    return round(low, 12), round(high if high > low else low + step, 12)


def rounded_scale(values: Iterable[object]) -> Span:
    """The smallest range between round numbers that covers all finite values."""
    found = [float(v) for v in values if is_number(v)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    marks = ticks(low, high)
    return scale_of(found, step=marks[1] - marks[0] if len(marks) > 1 else max(abs(low), 1.0))


def _percent(value: float, scale: Span) -> str:
    share = (value - scale[0]) / (scale[1] - scale[0])
    return f"{MARGIN_PERCENT + (100 - 2 * MARGIN_PERCENT) * min(max(share, 0.0), 1.0):.2f}%"


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def interval_row(
    mean: float,
    interval: Sequence[float],
    scale: Span,
    *,
    points: Iterable[float] = (),
    reference: float | None = None,
    kind: str = "",
) -> Markup:
    """A row of a forest plot: single points, an interval and a mean, in front of a reference line.

    Args:
        mean: position of the large mark.
        interval: (low, high).
        scale: values at the two ends of the row.
        points: positions of smaller marks, e.g. one per fold.
        reference: position of the dashed line, e.g. chance.
        kind: class of the marks in the style sheet.
    """
    parts = []
    middle = ROW_HEIGHT / 2
    if reference is not None:
        at = _percent(reference, scale)
        parts.append(Markup('<line class="reference" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(at, ROW_HEIGHT))
    for point in points:
        at = _percent(point, scale)
        parts.append(Markup('<circle class="point" cx="{}" cy="{}" r="2.6"/>').format(at, middle))
    low, high = (_percent(end, scale) for end in interval)
    line = Markup('<line class="interval" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    parts.append(line.format(low, high, middle, middle))
    parts += [line.format(end, end, middle - 4, middle + 4) for end in (low, high)]
    parts.append(Markup('<circle class="mean" cx="{}" cy="{}" r="4.8"/>').format(_percent(mean, scale), middle))
    return _stretched(parts, kind)


def bar_row(size: float, spread: float | None, scale: Span, *, kind: str = "") -> Markup:
    """A bar from zero to `size`, with a whisker of one `spread` to either side."""
    low, high = min(size, 0.0), max(size, 0.0)
    left, right = (float(_percent(v, scale)[:-1]) for v in (low, high))
    parts = [Markup('<rect class="bar" x="{:.2f}%" width="{:.2f}%" y="6" height="14"/>').format(left, right - left)]
    if spread is not None:
        start, stop = (_percent(size + sign * spread, scale) for sign in (-1, 1))
        parts.append(Markup('<line class="interval" x1="{}" x2="{}" y1="13" y2="13"/>').format(start, stop))
    return _stretched(parts, kind)


def axis_row(scale: Span, label: str = "") -> Markup:
    """The ticks, numbers and name of the common scale of the rows above."""
    parts = [
        Markup('<line class="frame" x1="{}" x2="{}" y1="1" y2="1"/>').format(
            _percent(scale[0], scale), _percent(scale[1], scale)
        )
    ]
    for tick in ticks(*scale):
        at = _percent(tick, scale)
        parts.append(Markup('<line class="frame" x1="{0}" x2="{0}" y1="1" y2="6"/>').format(at))
        parts.append(Markup('<text x="{}" y="19" text-anchor="middle">{}</text>').format(at, _number(tick)))
    if label:
        parts.append(Markup('<text class="name" x="50%" y="36" text-anchor="middle">{}</text>').format(label))
    return _stretched(parts, "axis", height=42 if label else 22)


def _stretched(parts: list[Markup], kind: str, *, height: float = ROW_HEIGHT) -> Markup:
    return Markup('<svg class="row {}" width="100%" height="{}" aria-hidden="true">{}</svg>').format(
        kind, height, EMPTY.join(parts)
    )


@dataclass(frozen=True)
class Plot:
    """A frame with two axes; lines, bands and dots are drawn in the units of the data."""

    x: Span
    y: Span
    x_label: str
    y_label: str
    title: str  # for screen readers
    width: float = 340
    height: float = 320
    left: float = 52
    bottom: float = 46
    top: float = 10
    right: float = 12

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Position of a data point in the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        inner = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * inner[0], self.height - self.bottom - up * inner[1]

    def _points(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in zip(xs, ys, strict=True))

    def line(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> Markup:
        return Markup('<polyline class="{}" points="{}"/>').format(kind, self._points(xs, ys))

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], kind: str) -> Markup:
        outline = f"{self._points(xs, low)} {self._points([*reversed(xs)], [*reversed(high)])}"
        return Markup('<polygon class="{}" points="{}"/>').format(kind, outline)

    def dot(self, x: float, y: float, kind: str, *, radius: float = 4, note: str = "") -> Markup:
        px, py = self.at(x, y)
        title = Markup("<title>{}</title>").format(note) if note else EMPTY
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}">{}</circle>').format(
            kind, px, py, radius, title
        )

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", kind: str = "note") -> Markup:
        px, py = self.at(x, y)
        return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
            kind, px, py, anchor, text
        )

    def draw(self, parts: Iterable[Markup], *, y_numbers: bool = True) -> Markup:
        """The complete picture: frame, ticks, names, then `parts` in their order."""
        (x0, y0), (x1, y1) = self.at(self.x[0], self.y[0]), self.at(self.x[1], self.y[1])
        frame = [
            Markup('<path class="frame" d="M{:.1f} {:.1f}V{:.1f}H{:.1f}"/>').format(x0, y1 if y_numbers else y0, y0, x1)
        ]
        for tick in ticks(*self.x):
            px, _ = self.at(tick, self.y[0])
            frame.append(
                Markup('<line class="frame" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(px, y0, y0 + 5)
            )
            frame.append(
                Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(px, y0 + 18, _number(tick))
            )
        for tick in ticks(*self.y) if y_numbers else []:
            _, py = self.at(self.x[0], tick)
            frame.append(
                Markup('<line class="frame" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>').format(x0 - 5, x0, py)
            )
            frame.append(
                Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(x0 - 8, py + 4, _number(tick))
            )
        across = Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>')
        frame.append(across.format((x0 + x1) / 2, self.height - 6, self.x_label))
        turned = Markup(
            '<text class="name" transform="translate(13 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
        )
        frame.append(turned.format((y0 + y1) / 2, self.y_label))
        head = Markup(
            '<svg class="plot" viewBox="0 0 {0:g} {1:g}" style="max-width:{0:g}px" role="img"><title>{2}</title>'
        )
        return head.format(self.width, self.height, self.title) + EMPTY.join([*frame, *parts]) + Markup("</svg>")


def roc(curve: RocCurve, *, title: str) -> Markup:
    """Sensitivity over 1 - specificity with its interval band; the diagonal is chance."""
    plot = Plot((0, 1), (0, 1), "1 − specificity", "sensitivity", title)
    parts = [plot.line([0, 1], [0, 1], "reference")]
    parts.append(plot.band(curve["fpr"], curve["low"], curve["high"], "band"))
    parts.append(plot.line(curve["fpr"], curve["tpr"], "main"))
    return plot.draw(parts)


def calibration(bins: Sequence[CalibrationBin], *, title: str, positive: str) -> Markup:
    """Observed share of the positive class against predicted probability, with a mark and an interval per bin."""
    plot = Plot((0, 1), (0, 1), f"predicted probability of {positive}", f"observed share of {positive}", title)
    parts = [plot.line([0, 1], [0, 1], "reference")]
    parts += [plot.line([b["predicted"]] * 2, [b["low"], b["high"]], "interval") for b in bins]
    parts.append(plot.line([b["predicted"] for b in bins], [b["observed"] for b in bins], "thin"))
    parts += [plot.dot(b["predicted"], b["observed"], "mean", note=f"n = {b['n']}") for b in bins]
    return plot.draw(parts)


def decision_curve(points: Sequence[DecisionPoint], *, title: str) -> Markup:
    """Net benefit over the threshold, of the model and of calling everyone positive; no decision gives zero."""
    found = [point["model"] for point in points]
    x = [point["threshold"] for point in points]
    low, high = scale_of(found, include=(0.0, points[0]["everyone"]))
    low = max(low, -0.2)
    plot = Plot((0, 1), (low, high), "threshold probability", "net benefit", title)
    shown = [(t, min(max(v, low), high)) for t, v in zip(x, found, strict=True)]
    everyone = [(p["threshold"], p["everyone"]) for p in points if p["everyone"] >= low]
    parts = [
        plot.line([0, 1], [0, 0], "reference"),
        plot.line([t for t, _ in everyone], [v for _, v in everyone], "thin"),
        plot.line([t for t, _ in shown], [v for _, v in shown], "main"),
    ]
    return plot.draw(parts)


def subjects_curve(curve: LearningCurve, *, title: str) -> Markup:
    """AUC over the number of training subjects with intervals; the dashed line is the fit and its continuation."""
    points, more = curve["points"], curve["more"]
    last = more[1]["subjects"]
    ends = [end for point in points for end in point["interval"]]
    fit = [(n, curve["limit"] - curve["loss"] / math.sqrt(n)) for n in _between(points[0]["subjects"], last)]
    y = scale_of([*ends, *(value for _, value in fit)], include=(0.5, 1.0))
    plot = Plot(rounded_scale([0.0, last * 1.02]), y, "training subjects", "AUC", title, width=480)
    parts = [plot.line([0, plot.x[1]], [0.5, 0.5], "reference"), plot.line(*_columns(fit), "validation-loss")]
    for point in points:
        parts.append(plot.line([point["subjects"]] * 2, point["interval"], "interval"))
        parts.append(plot.dot(point["subjects"], point["auc"], "mean", note=f"{point['auc']:.3f}"))
    return plot.draw(parts)


def _between(low: float, high: float, count: int = 40) -> list[float]:
    return [low + (high - low) * k / (count - 1) for k in range(count)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def scores(rows: Sequence[tuple[str, int, float]], classes: Sequence[str], *, title: str, x_label: str) -> Markup:
    """The score of each subject as a dot, in a separate band for each class; overlapping dots are moved apart.

    Args:
        rows: subject, class (0 or 1), score in 0..1.
        classes: names of class 0 and 1.
        title: for screen readers.
        x_label: name of the score.
    """
    radius, lanes = 3.4, 13
    plot = Plot((0, 1), (0, 2), x_label, "", title, width=700, height=230, left=16)
    parts = [plot.line([0.5, 0.5], [0, 2], "reference")]
    for number, name in enumerate(classes):
        mine = sorted((r for r in rows if r[1] == number), key=lambda row: row[2])
        parts.append(plot.text(0, number + 0.92, f"{name} (n = {len(mine)})"))
        last_in_lane = [-math.inf] * lanes
        for subject, _, score in mine:
            x, _ = plot.at(score, 0)
            free = [lane for lane in range(lanes) if x - last_in_lane[lane] >= 2 * radius + 1]
            lane = min(free or range(lanes), key=lambda k: abs(k - lanes // 2))
            last_in_lane[lane] = x
            height = number + 0.42 + (lane - lanes // 2) * 0.065
            parts.append(plot.dot(score, height, f"class{number}", radius=radius, note=f"{subject}: {score:.3f}"))
    return plot.draw(parts, y_numbers=False)


def permutation(result: Permutation, observed: float, *, title: str, x_label: str) -> Markup:
    """The observed score, with the mean and the 95 % range of the scores under shuffled labels."""
    span, mean = result["null_interval"], result["null_mean"]
    plot = Plot(scale_of([*span, observed, mean], step=0.05), (0, 1.25), x_label, "", title, width=480, height=130)
    parts = [
        plot.line(span, [0.5, 0.5], "interval"),
        plot.dot(mean, 0.5, "null"),
        plot.line([observed, observed], [0, 1.12], "main"),
        plot.text(observed, 1.16, f"observed {observed:.3f}", anchor="end" if observed > sum(plot.x) / 2 else "start"),
    ]
    return plot.draw(parts, y_numbers=False)


def learning_curves(drawn: Sequence[Sequence[CurveRow]], *, title: str) -> Markup | None:
    """Loss against epochs, with a line per curve and part of the data; None if no curve has an epoch."""
    rows = [row for curve in drawn for row in curve]
    kinds = [kind for kind in ("train_loss", "validation_loss") if any(kind in row for row in rows)]
    losses = [row[kind] for row in rows for kind in kinds if kind in row]
    if not losses:
        return None
    epochs = [row["epoch"] for row in rows]
    last, top = max(max(epochs), min(epochs) + 1), max(losses)
    y = 0.0, max(ticks(0, top * 1.05)[-1], top * 1.05)
    plot = Plot((min(epochs), last), y, "epoch", "loss", title, width=340, height=240)
    parts = []
    for kind in kinds:
        for curve in drawn:
            points = [(row["epoch"], row[kind]) for row in curve if kind in row]
            parts.append(plot.line([x for x, _ in points], [y for _, y in points], kind.replace("_", "-")))
            if len(points) == 1:  # a line with one point is invisible
                parts.append(plot.dot(*points[0], kind.replace("_", "-"), radius=2.5))
    return plot.draw(parts)
