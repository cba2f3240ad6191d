"""The appearance of an object as a vector: computed by the small network of OAT, or given as features, or absent."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROP_SIZE = (150, 93)  # height, width in pixels


class CropNetwork(nn.Module):
    """The published network that maps a crop to a vector; it is trained from scratch.

    conv 3 -> 16 (5 x 5), ReLU, max-pool 5; conv 16 -> 32 (3 x 3), ReLU, max-pool 3; linear to `channels`.

    Args:
        channels: length of the vector.
        pyramid: 0 for crops of 150 x 93 pixels. With 2, 3 or 4, crops can have any size, and the second pooling is a
            spatial pyramid with this number of levels: maxima over 1 x 1 cell, 2 x 2 cells and so on.
    """

    def __init__(self, channels: int = 256, *, pyramid: int = 0):
        super().__init__()
        if pyramid not in (0, 2, 3, 4):
            raise ValueError(f"pyramid must be 0, 2, 3 or 4, got {pyramid}")
        self.levels = [2**level for level in range(pyramid)]
        self.cnn1 = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(5))
        second: list[nn.Module] = [nn.Conv2d(16, 32, 3), nn.ReLU()]
        self.cnn2 = nn.Sequential(*second, *([] if pyramid else [nn.MaxPool2d(3)]))
        cells = sum(level**2 for level in self.levels) if pyramid else 9 * 5
        self.fc = nn.Linear(32 * cells, channels)

    def forward(self, crops: Tensor) -> Tensor:
        """(n, 3, height, width), 0 to 1 -> (n, channels)."""
        if not self.levels and crops.shape[-2:] != CROP_SIZE:
            raise ValueError(f"crops must be {CROP_SIZE[0]} x {CROP_SIZE[1]} pixels, got {tuple(crops.shape[-2:])}")
        x = self.cnn2(self.cnn1(crops))
        if self.levels:
            x = torch.cat([F.adaptive_max_pool2d(x, level).flatten(1) for level in self.levels], 1)
        result: Tensor = self.fc(x.flatten(1))
        return result


def crop_tensor(crops: Sequence[np.ndarray], *, raw: bool = False) -> Tensor:
    """Crops of any size as a batch of 150 x 93 pixels, (n, 3, 150, 93).

    Args:
        crops: uint8 (height, width, 3), RGB.
        raw: return BGR from 0 to 255, as the published Amazon pipeline does; otherwise RGB from 0 to 1.
    """
    batch = []
    for crop in crops:
        if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8:
            raise ValueError(f"crops must be uint8 (height, width, 3), got {crop.dtype} {crop.shape}")
        pixels = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1).unsqueeze(0).float()
        if crop.shape[:2] != CROP_SIZE:
            pixels = F.interpolate(pixels, CROP_SIZE, mode="bilinear", antialias=True, align_corners=False)
        batch.append(pixels)
    stacked = torch.cat(batch) if batch else torch.empty(0, 3, *CROP_SIZE)
    return stacked.flip(1) if raw else stacked / 255
