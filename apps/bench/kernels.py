"""`voxelwave bench`: speed and memory beside named peers, in the same run."""

from typing import Literal


def kernels(*, device: Literal["cpu", "cuda"] = "cpu", quick: bool = False, seed: int = 0) -> None:
    """Time the selective scan beside PyTorch peers and print ratios, floors, errors and scaling.

    Args:
        device: cpu (two threads), or cuda for the Triton kernels.
        quick: fewer sizes and repeats: a look in a minute instead of ten.
        seed: of the random inputs.
    """
    from ...kernels.scan.benchmark import bench_kernels

    bench_kernels(device=device, quick=quick, seed=seed)
    if device == "cuda":
        from ...kernels.scan.triton_benchmark import gpu_benchmark
        from ...runs.tables import print_rows

        rows = [row._asdict() for row in gpu_benchmark(quick=quick, seed=seed)]
        print_rows("Against the floor of the GPU and its peers", rows)
