"""Losses: the dissimilarity of a warped and a fixed image, and the roughness of a displacement.

Images are (B, 1, D, H, W); the losses are means over voxels and batch, and lower is better. A `mask`, (B, 1, D, H, W)
or (1, 1, D, H, W), selects the voxels to use; those outside have no influence, as if they were cropped away.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-5  # as in the published loss; images are expected in [0, 1]


def box_sum(image: Tensor, window: int | Sequence[int]) -> Tensor:
    """The sum over a window around each voxel, with 0 outside the image: a convolution with ones, by few additions.

    Sums over powers of two are combined, so a width of 9 needs four additions per axis. Unlike differences of
    cumulative sums, this loses no precision. The operation is its own adjoint.

    Args:
        image: (..., D, H, W).
        window: odd width in voxels, one for all axes or one per axis.

    Returns:
        The sums, in the shape of `image`.

    Example:
        >>> box_sum(torch.ones(1, 1, 4), (1, 1, 3)).flatten().tolist()
        [2.0, 3.0, 3.0, 2.0]
    """
    for axis, width in zip((-3, -2, -1), _window(window), strict=True):
        image = _sum_along(image, axis, width)
    return image


def _window(window: int | Sequence[int]) -> tuple[int, int, int]:
    widths = (window,) * 3 if isinstance(window, int) else tuple(window)
    if len(widths) != 3 or any(width < 1 or width % 2 == 0 for width in widths):
        raise ValueError(f"window must be an odd width in voxels, or one per axis, got {window}")
    return widths


def _sum_along(image: Tensor, axis: int, width: int) -> Tensor:
    if width == 1:
        return image
    n = image.shape[axis]
    pad = [0, 0, 0, 0, 0, 0]
    pad[2 * (-1 - axis)] = pad[2 * (-1 - axis) + 1] = width // 2
    power, length = F.pad(image, pad), 1  # power[i] is the sum of `length` voxels, starting at i
    total = power.narrow(axis, 0, n)
    offset = 1
    while 2 * length <= width:
        rest = power.shape[axis] - length
        power = power.narrow(axis, 0, rest) + power.narrow(axis, length, rest)
        length *= 2
        if width & length:
            total = total + power.narrow(axis, offset, n)
            offset += length
    return total


def local_ncc_loss(
    warped: Tensor,
    fixed: Tensor,
    *,
    window: int | Sequence[int] = 9,
    mask: Tensor | None = None,
    published: bool = False,
) -> Tensor:
    """The negative mean squared correlation of both images in a window around each voxel, in [-1, 0].

    Since the correlation is squared, a dark-bright edge matches a bright-dark edge, which is useful between contrasts.
    If a window extends beyond the image or mask, only the part inside is used. The gradient is analytic and stores six
    volumes; autograd would store about thirty.

    Args:
        warped: (B, 1, D, H, W), about [0, 1].
        fixed: (B, 1, D, H, W), about [0, 1].
        window: odd width in voxels, one for all axes or one per axis.
        mask: nonzero at the voxels to use.
        published: include the zeros outside the image in the windows, as the published NestedMorph training does.

    Returns:
        The loss, a scalar.

    Example:
        >>> image = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> round(float(local_ncc_loss(1 - image, image)), 2)
        -1.0
    """
    _check_images(warped, fixed, mask)
    window = _window(window)
    if published:
        if mask is not None:
            raise ValueError("mask must be None with published=True: the published loss has none")
        count = torch.full((1, 1, 1, 1, 1), float(math.prod(window)), device=fixed.device)
        inside = torch.ones(1, 1, 1, 1, 1, device=fixed.device)
    else:
        inside = (fixed.new_ones(1, 1, *fixed.shape[2:]) if mask is None else mask).float()
        count = box_sum(inside, window).clamp(min=1)
    total = inside.expand_as(fixed).sum().clamp(min=1)
    loss: Tensor = _LocalNCC.apply(warped.float(), fixed.float(), inside, count, total, window)
    return loss


class _LocalNCC(torch.autograd.Function):
    """-sum(inside * c^2 / (a b + eps)) / total, with the local covariance c and variances a, b (times the count)."""

    @staticmethod
    def forward(
        ctx: Any,
        warped: Tensor,
        fixed: Tensor,
        inside: Tensor,
        count: Tensor,
        total: Tensor,
        window: tuple[int, int, int],
    ) -> Tensor:
        w, f = warped * inside, fixed * inside
        w_sum, f_sum, ww, ff, wf = box_sum(torch.stack([w, f, w * w, f * f, w * f]), window)
        w_mean, f_mean = w_sum / count, f_sum / count
        covariance = wf - w_mean * f_sum
        w_variance = (ww - w_mean * w_sum).clamp_(min=0)
        f_variance = (ff - f_mean * f_sum).clamp_(min=0)
        ctx.save_for_backward(w, f, inside, w_mean, f_mean, covariance, w_variance, f_variance, total)
        ctx.window = window
        loss: Tensor = -(inside * covariance * covariance / (w_variance * f_variance + _EPSILON)).sum() / total
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, f, inside, w_mean, f_mean, covariance, w_variance, f_variance, total = ctx.saved_tensors
        ratio = covariance / (w_variance * f_variance + _EPSILON)
        by_covariance = inside * ratio * (-2 * grad / total)
        by_variances = (
            inside * ratio * ratio * (grad / total)
        )  # derivative with respect to a variance, multiplied by the other variance
        grads: list[Tensor | None] = [None, None]
        sides = [(w, w_mean, f, f_mean, f_variance), (f, f_mean, w, w_mean, w_variance)]
        for i, (own, own_mean, other, other_mean, other_variance) in enumerate(sides):
            if ctx.needs_input_grad[i]:
                by_variance = by_variances * other_variance
                parts = [by_covariance, by_variance, by_covariance * other_mean + 2 * by_variance * own_mean]
                s_covariance, s_variance, s_means = box_sum(torch.stack(parts), ctx.window)
                grads[i] = inside * (other * s_covariance + 2 * own * s_variance - s_means)
        return grads[0], grads[1], None, None, None, None


def mutual_information_loss(
    warped: Tensor,
    fixed: Tensor,
    *,
    bins: int = 32,
    mask: Tensor | None = None,
    patch: int | None = None,
) -> Tensor:
    """The negative mutual information of both images, in nats, over the whole image or as the mean over cubic patches.

    The joint histogram follows Mattes et al. (IEEE TMI 2003): a cubic B-spline window for the warped image, which makes
    the loss differentiable, and a box for the fixed one. Bins span the range of each image inside the mask.

    Args:
        warped: (B, 1, D, H, W); gradients flow to this image only.
        fixed: (B, 1, D, H, W).
        bins: bins per image, at least 5. Patches hold few voxels and need fewer bins.
        mask: nonzero at the voxels to use.
        patch: side in voxels of the cubic patches, each of which has its own histogram; None for one histogram per
            image. The mean over patches is weighted by their numbers of voxels.

    Returns:
        The loss, a scalar.

    Example:
        >>> image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> bool(mutual_information_loss(1 - image, image) < mutual_information_loss(image.flip(2), image))
        True
    """
    _check_images(warped, fixed, mask)
    if bins < 5:
        raise ValueError(f"bins must be 5 or more, got {bins}")
    if patch is not None and patch < 2:
        raise ValueError(f"patch must be 2 voxels or more, or None, got {patch}")
    warped, fixed = warped.float(), fixed.detach().float()
    region = _region_index(warped.shape, patch, warped.device)
    if mask is None:
        w, f, region = warped.flatten(), fixed.flatten(), region.flatten()
    else:
        chosen = (mask > 0).expand_as(warped)
        w, f, region = warped[chosen], fixed[chosen], region[chosen]
    if w.numel() == 0:
        raise ValueError("mask must hold at least one voxel, got none")
    f_low, f_high, (w_low, w_high) = f.min(), f.max(), torch.aminmax(w.detach())
    f_bin = ((f - f_low) / (f_high - f_low).clamp(min=1e-12) * bins).long().clamp_(max=bins - 1)
    # the spline extends over two bins on either side: the range of the warped image fills the bins - 3 in the middle
    w_position = (w - w_low) / (w_high - w_low).clamp(min=1e-12) * (bins - 3) + 1
    histogram = _SplineHistogram.apply(w_position, region * bins + f_bin, bins, int(region.max()) + 1)
    return _minus_information(histogram, w.numel())


def _region_index(shape: Sequence[int], patch: int | None, device: torch.device) -> Tensor:
    """The index of the patch that contains each voxel, (B, 1, D, H, W)."""
    index = torch.arange(shape[0], device=device).view(-1, 1, 1, 1, 1)
    for axis, n in enumerate(shape[2:]):
        side = patch or n
        along = torch.arange(n, device=device).div(side, rounding_mode="floor")
        index = index * -(-n // side) + along.view([-1 if a == axis + 2 else 1 for a in range(5)])
    return index.expand(*shape)


def _minus_information(histogram: Tensor, n_voxels: int) -> Tensor:
    """-sum over regions of (voxels / all voxels) * information, from joint counts (regions, fixed, warped bins)."""
    with torch.no_grad():  # the derivatives of the four logarithms cancel, so the ratio can be held constant
        counts = histogram.clamp(min=1e-9)
        rows, columns = counts.sum(dim=2, keepdim=True), counts.sum(dim=1, keepdim=True)
        log_ratio = (counts * rows.sum(dim=1, keepdim=True) / (rows * columns)).log()
    return -(histogram * log_ratio).sum() / n_voxels


class _SplineHistogram(torch.autograd.Function):
    """Joint counts in which a cubic B-spline distributes each voxel over four bins of the warped image."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, row: Tensor, bins: int, n_regions: int) -> Tensor:
        first = position.floor().clamp_(1, bins - 3)
        t = position - first  # in [0, 1]
        index = row * bins + first.long() - 1
        s = 1 - t
        weights = [s**3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * s**2 + 3 * s**3) / 6, t**3 / 6]
        size = n_regions * bins * bins
        histogram = torch.zeros(size, dtype=torch.float64, device=t.device)  # one bin sums millions of weights
        for i, weight in enumerate(weights):
            histogram += torch.bincount(index + i, weight.double(), size)
        ctx.save_for_backward(index, t)
        return histogram.view(n_regions, bins, bins)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, t = ctx.saved_tensors
        grad = grad.flatten().to(t.dtype)
        s = 1 - t
        slopes = [-(s**2) / 2, (3 * t**2 - 4 * t) / 2, (4 * s - 3 * s**2) / 2, t**2 / 2]
        return sum(slope * grad[index + i] for i, slope in enumerate(slopes)), None, None, None


