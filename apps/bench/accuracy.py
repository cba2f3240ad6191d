"""`voxelwave bench keep` and `bench accuracy`: measured results as small records, and the page of accuracy from them.

A record of a repository is a JSON file of the type `Kept`. `keep` makes it from the record of a run: it keeps means,
intervals and rows, and leaves out people, files and paths. The page is the template accuracy.md.jinja in the folder of
the records, in which every figure names its record.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from jinja2 import Environment, StrictUndefined, TemplateError, UndefinedError

from ...runs.files import atomic_path
from ...runs.json_files import read_json, write_json
from ...runs.json_types import read_record
from .options import TEMPLATE, Accuracy, Keep

OWN_RECORD = "the record of the run"


class Kept(TypedDict):
    """A measured result, as it is kept in a repository."""

    command: str | None
    seed: int | list[int] | None
    date: str
    data: str
    machine: str
    versions: dict[str, str]
    source: str
    figures: dict[str, Any]


def keep(options: Keep) -> None:
    """Run the command."""
    record = read_json(options.record)
    kept = kept_record(record, data=options.data, source=options.record)
    write_json(options.output, kept)
    print(f"wrote {options.output}: {', '.join(kept['figures'])}")


def kept_record(record: Mapping[str, Any], *, data: str, source: object = "the record") -> Kept:
    """The small record of a run's record.

    Args:
        record: results.json of nested-cv or cross-validate, or a record of a benchmark or an evaluation.
        data: the data in words.
        source: the file, for the message.

    Raises:
        ValueError: the record lacks command, date or figures.
    """
    missing = [name for name in ("command", "created", "hardware", "versions") if name not in record]
    if missing:
        raise ValueError(
            f"{source} must be the record of a measurement by this version, such as results.json of nested-cv, or the"
            f" .json of a benchmark or an evaluation; {', '.join(missing)} is missing"
        )
    figures = _figures(record)
    if not figures:
        raise ValueError(f"{source} holds no figures: expected one of models, results, mean, means, rows, tables")
    options = record.get("options") or {}
    seed = record.get("seed", options.get("seed"))
    return {
        "command": _without_folders(record["command"]),
        "seed": record["splits"]["seeds"] if seed is None and "splits" in record else seed,
        "date": record["created"][:10],
        "data": data,
        "machine": record["hardware"],
        "versions": dict(record["versions"]),
        "source": OWN_RECORD,
        "figures": figures,
    }


def _figures(record: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a record, without people, files and single cases."""
    figures: dict[str, Any] = {}
    if "models" in record:  # results.json of a nested run, or of one where nothing is fitted
        chosen = [model for model in record["models"] if model.get("protocol", "nested") == "nested"]
        figures["models"] = {model["name"]: _metrics(model["metrics"]) for model in chosen}
        others = [model for model in record["models"] if model.get("protocol", "nested") != "nested"]
        if others:
            figures["other_protocols"] = {
                f"{model['name']}, {model['protocol']}": _metrics(model["metrics"]) for model in others
            }
    if "comparisons" in record:
        figures["comparisons"] = record["comparisons"]
    if "stress" in record:
        rows = [row for row in record["stress"]["rows"] if row["figures"] is not None]
        figures["stress"] = {
            row["name"]: {"title": row["title"], **{k: v for k, v in row["figures"].items() if k != "per_fold"}}
            for row in rows
        }
    if "learning" in record:
        figures["learning"] = [{"subjects": p["subjects"], "auc": p["auc"]} for p in record["learning"]["points"]]
        figures["more"] = [{"subjects": p["subjects"], "auc": p["auc"]} for p in record["learning"]["more"]]
    for name in ("results", "differences", "mean", "means", "tables", "summary", "planted", "shuffled", "bands"):
        if name in record:
            figures[name] = record[name]
    if "rows" in record:
        figures["rows"] = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in record["rows"]]
    if "seconds" in record and figures:
        figures["seconds"] = record["seconds"]
    return figures


def _metrics(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """name -> mean, low, high."""
    return {name: [found["mean"], *found["interval_nb"]] for name, found in metrics.items()}


def _without_folders(command: str) -> str:
    """The command with the names of files in place of their absolute paths, which mean nothing elsewhere."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in shlex.split(command)]
    return shlex.join(words)


def accuracy(options: Accuracy) -> None:
    """Run the command."""
    output = options.output or options.results / "accuracy.md"
    text = accuracy_page(options.results)
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {output}")


def accuracy_page(folder: Path) -> str:
    """The page of accuracy, from the records in a folder and the template beside them.

    Raises:
        ValueError: a record lacks a key, or the template names a figure that no record holds.
    """
    records: dict[str, Kept] = {path.stem: read_record(path, Kept) for path in sorted(folder.glob("*.json"))}
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {
        **{"d": _decimals, "to": _to, "interval": _interval, "change": _change, "words": _words},
        **{"pick": _pick, "where": _where, "highest": _highest, "lowest": _lowest, "figures_of": _figures_of},
    }
    figures = {name: record["figures"] for name, record in records.items()}
    command = "voxelwave bench accuracy docs/results -o docs/accuracy.md --overwrite"
    try:
        template = environment.from_string((folder / TEMPLATE).read_text(encoding="utf-8"))
        page = template.render(records=records, results=figures, command=command)
    except UndefinedError as error:
        raise ValueError(f"{folder / TEMPLATE} names a figure that no record in {folder} holds: {error}") from error
    except TemplateError as error:
        raise ValueError(f"{folder / TEMPLATE} is no template: {error}") from error
    page = re.sub(r"[ \t]+$", "", page, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n"


# filters of the template


def _decimals(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _to(pair: Sequence[float], digits: int) -> str:
    low, high = pair
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _interval(found: Sequence[float | None]) -> str:
    """Mean and interval, or the mean alone if the interval was not kept.

    Example:
        >>> _interval([0.836, 0.79, 0.88])
        '0.836 (0.79 to 0.88)'
    """
    mean, low, high = found
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} ({_to((low, high), 2)})"


def _change(row: Mapping[str, Any]) -> str:
    return f"{row['difference']:.2f} ({_to(row['interval'], 2)})"


def _words(value: Any) -> str:
    """A value of a record in a cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "not kept"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "not kept" if value is None else str(value)


def _where(rows: Sequence[Mapping[str, Any]], **known: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row.get(k) == v for k, v in known.items())]


def _pick(rows: Sequence[Mapping[str, Any]], **known: Any) -> Mapping[str, Any]:
    """The one row with these values."""
    found = _where(rows, **known)
    if len(found) != 1:
        raise ValueError(f"expected one row with {known} in a record of the page, found {len(found)}")
    return found[0]


def _figures_of(methods: Sequence[str], rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The figure with this name of each method, in the order of the methods."""
    return [_pick(rows, method=method)[name] for method in methods]


def _highest(values: Sequence[float], digits: int, unit: str = "") -> list[str]:
    """The values as text, the highest in bold.

    Example:
        >>> _highest([0.730, 0.727], 3)
        ['**0.730**', '0.727']
    """
    return _bold(values, max(values), digits, unit)


def _lowest(values: Sequence[float], digits: int, unit: str = "") -> list[str]:
    return _bold(values, min(values), digits, unit)


def _bold(values: Sequence[float], best: float, digits: int, unit: str) -> list[str]:
    return [f"**{v:.{digits}f}{unit}**" if v == best else f"{v:.{digits}f}{unit}" for v in values]
