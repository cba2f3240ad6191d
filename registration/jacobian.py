"""Measures of the Jacobian determinant of a displacement: the spread of its logarithm, and the fraction of folds."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..kernels.threads import ordered_sums
from ..volumes import DisplacementField, Volume
from .warp import jacobian_determinant

BORDER = 2  # number of voxels on each side that the Jacobian measures of Learn2Reg leave out


@ordered_sums()
def sdlogj(displacement: Tensor, *, learn2reg: bool = True, mask: ArrayLike | Tensor | None = None) -> float:
    """Standard deviation of the log Jacobian determinant, a measure of uneven compression and expansion.

    Args:
        displacement: (B, 3, D, H, W) in voxels, with at least 5 voxels per axis for Learn2Reg's definition.
        learn2reg: use Learn2Reg's definition (Hering et al. 2023): log(clip(det J + 3, 1e-9, 1e9)) without a border of
            2 voxels. The 3 keeps folds finite and makes the values several times smaller. False uses the plain
            definition, log(max(det J, 1e-9)) over the whole volume. State the definition with any published number.
        mask: (D, H, W), nonzero at the voxels to use; all by default.

    Returns:
        The population standard deviation over these voxels; 0 for a translation.
    """
    if learn2reg:
        return _spread(_counted(displacement, mask, border=BORDER))
    return float(_counted(displacement, mask, border=0).clamp(min=1e-9).log().std(correction=0))


def _spread(determinant: Tensor) -> float:
    """The standard deviation of the log determinant by Learn2Reg's definition."""
    return float((determinant + 3).clamp(1e-9, 1e9).log().std(correction=0))


@ordered_sums()
def field_measures(displacement: Tensor) -> dict[str, float]:
    """Learn2Reg's measures and the range of one displacement (1, 3, D, H, W) in voxels, of any size.

    Returns:
        "sdlogj" and "non_positive_jacobian_percent", without a border of 2 voxels where the axis is long enough, and
        "jacobian_min" and "jacobian_max" of all voxels.
    """
    determinant = jacobian_determinant(displacement.detach())[0, 0]
    border = [BORDER if n > 2 * BORDER else 0 for n in determinant.shape]
    inner = determinant[*(slice(b, n - b) for b, n in zip(border, determinant.shape, strict=True))].double()
    return {
        "sdlogj": _spread(inner),
        "non_positive_jacobian_percent": 100 * float((inner <= 0).double().mean()),
        "jacobian_min": float(determinant.min()),
        "jacobian_max": float(determinant.max()),
    }


def jacobian_map(field: DisplacementField) -> Volume:
    """The Jacobian determinant of a map on the grid of its field, float32: 1 where volumes stay, 0 or less in folds.

    Example:
        >>> vectors = np.zeros((4, 4, 4, 3))
        >>> vectors[..., 0] = 0.1 * np.arange(4)[:, None, None]
        >>> round(float(jacobian_map(DisplacementField(vectors, np.eye(4))).array.mean()), 3)
        1.1
    """
    displacement = torch.from_numpy(field.to_voxels())[None]
    return Volume(jacobian_determinant(displacement)[0, 0].numpy(), field.affine)


def non_positive_jacobian_fraction(
    displacement: Tensor, *, border: int = BORDER, mask: ArrayLike | Tensor | None = None
) -> float:
    """Fraction (0 to 1) of voxels where the map folds, which means that its Jacobian determinant is 0 or negative.

    Args:
        displacement: (B, 3, D, H, W) in voxels.
        border: voxels left out on each side: 2 as in Learn2Reg, whose central differences need neighbours; 0 for the
            whole volume, with one-sided differences on the border, as in the published NestedMorph evaluation.
        mask: (D, H, W), nonzero at the voxels to use; all by default.

    Example:
        >>> flipped = torch.zeros(1, 3, 6, 6, 6)
        >>> flipped[0, 0] = -2 * torch.arange(6.0).view(6, 1, 1)
        >>> non_positive_jacobian_fraction(flipped)
        1.0
    """
    return float((_counted(displacement, mask, border) <= 0).double().mean())


def _counted(displacement: Tensor, mask: ArrayLike | Tensor | None, border: int) -> Tensor:
    """The determinants of the voxels to use, in float64."""
    size = tuple(displacement.shape[2:])
    if displacement.ndim != 5 or displacement.shape[1] != 3:
        raise ValueError(f"displacement must have shape (B, 3, D, H, W), got {tuple(displacement.shape)}")
    if border < 0 or min(size) <= 2 * border:
        raise ValueError(
            f"displacement must be longer than {2 * border} voxels along each axis to leave out a border of {border}, "
            f"got {size}"
        )
    determinant = jacobian_determinant(displacement.detach().double())[:, 0]
    inner = tuple(slice(border, n - border) for n in size)
    determinant = determinant[(slice(None), *inner)]
    if mask is None:
        return determinant.flatten()
    chosen = torch.as_tensor(mask, device=displacement.device) != 0
    if tuple(chosen.shape) != size:
        raise ValueError(f"mask must have shape {size} to match displacement, got {tuple(chosen.shape)}")
    if not chosen[inner].any():
        raise ValueError(f"mask must hold a voxel inside the border of {border} voxels, got none")
    return determinant[:, chosen[inner]].flatten()
