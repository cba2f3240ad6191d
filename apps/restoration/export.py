"""`voxelwave restoration export`: write weights from the checkpoint of a running or stopped training."""

from ...restoration.module import load_checkpoint
from .options import Export


def export(options: Export) -> None:
    """Write the averaged weights of the checkpoint."""
    module = load_checkpoint(options.checkpoint)
    steps = int(module.averaged_steps)
    module.export(options.output, notes={"steps": str(steps), **(options.notes or {})})
    print(f"wrote {options.output}: the averaged weights after {steps} steps")
