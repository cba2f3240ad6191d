"""Machine code of the Triton scan, without a GPU: registers, spills, instructions, and the expected time on an H100.

`aot_report` compiles the kernels for an architecture and reads the machine code with the tools in the Triton wheel.
`expected_time` derives the time on one H100 from these counts and the bytes moved. Nothing here is measured on a GPU.
`voxelwave bench kernels --machine-code --full` prints both, for the tables of triton.md.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from .triton import BACKWARD_PTX_OPTIONS, CHECKPOINT_STEPS, LANE_STATES, LANES, ScanShape, device_code

# One H100 SXM: memory; 132 multiprocessors x 4 warp instructions at 1.75 GHz; 16 exponentials per cycle and
# multiprocessor.
H100_BYTES_PER_S = 3.35e12
H100_WARP_INSTRUCTIONS_PER_S = 132 * 4 * 1.75e9
H100_EXPONENTIALS_PER_S = 132 * 16 * 1.75e9

# The first pass in both directions, and the second pass in both.
KERNELS = ("segment_ends", "segment_ends_reverse", "scan_segments", "backward_segments")

# The rows of triton.md: capability, states and whether in image order; and the sizes of the expected times.
TARGETS = (
    *(
        (capability, states, directional)
        for capability in (80, 90)
        for states in (16, 1)
        for directional in (True, False)
    ),
    (90, 64, True),
)
SHAPES = (
    ScanShape(batch=1, length=4096, groups=4, width=84, states=16),
    ScanShape(batch=1, length=4096, groups=4, width=66, states=1),
    ScanShape(batch=1, length=4096, groups=4, width=180, states=16),
    ScanShape(batch=1, length=4096, groups=4, width=360, states=16),
    ScanShape(batch=1, length=16384, groups=4, width=234, states=16),
    ScanShape(batch=16, length=4096, groups=4, width=84, states=16),
    ScanShape(batch=4, length=4096, groups=4, width=360, states=16),
    ScanShape(batch=1, length=65536, groups=4, width=66, states=1),
)


class KernelReport(NamedTuple):
    """One compiled kernel; instructions and exponentials are counted for one lane, per channel, state and step."""

    kernel: str
    capability: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: float
    exponentials: float


class ExpectedTime(NamedTuple):
    """Expected time of one pass on an H100 in microseconds, and the bound of each of its kernels."""

    microseconds: float
    floor_microseconds: float
    bound: str

    @property
    def fraction(self) -> float:
        """Fraction of the roofline: the time to move the fewest possible bytes, divided by the expected time."""
        return self.floor_microseconds / self.microseconds


def aot_report(capability: int, states: int, *, directional: bool = True) -> list[KernelReport]:
    """Compile the kernels as MaIR uses them (float32, softplus, bias, D, no gate) and read the machine code.

    This needs neither a GPU nor a driver.

    Args:
        capability: 80 for A100, 90 for H100.
        states: N.
        directional: image order with index tables; otherwise (B, D, L) with L a multiple of 16.

    Returns:
        One report for each of `KERNELS`.

    Raises:
        ImportError: Triton is not installed.
        ValueError: TRITON_INTERPRET is set, which makes Triton an interpreter.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("compiling the Triton kernels needs TRITON_INTERPRET unset, got TRITON_INTERPRET=1")
    shape = ScanShape(batch=1, length=4096, groups=4, width=64, states=states)
    reports = []
    for name in KERNELS:
        flags = kernel_flags(name, shape, directional=directional)
        registers, spilled, shared, code = compile_kernel(name, capability, flags)
        counts = _per_element(code, shape.tile["NQ"] * shape.tile["NV"], name == "backward_segments")
        reports.append(KernelReport(name, capability, registers, spilled, shared, *counts))
    return reports


