"""ggml's ssm_scan on the CPU, as a peer of the benchmark; needs `pip install ggml-python`."""

import ctypes
import importlib.util
from typing import Self

import torch
from torch import Tensor


class GgmlScan:
    """ggml's forward scan of one sequence, called without arguments; a context manager that frees ggml's memory.

    ggml reads its inputs position by position and supports neither `D` nor a bias of `delta`. The transposition and the
    addition of the bias are done in advance and not timed, which favours ggml.

    Args:
        u, delta: (1, D, L) float32.
        A: (D, N).
        B, C: (1, G, N, L).
        D, delta_bias: (D,).
        threads: threads of ggml's own pool.
    """

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, *, threads: int
    ) -> None:
        import ggml  # an optional peer

        self._ggml, self._skip = ggml, u * D[:, None]
        channels, length = u.shape[1:]
        states, groups = A.shape[1], B.shape[1]
        values = (
            (torch.zeros(channels, states), (states, 1, channels, 1)),
            (u[0].T, (1, channels, length, 1)),
            ((delta[0] + delta_bias[:, None]).T, (channels, length, 1, 1)),
            (A, (states, channels, 1, 1)),
            (B[0].permute(2, 0, 1), (states, groups, length, 1)),
            (C[0].permute(2, 0, 1), (states, groups, length, 1)),
        )
        room = 4 * (sum(value.numel() for value, _ in values) + u.numel() + channels * states) + (16 << 20)
        self._context = ggml.ggml_init(ggml.ggml_init_params(mem_size=room, mem_buffer=None, no_alloc=False))
        tensors = []
        for value, shape in values:
            tensors.append(ggml.ggml_new_tensor_4d(self._context, ggml.GGML_TYPE_F32, *shape))
            packed = value.contiguous()
            ctypes.memmove(ggml.ggml_get_data(tensors[-1]), packed.data_ptr(), packed.nbytes)
        sequence = ggml.ggml_new_tensor_1d(self._context, ggml.GGML_TYPE_I32, 1)
        ctypes.memset(ggml.ggml_get_data(sequence), 0, 4)
        out = ggml.ggml_ssm_scan(self._context, *tensors, sequence)
        self._graph = ggml.ggml_new_graph(self._context)
        ggml.ggml_build_forward_expand(self._graph, out)
        self._plan = ggml.ggml_graph_plan(self._graph, threads, None)
        self._work = (ctypes.c_uint8 * max(1, self._plan.work_size))()
        self._plan.work_data = ctypes.cast(self._work, ctypes.POINTER(ctypes.c_uint8))
        memory = (ctypes.c_float * u.numel()).from_address(ggml.ggml_get_data(out))
        self._y = torch.frombuffer(memory, dtype=torch.float32).view(length, channels)

    @staticmethod
    def installed() -> bool:
        return importlib.util.find_spec("ggml") is not None

    def __call__(self) -> Tensor:
        """The output (1, D, L)."""
        self._ggml.ggml_graph_compute(self._graph, ctypes.byref(self._plan))
        return self._y.T[None] + self._skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ggml.ggml_free(self._context)
