"""Other PyTorch implementations of the selective scan, and inputs like those of a trained model, for benchmarks."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TrainedInputs(NamedTuple):
    """Inputs of a scan with softplus and without gate, in the order of the peers' arguments."""

    u: Tensor  # (B, D, L)
    delta: Tensor  # (B, D, L)
    A: Tensor  # (D, N)
    B: Tensor  # (B, G, N, L)
    C: Tensor  # (B, G, N, L)
    D: Tensor  # (D,)
    delta_bias: Tensor  # (D,)


def trained_inputs(
    channels: int,
    length: int,
    states: int,
    *,
    batch: int = 1,
    groups: int = 4,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TrainedInputs:
    """Random inputs with step sizes log-uniform in 1e-3 to 1e-1 and A near -(1 .. N), as in a trained model.

    Args:
        device: device of the tensors; the numbers do not depend on it.
        dtype: type of u, delta, B and C; the others are float32.
    """
    generator = torch.Generator().manual_seed(seed)
    target = torch.exp(torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1), generator=generator))
    jitter = 1 + 0.1 * torch.rand(channels, states, generator=generator)
    u = torch.randn(batch, channels, length, generator=generator)
    delta = 0.5 * torch.randn(batch, channels, length, generator=generator)
    A = -torch.arange(1.0, states + 1) * jitter
    B = torch.randn(batch, groups, states, length, generator=generator)
    C = torch.randn(batch, groups, states, length, generator=generator)
    D = torch.randn(channels, generator=generator)
    u, delta, B, C = (v.to(device, dtype) for v in (u, delta, B, C))
    return TrainedInputs(u, delta, A.to(device), B, C, D.to(device), torch.log(torch.expm1(target)).to(device))


def sequential_recurrence(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The published recurrence in plain PyTorch: exp(delta A) and delta B u for all steps at once, then a loop."""
    delta = F.softplus(delta + delta_bias[:, None])
    repeat = u.shape[1] // B.shape[1]
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    B, C = B.repeat_interleave(repeat, 1), C.repeat_interleave(repeat, 1)
    inflow = torch.einsum("bdl,bdnl,bdl->bdln", delta, B, u)
    h = torch.zeros_like(decay[:, :, 0])
    y = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + inflow[:, :, t]
        y.append(torch.einsum("bdn,bdn->bd", h, C[..., t]))
    return torch.stack(y, 2) + u * D[:, None]


def parallel_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """The scan of Hillis and Steele (1986): log2(L) passes over the full (B, L, D, N) tensor, in float32."""
    delta = F.softplus(delta.float() + delta_bias[:, None]).transpose(1, 2)  # (B, L, D)
    repeat = u.shape[1] // B.shape[1]
    B, C = (X.float().repeat_interleave(repeat, 1).permute(0, 3, 1, 2) for X in (B, C))  # (B, L, D, N)
    decay = torch.exp(delta[..., None] * A)
    h = (delta * u.float().transpose(1, 2))[..., None] * B
    step = 1
    while step < u.shape[2]:
        h = torch.cat([h[:, :step], torch.addcmul(h[:, step:], decay[:, step:], h[:, :-step])], 1)
        if step * 2 < u.shape[2]:
            decay = torch.cat([decay[:, :step], decay[:, step:] * decay[:, :-step]], 1)
        step *= 2
    return ((h * C).sum(-1).transpose(1, 2) + u.float() * D[:, None]).to(u.dtype)