def fewest_bytes(shape: ScanShape, *, backward: bool, directional: bool, item_size: int = 4) -> int:
    """The fewest bytes that one pass must move: each input, gradient and checkpoint once.

    Args:
        shape: sizes of the scan.
        backward: the backward pass instead of the forward pass without checkpoints.
        directional: whether the groups share their input, as in `directional_scan`.
        item_size: bytes per value of u, delta, B and C.
    """
    batch, length, groups, _, states = shape
    elements = batch * length * shape.channels
    inputs = elements // groups if directional else elements
    matrices = batch * length * groups * states
    if not backward:
        return item_size * (inputs + 2 * elements + 2 * matrices)
    return item_size * (2 * inputs + 3 * elements + 4 * matrices) + 4 * elements * states // CHECKPOINT_STEPS


def expected_time(
    shape: ScanShape, reports: list[KernelReport], *, backward: bool, directional: bool = True
) -> ExpectedTime:
    """Time of one float32 pass on an H100 if each kernel runs at its memory, issue or exponential bound.

    Latency, cache misses of B and C, and launches (about 3 microseconds each) are not included.
    """
    batch, length, groups, _, states = shape
    elements = batch * length * shape.channels
    fewest = fewest_bytes(shape, backward=backward, directional=directional)
    if backward:
        # each block writes its own dB and dC, which are then summed, and each direction its gradient of x
        partial = batch * length * groups * shape.blocks * 2 * shape.padded_states
        moved = fewest + 4 * (2 * partial + (2 * elements if directional else 0))
        first_pass = 4 * (2 * elements + batch * length * groups * states)
        first, second = "segment_ends_reverse", "backward_segments"
    else:
        moved = fewest + 4 * elements * states // CHECKPOINT_STEPS
        first_pass = fewest - 4 * (elements + batch * length * groups * states)
        first, second = "segment_ends", "scan_segments"
    passes = [(first, first_pass), (second, moved)] if shape.segment() < length else [(second, moved)]
    # lanes beyond the width of a group and states beyond N also take time
    lane_steps = batch * length * groups * shape.blocks * LANES * shape.padded_states
    seconds, bounds = 0.0, []
    for name, n_bytes in passes:
        report = next(r for r in reports if r.kernel == name)
        bound = {
            "memory": n_bytes / H100_BYTES_PER_S,
            "issue": report.instructions * lane_steps / 32 / H100_WARP_INSTRUCTIONS_PER_S,
            "exponentials": report.exponentials * lane_steps / H100_EXPONENTIALS_PER_S,
        }
        slowest = max(bound, key=lambda key: bound[key])
        seconds += bound[slowest]
        bounds.append(slowest)
    return ExpectedTime(seconds * 1e6, fewest / H100_BYTES_PER_S * 1e6, " + ".join(bounds))


def kernel_flags(name: str, shape: ScanShape, *, directional: bool) -> dict[str, bool | int]:
    """The compile-time arguments of the kernel `name` when MaIR calls it."""
    flags: dict[str, bool | int] = {"SOFTPLUS": True, "HAS_BIAS": True, "HAS_Z": False, "VECTOR": not directional}
    flags |= {"DIRECTIONAL": directional, "RAGGED": False, **shape.tile}
    if name == "scan_segments":
        return flags | {"HAS_D": True, "HAS_START": True, "CONST_B": False, "CONST_C": False, "SAVE": True}
    if name == "backward_segments":
        return flags | {"HAS_D": True, "HAS_CARRY": True, "CONST_B": False, "CONST_C": False}
    reverse = name == "segment_ends_reverse"
    return flags | {"CONST_M": False, "W_SHARED": not reverse, "REVERSE": reverse}


