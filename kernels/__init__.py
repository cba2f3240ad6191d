"""Attention and selective scan: the fast operations that all fields share.

`attention` is not exported here, since its folder has the same name; use
`from voxelwave.kernels.attention import attention`.
"""

from .attention import linear_attention, merge_attention
from .scan import directional_scan, selective_scan, selective_scan_step

__all__ = ["directional_scan", "linear_attention", "merge_attention", "selective_scan", "selective_scan_step"]
