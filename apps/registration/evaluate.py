"""`voxelwave registration evaluate`: register a list of pairs and measure the accuracy."""

from dataclasses import asdict

from ...registration.choices import Method
from ...runs.exit import DONE, SOME_FAILED
from .options import Evaluate
from .pair_table import measure_pairs, print_summary, write_evaluation


def evaluate(options: Evaluate) -> int:
    """Run the command and return its exit code."""
    settings = options.settings
    methods: list[Method] = [options.chosen_method]
    if options.baseline and options.chosen_method != "syn":
        methods.append("syn")
    results = measure_pairs(
        options.pairs,
        methods,
        settings,
        weights=options.weights_file,
        split=options.split,
        device=options.device,
        cache=options.cache,
    )
    recorded = {name: value for name, value in asdict(settings).items() if name != "method"}
    write_evaluation(
        options.output,
        results,
        print_summary(results),
        inputs={"pairs": options.pairs, "weights": options.weights_file},
        options=recorded | {"device": options.device},
    )
    failed = sum(1 for result in results if result.error)
    print(f"wrote {options.output}/evaluation.csv and evaluation.json" + (f"; {failed} failed" if failed else ""))
    return SOME_FAILED if failed else DONE
