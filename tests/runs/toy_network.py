"""The smallest registration network, in a file that spawned processes can import."""

import torch

from voxelwave.registration.warp import warp


class Shift(torch.nn.Module):
    """A displacement that is the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.displacement = torch.nn.Parameter(torch.full((3,), 0.1))

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        displacement = self.displacement.view(1, 3, 1, 1, 1).expand(len(moving), 3, *moving.shape[2:])
        return warp(moving, displacement.to(moving.dtype)), displacement
