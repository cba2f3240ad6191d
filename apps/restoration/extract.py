"""`voxelwave restoration extract`: write one size of weights that contain several as a file of its own."""

from ...restoration.weights import load_weights, save_weights
from ...runs.catalogue import find_weights
from .options import Extract


def extract(options: Extract) -> None:
    """Write the parameters of one size.

    Raises:
        ValueError: the output is the file of weights itself, or the weights do not contain the size.
    """
    file = find_weights(options.weights, "restoration")
    if file.resolve() == options.output.resolve():
        raise ValueError(f"--output must be another path than the weights, got {options.output}")
    model, info = load_weights(file, size=options.size)
    save_weights(
        options.output,
        model,
        task=info.task,
        intensity_range=info.intensity_range,
        intensity_unit=info.intensity_unit,
        notes={**info.notes, "extracted": f"{options.size} of {file.name}"},
    )
    parameters = sum(p.numel() for p in model.parameters())
    print(f"wrote {options.output}: size {options.size} of {file.name}, {parameters:,} parameters")
