"""`voxelwave registration export`: write a trained NestedMorph as an ONNX file."""

from ...registration.exported import exportable
from ...registration.nestedmorph_files import load_nestedmorph, read_training_options
from ...runs.compute import use_threads
from ..onnx_files import export_onnx
from .options import Export


def export(options: Export) -> None:
    """Run the command."""
    use_threads(options.threads)
    network, training = load_nestedmorph(options.weights), read_training_options(options.weights)
    export_onnx(options.output, exportable(network, size=options.size, training=training, weights=options.weights))
