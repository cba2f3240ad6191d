"""The Triton scan, compiled ahead of time: it compiles, spills nothing, and costs what `scan_triton.md` says.

The interpreter accepts code that the compiler refuses, hence this test. It needs no GPU.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voxelwave.kernels.scan.triton import ScanShape
from voxelwave.kernels.scan.triton_aot import KernelReport, expected_time

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which is for Linux")

# (capability, states, directional)
TARGETS = [(80, 16, True), (90, 16, True), (90, 16, False), (80, 1, True), (90, 1, True)]

# Registers and instructions per channel, state and step with Triton 3.8, and a little room for another release.
LIMITS = {
    16: {
        "segment_ends": (88, 9.5),
        "segment_ends_reverse": (88, 9.5),
        "scan_segments": (128, 11.5),
        "backward_segments": (255, 36.0),
    },
    1: {
        "segment_ends": (72, 56.0),
        "segment_ends_reverse": (72, 56.0),
        "scan_segments": (80, 72.0),
        "backward_segments": (128, 230.0),
    },
}

COMPILE = """
import json, sys
from voxelwave.kernels.scan import triton as scan_triton
assert "triton" not in sys.modules, "importing the module must not need Triton"
from voxelwave.kernels.scan import triton_device as scan_triton_device
from voxelwave.kernels.scan.triton_aot import aot_report, compile_kernel, kernel_flags, KERNELS
assert scan_triton_device.CHUNK.value == scan_triton.CHECKPOINT_STEPS

reports = [aot_report(capability, states, directional=directional) for capability, states, directional in {targets}]
ragged = scan_triton.ScanShape(batch=1, length=4097, groups=1, width=32, states=4)
compile_kernel("carry_states", 90, {{"HAS_FIRST": True, "REVERSE": True, **ragged.tile}})
for name in KERNELS:
    flags = kernel_flags(name, ragged, directional=False) | {{"VECTOR": False, "RAGGED": True, "HAS_Z": True}}
    compile_kernel(name, 90, flags, element_type="bf16")
    for constant in ("CONST_M", "CONST_B", "CONST_C"):
        if constant in flags:
            compile_kernel(name, 90, flags | {{constant: True}})
print(json.dumps(reports))
"""


@pytest.fixture(scope="module")
def reports() -> dict[tuple[int, int, bool], list[KernelReport]]:
    """Compiled in a fresh process: Triton may have been imported as an interpreter in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", COMPILE.format(targets=TARGETS)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout.splitlines()[-1])
    return {key: [KernelReport(*values) for values in kernels] for key, kernels in zip(TARGETS, found, strict=True)}


@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_spills_registers(reports, target):
    assert {report.kernel: report.spill_bytes for report in reports[target]} == dict.fromkeys(LIMITS[16], 0)


@pytest.mark.parametrize("target", TARGETS)
def test_registers_and_instructions_stay_within_the_recorded_limits(reports, target):
    for report in reports[target]:
        registers, instructions = LIMITS[target[1]][report.kernel]
        assert report.registers <= registers, report
        assert report.instructions <= instructions, report


@pytest.mark.parametrize("target", TARGETS)
def test_forward_needs_no_shared_memory_and_backward_one_tile(reports, target):
    # no layout is converted except in the sums over lanes: dB and dC of one step, 32 lanes
    for report in reports[target]:
        tile = 2 * target[1] * 32 * 4 if report.kernel == "backward_segments" else 0
        assert report.shared_bytes <= tile, report


def test_each_state_costs_one_exponential_a_step_forward(reports):
    for report in reports[90, 16, False]:
        if report.kernel != "backward_segments":
            assert 1 <= report.exponentials < 1.1


@pytest.mark.parametrize("backward", [False, True])
def test_expected_time_reaches_the_goals(reports, backward):
    """At 720 channels x 4096 positions a quarter (a fifth backward) of the time that memory alone would take."""
    shape = ScanShape(batch=1, length=4096, groups=4, width=180, states=16)
    expected = expected_time(shape, reports[90, 16, False], backward=backward, directional=False)
    assert expected.fraction >= (0.2 if backward else 0.25)


NOTE = Path(__file__).resolve().parents[2] / "kernels" / "scan" / "triton.md"


def note_rows(columns: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in NOTE.read_text().splitlines()]
    return [row for row in rows if len(row) == columns and row[0][0].isdigit()]


def test_note_tells_the_registers_and_instructions(reports):
    """Within 15 %, which is what another release of the compiler may change."""
    noted = {(int(r[0]), int(r[1]), r[2] == "image", r[3]): r for r in note_rows(9)}
    for (capability, states, directional), kernels in reports.items():
        for report in kernels:
            row = noted[capability, states, directional, report.kernel]
            assert report.registers == pytest.approx(int(row[4]), rel=0.15)
            assert report.instructions == pytest.approx(float(row[7]), rel=0.15)
            assert report.exponentials == pytest.approx(float(row[8]), rel=0.15)


def test_note_tells_the_expected_times(reports):
    compared = 0
    for sizes, order, _, floor, time, _, _, back_floor, back_time, *_ in note_rows(11):
        batch, channels, length, states = (int(size) for size in sizes.split(","))
        directional = order == "image"
        if (90, states, directional) not in reports:
            continue
        shape = ScanShape(batch, length, 4, channels // 4, states)
        for backward, noted in ((False, (floor, time)), (True, (back_floor, back_time))):
            expected = expected_time(
                shape, reports[90, states, directional], backward=backward, directional=directional
            )
            assert expected.floor_microseconds == pytest.approx(float(noted[0]), rel=0.02)
            assert expected.microseconds == pytest.approx(float(noted[1]), rel=0.15)
            compared += 1
    assert compared >= 10
