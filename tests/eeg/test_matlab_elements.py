"""MATLAB files are refused if SciPy refuses them or would crash on them, and otherwise accepted."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from voxelwave.eeg.matlab_elements import check_matlab

EXAMPLES = sorted((Path(scipy.io.matlab.__file__).parent / "tests" / "data").glob("*.mat"))


@pytest.fixture
def stored(tmp_path):
    """A .mat with a structure, cells, text and numbers, and its bytes."""
    content = {"a": np.arange(12.0).reshape(3, 4), "s": {"name": "Fp1", "cells": np.array(["x", 2], object)}}
    scipy.io.savemat(tmp_path / "a.mat", content)
    return tmp_path / "a.mat", (tmp_path / "a.mat").read_bytes()


@pytest.mark.skipif(not EXAMPLES, reason="SciPy was installed without its tests")
def test_files_of_many_programs_pass_if_scipy_reads_them():
    refused = set()
    for file in EXAMPLES:
        try:
            check_matlab(file)
        except ValueError:
            refused.add(file.name)
    for name in refused:
        with pytest.raises(Exception):  # noqa: B017  SciPy has many
            scipy.io.loadmat(next(file for file in EXAMPLES if file.name == name))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 3)),
        np.array([1 + 2j]),
        "text",
        np.array(["a", "bc"], object),
        {"x": {"y": {}}},
        np.array([True]),
        scipy.sparse.eye_array(3).tocsc(),
    ],
)
def test_all_kinds_of_arrays_pass(value, compressed, tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"a": value, "b": 1.0}, do_compression=compressed)
    check_matlab(tmp_path / "a.mat")


def test_every_cut_within_an_array_is_refused(stored):
    file, content = stored
    for stop in range(137, len(content), 8):
        file.write_bytes(content[:stop])
        try:
            scipy.io.loadmat(file)
        except Exception:  # then we must refuse it too
            with pytest.raises(ValueError, match=r"a\.mat is damaged or cut off"):
                check_matlab(file)


def test_wrong_sizes_never_end_the_process(stored, tmp_path):
    """Each word of the file in turn becomes 1, 2^31 - 1 or 3 x 10^9; accepted files are read in a separate process."""
    file, content = stored
    passed = tmp_path / "passed"
    passed.mkdir()
    for place in range(128, len(content) - 4, 4):
        for number, value in enumerate((1, 2**31 - 1, 3 * 10**9)):
            file.write_bytes(content[:place] + struct.pack("<I", value) + content[place + 4 :])
            try:
                check_matlab(file)
            except ValueError:
                continue
            (passed / f"{place}-{number}.mat").write_bytes(file.read_bytes())
    code = (
        "import pathlib, scipy.io, sys\n"
        "for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: scipy.io.loadmat(file)\n"
        "    except Exception: pass\n"
        "print('survived')"
    )
    found = subprocess.run([sys.executable, "-c", code, passed], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "survived\n"), found.stderr[-500:]
