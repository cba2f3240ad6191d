"""Pages of the documentation site that come from the package: the reference of commands, and the model cards."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from voxelwave.apps.tools.reference import command_reference

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages."""
    files.append(File.generated(config, "commands.md", content=command_reference()))
    for card in sorted(ROOT.glob("*/shipped/*.md")):
        text = re.sub(r"\]\((?!https?:)[^)]*\)", "]", card.read_text())  # links into the repository
        files.append(File.generated(config, f"cards/{card.name}", content=text))
    return files
