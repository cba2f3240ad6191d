"""Mirrored positions compared with numpy's padding."""

import numpy as np
import pytest
import torch

from voxelwave.restoration.borders import mirrored


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize(("edge_twice", "mode"), [(False, "reflect"), (True, "symmetric")])
def test_positions_are_those_of_numpy_padding(length: int, edge_twice: bool, mode: str) -> None:
    margin = 3 * length + 1  # several periods of the mirroring
    padded = np.pad(np.arange(length), margin, mode=mode)
    position = torch.arange(-margin, length + margin)
    assert mirrored(position, length, edge_twice=edge_twice).tolist() == padded.tolist()
