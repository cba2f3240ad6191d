"""Decoding step by step without gradients, with everything that does not change from step to step computed before.

`Stepper` computes the same as `OAT.step` for one new token in each row. Keys and values of the path have places of
their own from the start, so nothing is copied when it grows; the tokens of all fixations are computed once; and the
object attention, which is linear in the decoder's token, becomes one product:

    score_j = sum_h w_h <E_h m_j + a_h, D_h d + b_h> / sqrt(d_model) + w_0 = <G_j, d> + c_j
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .oat import OAT, DecoderLayer, Memory


def serves(model: OAT) -> bool:
    """Whether `Stepper` computes the same as the model: in evaluation mode, without hooks, edits, watches or prior."""
    if model.training or torch.is_grad_enabled() or model.prior is not None:
        return False
    if any(
        module._forward_hooks or module._forward_pre_hooks or getattr(module, "touched", False)
        for module in model.modules()
    ):
        return False
    layers = cast(list[DecoderLayer], list(model.transformer_decoder.layers))  # a replaced part may compute more
    linears = [each for layer in layers for each in (layer.linear1, layer.linear2)]
    linears += [each.out_proj for layer in layers for each in (layer.self_attn, layer.multihead_attn)]
    norms = [each for layer in layers for each in (layer.norm1, layer.norm2, layer.norm3)]
    return all(type(each) is nn.Linear for each in linears) and all(type(each) is nn.LayerNorm for each in norms)


class Stepper:
    """The decoder for some paths, one token at a time.

    Args:
        model: the network.
        memory: its encoded scenes.
        rows: (R,) index of the scene of each path.
        max_length: largest number of steps.
    """

    def __init__(self, model: OAT, memory: Memory, rows: Tensor, max_length: int):
        self._layers = [_Layer(cast(DecoderLayer, layer)) for layer in model.transformer_decoder.layers]
        self._model, self._times = model, model.onedpositional_encoding.pos_embedding[:, 0]
        self._tokens = model.fixation_tokens(memory)[rows]  # (R, N, d_model)
        directions, shift = model.score_directions(memory)
        self._directions, self._shift = directions[rows], shift[rows].unsqueeze(-1)
        visible = memory.visible
        whole = visible.device.type == "cpu" and bool(visible.all())
        self._mask = None if whole else visible[rows][:, None, None]
        self._length = 0
        for layer in self._layers:
            layer.start(memory.encoded, rows, min(max_length, len(self._times)))
        self._begin = memory.begin[rows]
        self._each = torch.arange(len(rows), device=rows.device)

    def step(self, chosen: Tensor | None) -> Tensor:
        """Scores (R, N + 1) of the objects and the end, after one more fixation; None for the first step."""
        self._model.check_length(self._length + 1)
        x = self._begin if chosen is None else self._tokens[self._each, chosen]
        x = x + self._times[self._length]
        for layer in self._layers:
            x = layer(x, self._length, self._mask)
        self._length += 1
        scores = torch.baddbmm(self._shift, self._directions, x.unsqueeze(-1)).squeeze(-1)
        return scores if self._mask is None else scores.masked_fill(~self._mask[:, 0, 0], -torch.inf)

    def keep(self, index: Tensor) -> None:
        """Continue with some of the rows."""
        for name in ("_tokens", "_directions", "_shift", "_begin", "_mask"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[index])
        self._each = self._each[: len(index)]
        for layer in self._layers:
            layer.keep(index, self._length)


class _Layer:
    """A decoder layer with places for the keys and values of all steps; it looks its parameters up only once."""

    def __init__(self, layer: DecoderLayer):
        own, self._scene = layer.self_attn, layer.multihead_attn
        width, self._heads = own.out_proj.in_features, own.heads
        self._entrance = own.in_proj_weight, own.in_proj_bias
        self._query = self._scene.in_proj_weight[:width], self._scene.in_proj_bias[:width]
        self._exits = [(each.out_proj.weight, each.out_proj.bias) for each in (own, self._scene)]
        self._linears = [(each.weight, each.bias) for each in (layer.linear1, layer.linear2)]
        self._norms = [
            (each.normalized_shape, each.weight, each.bias, each.eps)
            for each in (layer.norm1, layer.norm2, layer.norm3)
        ]

    def start(self, encoded: Tensor, rows: Tensor, max_length: int) -> None:
        keys, values = self._scene.keys_values(encoded)
        self._scene_keys, self._scene_values = keys[rows], values[rows]  # (R, heads, N + 1, channels)
        self._path = encoded.new_empty(len(rows), 2, self._heads, max_length, keys.shape[-1])  # keys and values

    def keep(self, index: Tensor, length: int) -> None:
        self._scene_keys, self._scene_values = self._scene_keys[index], self._scene_values[index]
        kept = self._path.new_empty(len(index), *self._path.shape[1:])
        kept[:, :, :, :length] = self._path[index, :, :, :length]
        self._path = kept

    def __call__(self, x: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """(R, d_model) -> (R, d_model)."""
        three = F.linear(x, *self._entrance).view(x.shape[0], 3, self._heads, -1)
        self._path[:, :, :, length] = three[:, 1:]
        keys, values = self._path[:, :, :, : length + 1].unbind(1)
        found = F.scaled_dot_product_attention(three[:, 0].unsqueeze(2), keys, values)
        x = torch.layer_norm(x + F.linear(found.flatten(1), *self._exits[0]), *self._norms[0])
        q = F.linear(x, *self._query).view(x.shape[0], self._heads, 1, -1)
        found = F.scaled_dot_product_attention(q, self._scene_keys, self._scene_values, attn_mask=mask)
        x = torch.layer_norm(x + F.linear(found.flatten(1), *self._exits[1]), *self._norms[1])
        first, second = self._linears
        hidden = F.linear(x, *first).relu_()
        return torch.layer_norm(x + F.linear(hidden, *second), *self._norms[2])
