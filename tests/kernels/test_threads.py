"""The number of threads of the compiled kernels."""

from collections.abc import Iterator

import pytest
import torch

from voxelwave.kernels.threads import kernel_threads, ordered_sums
from voxelwave.runs.threads import limited_threads


@pytest.fixture
def three_threads() -> Iterator[None]:
    with limited_threads(3):
        yield


@pytest.mark.usefixtures("three_threads")
def test_kernels_keep_their_threads_where_sums_are_ordered():
    assert (torch.get_num_threads(), kernel_threads()) == (3, 3)
    with ordered_sums():
        assert (torch.get_num_threads(), kernel_threads()) == (1, 3)
        with ordered_sums(), limited_threads(2):  # such as a network within a registration
            assert (torch.get_num_threads(), kernel_threads()) == (2, 3)
    assert (torch.get_num_threads(), kernel_threads()) == (3, 3)


@pytest.mark.usefixtures("three_threads")
def test_an_error_restores_the_threads():
    with pytest.raises(KeyError), ordered_sums():
        raise KeyError
    assert (torch.get_num_threads(), kernel_threads()) == (3, 3)
