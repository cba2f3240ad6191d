"""The imports of the package: its layers, no circular imports, and imports at the top of each file."""

import ast
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "runs": 0,
    "kernels": 1,
    "volumes": 2,
    "attention_analysis": 3,
    "eeg": 3,
    "registration": 3,
    "restoration": 3,
    "scanpath": 3,
    "apps": 4,
}
LISTED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


def _modules() -> dict[str, Path]:
    """The name of a module, with dots, below the package -> its file."""
    folders = [ROOT.joinpath(*package.split(".")[1:]) for package in LISTED if package != "voxelwave"]
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    names = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return {".".join(n[:-1] if n[-1] == "__init__" else n): file for n, file in zip(names, files, strict=True)}


MODULES = _modules()


def _imported(name: str, file: Path, node: ast.ImportFrom) -> list[str]:
    """The modules of this package that an import statement names."""
    if node.level == 0:
        if not (node.module or "").startswith("voxelwave"):
            return []
        start = (node.module or "").split(".")[1:]
    else:
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        start = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
    found = [".".join([*start, alias.name]) for alias in node.names]
    return [path if path in MODULES else ".".join(start) for path in found]


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _statements(body: Iterable[ast.stmt]) -> Iterable[ast.stmt]:
    """All statements of a body, also those inside others; expressions hold none."""
    for statement in body:
        yield statement
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(statement, part, ()))


@cache
def _imports() -> dict[str, set[str]]:
    """The modules of this package that each of its modules imports."""
    found = {}
    for name, file in MODULES.items():
        nodes = [n for n in _statements(_parsed(file).body) if isinstance(n, ast.ImportFrom)]
        found[name] = {m for node in nodes for m in _imported(name, file, node)} - {name}
    return found


def test_the_walk_sees_the_package():
    assert len(MODULES) > 150
    assert "volumes.read" in _imports()["volumes"]


def test_imports_point_downwards():
    wrong = []
    for name, found in _imports().items():
        layer = name.split(".")[0]
        others = {other for other in found if other and other.split(".")[0] != layer}
        wrong += [(name, other) for other in sorted(others) if LAYERS[other.split(".")[0]] >= LAYERS[layer]]
    assert wrong == []


def test_no_imports_go_in_a_circle():
    left = {name: {other for other in found if other in MODULES} for name, found in _imports().items()}
    while leaves := {name for name, found in left.items() if not found}:
        left = {name: found - leaves for name, found in left.items() if name not in leaves}
    assert left == {}  # remaining modules are part of a circle, or are imported by such modules


def test_nothing_imports_the_command_line():
    assert [name for name, found in _imports().items() if "apps.cli" in found] == []


# imports inside a function: module -> the packages, each of them optional or needed by a single option
INNER = {
    "apps.batch.find": {"pydicom", "volumes"},  # pydicom takes half a second to load: only if there are DICOM files
    "apps.batch.task": {"preview", "pydicom"},  # the readers of images take a second to load: only if a case is done
    "apps.restoration.restore": {"single"},  # torch takes a second to load: not for a folder with nothing to do
    "apps.make_report": {"eeg"},  # only for a run of EEG networks, which need the extra "eeg"
    "apps.nested_cv.search": {"optuna"},  # only if settings are searched
    "eeg.readers": {"mne_bids"},  # optional: only for BIDS folders
    "kernels.scan.benchmark_ggml": {"ggml"},  # optional peer
    "kernels.scan.triton": {"triton_device"},  # Triton exists on Linux only
    "kernels.scan.triton_aot": {"triton"},
    "kernels.scan.triton_benchmark": {"mamba_ssm"},  # optional peer
    "registration.convexadam": {"convexAdam"},  # optional: a peer of the benchmark
    "registration.exported": {"onnx_operators"},  # optional: onnxscript
    "registration.greedy": {"picsl_greedy"},  # optional: a peer of the benchmark
    "restoration.baselines": {"bm3d"},  # optional: not free for commercial use
    "restoration.exported": {"kernels"},  # optional: onnxscript
    "restoration.images": {"volumes"},  # highdicom takes a second to load: only for DICOM results
    "runs.memory": {"resource"},  # not on Windows
    "runs.onnx_file": {"onnxruntime"},  # optional
    "runs.workers": {"distributed", "submitit"},  # optional: clusters
    "volumes.dicom_stack": {"highdicom"},  # takes a second to load: only for DICOM series
    "volumes.tilt": {"scipy"},  # takes half a second to load: only for tilted scans
    "volumes.convert": {"torch"},  # only for images of MONAI and TorchIO
}


def _inner_imports(file: Path) -> set[str]:
    """The first parts of the names that are imported inside functions."""
    functions = [n for n in _statements(_parsed(file).body) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    nodes = [node for function in functions for node in _statements(function.body)]
    plain = {alias.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    of_module = {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    return (
        plain | of_module | {a.name for n in nodes if isinstance(n, ast.ImportFrom) and not n.module for a in n.names}
    )


def test_imports_stand_at_the_top_of_the_file():
    found = {name: _inner_imports(file) for name, file in MODULES.items()}
    assert {name: packages for name, packages in found.items() if packages} == INNER
