"""Choice of keys: the largest scores, and attention of queries to the blocks that they chose."""

import torch
from torch import Tensor
from torch.nn import functional as F


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores along the last axis, largest first; of equal scores, the lower index is first.

    `torch.topk` guarantees no order of equal scores, so the same input could choose other keys on another device.

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2).tolist()
        [1, 3]
    """
    if k > 8 or k >= scores.shape[-1]:
        return torch.sort(scores.detach(), dim=-1, descending=True, stable=True).indices[..., :k]
    left = scores.detach().clamp_min(
        torch.finfo(scores.dtype).min
    )  # a copy, in which -inf is reserved to mark chosen entries
    chosen = [left[..., :0].long()]
    for _ in range(k):  # argmax returns the first of equal entries
        chosen.append(left.argmax(-1, keepdim=True))
        left.scatter_(-1, chosen[-1], -torch.inf)
    return torch.cat(chosen, -1)


def to_blocks(x: Tensor, block: int) -> Tensor:
    """(..., L, D) -> (..., ceil(L / block), block, D); the last block is padded with zeros."""
    padding = -x.shape[-2] % block
    padded = F.pad(x, (0, 0, 0, padding)) if padding else x  # padding by 0 would copy
    blocks: Tensor = padded.unflatten(-2, (-1, block))
    return blocks


def attend_chosen_blocks(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, chosen: Tensor, *, scale: float, tile: int = 64
) -> Tensor:
    """Softmax attention of each query within each of the key blocks that it chose, one result per choice.

    The (query, choice) pairs are sorted by block and divided into tiles with one block each, so the computation is a
    batch of (tile, block) products regardless of the choices.

    Args:
        q: (B, H, Lq, D).
        k: (B, Hk, C, S, D), keys in blocks.
        v: (B, Hk, C, S, Dv).
        visible: bool (B, C, S), the keys that are not masked; in a block without such keys, all keys are used.
        chosen: (B, H, Lq, K), block indices.
        scale: factor on the scores.
        tile: number of pairs in a product.

    Returns:
        (B, H, Lq, K, Dv).
    """
    batch, heads, n_queries, n_chosen = chosen.shape
    key_heads, blocks = k.shape[1], k.shape[2]
    device = q.device
    if not chosen.numel():
        return q.new_zeros(*chosen.shape, v.shape[-1])
    head = torch.arange(batch * heads, device=device)
    group = (head.view(batch, heads, 1, 1) * blocks + chosen).flatten()  # a group is one block of one head
    order = group.argsort()
    counts = torch.bincount(group, minlength=batch * heads * blocks)
    tiles = (counts + tile - 1) // tile
    first_pair, first_tile = counts.cumsum(0) - counts, tiles.cumsum(0) - tiles
    in_order = group[order]
    slot_in_order = first_tile[in_order] * tile + torch.arange(len(order), device=device) - first_pair[in_order]
    slot = torch.empty_like(order).scatter_(0, order, slot_in_order)  # position of each pair within the tiles
    owner = torch.repeat_interleave(torch.arange(len(tiles), device=device), tiles)  # the group of each tile
    row = torch.zeros(len(owner) * tile, dtype=torch.long, device=device)
    row[slot] = torch.arange(batch * heads * n_queries, device=device).repeat_interleave(n_chosen)

    item, its_head, block = owner // (heads * blocks), owner // blocks % heads, owner % blocks
    block_row = (item * key_heads + its_head // (heads // key_heads)) * blocks + block
    queries = q.flatten(0, 2).index_select(0, row).view(len(owner), 1, tile, -1)
    keys = k.flatten(0, 2).index_select(0, block_row).unsqueeze(1)
    values = v.flatten(0, 2).index_select(0, block_row).unsqueeze(1)
    seen = None
    if not visible.all():
        seen = (visible | ~visible.any(-1, keepdim=True)).flatten(0, 1)[item * blocks + block][:, None, None]
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scale)
    return out.flatten(0, 2).index_select(0, slot).view(batch, heads, n_queries, n_chosen, -1)
