"""The peers of the benchmark compute what the kernel computes: else their times would say nothing."""

import pytest
import torch

from voxelwave.kernels import benchmark, selective_scan
from voxelwave.kernels.benchmark_ggml import GgmlScan


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
