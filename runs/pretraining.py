"""Parts of a pre-training under a growing mask: how much is hidden, what is hidden, and the loss that matches views.

An idea after Mask & Match (arXiv 2508.06107).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FIRST, LAST = 0.1, 0.6  # hidden share at the start and at the end


def mask_ratio(step: int, steps: int, *, first: float = FIRST, last: float = LAST) -> float:
    """The hidden share after `step` of `steps`, which grows linearly."""
    return first + (last - first) * min(1.0, step / max(1, steps - 1))


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """Each row of first (..., N, dim) should be nearest to the same row of second (..., N, dim)."""
    one, two = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    logits = (one @ two.mT / temperature).flatten(0, -2)
    target = torch.arange(first.shape[-2], device=first.device).expand(first.shape[:-1]).flatten()
    return F.cross_entropy(logits, target)


def hidden_spans(valid: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Bool, the shape of `valid`: in each row, the share `ratio` of the valid parts, drawn at random.

    Args:
        valid: bool (B, parts).
        ratio: 0 to 1; at least one valid part stays visible.
        generator: for the draws, on the CPU.
    """
    drawn = torch.rand(valid.shape, generator=generator).masked_fill(~valid.cpu(), 2.0)
    count = valid.sum(1, keepdim=True).cpu()
    hidden = torch.minimum((ratio * count).round(), (count - 1).clamp_min(0))
    return (drawn.argsort(1).argsort(1) < hidden).to(valid.device)


def hide_blocks(images: Tensor, ratio: float, generator: torch.Generator, *, side: int = 8) -> Tensor:
    """Images (B, C, H, W) in which the share `ratio` of square blocks is replaced by the image's mean."""
    rows, columns = -(-images.shape[2] // side), -(-images.shape[3] // side)
    everywhere = torch.ones(len(images), rows * columns, dtype=torch.bool)
    hidden = hidden_spans(everywhere, ratio, generator).view(-1, 1, rows, columns).to(images.device)
    hidden = hidden.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., : images.shape[2], : images.shape[3]]
    return torch.where(hidden, images.mean((1, 2, 3), keepdim=True), images)
