"""`voxelwave restoration export`: write weights from a checkpoint, or a network as an ONNX file."""

from ...restoration.exported import exportable
from ...restoration.module import load_checkpoint
from ...restoration.weights import load_weights
from ...runs.catalogue import find_weights
from ...runs.compute import use_threads
from ..onnx_files import export_onnx
from .options import Export


def export(options: Export) -> None:
    """Run the command."""
    use_threads(options.threads)
    if options.weights is not None:
        file = find_weights(options.weights, "restoration")
        model, info = load_weights(file, variant=options.variant, stripe_width=options.stripe_width, size=options.size)
        export_onnx(options.output, exportable(model, info, weights=file))
        return
    assert options.checkpoint is not None
    module = load_checkpoint(options.checkpoint)
    steps = int(module.averaged_steps)
    module.export(options.output, notes={"steps": str(steps), **(options.notes or {})})
    print(f"wrote {options.output}: the averaged weights after {steps} steps")
