"""`voxelwave restoration export`: weights to use, from a training that still runs or was broken off."""

from pathlib import Path


def export(checkpoint: Path, *, output: Path, notes: dict[str, str] | None = None) -> None:
    """Write the averaged weights of a training checkpoint as a .safetensors file for restore and evaluate.

    The training may go on meanwhile: its checkpoint is only read. The file carries the network's arguments, the task
    and the intensity range as they were trained, and how many steps that was.

    Args:
        checkpoint: last.ckpt in the output folder of train.
        output: the .safetensors file to write.
        notes: more words to keep in the file, name: text; e.g. data, licence, command, seed.
    """
    from ...restoration.module import load_checkpoint

    module = load_checkpoint(checkpoint)
    module.export(output, notes={"steps": str(int(module.averaged_steps)), **(notes or {})})
    print(f"wrote {output}: the averaged weights after {int(module.averaged_steps)} steps")
