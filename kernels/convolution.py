"""Convolution of volumes on the CPU by oneDNN, also where PyTorch unfolds them.

With one thread, and for dilated filters with any number, PyTorch copies the neighbourhood of each voxel into a matrix.
A filter of 3 x 3 x 3 then takes two to three times as long as by oneDNN, and 27 times the memory of its input.
"""

import math

import torch
from torch import Tensor, nn

from .autocast import in_autocast
from .eligibility import are_plain

# of the result; oneDNN copies the weight in its own order first, which takes longer than all else for 64 voxels
_LEAST_VOXELS = 512


class Conv3d(nn.Conv3d):
    """The same as `torch.nn.Conv3d`; results differ in the last digits."""

    def forward(self, input: Tensor) -> Tensor:
        if self._by_onednn(input):
            padding, stride, dilation = ([int(n) for n in each] for each in (self.padding, self.stride, self.dilation))
            return torch.mkldnn_convolution(input, self.weight, self.bias, padding, stride, dilation, self.groups)
        return super().forward(input)

    def _by_onednn(self, input: Tensor) -> bool:
        tensors = [input, *self.parameters(recurse=False)]
        return (
            all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors)
            and input.ndim == 5
            and input.numel() // math.prod((*self.stride, self.in_channels)) >= _LEAST_VOXELS
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and torch.backends.mkldnn.is_available()
            and bool(torch.backends.mkldnn.enabled)
            and are_plain(tensors)
            and not in_autocast(input)
        )
