"""Give the weight on sinks back to a named group of tokens, such as the image, in the rows that look at the group.

An idea after VAR (Kang et al. 2025, arXiv 2503.03321). Not every head reads the group; only rows that do are changed.
"""

import torch
from torch import Tensor

from .edits import WeightEdit


def group_centric(a: Tensor, group: Tensor, sinks: Tensor, *, rho: float = 0.5, least: float = 0.2) -> Tensor:
    """Bool (..., Lq): rows with enough weight on the group, of which at most 1 - rho is on the group's sinks.

    Args:
        a: (..., Lq, Lk).
        group: bool (Lk).
        sinks: bool, broadcastable to (..., Lk).
        rho: least share of the group's weight outside its sinks.
        least: least weight on the group.
    """
    on_group = (a * group).sum(-1)
    on_sinks = (a * (group & sinks).unsqueeze(-2)).sum(-1)
    return (on_sinks <= (1 - rho) * on_group) & (on_group >= least)


def redistribute(
    a: Tensor,
    group: Tensor,
    sinks: Tensor,
    *,
    keep: float = 0.6,
    rho: float = 0.5,
    least: float = 0.2,
    after_group: bool = False,
) -> Tensor:
    """Multiply all weights on sinks by `keep`, and give the rest to the group's other tokens in proportion.

    Rows keep their sums and zeros stay 0. Rows that are not `group_centric` are left as they are, and so is everything
    if the group has no sink.

    Args:
        a: (..., Lq, Lk).
        group: bool (Lk).
        sinks: bool, broadcastable to (..., Lk), inside and outside the group.
        keep: share of the weight that stays on sinks; 1 changes nothing. The paper's p is 1 - keep.
        rho, least: see `group_centric`.
        after_group: change only rows after the last token of the group.
    """
    on_sinks = a * sinks.unsqueeze(-2)
    receivers = a * (group & ~sinks).unsqueeze(-2)
    total = receivers.sum(-1, keepdim=True)
    budget = (1 - keep) * on_sinks.sum(-1, keepdim=True)
    has_sink = (group & sinks).any(-1)[..., None, None]
    changed = group_centric(a, group, sinks, rho=rho, least=least).unsqueeze(-1) & has_sink & (total > 0)
    if after_group:
        last = int(group.nonzero().max())
        changed = changed & (torch.arange(a.shape[-2], device=a.device).unsqueeze(1) > last)
    if keep == 1:
        return a
    new = a - (1 - keep) * on_sinks + budget * receivers / total.clamp_min(torch.finfo(a.dtype).tiny)
    return torch.where(changed, new, a)


def redistribution_edits(
    layers: int, group: Tensor, sinks: Tensor, *, keep: float = 0.6, rho: float = 0.5, least: float = 0.2
) -> list[WeightEdit]:
    """Edits for the rows after the group in all heads of all layers but the last."""

    def change(a: Tensor) -> Tensor:
        return redistribute(a, group, sinks, keep=keep, rho=rho, least=least, after_group=True)

    return [WeightEdit(layer, change) for layer in range(layers - 1)]
