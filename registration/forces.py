"""The forces that drive a refinement: a dissimilarity of the warped and the fixed image, and its gradient."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch
from torch import Tensor

from ..kernels import fields
from ..kernels.threads import kernel_threads
from .levels import Level
from .similarity import box_sum, mind_loss_against, mutual_information_loss

Force = Callable[[Tensor], tuple[Tensor, Tensor]]  # warped image -> loss, and gradient of the loss * number of voxels

_WINDOW = fields.WINDOW  # width of the correlation window, in voxels of the level; 7 gave the same Dice on one pair


def force_of(similarity: str, level: Level) -> Force:
    """The force of a similarity against the fixed image of a level.

    Args:
        similarity: "ncc" (local correlation), "mind" (self-similarity context), "mi" (mutual information of the image
            and of its parts, and local correlation) or "context" (self-similarity context, mutual information of parts
            and local correlation).
        level: both images.
    """
    fixed, mask = level.fixed, level.mask
    if similarity == "ncc":
        return CorrelationForce(fixed, mask)
    if similarity not in ("mind", "mi", "context"):
        raise ValueError(f'similarity must be "ncc", "mi", "mind" or "context", got {similarity!r}')
    context = None if similarity == "mi" else mind_loss_against(fixed, radius=1, dilation=1, mask=mask)

    def whole(warped: Tensor) -> Tensor:
        return mutual_information_loss(warped, fixed, mask=mask) if context is None else 10 * context(warped)

    if similarity == "mind":
        return _by_autograd(whole)

    # the mean error on one known field was 0.97 mm with the global histogram, 0.86 mm with the local histograms as
    # well, and 0.83 mm with correlation added
    def local(warped: Tensor) -> Tensor:
        return mutual_information_loss(warped, fixed, mask=mask, bins=16, patch=16)

    correlation, other = CorrelationForce(fixed, mask), _by_autograd(whole, local)

    def both(warped: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = zip(correlation(warped), other(warped), strict=True)
        return losses[0] + losses[1], gradients[0] + gradients[1]

    return both


def _by_autograd(*losses: Callable[[Tensor], Tensor]) -> Force:
    """The sum of losses, each of which is computed in a thread of its own if there are several threads."""
    pool = ThreadPoolExecutor(len(losses))

    def one(loss: Callable[[Tensor], Tensor], warped: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            warped = warped.detach().requires_grad_()
            value = loss(warped)
            (slope,) = torch.autograd.grad(value, warped)
        return value.detach(), slope

    def force(warped: Tensor) -> tuple[Tensor, Tensor]:
        side_by_side = pool.map if kernel_threads() > 1 and len(losses) > 1 else map
        values, slopes = zip(*side_by_side(one, losses, repeat(warped)), strict=True)
        return functools.reduce(torch.add, values), functools.reduce(torch.add, slopes) * warped.numel()

    return force


class CorrelationForce:
    """`local_ncc_loss` with precomputed terms of the fixed image; `compiled` gives the same loss and its gradient."""

    def __init__(self, fixed: Tensor, mask: Tensor) -> None:
        self.mask, self.fixed = mask, fixed * mask
        self.count = box_sum(mask, _WINDOW).clamp(min=1)
        sums, squares = box_sum(torch.cat([self.fixed, self.fixed**2]), _WINDOW).split(1)
        self.mean = sums / self.count
        self.variance = (squares - self.mean * sums).clamp_(min=0)

    def compiled(self) -> fields.Correlation:
        terms = (self.count[0, 0], self.mean[0, 0], self.variance[0, 0])
        return fields.Correlation(self.fixed[0, 0], self.mask[0, 0], terms)

    def __call__(self, warped: Tensor) -> tuple[Tensor, Tensor]:
        warped = warped * self.mask
        stacked = torch.cat([warped, warped * warped, warped * self.fixed])
        sums, squares, products = box_sum(stacked, _WINDOW).split(1)
        mean = sums / self.count
        covariance = products - sums * self.mean
        variance = (squares - mean * sums).clamp_(min=0)
        ratio = self.mask * covariance / (variance * self.variance + 1e-5)
        by_variance = -ratio * ratio * self.variance
        s_ratio, s_variance, s_means = box_sum(
            torch.cat([ratio, by_variance, ratio * self.mean + by_variance * mean]), _WINDOW
        ).split(1)
        slope = -2 * self.mask * (self.fixed * s_ratio + warped * s_variance - s_means)
        share = warped.numel() / self.mask.sum()
        return -(ratio * covariance).sum() / self.mask.sum(), share * slope
