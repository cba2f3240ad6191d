"""`voxelwave bench kernels`: speed and accuracy of the selective scan against other implementations."""

from ...kernels.scan.benchmark import bench_kernels
from ...kernels.scan.triton_aot import SHAPES, TARGETS, aot_report, expected_time
from ...kernels.scan.triton_benchmark import gpu_benchmark
from ...runs.tables import print_rows
from .options import Kernels


def kernels(options: Kernels) -> None:
    """Time the kernels, or compile them for a GPU that need not be present, and print tables."""
    if options.machine_code:
        _print_machine_code(full=options.full)
        return
    bench_kernels(device=options.device, quick=not options.full, seed=options.seed)
    if options.device == "cuda":
        rows = [row._asdict() for row in gpu_benchmark(quick=not options.full, seed=options.seed)]
        print_rows("Compared with the memory bound of an H100 and with other implementations", rows)


def _print_machine_code(*, full: bool) -> None:
    """Print the tables of kernels/scan/triton.md, of the first target only unless `full`."""
    compiled, expected = [], []
    for capability, states, directional in TARGETS[: None if full else 1]:
        reports = aot_report(capability, states, directional=directional)
        target = {"N": states, "order": "image" if directional else "scan"}
        compiled += [target | report._asdict() for report in reports]
        for shape in SHAPES:
            if shape.states != states or capability != 90:
                continue
            for backward in (False, True):
                time = expected_time(shape, reports, backward=backward, directional=directional)
                expected.append(
                    {
                        "B, channels, L, N": f"{shape.batch}, {shape.channels}, {shape.length}, {states}",
                        "order": target["order"],
                        "segments": -(-shape.length // shape.segment()),
                        "pass": "backward" if backward else "forward",
                        "floor us": time.floor_microseconds,
                        "time us": time.microseconds,
                        "fraction": time.fraction,
                        "bound": time.bound,
                    }
                )
    print_rows("Machine code; instructions and exponentials of one lane per channel, state and step", compiled)
    print_rows("Expected time on one H100", expected)
