"""Run the examples in the docstrings."""

import doctest
import importlib
import pkgutil

import numpy
import pytest
import torch

import voxelwave

OPTIONAL = {
    "dask",
    "submitit",
    "triton",
    "mne",
    "optuna",
    "braindecode",
    "onnxscript",
    "onnx_ir",
}  # a module that needs one of these packages may be absent
NAMES = sorted(m.name for m in pkgutil.walk_packages(voxelwave.__path__, "voxelwave.") if ".tests" not in m.name)


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
    except OSError as error:  # some builds of PyTorch cannot import braindecode
        pytest.skip(str(error))
    torch.manual_seed(0)
    names = {"np": numpy, "numpy": numpy, "torch": torch}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(module, extraglobs=names, optionflags=flags)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} fail"
