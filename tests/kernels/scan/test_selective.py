"""The selective scan: every path compared with float64, gradients, operators and messages."""

import ctypes
import functools
import inspect
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from voxelwave import kernels
from voxelwave.kernels import attention, native, scan
from voxelwave.kernels.attention import softmax
from voxelwave.kernels.scan import cpu as scan_cpu
from voxelwave.kernels.scan import operators
from voxelwave.kernels.scan import reference as scan_reference
from voxelwave.kernels.scan import triton as scan_triton
from voxelwave.kernels.scan.reference import directional_scan_reference, selective_scan_reference
from voxelwave.kernels.scan.selective import directional_scan, selective_scan, selective_scan_step

LEVELS = native.levels()
needs_library = pytest.mark.skipif(not LEVELS, reason="the compiled scan was not built")

Arguments = dict[str, Any]


def draw(
    batch: int,
    channels: int,
    groups: int,
    states: int,
    length: int,
    *,
    constant: str = "",
    z: bool = False,
    initial: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    """Arguments of `selective_scan` as in a model; `constant` names the matrices that do not vary in time."""
    generator = torch.Generator().manual_seed(length + channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    matrices = {
        name: normal(channels, states) if name in constant else normal(batch, groups, states, length).to(dtype)
        for name in "BC"
    }
    return {
        "u": normal(batch, channels, length).to(dtype),
        "delta": (0.5 * normal(batch, channels, length) - 2).to(dtype),
        "A": -0.5 - states * torch.rand(channels, states, generator=generator),
        **matrices,
        "D": normal(channels),
        "z": normal(batch, channels, length).to(dtype) if z else None,
        "delta_bias": 0.1 * normal(channels),
        "initial_state": normal(batch, channels, states) if initial else None,
    }


def outputs_and_gradients(arguments: Arguments, scan=selective_scan, softplus: bool = True) -> dict[str, Tensor]:
    leaves = {k: v.detach().clone().requires_grad_() for k, v in arguments.items() if v is not None}
    out, last = scan(**leaves, delta_softplus=softplus, return_last_state=True)
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(out.shape, generator=generator).to(out.dtype)
    grad_last = torch.randn(last.shape, generator=generator).to(last.dtype)
    gradients = torch.autograd.grad([out, last], list(leaves.values()), [grad_out, grad_last])
    return {"out": out.detach(), "last_state": last.detach()} | dict(zip(leaves, gradients, strict=True))


def in_double(arguments: Arguments) -> Arguments:
    return {k: None if v is None else v.double() for k, v in arguments.items()}


@contextmanager
def plain() -> Iterator[None]:
    """Use the path without the compiled library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_cpu, "serves", lambda u: False)
        yield


@pytest.fixture(params=["compiled", pytest.param("plain", marks=pytest.mark.slow)])
def _either_path(request: pytest.FixtureRequest) -> Iterator[None]:
    with plain() if request.param == "plain" else nullcontext():
        yield


def assert_as_accurate(result: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, value in result.items():
        if value.numel():
            scale = truth[name].abs().max().clamp_min(1e-30)
            error = ((value.double() - truth[name].double()).abs().max() / scale).item()
            assert error < tolerance, f"{name}: {error:.1e}"


def test_new_memory_is_poisoned_in_these_tests():
    """Otherwise a kernel that reads memory before writing it could pass by chance; see conftest.py."""
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(2, dtype=torch.float16)).isnan().all()
    assert torch.zeros(1).new_empty(2, 2).isnan().all()
    assert torch.empty(8, dtype=torch.uint8).view(torch.float32).isnan().all()


def test_every_path_stores_a_state_after_the_same_steps_as_its_kernels():
    """The shape functions of the operators assume that the CPU and the reference agree."""
    assert scan_cpu.CHECKPOINT_STEPS == scan_reference.CHECKPOINT_STEPS
    if LEVELS:
        for name in ("vw_scan_checkpoint_steps", "vw_scan_double_checkpoint_steps"):
            assert native.function(name, ctypes.c_int)() == scan_cpu.CHECKPOINT_STEPS


def test_the_path_is_chosen_by_type_device_and_size(monkeypatch):
    u = torch.zeros(1, 2, 3)
    assert operators._path(u) is (scan_cpu if LEVELS else scan_reference)
    assert operators._path(u.bfloat16()) is (scan_cpu if LEVELS else scan_reference)
    assert operators._path(u.double()) is (scan_cpu if LEVELS else scan_reference)
    assert operators._path(u[..., :0]) is scan_reference
    on_cuda = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    assert operators._path(on_cuda) is scan_triton


def test_the_public_names_are_those_of_the_packages():
    assert scan.selective_scan is kernels.selective_scan is selective_scan
    assert scan.directional_scan is kernels.directional_scan is directional_scan
    assert attention.attention is softmax.attention
    assert kernels.linear_attention is attention.linear_attention


def test_arguments_are_in_the_order_of_the_published_function():
    names = "u delta A B C D z delta_bias delta_softplus return_last_state initial_state"
    assert " ".join(inspect.signature(selective_scan).parameters) == names


SIZES = [
    (1, 1, 1, 1, 1),
    (1, 1, 1, 16, 7),
    (2, 6, 2, 3, 13),
    (1, 37, 1, 16, 127),
    (1, 18, 3, 64, 128),
    (2, 36, 4, 5, 129),
    (1, 60, 4, 16, 257),
    (3, 20, 1, 2, 16),
    (1, 150, 1, 7, 130),
]
FORMS: list[dict[str, Any]] = [
    {},
    {"z": True, "initial": True},
    {"constant": "B", "z": True},
    {"constant": "C", "initial": True},
    {"constant": "BC"},
]


@needs_library
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=pytest.mark.slow) if s == (1, 60, 4, 16, 257) else s for s in SIZES], ids=str
)
def test_every_build_agrees_with_float64_in_outputs_and_gradients(level, size):
    for form in FORMS:
        arguments = draw(*size, **form)
        exact = in_double(arguments)
        with plain():
            truth = outputs_and_gradients(exact)
        with native.use_level(level):
            assert_as_accurate(outputs_and_gradients(arguments), truth)
            assert_as_accurate(outputs_and_gradients(exact), truth, 1e-13)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_written_out_gradients_agree_with_autograd_of_the_plain_recurrence(form):
    arguments = in_double(draw(2, 6, 2, 3, 130, **form))
    for softplus in (True, False):
        if not softplus:
            arguments["delta"] = 0.5 + arguments["delta"].abs()  # negative steps would grow without bound
        truth = outputs_and_gradients(arguments, selective_scan_reference, softplus=softplus)
        assert_as_accurate(outputs_and_gradients(arguments, softplus=softplus), truth, 1e-10)
        with plain():
            assert_as_accurate(outputs_and_gradients(arguments, softplus=softplus), truth, 1e-10)


@pytest.mark.usefixtures("_either_path")
def test_gradcheck_of_every_argument_in_float64(request, monkeypatch):
    monkeypatch.setattr(scan_reference, "CHECKPOINT_STEPS", 4)
    length = 6 if "plain" in request.node.name else 130  # more than the steps of one checkpoint, 128 in the library
    arguments = in_double(draw(1, 4, 2, 2, length, z=True, initial=True))
    leaves = [v.requires_grad_() for v in arguments.values() if v is not None]

    def scan(u, delta, A, B, C, D, z, delta_bias, initial_state):
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, True, True, initial_state)

    assert torch.autograd.gradcheck(scan, leaves)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize("length", [1, 128, 131])
def test_half_precision_keeps_a_float32_state(dtype, tolerance, length):
    # tolerance: two roundings of the type; the sums themselves are float32
    arguments = draw(1, 20, 2, 4, length, z=True, initial=True, dtype=dtype)
    result = outputs_and_gradients(arguments)
    assert result["out"].dtype == result["u"].dtype == result["B"].dtype == dtype
    assert result["last_state"].dtype == result["A"].dtype == torch.float32
    with plain():
        truth = outputs_and_gradients(in_double(arguments))
    assert_as_accurate(result, truth, tolerance)
    torch.testing.assert_close(result["last_state"].double(), truth["last_state"], rtol=1e-5, atol=1e-5)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernel_keeps_every_half_precision_number(dtype):
    """With delta = 0 and D = 1 the output is u: every finite number of the type, subnormals included."""
    u = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, -1)
    u = u[~u.isnan()].view(1, 1, -1)
    zero = torch.zeros_like(u)
    out = selective_scan(torch.where(u.isinf(), 0, u), zero, -torch.ones(1, 1), zero, zero, torch.ones(1))
    torch.testing.assert_close(out, torch.where(u.isinf(), 0, u), rtol=0, atol=0)


def test_length_zero_gives_an_empty_output_and_keeps_the_state():
    arguments = draw(2, 6, 2, 3, 0, z=True, initial=True)
    result = outputs_and_gradients(arguments)
    assert result["out"].shape == (2, 6, 0)
    torch.testing.assert_close(result["last_state"], arguments["initial_state"])
    assert result["A"].abs().max() == 0
    generator = torch.Generator().manual_seed(1)
    torch.randn(2, 6, 0, generator=generator)
    torch.testing.assert_close(result["initial_state"], torch.randn(2, 6, 3, generator=generator))


def test_non_contiguous_and_expanded_inputs_and_gradients_change_nothing():
    plain = draw(2, 12, 1, 4, 50, z=True)
    strided = {k: None if v is None else v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in plain.items()}
    for name, value in outputs_and_gradients(strided).items():
        torch.testing.assert_close(value, outputs_and_gradients(plain)[name], rtol=0, atol=0)
    u = plain["u"][:1].expand(2, -1, -1)
    expanded = selective_scan(**plain | {"u": u}, delta_softplus=True)
    torch.testing.assert_close(expanded, selective_scan(**plain | {"u": u.clone()}, delta_softplus=True))
    delta = plain["delta"].clone().requires_grad_()
    selective_scan(**plain | {"delta": delta}, delta_softplus=True).sum().backward()  # the gradient of out is expanded
    assert delta.grad.isfinite().all()


def test_huge_step_sizes_forget_the_past_and_tiny_ones_keep_the_state():
    arguments = draw(1, 5, 1, 3, 40, initial=True) | {"D": None, "delta_bias": None}
    tiny = selective_scan(**arguments | {"delta": torch.full((1, 5, 40), -80.0)}, delta_softplus=True,
                          return_last_state=True)[1]  # fmt: skip
    torch.testing.assert_close(tiny, arguments["initial_state"], rtol=1e-6, atol=1e-6)
    for size in (1e3, 1e10, 1e25):
        huge = arguments | {"delta": torch.full((1, 5, 40), size)}
        out = selective_scan(**huge)
        alone = size * arguments["u"] * (arguments["B"] * arguments["C"]).sum(2)  # h_t = delta u B, a_t = 0
        torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-5 * size)


@needs_library
@pytest.mark.parametrize("level", LEVELS)
def test_step_sizes_and_their_slopes_are_softplus(level):
    """With u = B = C = 1 and one step the output is the step size; tiny ones keep their digits."""
    delta = torch.linspace(-80, 30, 3001).view(-1, 1, 1).requires_grad_()
    ones = torch.ones_like(delta).detach()
    with native.use_level(level):
        out = selective_scan(ones, delta, -torch.ones(1, 1), ones, ones, delta_softplus=True)
        (slope,) = torch.autograd.grad(out.sum(), delta)
    exact = delta.detach().double()
    torch.testing.assert_close(out.double(), torch.nn.functional.softplus(exact), rtol=1e-6, atol=0)
    torch.testing.assert_close(slope.double(), torch.sigmoid(exact), rtol=1e-6, atol=1e-30)


@needs_library
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1.0, 100.0, 1000.0])
def test_decays_are_exponentials(level, size):
    """One step from the initial state 1 with u = 0, within 120 powers of two of 1 and beyond."""
    delta = torch.linspace(0, size, 2001).view(-1, 1, 1)
    ones = torch.ones_like(delta)
    with native.use_level(level):
        out = selective_scan(0 * ones, delta, -torch.ones(1, 1), ones, ones, initial_state=ones)
    assert out[0] == 1
    torch.testing.assert_close(out.double(), (-delta.double()).exp(), rtol=3e-7 + 1e-7 * min(size, 87), atol=2e-38)


@needs_library
def test_every_number_of_states_up_to_64():
    for states in range(1, 65):
        arguments = draw(1, 17, 1, states, 19)
        exact = in_double(arguments)
        with plain():
            truth = {"out": selective_scan(**exact, delta_softplus=True)}
        assert_as_accurate({"out": selective_scan(**arguments, delta_softplus=True)}, truth)
        assert_as_accurate({"out": selective_scan(**exact, delta_softplus=True)}, truth, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("A", [-1e30, -float("inf")])
def test_a_rate_of_minus_infinity_forgets_at_every_step(A, dtype):
    arguments = draw(1, 5, 1, 3, 140) | {"D": None, "delta_bias": None, "A": torch.full((5, 3), A)}
    arguments = {k: None if v is None else v.to(dtype) for k, v in arguments.items()}
    dl = torch.nn.functional.softplus(arguments["delta"])
    alone = dl * arguments["u"] * (arguments["B"] * arguments["C"]).sum(2)
    torch.testing.assert_close(selective_scan(**arguments, delta_softplus=True), alone)
    assert all(v.isfinite().all() for v in outputs_and_gradients(arguments).values())
    no_step = arguments | {"delta": torch.zeros_like(dl)}
    assert not selective_scan(**no_step).any()


def test_a_decay_near_one_does_not_drift():
    """Over 4000 steps with a decay of 1 - 1e-4, an exponential with a bias near 1 would be off by 1e-3."""
    ones = torch.ones(1, 1, 4000)
    arguments = (ones, ones, torch.full((1, 1), -1e-4), ones, ones)
    exact = [v.double() for v in arguments]
    with plain():
        truth = selective_scan(*exact)
    torch.testing.assert_close(selective_scan(*arguments).double(), truth, rtol=2e-4, atol=0)
    torch.testing.assert_close(selective_scan(*exact), truth, rtol=1e-12, atol=0)


def test_nan_spreads_only_to_later_steps_of_its_channel():
    arguments = draw(1, 20, 1, 3, 40)
    arguments["u"][0, 3, 10] = float("nan")
    out = selective_scan(**arguments, delta_softplus=True)
    assert out[0, 3, 10:].isnan().all()
    assert out[0, 3, :10].isfinite().all()
    assert out[0, torch.arange(20) != 3].isfinite().all()


def test_functional_gradients_equal_those_of_autograd_and_second_ones_are_refused():
    generator = torch.Generator().manual_seed(0)
    u, delta = torch.rand(2, 1, 2, 5, generator=generator).unbind()
    A, B = -torch.rand(2, 3, generator=generator), torch.randn(1, 3, 5, generator=generator)

    def total(u):
        return selective_scan(u, delta, A, B, B).square().sum()

    leaf = u.clone().requires_grad_()
    expected = torch.autograd.grad(total(leaf), leaf)[0]
    torch.testing.assert_close(torch.func.grad(total)(u), expected)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.func.grad(lambda u: torch.func.grad(total)(u).sum())(u)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(total, (u,), (u,))


def test_functional_gradients_of_the_directional_scan_equal_those_of_autograd():
    ones, permutation = torch.ones(1, 3, 2, 1), torch.tensor([[0, 1, 2], [2, 1, 0]])

    def total(x):
        return directional_scan(x, ones, torch.full((2, 1), 0.5).log(), ones, ones, permutation).square().sum()

    x = torch.arange(3.0).view(1, 3, 1)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(total)(x), torch.autograd.grad(total(leaf), leaf)[0])


@pytest.mark.parametrize("wanted", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_a_subset_of_gradients_equals_the_full_set(wanted):
    arguments = draw(1, 8, 2, 3, 20, z=True, initial=True)
    arguments[wanted].requires_grad_()
    selective_scan(**arguments, delta_softplus=True).sum().backward()
    arguments = {k: v.detach() for k, v in arguments.items()} | {wanted: arguments[wanted]}
    truth = {k: v.double().detach().requires_grad_() for k, v in arguments.items()}
    selective_scan(**truth, delta_softplus=True).sum().backward()
    torch.testing.assert_close(arguments[wanted].grad.double(), truth[wanted].grad, rtol=1e-4, atol=1e-5)


@needs_library
def test_the_number_of_threads_changes_no_bit():
    arguments = draw(2, 200, 2, 16, 300, z=True, initial=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(arguments))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@needs_library
def test_the_number_of_threads_changes_no_bit_of_the_directional_scan():
    arguments, permutation = draw_directional(2, 40, 3, 5, 300)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(directional_results(arguments, permutation))
    finally:
        torch.set_num_threads(before)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@pytest.fixture(scope="module")
def new_process():
    """The modules and libraries that a new process has loaded after a scan with gradients."""
    program = """
import json, sys, torch
import voxelwave.kernels.scan.triton_aot
from voxelwave.kernels.scan.selective import selective_scan
ones = torch.ones(1, 2, 4, requires_grad=True)
selective_scan(ones, ones, -torch.ones(2, 1), torch.ones(1, 1, 4), torch.ones(1, 1, 4)).sum().backward()
assert ones.grad.isfinite().all()
maps = open("/proc/self/maps").readlines() if sys.platform == "linux" else []
libraries = sorted({line.split(maxsplit=5)[-1].strip() for line in maps if "gomp" in line})
print(json.dumps({"modules": list(sys.modules), "libraries": libraries}))
"""
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the library brings its own threads")
def test_threads_are_those_of_torch(new_process):
    """The process has one OpenMP library, since two would keep two thread pools that compete for the same cores."""
    loaded = new_process["libraries"]
    assert len(loaded) <= 1
    assert all(Path(name).parent == Path(torch.__file__).with_name("lib") for name in loaded)


@pytest.mark.parametrize("compiler", ["torch._dynamo", "triton"])
def test_scans_load_no_compiler(compiler, new_process):
    assert compiler not in new_process["modules"]


@pytest.mark.parametrize("constant", ["", "BC"])
def test_steps_agree_with_the_full_scan(constant):
    arguments = draw(2, 6, 2, 3, 9, z=True, constant=constant)
    out, last = selective_scan(**arguments, delta_softplus=True, return_last_state=True)
    state = torch.zeros(2, 6, 3)
    fixed = {k: arguments[k] for k in ("A", "D", "delta_bias")}
    for t in range(9):
        at_t = {k: arguments[k][..., t] for k in ("u", "delta", "z")}
        matrices = {k: arguments[k] if constant else arguments[k][..., t] for k in "BC"}
        y = selective_scan_step(state, **at_t, **fixed, **matrices, delta_softplus=True)
        torch.testing.assert_close(y, out[..., t], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-6)


def test_a_step_in_autocast_computes_in_float32():
    arguments = draw(1, 6, 2, 3, 1)
    at_0 = {k: arguments[k][..., 0] for k in ("u", "delta", "B", "C")} | {k: arguments[k] for k in ("A", "D")}
    mixed = at_0 | {"u": at_0["u"].bfloat16(), "C": at_0["C"].bfloat16()}
    state = torch.zeros(1, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan_step(state, **mixed)
    expected = selective_scan_step(torch.zeros(1, 6, 3), **{k: v.float() for k, v in mixed.items()})
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_blocks_chained_by_their_state_equal_one_scan():
    arguments = draw(1, 6, 2, 3, 200)
    out, last = selective_scan(**arguments, delta_softplus=True, return_last_state=True)
    over_time = ("u", "delta", "B", "C")
    state, parts = None, []
    for piece in (slice(0, 1), slice(1, 130), slice(130, 200)):
        block = arguments | {k: arguments[k][..., piece] for k in over_time} | {"initial_state": state}
        part, state = selective_scan(**block, delta_softplus=True, return_last_state=True)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, -1), out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_three_dimensional_matrices_are_one_group():
    arguments = draw(2, 6, 1, 3, 11)
    squeezed = arguments | {k: arguments[k][:, 0] for k in "BC"}
    for scan_of in (selective_scan, selective_scan_reference):
        torch.testing.assert_close(scan_of(**squeezed), scan_of(**arguments), rtol=0, atol=0)


# ---- directional


def draw_directional(batch: int, width: int, directions: int, states: int, length: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    orders = [torch.randperm(length, generator=generator) for _ in range(directions)]
    return {
        "x": normal(batch, length, width).to(dtype),
        "delta": (0.5 * normal(batch, length, directions, width) - 2).to(dtype),
        "A": -0.5 - torch.rand(directions * width, states, generator=generator),
        "B": normal(batch, length, directions, states).to(dtype),
        "C": normal(batch, length, directions, states).to(dtype),
        "D": normal(directions * width),
        "delta_bias": 0.1 * normal(directions * width),
    }, torch.stack(orders)


def directional_results(arguments, permutation, scan=directional_scan) -> dict[str, Tensor]:
    leaves = {k: v.detach().clone().requires_grad_() for k, v in arguments.items()}
    out = scan(**leaves, permutation=permutation, delta_softplus=True)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return {"out": out.detach()} | dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))


@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (2, 5, 3, 3, 13), (1, 20, 4, 16, 129), (2, 40, 2, 1, 256)], ids=str)
def test_directional_scan_equals_gather_scan_and_inverse_gather(size):
    arguments, permutation = draw_directional(*size)
    exact = in_double(arguments)
    truth = directional_results(exact, permutation, directional_scan_reference)
    for level in LEVELS:
        with native.use_level(level):
            assert_as_accurate(directional_results(arguments, permutation), truth)
            assert_as_accurate(directional_results(exact, permutation), truth, 1e-13)
    with plain():
        assert_as_accurate(directional_results(exact, permutation.int()), truth, 1e-13)


def test_directional_scan_reads_slices_of_one_projection():
    arguments, permutation = draw_directional(2, 5, 3, 4, 30)
    joined = torch.cat([arguments["delta"], arguments["B"], arguments["C"]], -1)
    delta, B, C = joined.split([5, 4, 4], -1)
    result = directional_results(arguments | {"delta": delta, "B": B, "C": C}, permutation)
    for name, value in directional_results(arguments, permutation).items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=0)
    leaf = joined.clone().requires_grad_()
    delta, B, C = leaf.split([5, 4, 4], -1)
    slices = {"delta": delta, "B": B, "C": C}
    out = directional_scan(**arguments | slices, permutation=permutation, delta_softplus=True)
    out.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_directional_scan_in_half_precision(dtype, tolerance):
    arguments, permutation = draw_directional(1, 20, 3, 4, 33, dtype)
    with plain():
        truth = directional_results(in_double(arguments), permutation)
    assert_as_accurate(directional_results(arguments, permutation), truth, tolerance)


@needs_library
@pytest.mark.parametrize("wrong", [[[0, 0, 2]], [[0, 1, 3]], [[-1, 0, 1]]])
def test_a_row_that_is_not_a_permutation_is_refused(wrong):
    arguments, _ = draw_directional(1, 2, 1, 2, 3)
    with pytest.raises(ValueError, match=r"permutation must list each of 0\.\.2 once in every row, got row 0"):
        directional_scan(**arguments, permutation=torch.tensor(wrong))


@needs_library
def test_a_permutation_that_changed_after_its_check_is_refused():
    arguments, permutation = draw_directional(1, 2, 1, 2, 3)
    directional_scan(**arguments, permutation=permutation)
    permutation[0, 0] = permutation[0, 1]
    with pytest.raises(ValueError, match="permutation must list each of"):
        directional_scan(**arguments, permutation=permutation)
    _, permutation = draw_directional(1, 2, 1, 2, 3)
    directional_scan(**arguments, permutation=permutation)
    permutation.numpy()[0, 0] = 5000  # torch does not count this change
    with pytest.raises(ValueError, match="permutation must list each of"):
        directional_scan(**arguments, permutation=permutation)


def test_gradients_of_scans_of_equal_sizes_are_independent():
    """The second scan runs, forward and backward, between both passes of the first."""
    first, permutation = draw_directional(2, 20, 3, 4, 33)
    second = {name: value.flip(0) + 0.01 for name, value in first.items()}
    expected = directional_results(first, permutation)
    leaves = {name: value.clone().requires_grad_() for name, value in first.items()}
    out = directional_scan(**leaves, permutation=permutation, delta_softplus=True)
    between = directional_results(second, permutation.flip(0))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, list(leaves.values()), grad)
    for value, name in zip((out, *gradients), expected, strict=True):
        assert torch.equal(value, expected[name]), name
    for name, value in directional_results(second, permutation.flip(0)).items():
        assert torch.equal(value, between[name]), name


def test_tensors_of_equal_shapes_and_other_strides_give_equal_results():
    arguments, permutation = draw_directional(2, 20, 3, 4, 33)
    expected = directional_results(arguments, permutation)
    strided = {name: with_last_axis_strided(value) for name, value in arguments.items()}
    out = directional_scan(**strided, permutation=permutation.t().contiguous().t(), delta_softplus=True)
    assert torch.equal(out, expected["out"])


def test_a_second_derivative_of_either_scan_is_refused():
    image, permutation = draw_directional(1, 3, 2, 2, 5)
    sequence = draw(1, 4, 2, 2, 5)
    for scan_of, tensors, varied in (
        (functools.partial(directional_scan, permutation=permutation), image, "x"),
        (selective_scan, sequence, "u"),
    ):
        leaf = tensors[varied].requires_grad_()
        first = torch.autograd.grad(scan_of(**tensors, delta_softplus=True).square().sum(), leaf, create_graph=True)[0]
        without = torch.autograd.grad(scan_of(**tensors, delta_softplus=True).square().sum(), leaf)[0]
        assert torch.equal(first, without)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_a_batch_of_gradients_equals_them_one_by_one():
    image, permutation = draw_directional(1, 3, 2, 2, 5)
    leaf = image["x"].requires_grad_()
    out = directional_scan(**image, permutation=permutation, delta_softplus=True)
    gradients = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(1))
    together = torch.autograd.grad(out, leaf, gradients, retain_graph=True, is_grads_batched=True)[0]
    for gradient, value in zip(gradients, together, strict=True):
        torch.testing.assert_close(value, torch.autograd.grad(out, leaf, gradient, retain_graph=True)[0])


# ---- operators


def with_last_axis_strided(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.usefixtures("_either_path")
@pytest.mark.parametrize("form", [{}, {"z": True, "initial": True}, {"constant": "BC"}], ids=str)
def test_selective_scan_passes_the_checks_of_a_torch_operator(form):
    a = draw(2, 4, 2, 2, 5, **form)
    leaves = [None if v is None else with_last_axis_strided(v).requires_grad_() for v in a.values()]
    *tensors, initial = leaves
    operator = torch.ops.voxelwave.selective_scan.default
    torch.library.opcheck(operator, (*tensors, True, initial, True))


@pytest.mark.usefixtures("_either_path")
def test_directional_scan_passes_the_checks_of_a_torch_operator():
    a, permutation = draw_directional(2, 3, 2, 2, 5)
    leaves = {k: with_last_axis_strided(v).requires_grad_() for k, v in a.items()}
    order = (*(leaves[k] for k in ("x", "delta", "A", "B", "C")), permutation.int(), leaves["D"], leaves["delta_bias"])
    torch.library.opcheck(torch.ops.voxelwave.directional_scan.default, (*order, True, True))


def test_compiled_without_graph_breaks_and_equal_to_eager():
    arguments = draw(1, 8, 2, 3, 20, z=True, initial=True)

    def scan(**tensors):
        return selective_scan(**tensors)

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    eager = outputs_and_gradients(arguments)
    for name, value in outputs_and_gradients(arguments, compiled).items():
        torch.testing.assert_close(value, eager[name], rtol=0, atol=0)
    image, permutation = draw_directional(1, 3, 2, 2, 5)

    def directional(**tensors):
        return directional_scan(**tensors)

    compiled = torch.compile(directional, fullgraph=True, backend="aot_eager")
    for name, value in directional_results(image, permutation, compiled).items():
        torch.testing.assert_close(value, directional_results(image, permutation)[name], rtol=0, atol=0)


@pytest.mark.usefixtures("_either_path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backward_operators_return_the_layout_of_their_shape_functions(dtype):
    a = {k: None if v is None else with_last_axis_strided(v.to(dtype)) for k, v in draw(2, 4, 2, 2, 5, z=True).items()}
    *tensors, initial = a.values()
    out, last, checkpoints = torch.ops.voxelwave.selective_scan(*tensors, True, initial, True)
    scan = (out, last, *tensors, True, initial, checkpoints)
    image, permutation = draw_directional(2, 3, 2, 2, 5, dtype)
    real = {k: v.to(dtype) for k, v in image.items()}
    tensors = [*(real[k] for k in ("x", "delta", "A", "B", "C")), permutation.int(), real["D"], real["delta_bias"]]
    out, checkpoints = torch.ops.voxelwave.directional_scan(*tensors, True, True)
    directional = (out, *tensors, True, checkpoints)
    for operator, arguments in (
        (torch.ops.voxelwave.selective_scan_backward, scan),
        (torch.ops.voxelwave.directional_scan_backward, directional),
    ):
        with FakeTensorMode() as mode:
            promised = operator(*(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in arguments))
        for result, fake in zip(operator(*arguments), promised, strict=True):
            assert (result.shape, result.stride(), result.dtype) == (fake.shape, fake.stride(), fake.dtype)


def test_compiled_once_for_every_length():
    def scan(**tensors):
        return selective_scan(**tensors, delta_softplus=True)

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (5, 7, 130):
        arguments = {k: v for k, v in draw(1, 4, 2, 3, length, z=True).items() if v is not None}
        leaves = {k: v.requires_grad_() for k, v in arguments.items()}
        out = compiled(**leaves)
        torch.testing.assert_close(out, scan(**leaves), rtol=0, atol=0)
        out.sum().backward()


def test_the_meta_device_gives_the_shapes():
    a = {k: None if v is None else v.to("meta") for k, v in draw(2, 4, 2, 3, 5, z=True).items()}
    out, last = selective_scan(**a, return_last_state=True)
    assert (out.shape, last.shape) == ((2, 4, 5), (2, 4, 3))
    image, permutation = draw_directional(2, 3, 2, 2, 5)
    on_meta = {k: v.to("meta") for k, v in image.items()}
    assert directional_scan(**on_meta, permutation=permutation.to("meta")).shape == (2, 5, 2, 3)


def test_autocast_scans_in_float32():
    arguments = draw(1, 8, 2, 3, 20)
    mixed = arguments | {"u": arguments["u"].bfloat16(), "B": arguments["B"].bfloat16()}
    with torch.autocast("cpu", torch.bfloat16):
        out = selective_scan(**mixed, delta_softplus=True)
    assert out.dtype == torch.float32
    in_float32 = {k: None if v is None else v.float() for k, v in mixed.items()}
    torch.testing.assert_close(out, selective_scan(**in_float32, delta_softplus=True), rtol=0, atol=0)


def test_autocast_scans_directions_in_float32():
    arguments, permutation = draw_directional(1, 3, 2, 2, 5)
    mixed = arguments | {k: arguments[k].bfloat16() for k in ("x", "delta", "C")}
    with torch.autocast("cpu", torch.bfloat16):
        out = directional_scan(**mixed, permutation=permutation)
    assert out.dtype == torch.float32
    in_float32 = {k: v.float() for k, v in mixed.items()}
    torch.testing.assert_close(out, directional_scan(**in_float32, permutation=permutation), rtol=0, atol=0)


@needs_library
def test_a_level_that_the_cpu_cannot_run_is_named():
    with pytest.raises(ValueError, match=r"level must be one of \(.*\), got 'v9'"), native.use_level("v9"):
        pass
    assert native.function("vw_scan_lanes", ctypes.c_int)() in (4, 8, 16)


def test_without_gradients_no_checkpoints_are_kept():
    *tensors, initial = draw(1, 4, 2, 2, 300, initial=True).values()
    for dtype in (torch.float32, torch.float64):
        *arguments, initial = [None if v is None else v.to(dtype) for v in (*tensors, initial)]
        assert torch.ops.voxelwave.selective_scan(*arguments, True, initial, False)[2].shape == (0,)
        assert torch.ops.voxelwave.selective_scan(*arguments, True, initial, True)[2].shape == (1, 3, 4, 2)
    image, permutation = draw_directional(1, 3, 2, 2, 300)
    for dtype in (torch.float32, torch.float64):
        x, delta, A, B, C, D, bias = (v.to(dtype) for v in image.values())
        arguments = (x, delta, A, B, C, permutation.int(), D, bias, True)
        assert torch.ops.voxelwave.directional_scan(*arguments, False)[1].shape == (0,)
        assert torch.ops.voxelwave.directional_scan(*arguments, True)[1].shape == (1, 3, 6, 2)


def test_a_missing_library_is_reported_once_and_the_result_stays(monkeypatch, tmp_path):
    arguments = draw(1, 4, 2, 2, 9)
    expected = selective_scan(**arguments)
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    native.library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="compiled kernels are missing"):
            result = selective_scan(**arguments)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            selective_scan(**arguments)
    finally:
        native.library.cache_clear()


@needs_library
def test_a_library_without_a_function_says_how_to_build_it_anew():
    with pytest.raises(RuntimeError, match=r"must have the function vw_newer_v?\w+, but its sources were older"):
        native.function("vw_newer")


# ---- messages


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"u": torch.zeros(2, 3)}, r"u must have shape \(B, D, L\), got \(2, 3\)"),
        ({"u": torch.zeros(1, 4, 5, dtype=torch.int32)}, r"u must be float32, .* got torch.int32"),
        ({"delta": torch.zeros(1, 4, 6)}, r"delta must have shape \(1, 4, 5\) to match u .* got \(1, 4, 6\)"),
        ({"delta": torch.zeros(1, 4, 5).half()}, r"delta must have the type of u, torch.float32, got torch.float16"),
        ({"A": torch.zeros(3, 2)}, r"A must have shape \(4, 2\) to match u .* got \(3, 2\)"),
        ({"A": torch.zeros(4, 0)}, r"A must have at least one state, got shape \(4, 0\)"),
        ({"B": torch.zeros(1, 2, 2, 6)}, r"B must have shape \(1, 2, 2, 5\) to match u and A .* got \(1, 2, 2, 6\)"),
        ({"C": torch.zeros(1, 1, 2, 5)}, r"C must have shape \(1, 2, 2, 5\) .* got \(1, 1, 2, 5\)"),
        ({"B": torch.zeros(1, 3, 2, 5)}, r"B must have a number of groups that divides 4 channels, got \(1, 3, 2, 5\)"),
        ({"B": torch.zeros(2, 2, 5)}, r"B must have shape \(1, 2, 2, 5\) .* got \(2, 2, 5\)"),
        ({"B": torch.zeros(2, 2, 5), "C": torch.zeros(1, 2, 5)}, r"B must have shape \(1, 2, 5\) .* got \(2, 2, 5\)"),
        ({"B": 1.0}, r"B must be a tensor of shape \(D, N\), \(B, N, L\) or \(B, G, N, L\), got float"),
        ({"D": torch.zeros(5)}, r"D must have shape \(4,\) .* got \(5,\)"),
        ({"z": torch.zeros(1, 4, 4)}, r"z must have shape \(1, 4, 5\) .* got \(1, 4, 4\)"),
        ({"delta_bias": torch.zeros(4, 1)}, r"delta_bias must have shape \(4,\), got \(4, 1\)"),
        ({"initial_state": torch.zeros(1, 4, 3)}, r"initial_state must have shape \(1, 4, 2\) .* got \(1, 4, 3\)"),
        ({"D": torch.zeros(4, device="meta")}, r"D must be on cpu like the input, got meta"),
    ],
)
def test_a_wrong_argument_is_named(changed, message):
    with pytest.raises((ValueError, TypeError), match=message):
        selective_scan(**draw(1, 4, 2, 2, 5) | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"delta": torch.zeros(1, 5, 2, 4)}, r"delta must have shape \(1, 5, 2, 3\) .* got \(1, 5, 2, 4\)"),
        ({"B": torch.zeros(1, 5, 2)}, r"B must have shape \(B, L, K, N\), got \(1, 5, 2\)"),
        ({"A": torch.zeros(3, 2)}, r"A must have shape \(6, 2\) .* got \(3, 2\)"),
        ({"A": torch.zeros(6, 0)}, r"A must have at least one state, got shape \(6, 0\)"),
        ({"permutation": torch.zeros(0, 5).long()}, r"permutation must have at least one row, got shape \(0, 5\)"),
        ({"permutation": torch.zeros(2, 4).long()}, r"permutation must have shape \(K, 5\) to match x"),
        ({"permutation": torch.zeros(2, 5)}, r"permutation must be a tensor of type int32 or int64, got torch.float32"),
    ],
)
def test_a_wrong_argument_of_the_directional_scan_is_named(changed, message):
    arguments, permutation = draw_directional(1, 3, 2, 2, 5)
    with pytest.raises((ValueError, TypeError), match=message):
        directional_scan(**arguments | {"permutation": permutation} | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"state": torch.zeros(1, 4, 3)}, r"state must have shape \(1, 4, 2\) to match u and A .* got \(1, 4, 3\)"),
        ({"state": torch.zeros(1, 4, 2).half()}, r"state must be torch.float32 .* got torch.float16"),
        ({"u": torch.zeros(1, 4, 1)}, r"u must have shape \(B, D\), got \(1, 4, 1\)"),
        ({"delta": torch.zeros(1, 5)}, r"delta must have shape \(1, 4\) to match u .* got \(1, 5\)"),
        ({"B": torch.zeros(1, 2)}, r"B must have shape \(4, 2\) to match u and A .* got \(1, 2\)"),
        ({"C": torch.zeros(1, 3, 2)}, r"C must have a number of groups that divides 4 channels, got \(1, 3, 2\)"),
        ({"C": torch.zeros(1, 2, 2).long()}, r"C must be float32, .* got torch.int64"),
        ({"B": torch.zeros(1, 2, 2, device="meta")}, r"B must be on cpu like the input, got meta"),
    ],
)
def test_a_wrong_argument_of_a_step_is_named(changed, message):
    arguments = {k: torch.zeros(1, 4) for k in ("u", "delta")} | {k: torch.zeros(1, 2, 2) for k in "BC"}
    arguments |= {"state": torch.zeros(1, 4, 2), "A": torch.zeros(4, 2)}
    with pytest.raises((ValueError, TypeError), match=message):
        selective_scan_step(**arguments | changed)
