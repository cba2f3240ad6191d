"""The Triton scan, run by Triton's interpreter on the CPU and compared with the reference in float64.

Triton reads TRITON_INTERPRET when it is imported, so the comparisons run in a child process that the first test starts.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import voxelwave.kernels.scan
from voxelwave.kernels.scan import reference as scan_reference
from voxelwave.kernels.scan import triton as scan_triton
from voxelwave.kernels.scan import triton_benchmark
from voxelwave.kernels.scan.reference import DirectionalInputs, ScanInputs
from voxelwave.kernels.scan.triton_benchmark import gpu_benchmark

IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
in_interpreter = pytest.mark.skipif(not IN_INTERPRETER, reason="runs in the child process of the first test")

# float32 sums of a few dozen terms against float64
TOLERANCE = 2e-6


@pytest.mark.slow
@pytest.mark.skipif(IN_INTERPRETER, reason="this is the child process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which is for Linux")
def test_everything_below_holds_in_the_interpreter():
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert "interpreter_agrees" in run.stdout


@pytest.fixture(autouse=True)
def same_checkpoints(monkeypatch):
    monkeypatch.setattr(scan_reference, "CHECKPOINT_STEPS", scan_triton.CHECKPOINT_STEPS)


def scan_inputs(batch, channels, length, states, groups=1, *, constant=False, all_options=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    matrix = (channels, states) if constant else (batch, groups, states, length)
    # without softplus the steps must be positive, or the states grow
    delta = (
        normal(batch, channels, length) - 2 if all_options else torch.rand(batch, channels, length, generator=generator)
    )
    B, C = (normal(*matrix).to(torch.float32 if constant else dtype) for _ in range(2))
    return {
        "u": normal(batch, channels, length).to(dtype),
        "delta": delta.to(dtype),
        "A": -3 * torch.rand(channels, states, generator=generator),
        "B": B,
        "C": C,
        "D": normal(channels) if all_options else None,
        "z": normal(batch, channels, length).to(dtype) if all_options else None,
        "delta_bias": normal(channels) if all_options else None,
        "delta_softplus": all_options,
        "initial_state": normal(batch, channels, states) if all_options else None,
    }


def to_float64(values):
    return [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values]


def assert_same(actual, expected, tolerance=TOLERANCE):
    """Equal within `tolerance` times the largest expected value."""
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert (a is None) == (e is None), i
        if e is not None and e.numel():
            scale = max(e.abs().max().item(), 1e-20)
            error = (a.double() - e).abs().max().item()
            assert error <= tolerance * scale, f"result {i}: {error} of {scale}"
        elif e is not None:
            assert a.shape == e.shape, i


def check_scan(inputs, segment=None, tolerance=TOLERANCE):
    """Compare outputs and gradients, including the gradient of the last state if there is an initial state."""
    arguments = ScanInputs(**inputs)
    exact = ScanInputs(*to_float64(arguments))
    expected = scan_reference.scan_forward(exact)
    actual = scan_triton.scan_forward(arguments, segment=segment)
    assert_same(actual, expected, tolerance)
    assert actual[0].dtype == inputs["u"].dtype
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(*actual[0].shape, generator=generator).to(inputs["u"])
    initial = inputs["initial_state"]
    grad_last = None if initial is None else torch.randn(*initial.shape, generator=generator).to(initial)
    gradients = scan_triton.scan_backward(grad_out, grad_last, arguments, actual[2], segment=segment)
    exact_gradients = scan_reference.scan_backward(*to_float64([grad_out, grad_last]), exact, expected[2])
    assert_same(gradients, exact_gradients, tolerance)
    originals = [v for name, v in inputs.items() if name != "delta_softplus"]
    for gradient, original in zip(gradients, originals, strict=True):
        if original is not None:
            assert (gradient.shape, gradient.dtype) == (original.shape, original.dtype)


@in_interpreter
@pytest.mark.parametrize(
    ("sizes", "options", "segment"),
    [
        pytest.param((1, 3, 21, 3, 1), {}, 16, id="two_segments_ragged_end"),
        pytest.param((1, 2, 32, 16, 1), {}, 16, id="four_steps_per_load"),
        pytest.param((1, 2, 40, 1, 1), {"all_options": False}, 16, id="three_segments_one_state_no_options"),
        pytest.param((2, 2, 3, 4, 1), {"constant": True}, None, id="constant_B_and_C"),
        pytest.param((1, 70, 3, 2, 2), {}, None, id="groups_of_two_blocks"),
        pytest.param((1, 1, 1, 1, 1), {}, None, id="one_of_everything"),
        pytest.param((1, 2, 5, 33, 1), {}, None, id="more_states_than_a_lane_holds"),
    ],
)
def test_interpreter_agrees_with_float64(sizes, options, segment):
    check_scan(scan_inputs(*sizes, **options), segment)


@in_interpreter
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_interpreter_agrees_in_half_precision(dtype, tolerance):
    # only the results are rounded to the type; the state is float32
    check_scan(scan_inputs(1, 2, 6, 2, dtype=dtype), tolerance=tolerance)


@in_interpreter
def test_interpreter_agrees_at_extreme_step_sizes():
    inputs = scan_inputs(1, 3, 5, 2)
    inputs["delta"][0, 0] = 50.0
    inputs["delta"][0, 1] = -30.0
    inputs["A"][2] = -1e30
    inputs["delta_bias"].zero_()
    check_scan(inputs)


@in_interpreter
def test_interpreter_takes_strided_and_expanded_tensors():
    inputs = scan_inputs(1, 2, 4, 2)
    inputs["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["delta"] = inputs["delta"][:, :1].expand(1, 2, 4)
    inputs["B"] = inputs["B"][..., :1].expand(1, 1, 2, 4)
    check_scan(inputs)


@in_interpreter
def test_interpreter_takes_strided_vectors_in_several_segments():
    inputs = scan_inputs(1, 3, 21, 2)
    for name in ("D", "delta_bias"):
        inputs[name] = inputs[name].repeat_interleave(2)[::2]
    check_scan(inputs, segment=16)


@in_interpreter
@pytest.mark.parametrize(("length", "width", "directions", "states"), [(18, 3, 1, 2), (5, 34, 2, 1)])
def test_interpreter_agrees_along_index_tables(length, width, directions, states):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    arguments = DirectionalInputs(
        normal(1, length, width),
        normal(1, length, directions, width),
        -torch.rand(directions * width, states, generator=generator),
        normal(1, length, directions, states),
        normal(1, length, directions, states),
        torch.stack([torch.randperm(length, generator=generator) for _ in range(directions)]).int(),
        normal(directions * width),
        normal(directions * width),
        True,
    )
    exact = DirectionalInputs(*to_float64(arguments))
    expected = scan_reference.directional_forward(exact)
    actual = scan_triton.directional_forward(arguments, segment=16)
    assert_same(actual, expected)
    grad_out = normal(*actual[0].shape)
    gradients = scan_triton.directional_backward(grad_out, arguments, actual[1], segment=16)
    assert_same(gradients, scan_reference.directional_backward(grad_out.double(), exact, expected[1]))


@in_interpreter
def test_interpreter_agrees_without_checkpoints():
    inputs = scan_inputs(1, 1, 1, 1)
    out, last, checkpoints = scan_triton.scan_forward(ScanInputs(**inputs), checkpointed=False)
    expected = scan_reference.scan_forward(ScanInputs(*to_float64(ScanInputs(**inputs))))
    assert_same((out, last), expected[:2])
    assert checkpoints.numel() == 0


@pytest.mark.parametrize("states", [1, 3])
def test_rows_of_the_gpu_benchmark_hold_peers_and_errors(states, monkeypatch):
    """Run every measured call once, on the CPU by the reference; peers and errors must belong to the same scan."""

    def once(run, repeats):
        run()
        return [2.0]

    monkeypatch.setattr(triton_benchmark, "_times_us", once)
    monkeypatch.setattr(scan_triton, "scan_forward", scan_reference.scan_forward)
    monkeypatch.setattr(scan_triton, "scan_backward", scan_reference.scan_backward)
    shape = scan_triton.ScanShape(batch=1, length=5, groups=2, width=3, states=states)
    rows = triton_benchmark._rows(shape, torch.float32, seed=0, repeats=1, device="cpu")
    assert [row.what for row in rows] == ["forward", "forward with checkpoints", "backward"]
    for row in rows:
        assert row.peer_ratio["parallel scan in PyTorch"] == 1
        assert row.max_error < 1e-5
        assert 0 < row.h100_floor_fraction < 1
    larger = shape._replace(batch=2)
    assert triton_benchmark._rows(larger, torch.float32, seed=0, repeats=1, device="cpu")[0].max_error is None


def test_segments_are_as_long_as_a_full_gpu_allows():
    one_image = scan_triton.ScanShape(batch=1, length=4096, groups=4, width=180, states=16)
    assert one_image.segment() == scan_triton.SHORTEST_SEGMENT
    many = one_image._replace(batch=100)
    assert many.segment() == 4096
    assert one_image._replace(length=4097).segment(16) == 16
    assert one_image._replace(length=21, batch=100).segment() % scan_triton.CHECKPOINT_STEPS == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(IN_INTERPRETER, reason="compares the compiled kernels")
@pytest.mark.parametrize("sizes", [(2, 70, 321, 16, 2), (1, 40, 256, 16, 1), (1, 33, 257, 1, 1), (1, 8, 100, 64, 1)])
@pytest.mark.parametrize("segment", [None, 64])
def test_gpu_agrees_with_float64(sizes, segment):
    inputs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in scan_inputs(*sizes).items()}
    check_scan(inputs, segment, tolerance=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_benchmark_without_a_gpu_is_one_clear_error():
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        gpu_benchmark()


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("sizes", [(1, 2, 0, 4, 1), (0, 2, 5, 4, 1), (2, 4, 0, 3, 2)])
def test_an_empty_scan_runs_no_kernel(sizes, constant, monkeypatch):
    monkeypatch.setattr(scan_triton, "device_code", None)
    check_scan(scan_inputs(*sizes, constant=constant))


def test_an_empty_image_runs_no_kernel(monkeypatch):
    monkeypatch.setattr(scan_triton, "device_code", None)
    x, delta, B = torch.zeros(0, 5, 3), torch.zeros(0, 5, 2, 3), torch.zeros(0, 5, 2, 4)
    permutation = torch.arange(5, dtype=torch.int32).repeat(2, 1)
    rates, ones = -torch.ones(6, 4), torch.ones(6)
    arguments = DirectionalInputs(x, delta, rates, B, B, permutation, ones, ones, True)
    actual, expected = (path.directional_forward(arguments) for path in (scan_triton, scan_reference))
    assert [v.shape for v in actual] == [v.shape for v in expected]
    gradients, expected = (
        path.directional_backward(actual[0], arguments, actual[1]) for path in (scan_triton, scan_reference)
    )
    for gradient, truth in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=0, atol=0)


def test_missing_triton_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "voxelwave.kernels.scan.triton_device", raising=False)
    monkeypatch.delattr(voxelwave.kernels.scan, "triton_device", raising=False)
    with pytest.raises(ImportError, match="needs Triton"):
        scan_triton.scan_forward(ScanInputs(**scan_inputs(1, 1, 1, 1)))
