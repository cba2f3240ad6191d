"""Pages of the site that come from the package: commands, Python interface, mechanisms, notebooks, model cards."""

import atexit
import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import shutil
import tempfile
from pathlib import Path

import jupytext
import matplotlib
import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from voxelwave.apps.options import Options
from voxelwave.apps.tools.reference import command_pages, option_table
from voxelwave.kernels.attention.choice import mechanisms, settings_of

ROOT = Path(__file__).resolve().parents[1]
matplotlib.use("Agg")
PACKAGES = ("registration", "restoration", "eeg", "scanpath", "volumes", "kernels.attention", "kernels.scan")


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let mkdocstrings read the package beside these pages, whatever the name of its folder."""
    place = Path(tempfile.mkdtemp(prefix="voxelwave-docs-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)  # removes the link, not the folder behind it
    (place / "voxelwave").symlink_to(ROOT, target_is_directory=True)
    python = config.plugins["mkdocstrings"].config["handlers"]["python"]  # type: ignore[attr-defined]
    python["paths"] = [str(place)]
    python["options"]["extensions"] = [str(ROOT / "docs" / "examples.py")]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages."""
    pages: dict[str, str | bytes] = {f"commands/{name}.md": text for name, text in command_pages().items()}
    pages |= {f"api/{name.replace('.', '_')}.md": api_page(name) for name in PACKAGES}
    for card in sorted(ROOT.glob("*/shipped/*.md")):
        text = card.read_text().replace("](../../docs/pictures/", "](../pictures/")
        pages[f"cards/{card.name}"] = re.sub(
            r"\]\((?!https?:|\.\./pictures/)[^)]*\)", "]", text
        )  # links into the repository
    for script in sorted((ROOT / "docs" / "notebooks").glob("*.py")):
        pages |= notebook_page(script)
    screen = option_table(Options, [field.name for field in dataclasses.fields(Options)])
    filled = {"command_line.md": ("<!-- options of the screen -->", screen)}
    filled["mechanisms.md"] = ("<!-- table of mechanisms -->", mechanism_table())
    for name, (place, table) in filled.items():
        files.remove(files.src_uris[name])
        pages[name] = (ROOT / "docs" / name).read_text().replace(place, table)
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def api_page(package: str) -> str:
    """The public names of a package, which mkdocstrings describes from their docstrings."""
    module = importlib.import_module(f"voxelwave.{package}")
    parts = [
        f"# voxelwave.{package}",
        (inspect.getdoc(module) or "").strip(),
        f"`from voxelwave.{package} import NAME`",
    ]
    values = {name: getattr(module, name) for name in sorted(module.__all__, key=str.lower)}
    for name, value in values.items():
        described = inspect.isclass(value) or inspect.isfunction(value)
        parts.append(f"::: {value.__module__}.{name}" if described else f"## {name}\n\nA type: `{value}`")
    return "\n\n".join(parts) + "\n"


def mechanism_table() -> str:
    """A table of the attention mechanisms that a configuration can name."""
    rows = ["| name | what it does | settings | patterns |", "| --- | --- | --- | --- |"]
    for name, kind in mechanisms().items():
        found = kind.patterns if isinstance(kind.patterns, frozenset) else None  # a property if settings decide
        patterns = "depends on the settings" if found is None else ", ".join(sorted(one.value for one in found))
        settings = ", ".join(f"`{one}`" for one in settings_of(name))
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{name}` | {summary} | {settings} | {patterns} |")
    return "\n".join(rows)


def notebook_page(script: Path) -> dict[str, str | bytes]:
    """Run a notebook, and give its page with all outputs, its pictures and the file to download.

    Args:
        script: a Python file with cells after `# %%`.

    Raises:
        RuntimeError: a cell ends with an error.
    """
    notebook = jupytext.read(script)
    pages: dict[str, str | bytes] = {f"notebooks/{script.stem}.ipynb": jupytext.writes(notebook, fmt="ipynb")}
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("voxelwave-demo").mkdir()
        Path("voxelwave-demo", "data").symlink_to(ROOT / "apps" / "demo" / "data")
        shell = InteractiveShell.instance()
        shell.reset()
        shown: list[dict[str, str]] = []
        shell.displayhook.write_output_prompt = lambda: None
        shell.displayhook.write_format_data = lambda data, *_: shown.append(data)
        for cell in notebook.cells:
            parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
            if cell.cell_type == "markdown":
                continue
            shown.clear()
            with capture_output() as captured:
                result = shell.run_cell(cell.source)
            if not result.success:
                raise RuntimeError(f"{script.name}: {cell.source}") from (
                    result.error_in_exec or result.error_before_exec
                )
            if captured.stdout:
                parts.append(f"```text\n{captured.stdout.rstrip()}\n```")
            parts += [one.get("text/html") or f"```text\n{one['text/plain']}\n```" for one in shown]
            for number in plt.get_fignums():
                stream, name = io.BytesIO(), f"{script.stem}-{len(pages)}.png"
                plt.figure(number).savefig(stream, dpi=80)
                plt.close(number)
                pages[f"notebooks/{name}"] = stream.getvalue()
                parts.append(f"![The picture that this cell draws]({name})")
    parts.append(f"[Download this page as a notebook]({script.stem}.ipynb)")
    return {**pages, f"notebooks/{script.stem}.md": "\n\n".join(parts) + "\n"}
