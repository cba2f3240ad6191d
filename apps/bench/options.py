"""Options of `voxelwave bench`."""

from dataclasses import dataclass
from typing import Literal

from ...runs.exit import UsageError
from ..options import Options


@dataclass(frozen=True, kw_only=True)
class Kernels(Options):
    """Time the selective scan beside other implementations and print ratios, errors, scaling and the machine's limits.

    Args:
        device: cpu (two threads), or cuda for the Triton kernels.
        machine_code: instead of timing, compile the Triton kernels for A100 and H100, which needs no GPU, and print
            registers, instructions and the time to expect on an H100.
        quick: fewer sizes and repeats, a minute instead of ten.
        seed: seed of the random inputs.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    machine_code: bool = False
    quick: bool = False
    seed: int = 0

    def check(self) -> None:
        super().check()
        if self.machine_code and self.device == "cuda":
            raise UsageError("--machine-code measures nothing: leave out --device cuda")
