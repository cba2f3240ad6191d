"""Networks as programs of `torch.export` and as ONNX files, which other programs run without PyTorch or voxelwave.

An ONNX file is checked by onnxruntime against the network before it appears. onnx, onnxscript and onnxruntime are
optional: pip install "voxelwave[export]".
"""

import importlib.util
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .catalogue import Entry, entry_of
from .files import atomic_path
from .version import __version__

OPSET = 20
ROUNDING = 1e-4  # largest difference between onnxruntime and PyTorch, relative to the largest value of an output

Translations = Mapping[Callable[..., Any], Callable[..., Any]]


@dataclass(frozen=True)
class Size:
    """A size of the inputs that is known only when the program runs.

    Args:
        least: the smallest size.
        most: the largest size; None for no limit.
        multiple: the size is a multiple of this number, as are `least` and `most`.
        meaning: the meaning of the size, in a few words.
    """

    least: int = 1
    most: int | None = None
    multiple: int = 1
    meaning: str = ""

    @property
    def words(self) -> str:
        """The allowed sizes in words."""
        parts = [f"at least {self.least}"] if self.least > 1 else []
        parts += [f"at most {self.most}"] if self.most is not None else []
        parts += [f"a multiple of {self.multiple}"] if self.multiple > 1 else []
        return ", ".join(parts) or "any"


@dataclass(frozen=True, eq=False)
class Exportable:
    """A network with the description that its export needs.

    Args:
        network: in evaluation mode; it takes the inputs by position.
        inputs: name of each input -> its axes: a number, or the name of one of `sizes`.
        outputs: names of the outputs.
        sizes: the dynamic sizes by name.
        example: makes the inputs for given sizes.
        tried: two sets of sizes; the first is traced, and results are compared at both.
        preprocessing: how the inputs are made from data, and the meaning of the outputs, as plain values.
        card: the description in the weight file, as plain values.
        weights: the weight file.
        translations: makes the functions that write operators of our own as nodes of ONNX.
    """

    network: nn.Module
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    sizes: Mapping[str, Size]
    example: Callable[[Mapping[str, int]], tuple[Tensor, ...]]
    tried: tuple[Mapping[str, int], Mapping[str, int]]
    preprocessing: Mapping[str, Any]
    card: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    translations: Callable[[], Translations] | None = None


@dataclass(frozen=True)
class Written:
    """What `write_onnx` wrote.

    Args:
        bytes: size of the file.
        difference: the largest difference from PyTorch at the tried sizes, relative to the largest value of the output;
            None if onnxruntime is not installed.
    """

    bytes: int
    difference: float | None


def exported_program(exportable: Exportable, *, strict: bool = False) -> ExportedProgram:
    """The network as a program of `torch.export` with dynamic sizes.

    Args:
        exportable: the network.
        strict: trace the bytecode of Python too, as `torch.export` describes.

    Raises:
        ValueError: the network cannot be traced.
    """
    dims = {name: _dim(name, size) for name, size in exportable.sizes.items()}
    shapes = tuple(
        {axis: dims[size] for axis, size in enumerate(axes) if isinstance(size, str)}
        for axes in exportable.inputs.values()
    )
    arguments = exportable.example(exportable.tried[0])
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(exportable.network, arguments, dynamic_shapes=shapes, strict=strict)
    except Exception as error:  # the tracer raises many kinds
        raise ValueError(f"{_name(exportable)} cannot be exported: {_reason(error)}") from error


