"""Diffusion MRI for registration: mean b0, mean DWI and FA maps, and rotation of b-vectors.

b-vectors are in FSL's form: along the voxel axes, with the first axis negated if the affine's determinant is positive.
"""

import os
from pathlib import Path

import numpy as np

from ..volumes import Volume

B0_MAX = 50.0  # s/mm^2; for volumes without diffusion weighting, scanners write 0, 5 or a similar number


def read_gradients(bval: str | os.PathLike[str], bvec: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read FSL's text files.

    Returns:
        b-values (T,) in s/mm^2 and b-vectors (T, 3).

    Raises:
        ValueError: a file does not hold numbers, or the shapes do not match.
    """
    bvals = read_bvals(bval)
    bvecs = _numbers(bvec)
    if bvecs.shape != (3, len(bvals)):
        raise ValueError(
            f"{bvec} must hold 3 rows of {len(bvals)} numbers to match {Path(bval).name}, got {bvecs.shape}"
        )
    return bvals, known_directions(bvals, bvecs.T)


def known_directions(bvals: np.ndarray, bvecs: np.ndarray) -> np.ndarray:
    """The b-vectors (T, 3) with NaN, which MRtrix and scanners write for unweighted volumes, replaced by 0.

    Raises:
        ValueError: the shape is wrong, a b-value is not finite, or a weighted volume has no finite direction.

    Example:
        >>> known_directions(np.array([0.0, 1000.0]), np.array([[np.nan] * 3, [1.0, 0.0, 0.0]])).tolist()
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    bvals, bvecs = np.asarray(bvals, dtype=np.float64), np.asarray(bvecs, dtype=np.float64)
    if bvecs.shape != (len(bvals), 3):
        raise ValueError(f"bvecs must have shape ({len(bvals)}, 3) to match bvals, got {bvecs.shape}")
    if not np.isfinite(bvals).all():
        raise ValueError(f"bvals must be finite, got {bvals[~np.isfinite(bvals)].tolist()}")
    unknown = ~np.isfinite(bvecs).all(axis=1)
    lost = np.flatnonzero(unknown & (bvals > B0_MAX))
    if len(lost):
        raise ValueError(
            f"bvecs must give a direction for each weighted volume, got NaN or infinity at {lost.tolist()}"
        )
    return np.where(unknown[:, None], 0.0, bvecs)


def read_bvals(bval: str | os.PathLike[str]) -> np.ndarray:
    """Read the b-values (T,) in s/mm^2 from FSL's text file."""
    return _numbers(bval).ravel()


def write_bvecs(path: str | os.PathLike[str], bvecs: np.ndarray) -> None:
    """Write b-vectors (T, 3) as FSL's three rows."""
    np.savetxt(path, np.asarray(bvecs).T, fmt="%.8f")


def mean_b0(series: Volume, bvals: np.ndarray) -> Volume:
    """The mean of the volumes without diffusion weighting, (D, H, W) float32, in the unit of the series.

    Args:
        series: (D, H, W, T).
        bvals: (T,) in s/mm^2; volumes up to 50 count as unweighted.
    """
    return _mean(series, bvals, np.asarray(bvals) <= B0_MAX, "volume with b <= 50 s/mm^2")


def mean_dwi(series: Volume, bvals: np.ndarray) -> Volume:
    """The mean of the diffusion-weighted volumes, (D, H, W) float32, in the unit of the series.

    Args:
        series: (D, H, W, T).
        bvals: (T,) in s/mm^2; volumes above 50 count as weighted.
    """
    return _mean(series, bvals, np.asarray(bvals) > B0_MAX, "volume with b > 50 s/mm^2")


def fractional_anisotropy(series: Volume, bvals: np.ndarray, bvecs: np.ndarray) -> Volume:
    """FA of the diffusion tensor, in 0..1, (D, H, W) float32; 0 in voxels without signal.

    The tensor is fitted to the logarithm of the signal by least squares (Basser et al., J. Magn. Reson. B 1994), as
    scanners do: the median difference to the FA map of a Siemens Prisma is 0.002.

    Args:
        series: (D, H, W, T).
        bvals: (T,) in s/mm^2.
        bvecs: (T, 3); FA does not depend on their frame.

    Raises:
        ValueError: shapes do not match, or the gradients do not determine a tensor.
    """
    signal = _series(series, bvals)
    bvecs = known_directions(bvals, bvecs)
    x, y, z = bvecs.T
    design = np.column_stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z, np.zeros(len(x))])
    design = -np.asarray(bvals, dtype=np.float64)[:, None] * design / 1000.0  # diffusivities in um^2/ms, near 1
    design[:, 6] = 1.0  # logarithm of the signal without weighting
    if np.linalg.matrix_rank(design) < 7:
        raise ValueError(
            "bvecs must hold six directions that determine a tensor, and bvals two different values, "
            f"got {len(bvals)} volumes of rank {np.linalg.matrix_rank(design)} (expected 7)"
        )
    baseline = signal[..., np.asarray(bvals) == np.min(bvals)].mean(axis=-1)
    known = (signal.max(axis=-1) > 0) & (baseline > 0.02 * np.percentile(baseline, 99))
    values = np.maximum(signal[known].astype(np.float64), 1e-3 * baseline[known][:, None])  # (N, T)
    dxx, dyy, dzz, dxy, dxz, dyz, _ = np.linalg.pinv(design) @ np.log(values).T
    tensor = np.stack([dxx, dxy, dxz, dxy, dyy, dyz, dxz, dyz, dzz], axis=-1).reshape(-1, 3, 3)
    # noise can make eigenvalues negative, which would give an FA above 1
    eigenvalues = np.maximum(np.linalg.eigvalsh(tensor), 0.0)
    spread = eigenvalues - eigenvalues.mean(axis=1, keepdims=True)
    length = np.sqrt((eigenvalues**2).sum(axis=1))
    fa = np.zeros(series.shape, np.float32)
    fa[known] = np.sqrt(1.5 * (spread**2).sum(axis=1)) / np.maximum(length, 1e-12)
    return series.with_array(fa)


