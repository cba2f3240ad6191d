"""`voxelwave eeg export`: write a trained network as an ONNX file."""

from ...eeg.exported import exportable
from ...eeg.networks import WEIGHTS, load_network
from ...runs.catalogue import find_weights
from ...runs.compute import use_threads
from ..onnx_files import export_onnx
from .options import Export


def export(options: Export) -> None:
    """Run the command."""
    use_threads(options.threads)
    path = find_weights(options.weights, "eeg")
    network, card = load_network(path)
    export_onnx(options.output, exportable(network, card, weights=path / WEIGHTS if path.is_dir() else path))