def write_onnx(path: str | os.PathLike[str], exportable: Exportable) -> Written:
    """Write the network as an ONNX file, checked by onnxruntime if that is installed.

    The metadata of the file hold voxelwave.version, voxelwave.network, voxelwave.sizes, voxelwave.preprocessing and
    voxelwave.card; all but the first two are JSON.

    Args:
        path: the file to write, which ends in .onnx.
        exportable: the network.

    Raises:
        ValueError: onnx or onnxscript is missing, the network cannot be exported, or onnxruntime computes something
            else; no file is written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path must end in .onnx, got {path}")
    program = exported_program(exportable)
    table = None if exportable.translations is None else dict(exportable.translations())
    try:
        with torch.no_grad(), _quiet():
            written = torch.onnx.export(
                program,
                (),
                input_names=list(exportable.inputs),
                output_names=list(exportable.outputs),
                opset_version=OPSET,
                custom_translation_table=table,
                verbose=False,
            )
    except Exception as error:  # the converter raises many kinds
        raise ValueError(f"{_name(exportable)} cannot be written as ONNX: {_reason(error)}") from error
    assert written is not None
    model = written.model
    _name_sizes(model, exportable)
    model.producer_name, model.producer_version = "voxelwave", __version__
    model.metadata_props.update(_metadata(exportable))
    with atomic_path(path) as temporary:
        written.save(temporary)
        difference = _difference(temporary, exportable)
        if difference is not None and not difference <= ROUNDING:
            raise ValueError(
                f"{path} is not written: onnxruntime differs from PyTorch by {difference:.1e} of the largest value, and"
                f" rounding explains {ROUNDING:.0e}"
            )
        return Written(temporary.stat().st_size, difference)


def entry_and_card(weights: Path) -> dict[str, Any]:
    """The entry in the catalogue and the model card beside a weight file, as plain values; empty without them."""
    entry: Entry | None = entry_of(weights)
    if entry is None:
        return {}
    given = {name: value for name, value in asdict(entry).items() if name != "file"}
    card = {"model_card": entry.card.read_text()} if entry.card.is_file() else {}
    return {"catalogue": given, **card}


def _dim(name: str, size: Size) -> Any:
    step = size.multiple
    limits = {"min": max(1, size.least // step)} | ({} if size.most is None else {"max": size.most // step})
    return Dim(name, **limits) if step == 1 else step * Dim(f"{name}_by_{step}", **limits)


def _difference(path: Path, exportable: Exportable) -> float | None:
    """The largest difference between onnxruntime and PyTorch, relative to the largest value of each output."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for sizes in exportable.tried if exportable.sizes else exportable.tried[:1]:
        arguments = exportable.example(sizes)
        with torch.no_grad():
            expected = exportable.network(*arguments)
        expected = expected if isinstance(expected, tuple) else (expected,)
        named = {name: tensor.numpy() for name, tensor in zip(exportable.inputs, arguments, strict=True)}
        for wanted, found in zip(expected, map(torch.from_numpy, session.run(None, named)), strict=True):
            if wanted.shape != found.shape or not torch.equal(wanted.isfinite(), found.isfinite()):
                return torch.inf
            finite = wanted.isfinite()
            largest = wanted[finite].abs().amax().clamp_min(torch.finfo(wanted.dtype).tiny)
            worst = max(worst, float((found - wanted)[finite].abs().amax() / largest))
    return worst


def _name_sizes(model: Any, exportable: Exportable) -> None:
    """Give the dynamic sizes their names in place of the tracer's symbols."""
    symbols: dict[str, str] = {}
    for value, axes in zip(model.graph.inputs, exportable.inputs.values(), strict=True):
        for dim, axis in zip(value.shape, axes, strict=True):
            symbol = re.search(r"s\d+", str(dim))
            if isinstance(axis, str) and symbol is not None:
                step = exportable.sizes[axis].multiple
                symbols[symbol.group()] = axis if step == 1 else f"{axis}_by_{step}"
    nodes = model.graph.all_nodes()
    for value in (*model.graph.inputs, *(output for node in nodes for output in node.outputs)):
        for place, dim in enumerate(value.shape or ()):
            expression = getattr(dim, "value", None)  # a number has none, and that of an unknown size is None
            if expression is not None:
                value.shape[place] = re.sub(r"s\d+", lambda found: symbols.get(found[0], found[0]), str(expression))


def _metadata(exportable: Exportable) -> dict[str, str]:
    sizes = {name: f"{size.meaning}: {size.words}".removeprefix(": ") for name, size in exportable.sizes.items()}
    files = {} if exportable.weights is None else entry_and_card(exportable.weights)
    return {
        "voxelwave.version": __version__,
        "voxelwave.network": _name(exportable),
        "voxelwave.sizes": json.dumps(sizes),
        "voxelwave.preprocessing": json.dumps(exportable.preprocessing),
        "voxelwave.card": json.dumps({**exportable.card, **files}),
    }


def _name(exportable: Exportable) -> str:
    return str(getattr(exportable.network, "exported_as", type(exportable.network).__name__))


def _reason(error: BaseException) -> str:
    """The innermost reason of an error of the converter, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of the tracer and of the converter."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