def compile_kernel(
    name: str, capability: int, flags: dict[str, bool | int], *, element_type: str = "fp32"
) -> tuple[int, int, int, str]:
    """Compile one of `KERNELS` for an architecture.

    Args:
        name: one of `KERNELS`.
        capability: 80 for A100, 90 for H100.
        flags: its compile-time arguments.
        element_type: Triton's name for the type of u, delta, z, B, C and their gradients.

    Returns:
        Registers per thread, spilled bytes, shared memory in bytes, and the machine code as text.
    """
    kernel = getattr(device_code(), name.removesuffix("_reverse"))
    # Triton does not exist for every system; device_code has reported if it is missing
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options: dict[str, int | str] = {"num_warps": flags["NL"]}
    if name == "backward_segments":
        options["ptx_options"] = BACKWARD_PTX_OPTIONS
    names = kernel.arg_names
    signature = {n: _argument_type(n, flags, element_type) for n in names}
    constants = {(names.index(n),): value for n, value in flags.items()}
    # facts that a launch would detect: pointers are aligned; L, N and the segment are multiples of 16
    multiples = {"L", "segment", "N"} if flags["NQ"] * flags["NV"] == LANE_STATES else {"L", "segment"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith("_p") or n in multiples}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage, code = (
            subprocess.run([str(tools / tool), option, str(cubin)], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    registers, spilled = (int(re.findall(rf"{key}:(\d+)", usage)[-1]) for key in ("REG", "STACK"))
    return registers, spilled, compiled.metadata.shared, code


def _argument_type(name: str, flags: dict[str, bool | int], element_type: str) -> str:
    if name in flags:
        return "constexpr"
    if not name.endswith("_p"):
        return "i32"
    if name == "perm_p":
        return "*i32"
    elements = ("u_p", "delta_p", "w_p", "M_p", "B_p", "C_p", "z_p", "gout_p", "out_p", "du_p", "ddelta_p", "dz_p")
    return f"*{element_type}" if name in elements else "*fp32"


def _loops(code: str) -> list[tuple[int, int, Counter[str]]]:
    """First and last instruction of each loop, and counts of its instructions by kind, without those of inner loops."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)(.*)", line):
            instructions.append((instruction[1], instruction[2]))
    spans = []
    for i, (operation, rest) in enumerate(instructions):
        target = re.search(r"\.L_x_\d+", rest) if operation.startswith("BRA") else None
        if target and labels.get(target[0], i) < i - 2:
            spans.append((labels[target[0]], i))
    loops = []
    for first, last in spans:
        inside = [s for s in spans if s != (first, last) and first <= s[0] and s[1] <= last]
        own = [
            operation
            for i, (operation, _) in enumerate(instructions[first : last + 1], first)
            if operation != "NOP" and not any(s[0] <= i <= s[1] for s in inside)
        ]
        loops.append((first, last, Counter(own)))
    return loops


def _per_element(code: str, lane_states: int, backward: bool) -> tuple[float, float]:
    """Instructions and exponentials per channel, state and step.

    The compiler may unroll loops. The number of steps in a loop follows from its exponentials: in the forward pass, a
    step has one per state and one for the softplus; in the backward pass, four steps have 4 + 3 per state (the last
    state is not recomputed) and 4 + 4 for softplus and sigmoid.
    """

    def count(kinds: Counter[str], start: str = "") -> int:
        return sum(n for kind, n in kinds.items() if kind.startswith(start))

    loops = sorted(_loops(code), key=lambda loop: loop[1])
    busy = [(kinds, count(kinds, "MUFU.EX2")) for _, _, kinds in loops if count(kinds, "MUFU.EX2")]
    if not backward:
        kinds, exponentials = max(busy, key=lambda loop: loop[1])
        elements = exponentials / (lane_states + 1) * lane_states
        return round(count(kinds) / elements, 1), round(count(kinds, "MUFU") / elements, 2)
    (run_again, run_exp), (reverse, reverse_exp) = busy
    per_chunk = count(loops[-1][2]) / CHECKPOINT_STEPS / lane_states
    again = 0.75 * (lane_states + 1) / run_exp / lane_states
    back = (7 * lane_states + 8) / 4 / reverse_exp / lane_states
    instructions = count(run_again) * again + count(reverse) * back + per_chunk
    return round(instructions, 1), round(count(run_again, "MUFU") * again + count(reverse, "MUFU") * back, 2)