def mind_ssc(image: Tensor, *, radius: int = 2, dilation: int = 2) -> Tensor:
    """The self-similarity context of each voxel: 12 numbers in [0, 1] that hardly depend on the contrast.

    Heinrich et al., MICCAI 2013. Each number is the similarity exp(-distance / local noise) of the patches around two
    of the voxel's six neighbours, for the twelve pairs of neighbours that are not opposite each other; it is 1 for the
    most similar pair.

    Args:
        image: (B, 1, D, H, W), any unit.
        radius: radius of the cubic patches, in voxels.
        dilation: distance of the six neighbours, in voxels.

    Returns:
        (B, 12, D, H, W).

    Example:
        >>> image = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
        >>> torch.testing.assert_close(mind_ssc(100 - 7 * image), mind_ssc(image), atol=1e-3, rtol=0)
    """
    if image.ndim != 5 or image.shape[1] != 1:
        raise ValueError(f"image must have shape (B, 1, D, H, W), got {tuple(image.shape)}")
    if radius < 0 or dilation < 1:
        raise ValueError(f"radius must be 0 or more and dilation 1 or more, got {radius} and {dilation}")
    reach = radius + dilation
    padded = F.pad(image, (reach,) * 6, mode="replicate")
    sizes = [n + 2 * radius for n in image.shape[2:]]

    def neighbour(axis: int, side: int) -> Tensor:
        part = padded
        for a, size in enumerate(sizes):
            part = part.narrow(a + 2, dilation + (side * dilation if a == axis else 0), size)
        return part

    neighbours = [(axis, neighbour(axis, side)) for axis in range(3) for side in (-1, 1)]
    pairs = [(p, q) for i, (a, p) in enumerate(neighbours) for b, q in neighbours[i + 1 :] if a != b]
    squares = torch.cat([(p - q).square() for p, q in pairs], dim=1)
    sums = box_sum(squares, 2 * radius + 1)
    for axis in (2, 3, 4):
        sums = sums.narrow(axis, radius, sums.shape[axis] - 2 * radius)
    distances = (sums - sums.amin(dim=1, keepdim=True)) / (2 * radius + 1) ** 3
    noise = distances.mean(dim=1, keepdim=True)
    typical = noise.detach().mean().clamp(min=1e-12)
    return torch.exp(-distances / noise.clamp(min=0.001 * float(typical), max=1000 * float(typical)))


