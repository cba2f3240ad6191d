"""`voxelwave registration train`: train NestedMorph on pairs of scans."""

from ...registration.training import train as train_network
from ...runs.files import output_lock
from .options import Train


def train(options: Train) -> None:
    """Run the command."""
    with output_lock(options.output), options.earlier_set_aside():
        result = train_network(
            options.pairs, options.output, options.settings, device=options.device, resume=options.resume
        )
    print(f"best {result.metric} {result.value:.4g}; weights: {result.weights}")
    for name, value in result.test.items():
        print(f"  {name:<32}{value:.4g}")
