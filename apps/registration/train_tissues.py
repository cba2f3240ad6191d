"""`voxelwave registration train-tissues`: train the network that finds tissues in scans of any contrast."""

from ...registration.tissue_training import train_tissues as train_network
from ...runs.files import output_lock
from .options import TrainTissues


def train_tissues(options: TrainTissues) -> None:
    """Run the command."""
    with output_lock(options.output), options.earlier_set_aside():
        weights = train_network(
            options.labels, options.output, options.settings, device=options.device, resume=options.resume
        )
    print(f"weights: {weights}")
