"""The peers of the benchmark compute what the kernel computes: else their times would say nothing."""

import time

import pytest
import torch

from voxelwave.apps import cli
from voxelwave.kernels import selective_scan
from voxelwave.kernels.scan import benchmark
from voxelwave.kernels.scan import cpu as scan_cpu
from voxelwave.kernels.scan.benchmark_ggml import GgmlScan


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return benchmark._inputs(24, 300, 16)


@pytest.mark.parametrize("peer", [benchmark.sequential_recurrence, benchmark.parallel_scan])
def test_peers_in_pytorch_agree(peer, inputs):
    torch.testing.assert_close(peer(**inputs), selective_scan(**inputs, delta_softplus=True), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not GgmlScan.installed(), reason="ggml-python is not installed")
def test_ggml_agrees(inputs):
    with GgmlScan(**inputs, threads=2) as scan:
        first, second = scan(), scan()
    torch.testing.assert_close(first, selective_scan(**inputs, delta_softplus=True), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.skipif(not scan_cpu.levels(), reason="the compiled scan was not built")
def test_forward_and_backward_take_less_than_four_times_the_memory_of_u():
    """With all results and the scratch memory of the library; at the smallest size that the benchmark is held to."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        peaks = [row.value for row in benchmark._memory(quick=True)]
    finally:
        torch.set_num_threads(before)
    assert len(peaks) == 1
    assert 3 < peaks[0] < 4  # out, du and ddelta alone are three


@pytest.mark.skipif(not scan_cpu.levels(), reason="the compiled scan was not built")
def test_the_table_has_every_figure(monkeypatch, capsys):
    def once(work, *_, **__):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start, "once"

    monkeypatch.setattr(benchmark, "_time", once)
    monkeypatch.setattr(benchmark, "SIZES", ((8, 128, 2), (16, 128, 2)))
    assert cli.main(["bench", "kernels", "--quick=true"]) == 0
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
    ):
        assert figure in printed, figure


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_command_says_so_in_one_line(capsys):
    assert cli.main(["bench", "kernels", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "voxelwave: error: device must be cpu here: no CUDA device was found\n"