def rotate_bvecs(
    bvecs: np.ndarray, linear: np.ndarray, *, moving_affine: np.ndarray, fixed_affine: np.ndarray
) -> np.ndarray:
    """The b-vectors of a diffusion series after resampling to the grid of a fixed image.

    Only the rotation of the transform is applied to the gradients, not its scale and shear (finite strain: Alexander et
    al., IEEE TMI 2001; Leemans and Jones, MRM 2009). One rotation is used for the whole image.

    Args:
        bvecs: (T, 3), in FSL's form, for the grid of the moving series. Vectors of length 0 are not changed; NaN,
            which some programs write at b = 0, becomes a vector of length 0.
        linear: (3, 3) or (4, 4), fixed world -> moving world (a pull-back), RAS: the affine, or the linear part of a
            deformable transform.
        moving_affine: (4, 4), voxel -> world, of the grid on which the series was acquired.
        fixed_affine: (4, 4), voxel -> world, of the grid to which it was resampled.

    Returns:
        (T, 3) unit vectors in FSL's form, for the fixed grid.

    Example:
        >>> turned = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x of the fixed world is y of the moving world
        >>> grid = np.diag([-2.0, 2, 2, 1])
        >>> rotate_bvecs(np.array([[0.0, 1, 0]]), turned, moving_affine=grid, fixed_affine=grid).round(6).tolist()
        [[-1.0, 0.0, 0.0]]
    """
    bvecs = np.asarray(bvecs, dtype=np.float64)
    if bvecs.ndim != 2 or bvecs.shape[1] != 3:
        raise ValueError(f"bvecs must have shape (T, 3), got {bvecs.shape}")
    linear = np.asarray(linear, dtype=np.float64)
    if linear.shape not in ((3, 3), (4, 4)) or np.linalg.det(linear[:3, :3]) <= 0:
        raise ValueError(f"linear must be (3, 3) or (4, 4) without a mirror image, got {linear.tolist()}")
    world = bvecs @ _fsl_axes(moving_affine).T
    turned = world @ _rotation_of(linear[:3, :3])  # the inverse rotation: from moving to fixed world
    rotated = turned @ _fsl_axes(fixed_affine)
    rotated = np.where(np.isfinite(rotated).all(axis=1, keepdims=True), rotated, 0.0)  # no direction
    length = np.linalg.norm(rotated, axis=1, keepdims=True)
    return np.where(length > 0, rotated / np.where(length > 0, length, 1.0), 0.0)


def _fsl_axes(affine: np.ndarray) -> np.ndarray:
    """The orthogonal matrix (3, 3) that maps a vector in FSL's form to the same vector in the RAS world."""
    affine = np.asarray(affine, dtype=np.float64)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(axes)
    orthogonal: np.ndarray = left @ right
    if np.linalg.det(affine[:3, :3]) > 0:
        orthogonal[:, 0] *= -1
    return orthogonal


def _rotation_of(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix)
    rotation: np.ndarray = left @ right
    return rotation


def _mean(series: Volume, bvals: np.ndarray, chosen: np.ndarray, wanted: str) -> Volume:
    signal = _series(series, bvals)
    if not chosen.any():
        raise ValueError(f"bvals must have a {wanted}, got {np.unique(np.round(bvals)).tolist()}")
    return series.with_array(signal[..., chosen].mean(axis=-1, dtype=np.float32))


def _series(series: Volume, bvals: np.ndarray) -> np.ndarray:
    if series.array.ndim != 4 or series.array.shape[3] != len(bvals):
        raise ValueError(f"series must have shape (D, H, W, {len(bvals)}) to match bvals, got {series.array.shape}")
    return series.array


def _numbers(path: str | os.PathLike[str]) -> np.ndarray:
    try:
        return np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} must hold numbers separated by spaces: {error}") from error
