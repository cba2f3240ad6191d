"""The selective scan: compiled for the CPU, Triton on CUDA, plain PyTorch as the reference."""
