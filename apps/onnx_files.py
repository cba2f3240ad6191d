"""The part that the export commands of all fields share: an ONNX file is written, checked and described."""

import time
from pathlib import Path

from ..runs.onnx_file import Exportable, write_onnx
from ..runs.outcome import add_outcome


def export_onnx(output: Path, exportable: Exportable) -> None:
    """Write a network as an ONNX file, and print its inputs and the result of the check.

    Raises:
        ImportError: a package that is needed is missing.
        ValueError: the network cannot be exported, or the file computes something else.
    """
    print("tracing the network, which takes up to some minutes", flush=True)
    started = time.perf_counter()
    written = write_onnx(output, exportable)
    print(f"wrote {output} ({written.bytes / 2**20:.1f} MB, {time.perf_counter() - started:.0f} s)")
    for name, axes in exportable.inputs.items():
        print(f"  input   {name:<14}{', '.join(map(str, axes)) or 'one number'}")
    print(f"  output  {', '.join(exportable.outputs)}")
    for name, size in exportable.sizes.items():
        print(f"  size    {name:<14}{size.words}")
    if written.difference is None:
        print('  not checked: onnxruntime is not installed; pip install "voxelwave[export]"')
    else:
        print(f"  checked by onnxruntime: at most {written.difference:.0e} (relative) from PyTorch")
    sizes = {name: size.words for name, size in exportable.sizes.items()}
    add_outcome(inputs=dict(exportable.inputs), sizes=sizes, difference=written.difference)
