"""Attention and selective scan: the fast mathematics that every field shares.

`attention` itself is in the module of that name: `from voxelwave.kernels.attention import attention`.
"""

from .attention.softmax import linear_attention, merge_attention
from .scan.selective import directional_scan, selective_scan, selective_scan_step

__all__ = ["directional_scan", "linear_attention", "merge_attention", "selective_scan", "selective_scan_step"]
