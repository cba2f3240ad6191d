"""Fixtures of the tests of files."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dicom_errors() -> Callable[[Path], set[str]]:
    """What dciodvfy finds wrong in a DICOM file, without the numbers of sequence items."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("needs dciodvfy (Debian package dicom3tools)")

    def errors(file: Path) -> set[str]:
        run = subprocess.run([program, "-new", str(file)], capture_output=True, text=True, errors="replace")
        lines = [line for line in (run.stderr + run.stdout).splitlines() if line.startswith("Error")]
        return {re.sub(r"\[\d+\]| Item #\d+", "", line) for line in lines}

    return errors
