"""The Triton scan, compiled ahead of time: it compiles, spills no registers and costs what `triton.md` states.

The interpreter accepts code that the compiler rejects. These tests need no GPU.
"""

import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

import pytest

from voxelwave.apps import cli
from voxelwave.apps.bench import kernels as command
from voxelwave.kernels.scan import triton as scan_triton
from voxelwave.kernels.scan.triton import ScanShape
from voxelwave.kernels.scan.triton_aot import (
    KERNELS,
    KernelReport,
    aot_report,
    compile_kernel,
    expected_time,
    kernel_flags,
)
from voxelwave.runs.exit import USAGE

_INSTALLED = importlib.util.find_spec("triton") is not None
_TRITON = tuple(map(int, version("triton").split(".")[:2])) if _INSTALLED else (0, 0)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which is for Linux"),
    pytest.mark.skipif(_TRITON < (3, 8), reason="the recorded machine code is that of Triton 3.8"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton is an interpreter in this process"),
]

# (capability, states, directional)
TARGETS = [(80, 16, True), (90, 16, True), (90, 16, False), (80, 1, True), (90, 1, True)]

# Registers and instructions per channel, state and step with Triton 3.8, with a margin for other releases.
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


@pytest.fixture(scope="module")
def reports() -> dict[tuple[int, int, bool], list[KernelReport]]:
    return {target: aot_report(target[0], target[1], directional=target[2]) for target in TARGETS}


def test_the_kernels_and_their_launches_agree_on_the_steps_between_checkpoints():
    assert scan_triton.device_code().CHUNK.value == scan_triton.CHECKPOINT_STEPS


RAGGED = ScanShape(batch=1, length=4097, groups=1, width=32, states=4)


def test_the_scan_over_segments_compiles():
    compile_kernel("carry_states", 90, {"HAS_FIRST": True, "REVERSE": True, **RAGGED.tile})


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("constant", [None, "CONST_M", "CONST_B", "CONST_C"])
def test_every_kernel_compiles_for_ragged_lengths_gates_and_constant_matrices(name, constant):
    flags = kernel_flags(name, RAGGED, directional=False) | {"VECTOR": False, "RAGGED": True, "HAS_Z": True}
    if constant is None or constant in flags:
        flags |= {} if constant is None else {constant: True}
        compile_kernel(name, 90, flags, element_type="bf16")


def test_compiling_in_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET unset"):
        aot_report(90, 1)


def test_the_command_prints_the_machine_code_and_the_expected_times(capsys, monkeypatch):
    monkeypatch.setattr(command, "TARGETS", TARGETS[1:2])
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["bench", "kernels", "--machine-code", "--full"]) == 0
    printed = capsys.readouterr().out
    for text in (*KERNELS, "Expected time on one H100", "1, 720, 4096, 16", "backward"):
        assert text in printed, text


def test_machine_code_and_a_device_do_not_go_together(capsys):
    assert cli.main(["bench", "kernels", "--machine-code", "--device", "cuda"]) == USAGE
    assert "--machine-code measures nothing" in capsys.readouterr().err


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
    # only the sums over lanes convert a layout: dB and dC of one step, 32 lanes
    for report in reports[target]:
        tile = 2 * target[1] * 32 * 4 if report.kernel == "backward_segments" else 0
        assert report.shared_bytes <= tile, report


def test_each_state_costs_one_exponential_a_step_forward(reports):
    for report in reports[90, 16, False]:
        if report.kernel != "backward_segments":
            assert 1 <= report.exponentials < 1.1


@pytest.mark.parametrize("backward", [False, True])
def test_expected_time_reaches_the_goals(reports, backward):
    """At 720 channels x 4096 positions, memory alone takes a quarter of the time (backward: a fifth)."""
    shape = ScanShape(batch=1, length=4096, groups=4, width=180, states=16)
    expected = expected_time(shape, reports[90, 16, False], backward=backward, directional=False)
    assert expected.fraction >= (0.2 if backward else 0.25)


NOTE = Path(__file__).resolve().parents[3] / "kernels" / "scan" / "triton.md"


def note_rows(columns: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in NOTE.read_text().splitlines()]
    return [row for row in rows if len(row) == columns and row[0][0].isdigit()]


def test_the_note_lists_the_registers_and_instructions(reports):
    """Within 15 %, since another release of the compiler may change them."""
    noted = {(int(r[0]), int(r[1]), r[2] == "image", r[3]): r for r in note_rows(9)}
    for (capability, states, directional), kernels in reports.items():
        for report in kernels:
            row = noted[capability, states, directional, report.kernel]
            assert report.registers == pytest.approx(int(row[4]), rel=0.15)
            assert report.instructions == pytest.approx(float(row[7]), rel=0.15)
            assert report.exponentials == pytest.approx(float(row[8]), rel=0.15)


def test_the_note_lists_the_expected_times(reports):
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
