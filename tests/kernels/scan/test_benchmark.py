"""The benchmark: its peers compute the same scan, since otherwise their times would be meaningless; and its table."""

import time

import pytest
import torch

from voxelwave.apps import cli
from voxelwave.kernels import native
from voxelwave.kernels.scan import benchmark
from voxelwave.kernels.scan.benchmark import own_scan
from voxelwave.kernels.scan.benchmark_ggml import GgmlScan
from voxelwave.kernels.scan.peers import parallel_scan, sequential_recurrence, trained_inputs


@pytest.mark.parametrize("peer", [sequential_recurrence, parallel_scan])
@pytest.mark.parametrize(("batch", "length"), [(1, 300), (2, 37), (1, 1)])
def test_peers_in_pytorch_agree(peer, batch, length):
    inputs = trained_inputs(24, length, 16, batch=batch)
    torch.testing.assert_close(peer(*inputs), own_scan(*inputs), rtol=1e-4, atol=1e-4)


def test_the_parallel_scan_computes_half_precision_in_float32():
    inputs = trained_inputs(24, 300, 16, dtype=torch.bfloat16)
    out = parallel_scan(*inputs)
    assert out.dtype == torch.bfloat16
    exact = parallel_scan(*(v.float() for v in inputs))
    torch.testing.assert_close(out, exact.bfloat16(), rtol=0, atol=0)


def test_inputs_have_the_step_sizes_and_rates_of_a_trained_model():
    inputs = trained_inputs(240, 8, 16)
    steps = torch.nn.functional.softplus(inputs.delta_bias)
    assert 0.99e-3 < steps.min() < steps.max() < 1.01e-1
    assert (-inputs.A / torch.arange(1.0, 17)).min() >= 1
    assert torch.equal(inputs.u, trained_inputs(240, 8, 16).u)
    assert not torch.equal(inputs.u, trained_inputs(240, 8, 16, seed=1).u)


@pytest.mark.skipif(not GgmlScan.installed(), reason="ggml-python is not installed")
def test_ggml_agrees():
    inputs = trained_inputs(24, 300, 16)
    with GgmlScan(*inputs, threads=2) as scan:
        first, second = scan(), scan()
    torch.testing.assert_close(first, own_scan(*inputs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_peak_allocation_counts_what_lives_at_the_same_time():
    def work():
        first = torch.zeros(1 << 20)  # 4 MiB
        second = first + 1
        del first
        return second + 1

    # beside two tensors of 4 MiB, a few bytes of scalars
    assert benchmark.peak_allocation(work) == pytest.approx(2 * 4 << 20, abs=64)


def test_the_benchmark_leaves_the_global_seed_and_threads_alone(monkeypatch):
    for part in (
        "_speed",
        "_length_scaling",
        "_directional",
        "_accuracy",
        "_double",
        "_memory",
        "_thread_scaling",
        "_floor",
    ):
        monkeypatch.setattr(benchmark, part, lambda _: iter(()))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert benchmark.bench_kernels(threads=threads + 1) == []
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not native.levels(), reason="the compiled scan was not built")
def test_forward_and_backward_take_less_than_four_times_the_memory_of_u():
    """The count includes all results and the scratch memory of the library, at the smallest size of the benchmark."""
    inputs = trained_inputs(*benchmark.SIZES[0])
    work = benchmark._with_gradients(own_scan, inputs)
    work()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        peak = benchmark.peak_allocation(work)
    finally:
        torch.set_num_threads(before)
    assert 3 < peak / inputs.u.nbytes < 4  # out, du and ddelta alone are three tensors


@pytest.mark.slow
@pytest.mark.skipif(not native.levels(), reason="the compiled scan was not built")
def test_the_table_lists_every_measurement(monkeypatch, capsys):
    def once(work, *_, **__):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start, "once"

    monkeypatch.setattr(benchmark, "_time", once)
    monkeypatch.setattr(benchmark, "SIZES", ((8, 128, 2), (16, 128, 2)))
    assert cli.main(["bench", "kernels"]) == 0
    printed = capsys.readouterr().out
    for figure in (
        "sequential recurrence / own, forward",
        "parallel scan / own, forward",
        "parallel scan / own ",
        "peak extra memory",
        "slope of log time over log L",
        "2 threads against 1, forward",
        "index_select, scan, inverse / own",
        "exp2 from L1",
        "multiply-add issue",
        "memory, a = b + c",
        "floor / own",
        "error against float64, output",
        "error against float64, worst gradient",
        "float64 / float32",
    ):
        assert figure in printed, figure


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_command_reports_it_in_one_line(capsys):
    assert cli.main(["bench", "kernels", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "voxelwave: error: device must be cpu here: no CUDA device was found\n"
