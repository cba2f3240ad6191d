"""Rows of the kernels: the selective scan, attention, and depthwise convolution."""

import functools

import torch
import torch.nn.functional as F

from ....kernels.attention.associative import AssociativeMemory
from ....kernels.attention.mixer import CS, Mixer
from ....kernels.attention.power import PowerAttention
from ....kernels.depthwise import depthwise_conv, plain_depthwise_conv
from ....kernels.scan.reference import selective_scan_reference
from ....kernels.scan.selective import directional_scan, selective_scan
from .row import Row, cpu_seconds


def rows(*, quick: bool) -> list[Row]:
    """The rows, with one thread."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return [
            *_scans(generator, quick),
            _small_call(generator),
            _small_training_call(generator),
            *_attention(generator, quick),
            _depthwise(generator),
        ]


def _scans(generator: torch.Generator, quick: bool) -> list[Row]:
    channels, length, states = (240, 1024, 16) if quick else (720, 4096, 16)
    u, delta = torch.randn(2, 1, channels, length, generator=generator)
    A, D = -torch.rand(channels, states, generator=generator), torch.randn(channels, generator=generator)
    B, C = torch.randn(2, 1, states, length, generator=generator)
    inputs = (u, delta, A, B, C, D)
    own = cpu_seconds(lambda: selective_scan(*inputs, delta_softplus=True), 5)
    plain = cpu_seconds(lambda: selective_scan_reference(*inputs, delta_softplus=True), 1, warm=0)
    leaves = [each.clone().requires_grad_() for each in inputs]

    def both() -> None:
        with torch.enable_grad():
            u, delta, A, B, C, D = leaves
            out = selective_scan(u, delta, A, B, C, D, delta_softplus=True)
            assert isinstance(out, torch.Tensor)
            torch.autograd.grad(out.sum(), leaves)

    size = f"{channels} x {length}, {states} states"
    return [
        Row(
            what=f"selective scan, {size}",
            unit="CPU ms",
            ours=1e3 * own,
            peer="step by step in PyTorch",
            theirs=1e3 * plain,
            most_of_peer=0.1,
        ),
        Row(what=f"selective scan, forward and backward, {size}", unit="CPU ms", ours=1e3 * cpu_seconds(both, 5)),
    ]


def _small_call(generator: torch.Generator) -> Row:
    x, order = torch.randn(1, 64, 16, generator=generator), torch.arange(64).repeat(4, 1)
    delta = torch.randn(1, 64, 4, 16, generator=generator)
    A, (B, C) = -torch.rand(64, 4, generator=generator), torch.randn(2, 1, 64, 4, 4, generator=generator)
    order = order.int()

    def calls() -> None:
        for _ in range(100):
            directional_scan(x, delta, A, B, C, order, delta_softplus=True)

    return Row(
        what="directional scan of 8 x 8 x 16 in four directions",
        unit="CPU us",
        ours=1e4 * cpu_seconds(calls, 7),
        most=90,
    )


def _small_training_call(generator: torch.Generator) -> Row:
    x, order = torch.randn(1, 64, 16, generator=generator), torch.arange(64).repeat(4, 1).int()
    delta, grad_out = torch.randn(2, 1, 64, 4, 16, generator=generator)
    A, (B, C) = -torch.rand(64, 16, generator=generator), torch.randn(2, 1, 64, 4, 16, generator=generator)
    D, bias = torch.randn(2, 64, generator=generator)
    x, delta, A, B, C, D, bias = leaves = [each.clone().requires_grad_() for each in (x, delta, A, B, C, D, bias)]

    def calls() -> None:
        with torch.enable_grad():
            for _ in range(100):
                out = directional_scan(x, delta, A, B, C, order, D, bias, delta_softplus=True)
                torch.autograd.grad(out, leaves, grad_out)

    return Row(
        what="directional scan of 8 x 8 x 16 in four directions, 16 states, forward and backward",
        unit="CPU us",
        ours=1e4 * cpu_seconds(calls, 7),
        most=200,
    )


def _attention(generator: torch.Generator, quick: bool) -> list[Row]:
    length = 4096 if quick else 16384
    q, k, v = torch.randn(3, 1, 4, length, 32, generator=generator)
    fused = cpu_seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), 1)
    mixers: list[tuple[str, Mixer, float]] = [
        ("power", PowerAttention(block=64, window=5), 1 / 8),
        ("linear", AssociativeMemory("elu"), 1 / 20),
    ]
    return [
        Row(
            what=f"{name} attention, causal, 4 heads, {length:,} tokens",
            unit="CPU ms",
            ours=1e3 * cpu_seconds(functools.partial(mixer, q, k, v, pattern=CS), 3),
            peer="fused attention of PyTorch",
            theirs=1e3 * fused,
            most_of_peer=None if quick else goal,
        )
        for name, mixer, goal in mixers
    ]


def _depthwise(generator: torch.Generator) -> Row:
    maps = torch.randn(1, 20, 24, 28, 96, generator=generator)
    weight = torch.randn(96, 1, 7, 7, 7, generator=generator)
    return Row(
        what="depthwise convolution, 20 x 24 x 28, 96 channels, 7 x 7 x 7, dilation 3",
        unit="CPU ms",
        ours=1e3 * cpu_seconds(lambda: depthwise_conv(maps, weight, dilation=3), 3),
        peer="PyTorch",
        theirs=1e3 * cpu_seconds(lambda: plain_depthwise_conv(maps, weight, dilation=3), 1),
        most_of_peer=0.5,
    )
