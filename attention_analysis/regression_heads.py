"""What one attention layer has learned from regression in context: the circuits of its heads.

An idea after arXiv 2503.12734. Tokens are (x_i, y_i), the last entry is y, and the query token is (x_q, 0).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.attention.baselines import SoftmaxAttention
from ..kernels.attention.layer import MixingLayer


class HeadCircuits(NamedTuple):
    """KQ_h = scale W_K^T W_Q and OV_h = W_O W_V of each head, (H, dim, dim) each, restricted to the token's entries."""

    key_query: Tensor
    output_value: Tensor


class RegressionScores(NamedTuple):
    """How closely the heads follow the constructed solution."""

    diagonality: Tensor  # (H), off-diagonal / total Frobenius norm of KQ's block of x; 0 if diagonal
    homogeneity: Tensor  # (H), standard deviation / |mean| of that diagonal; 0 if all entries are equal
    spread: float  # standard deviation / mean of |omega| over the heads that are not idle
    last_entry: Tensor  # (H), |OV_yy| / Frobenius norm of OV; 1 if only y is passed on
    zero_sum: float  # |sum_h OV_yy| / sum_h |OV_yy|; 0 if positive and negative heads cancel
    sign: list[str]  # (H), "+", "-" or "idle": the sign of omega, the mean of the diagonal


def head_circuits(layer: MixingLayer, entries: int) -> HeadCircuits:
    """The circuits of a softmax layer without normed queries, for tokens of `entries` = d + 1 numbers."""
    mixer = layer.mixer
    if not isinstance(mixer, SoftmaxAttention):
        raise ValueError(f"the circuits of a regression layer need softmax attention, got {type(mixer).__name__}")
    channels = layer.query.out_features // layer.heads
    scale = channels**-0.5 if mixer.scale is None else mixer.scale
    shared = layer.heads // layer.key_heads
    query = layer.query.weight.unflatten(0, (layer.heads, -1))[..., :entries]
    key = layer.key.weight.unflatten(0, (layer.key_heads, -1)).repeat_interleave(shared, 0)[..., :entries]
    value = layer.value.weight.unflatten(0, (layer.key_heads, -1)).repeat_interleave(shared, 0)[..., :entries]
    output = layer.output.weight[:entries].unflatten(1, (layer.heads, -1)).movedim(1, 0)  # (H, entries, D)
    return HeadCircuits(scale * key.mT @ query, output @ value)


def regression_scores(circuits: HeadCircuits, *, idle: float = 0.05) -> RegressionScores:
    """Scores of heads; a head is idle if |omega OV_yy| is less than the part `idle` of the largest one."""
    block = circuits.key_query[:, :-1, :-1]
    diagonal = block.diagonal(dim1=-2, dim2=-1)
    off = block - torch.diag_embed(diagonal)
    omega, last = diagonal.mean(-1), circuits.output_value[:, -1, -1]
    tiny = torch.finfo(block.dtype).tiny
    effect = (omega * last).abs()
    active = effect > idle * effect.max()
    size = omega[active].abs()
    return RegressionScores(
        off.flatten(1).norm(dim=1) / block.flatten(1).norm(dim=1).clamp_min(tiny),
        diagonal.std(-1, correction=0) / omega.abs().clamp_min(tiny),
        float(size.std(correction=0) / size.mean()) if len(size) else float("nan"),
        last.abs() / circuits.output_value.flatten(1).norm(dim=1).clamp_min(tiny),
        float(last.sum().abs() / last.abs().sum().clamp_min(tiny)),
        ["idle" if not on else "+" if w > 0 else "-" for on, w in zip(active.tolist(), omega.tolist(), strict=True)],
    )


def constructed_layer(features: int, omegas: Tensor, last: Tensor) -> MixingLayer:
    """A float64 softmax layer with KQ_h = omega_h I on x, and OV_h = last_h on y; tokens are padded to its `dim`."""
    heads, channels = len(omegas), features + 1
    layer = MixingLayer(heads * channels, heads, SoftmaxAttention(scale=1.0), bias=False).double().requires_grad_(False)
    for linear in (layer.query, layer.key, layer.value, layer.output):
        linear.weight.zero_()
    for head in range(heads):
        for i in range(features):
            layer.query.weight[head * channels + i, i] = omegas[head]
            layer.key.weight[head * channels + i, i] = 1
        layer.value.weight[head * channels, features] = 1
        layer.output.weight[features, head * channels] = last[head]
    return layer


def debiased_step(x: Tensor, y: Tensor, query: Tensor, rate: float | Tensor) -> Tensor:
    """(B,): rate (1/n) sum_i (y_i - mean y)(x_i - mean x)^T x_q, for x (B, n, d), y (B, n) and x_q (B, d)."""
    cross = ((y - y.mean(1, keepdim=True)).unsqueeze(2) * (x - x.mean(1, keepdim=True))).mean(1)
    return rate * (cross * query).sum(1)
