"""The selective scan: compiled for the CPU, Triton on CUDA, plain PyTorch as the reference."""

from .selective import directional_scan, selective_scan, selective_scan_step

__all__ = ["directional_scan", "selective_scan", "selective_scan_step"]
