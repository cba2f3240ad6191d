"""The check of pages by html-validate (`npm install html-validate`), from $VOXELWAVE_HTML_VALIDATE or the path."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = os.environ.get("VOXELWAVE_HTML_VALIDATE") or shutil.which("html-validate")
CONFIG = Path(__file__).with_name("htmlvalidate.json")


def html_faults(*pages: Path, config: Path = CONFIG) -> list[str]:
    """The faults that html-validate finds, one line each; skips the test if there is no html-validate."""
    if PROGRAM is None:
        pytest.skip("needs html-validate (npm install html-validate)")
    words = [PROGRAM, "--config", str(config), "--formatter", "text", *map(str, pages)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    if done.returncode and not done.stdout.strip():  # it broke, for example because Node is too old for it
        pytest.skip(f"html-validate does not run here: {done.stderr[:200]}")
    return done.stdout.splitlines()