def mind_loss(
    warped: Tensor, fixed: Tensor, *, radius: int = 2, dilation: int = 2, mask: Tensor | None = None
) -> Tensor:
    """The mean squared difference of the self-similarity contexts (`mind_ssc`) of both images.

    Args:
        warped: (B, 1, D, H, W), any unit.
        fixed: (B, 1, D, H, W), any unit.
        radius: radius of the patches, in voxels.
        dilation: distance of the neighbours, in voxels.
        mask: nonzero at the voxels to use. Their contexts extend beyond the mask by up to radius + dilation voxels.

    Returns:
        The loss, a scalar.

    Example:
        >>> image = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
        >>> bool(mind_loss(1 - image, image) < 0.01 < mind_loss(image.flip(2), image))
        True
    """
    return mind_loss_against(fixed, radius=radius, dilation=dilation, mask=mask)(warped)


def mind_loss_against(
    fixed: Tensor, *, radius: int = 2, dilation: int = 2, mask: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """`mind_loss` as a function of the warped image; the contexts of the fixed one are computed once."""
    context = mind_ssc(fixed, radius=radius, dilation=dilation)

    def loss(warped: Tensor) -> Tensor:
        _check_images(warped, fixed, mask)
        error = (mind_ssc(warped, radius=radius, dilation=dilation) - context).square().mean(dim=1, keepdim=True)
        if mask is None:
            return error.mean()
        inside = mask.to(error.dtype).expand_as(error)
        return (error * inside).sum() / inside.sum().clamp(min=1)

    return loss


def diffusion_energy(displacement: Tensor, *, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """The mean squared first derivative of a displacement, by forward differences, averaged over the three axes.

    With `spacing`, both the vectors and the distances are in mm, so the energy of a map does not depend on its grid.

    Args:
        displacement: (B, 3, D, H, W) in voxels.
        spacing: voxel spacing along each axis, in mm.

    Returns:
        The energy, a scalar; 0 for a translation.

    Example:
        >>> round(float(diffusion_energy(0.3 * torch.arange(4.0).view(1, 1, 1, 1, 4).expand(1, 3, 4, 4, 4))), 3)
        0.03
    """
    scale = displacement.new_tensor(tuple(spacing)).view(1, 3, 1, 1, 1)
    field = displacement * scale
    terms = [
        (field.diff(dim=axis) / length).square().mean()
        for axis, length in zip((2, 3, 4), spacing, strict=True)
        if field.shape[axis] > 1
    ]
    return torch.stack(terms).sum() / 3 if terms else field.sum() * 0


def bending_energy(displacement: Tensor, *, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """The mean squared second derivative of a displacement, which is 0 for every affine map.

    Rueckert et al., IEEE TMI 1999, equation 4: the squares of the three pure derivatives, and twice those of the three
    mixed derivatives, are summed over axes and averaged over components and voxels; the unit is 1/mm^2.

    Args:
        displacement: (B, 3, D, H, W) in voxels.
        spacing: voxel spacing along each axis, in mm.

    Returns:
        The energy, a scalar.

    Example:
        >>> square = torch.arange(5.0).square().view(1, 1, 1, 1, 5).expand(1, 3, 5, 5, 5)
        >>> float(bending_energy(square))
        4.0
    """
    scale = displacement.new_tensor(tuple(spacing)).view(1, 3, 1, 1, 1)
    field = displacement * scale
    energy = field.sum() * 0
    for a in range(3):
        first = field.diff(dim=a + 2) / spacing[a]
        for b in range(a, 3):
            second = first.diff(dim=b + 2) / spacing[b]
            if second.numel():
                energy = energy + (1 if a == b else 2) * second.square().mean()
    return energy


def _check_images(warped: Tensor, fixed: Tensor, mask: Tensor | None) -> None:
    if fixed.ndim != 5 or fixed.shape[1] != 1 or warped.shape != fixed.shape:
        raise ValueError(
            f"warped and fixed must have one shape (B, 1, D, H, W), got {tuple(warped.shape)} and {tuple(fixed.shape)}"
        )
    if mask is not None and tuple(mask.shape) not in {tuple(fixed.shape), (1, 1, *fixed.shape[2:])}:
        raise ValueError(f"mask must have the shape of fixed, {tuple(fixed.shape)}, got {tuple(mask.shape)}")
