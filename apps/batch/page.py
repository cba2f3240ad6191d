"""`voxelwave batch page`: the page of a folder of results, which opens from a disk and needs no network.

It shows the content of manifest.jsonl and the previews in the folders of the cases. Neither contains data that identify
a person; only the known fields of a line in the manifest are shown.
"""

import shutil
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ...runs.files import atomic_path
from .case_files import case_files_path
from .manifest import MANIFEST, read_manifest
from .options import Page
from .page_words import GLOSSARY, LABELS, TEXT_COLUMNS, column_words
from .preview_files import DRAWING, MOST_VOXELS, PICTURE, PREVIEWS, SCRIPT
from .run_facts import read_run_facts

INDEX, FILES = "index.html", "index_files"
TEMPLATE = Path(__file__).parent / "template"
PAGE = Path(__file__).parents[1] / "page"
STYLE, SORT = "report.css", "sort.js"  # shared with the reports
VIEWER = ("niivue.umd.js", "niivue.LICENSE.txt")
_MOST_COLUMNS = 8  # largest number of columns with metrics; other metrics are in the details of a case


def page(options: Page) -> None:
    """Run the command."""
    print(f"wrote {write_index(options.output)}")


def write_index(output: Path) -> Path:
    """Write index.html of a folder of results and return its path.

    Args:
        output: the folder that holds manifest.jsonl and the folders of the cases.

    Raises:
        OSError: `output` holds no manifest.
    """
    output = Path(output)
    if not (output / MANIFEST).is_file():
        raise FileNotFoundError(f"expected the folder of results of a batch, with {MANIFEST} in it; got {output}")
    entries = sorted(read_manifest(output).values(), key=lambda entry: str(entry["case"]))
    cases = [_case(output, entry) for entry in entries]
    if any(case["script"] for case in cases):
        _copy_viewer(output / FILES)
    environment = Environment(loader=FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("index.html.jinja").render(
        cases=cases,
        columns=_columns(cases),
        words={key: column_words(output, key) for case in cases for key in case["numbers"]},
        texts=[key for key in TEXT_COLUMNS if any(key in case["others"] for case in cases)],
        run=read_run_facts(output),
        glossary=[(column_words(output, key), GLOSSARY[key]) for key in _columns(cases) if key in GLOSSARY],
        only_eeg=bool(cases) and all(case["kind"] == "eeg" for case in cases),
        files=case_files_path(output).name if case_files_path(output).is_file() else "",
        counts=Counter(case["status"] for case in cases),
        started=min((case["started"] for case in cases if case["started"]), default=""),
        seconds=sum(case["seconds"] or 0 for case in cases),
        viewer=f"{FILES}/{VIEWER[0]}",
        licence=f"{FILES}/{VIEWER[1]}",
        most_voxels=MOST_VOXELS,
        version=_version(),
        style=Markup(_read("batch.css") + (PAGE / STYLE).read_text()),
        scripts=Markup((PAGE / SORT).read_text() + _read("page.js")),
    )
    path = output / INDEX
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _case(output: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The values that the page shows of one line of the manifest."""
    name = str(entry["case"])
    error, warnings = entry.get("error"), [str(text) for text in entry.get("warnings") or []]
    status = str(entry.get("status", ""))
    if status == "failed" and str(error).startswith("refused"):
        status = "refused"
    beside = {kind: output / name / kind for kind in (SCRIPT, PICTURE, DRAWING)} if status == "done" else {}
    there = {kind: quote(f"{name}/{kind}") for kind, path in beside.items() if path.is_file()}
    shown = [str(path) for path in entry.get("outputs") or [] if PREVIEWS not in Path(path).parts]
    metrics = entry.get("metrics") or {}
    return {
        "name": name,
        "anchor": quote(name),
        "status": status,
        "kind": str(entry.get("kind", "")),
        "picture": there.get(PICTURE) or there.get(DRAWING),
        "label": LABELS.get(str(entry.get("kind", "")), "input | result"),
        "script": there.get(SCRIPT),
        "numbers": {key: value for key, value in metrics.items() if _is_number(value)},
        "others": {key: str(value) for key, value in metrics.items() if not _is_number(value)},
        "warnings": warnings,
        "error": None if error is None else str(error),
        "seconds": entry.get("seconds"),
        "started": str(entry.get("started") or ""),
        "files": [(path.removeprefix(f"{name}/"), quote(path)) for path in shown],
    }


def _columns(cases: list[dict[str, Any]]) -> list[str]:
    """The names of the metrics that most cases have, in order of first occurrence."""
    counts = Counter(key for case in cases for key in case["numbers"])
    chosen = {key for key, _ in counts.most_common(_MOST_COLUMNS)}
    return [key for key in counts if key in chosen]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _copy_viewer(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in VIEWER:
        source = TEMPLATE / name
        if not (folder / name).is_file() or (folder / name).stat().st_size != source.stat().st_size:
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(source, temporary)


def _read(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _version() -> str:
    try:
        return version("voxelwave")
    except PackageNotFoundError:
        return ""
