"""`voxelwave scanpath export`: write a trained OAT as an ONNX file."""

from ...runs.catalogue import find_weights
from ...runs.compute import use_threads
from ...scanpath.exported import exportable
from ...scanpath.weights import load_model
from ..onnx_files import export_onnx
from .options import Export


def export(options: Export) -> None:
    """Run the command."""
    use_threads(options.threads)
    file = find_weights(options.weights, "scanpath")
    model = load_model(file)
    export_onnx(options.output, exportable(model.network, model.info, weights=file))
