"""Limits of the threads of numerical libraries."""

import os
import threading

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from voxelwave.runs.threads import limited_threads


def blas_threads() -> set[int]:
    assert np.ones(1) @ np.ones(1) == 1  # NumPy's BLAS is loaded
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def _three_threads(monkeypatch):
    """Give the libraries three threads outside the blocks of these tests."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = torch.get_num_threads()
    with threadpool_limits(3):
        torch.set_num_threads(3)
        yield
        torch.set_num_threads(before)


def test_a_nested_block_gives_the_number_of_the_outer_one_back():
    with limited_threads(2):
        with limited_threads(1):
            assert (blas_threads(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == ({1}, 1, "1")
        assert (blas_threads(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == ({2}, 2, "2")
    assert (blas_threads(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == ({3}, 3, "3")


def test_the_block_of_another_thread_that_ends_first_lifts_no_limit():
    """Two cells in one worker of Dask, of which the first to start is also the first to end."""
    first_may_end, first_ended = threading.Event(), threading.Event()
    entered = threading.Event()

    def first():
        with limited_threads(1):
            entered.set()
            first_may_end.wait(10)
        first_ended.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with limited_threads(1):
        first_may_end.set()
        assert first_ended.wait(10)
        assert (blas_threads(), os.environ["OMP_NUM_THREADS"]) == ({1}, "1")
    thread.join()
    assert (blas_threads(), os.environ["OMP_NUM_THREADS"]) == ({3}, "3")
