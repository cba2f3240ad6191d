"""`voxelwave doctor`: the state of the installation and of the machine."""

import os
import platform
import shutil
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...kernels import native
from ...runs.catalogue import list_weights
from ...runs.exit import DONE, ERROR
from ...runs.extras import EXTRAS, PIP_NAMES
from ...runs.memory import free_memory
from ...runs.outcome import add_outcome
from ...runs.record import hardware
from .options import Doctor

# what each field needs: import name -> name for pip
_NEEDS = {
    "registration": {"nibabel": "nibabel", "highdicom": "highdicom"},
    "restoration": {"skimage": "scikit-image", "pywt": "PyWavelets", "tifffile": "tifffile", "PIL": "pillow"},
    "eeg": {"mne": "mne", "sklearn": "scikit-learn", "jinja2": "jinja2"},
    "scanpath": {"scipy": "scipy", "matplotlib": "matplotlib"},
}
# extra -> its use; the packages are those of `EXTRAS` and, for the others, these
_USES = {
    "train": "training and benchmarks of registration, restoration and scanpaths",
    "eeg": "training and nested cross-validation of EEG networks",
    "registration": "--method syn and .h5 transforms",
    "bids": "channels.tsv and events.tsv of BIDS folders",
    "export": "ONNX files",
    "cluster": "--cluster",
}
_MORE = {
    "bids": ("mne_bids",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "cluster": ("distributed", "submitit"),
}
_PEERS = {"bm3d": "the comparison with BM3D", "braindecode": "its EEGClassifier with our networks"}
_GIB = 2**30


def doctor(options: Doctor) -> int:
    """Run the command and return its exit code."""
    found = {"versions": _versions(), **_machine(options.output), "kernels": _kernels()}
    for title, value in found.items():
        print(f"{title:<14}{_shown(value)}")
    missing = {
        field: [pip for name, pip in needs.items() if find_spec(name) is None] for field, needs in _NEEDS.items()
    }
    print()
    for field, packages in missing.items():
        weights = ", ".join(entry.name for entry in list_weights(field)) or "none"
        state = f"lacks {', '.join(packages)}: pip install {' '.join(packages)}" if packages else "ready"
        print(f"{field:<14}{state}; weights: {weights}")
    packages_of = {**EXTRAS, **_MORE}
    absent = {extra: [name for name in packages_of[extra] if find_spec(name) is None] for extra in _USES}
    for extra, names in absent.items():
        if names:
            pip_names = ", ".join(PIP_NAMES.get(name, name) for name in names)
            print(f'{"optional":<14}not installed: {pip_names}, for {_USES[extra]}: pip install "voxelwave[{extra}]"')
    peers = [name for name in _PEERS if find_spec(name) is None]
    for name in peers:
        print(f"{'optional':<14}not installed: {name}, for {_PEERS[name]}: pip install {name}")
    optional = [*(extra for extra, names in absent.items() if names), *peers]
    add_outcome(**found, missing=missing, optional=optional)
    return ERROR if any(missing.values()) else DONE


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("voxelwave", "torch", "numpy", "scipy", "nibabel", "pydicom", "mne", "antspyx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _machine(folder: Path) -> dict[str, Any]:
    """Processor, threads, GPU, memory and disk."""
    existing = folder.absolute()
    while not existing.is_dir():
        existing = existing.parent
    free, disk = free_memory(), shutil.disk_usage(existing)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use; --device cpu is used"
    if torch.backends.mps.is_available():
        gpu += "; Apple's mps is not supported"
    return {
        "processor": hardware(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "memory": "unknown" if free is None else f"{free / _GIB:.1f} GiB free",
        "disk": f"{disk.free / _GIB:.1f} GiB free in {existing}"
        + ("" if os.access(existing, os.W_OK) else ", which cannot be written"),
        "compiler": next((p for name in ("c++", "g++", "clang++", "cl") if (p := shutil.which(name))), "none found"),
    }


def _kernels() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below
        levels = native.levels()
    on_gpu = "; on the GPU Triton" if torch.cuda.is_available() and find_spec("triton") else ""
    if not levels:
        return f"plain PyTorch, slow: {native.LIBRARY.name} is missing; install a C++ compiler and reinstall{on_gpu}"
    return f"compiled, level {levels[0]} ({native.LIBRARY}){on_gpu}"


def _shown(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
