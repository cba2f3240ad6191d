"""Registration of 2-D images, such as single slices or microscopy, by the same fits as for volumes.

Both images are placed in one plane, so that motions and displacements lie in that plane. Since the scale of the images
is arbitrary, the fixed image is scaled to the size of a head for the fits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..volumes import AffineTransform, DisplacementField, Volume
from .grids import to_grid
from .warp import invert_displacement, resize_displacement, warp

_SIDE_MM = 180.0  # mean side of the fixed image after scaling
_LARGEST = 512  # largest number of voxels along the mean side of the grid of the displacement


def is_planar(volume: Volume) -> bool:
    """Whether an image is one slice: one of its three axes has one voxel, and the others have more."""
    return volume.array.ndim == 3 and sorted(volume.shape)[0] == 1 and sorted(volume.shape)[1] > 1


@dataclass(frozen=True, eq=False)
class Plane:
    """A 2-D image in the common plane.

    Args:
        image: (1, A, B); the x and y axes of the plane are those of the image's grid, and z is normal to the plane.
        across: the axis of the original array that has one voxel.
        world: (4, 4), voxel of `image` -> original world, RAS mm.
    """

    image: Volume
    across: int
    world: np.ndarray

    def laid(self, volume: Volume) -> Volume:
        """Place another image on the grid of the original array, such as a mask, in the plane."""
        return self.image.with_array(np.ascontiguousarray(np.moveaxis(volume.array, self.across, 0)))

    def restored(self, vectors: np.ndarray) -> np.ndarray:
        """Convert vectors (1, A, B, 3) to the grid of the original array."""
        return np.ascontiguousarray(np.moveaxis(vectors, 0, self.across))


def planes(moving: Volume, fixed: Volume) -> tuple[Plane, Plane]:
    """Place both images in one plane: by their world positions if they are parallel, otherwise with equal centres.

    Args:
        moving: one slice, see `is_planar`.
        fixed: one slice.
    """
    (moving_array, moving_axis, moving_world), (fixed_array, fixed_axis, fixed_world) = map(_laid, (moving, fixed))
    sides = [n * np.linalg.norm(fixed_world[:3, k]) for k, n in zip((1, 2), fixed_array.shape[1:], strict=True)]
    scale = _SIDE_MM / float(np.sqrt(sides[0] * sides[1]))
    frames = [_frame(world) for world in (moving_world, fixed_world)]
    parallel = abs(float(frames[0][:, 2] @ frames[1][:, 2])) > 0.95
    placed = []
    for world, frame in ((moving_world, frames[1] if parallel else frames[0]), (fixed_world, frames[1])):
        inside = np.zeros((4, 4))
        inside[:2, 1:3] = scale * (frame.T @ world[:3, 1:3])[:2]
        inside[:2, 3] = scale * (frame.T @ (world[:3, 3] - fixed_world[:3, 3]))[:2]
        inside[2, 0] = np.sqrt(abs(np.linalg.det(inside[:2, 1:3])))  # the thickness equals the size of the pixels
        inside[3, 3] = 1
        placed.append(inside)
    if not parallel:
        middles = [
            inside @ [0, *((np.array(array.shape[1:]) - 1) / 2), 1]
            for inside, array in zip(placed, (moving_array, fixed_array), strict=True)
        ]
        placed[0][:2, 3] += (middles[1] - middles[0])[:2]
    return (
        Plane(Volume(moving_array, placed[0], moving.source), moving_axis, moving_world),
        Plane(Volume(fixed_array, placed[1], fixed.source), fixed_axis, fixed_world),
    )


def laid_over(moving: Volume, fixed: Volume) -> AffineTransform:
    """The map from the fixed into the moving world that lays both slices into one plane, before any fit."""
    there, here = planes(moving, fixed)
    between = np.linalg.inv(there.image.affine) @ here.image.affine  # voxels -> voxels
    return AffineTransform(there.world @ between @ np.linalg.inv(here.world))


def displacement_grid(fixed: Plane) -> Volume:
    """The grid of the displacement: that of the fixed image, coarsened to at most 512 voxels along the mean side."""
    _, a, b = fixed.image.shape
    factor = max(1.0, float(np.sqrt(a * b)) / _LARGEST)
    shape = (1, *(int(round((n - 1) / factor)) + 1 for n in (a, b)))
    steps = [(n - 1) / max(m - 1, 1) for n, m in zip((a, b), shape[1:], strict=True)]
    return Volume(np.broadcast_to(np.float32(0), shape), fixed.image.affine @ np.diag([1.0, *steps, 1.0]))


def on_grid(plane: Plane, grid: Volume, transform: AffineTransform | None = None) -> Tensor:
    """The image on a grid of the fixed plane, (1, 1, 1, A, B), with grey values from 0 to 1."""
    array = plane.image.array.astype(np.float32)
    low, high = (float(value) for value in np.percentile(array, [0.5, 99.5]))
    scaled = plane.image.with_array(np.clip((array - low) / max(high - low, 1e-30), 0, 1))
    return to_grid(scaled, grid, transform)[None]


def maps(
    moving: Plane, fixed: Plane, matrix: np.ndarray, displacement: Tensor
) -> tuple[DisplacementField, DisplacementField, AffineTransform]:
    """The forward and inverse maps between the original worlds, and their linear part.

    Args:
        moving: the moving image.
        fixed: the fixed image.
        matrix: (4, 4), fixed -> moving, within the plane.
        displacement: (1, 3, 1, A', B'), in voxels of `displacement_grid`, applied before `matrix`.
    """
    u = resize_displacement(displacement, fixed.image.shape)
    to_moving = np.linalg.inv(moving.image.affine) @ matrix @ fixed.image.affine  # voxels -> voxels
    forward = DisplacementField.from_voxels(u[0].numpy(), fixed.world, moving_affine=moving.world @ to_moving)
    back, _ = invert_displacement(u, iterations=60, tolerance=0.01)
    # the fixed voxel from which each moving voxel is reached without `back`, as a displacement on the moving grid
    identity = torch.zeros(3, *moving.image.shape)
    start = DisplacementField.from_voxels(identity.numpy(), np.eye(4), moving_affine=np.linalg.inv(to_moving))
    place = torch.from_numpy(np.moveaxis(start.vectors_mm, 3, 0).copy())[None]
    place[:, 0] = 0
    total = place + warp(back, place, padding="border")
    inverse = DisplacementField.from_voxels(total[0].numpy(), moving.world, moving_affine=fixed.world)
    normals = [_frame(plane.world)[:, 2] for plane in (moving, fixed)]
    if normals[0] @ normals[1] < 0:
        normals[0] = -normals[0]
    worlds = [plane.world.copy() for plane in (moving, fixed)]
    for world, normal in zip(worlds, normals, strict=True):
        world[:3, 0] = normal  # slice thickness and direction are no part of the map
    to_moving[0] = [1, 0, 0, 0]
    linear = AffineTransform(worlds[0] @ to_moving @ np.linalg.inv(worlds[1]))
    return (
        DisplacementField(fixed.restored(forward.vectors_mm), _ordered(fixed)),
        DisplacementField(moving.restored(inverse.vectors_mm), _ordered(moving)),
        linear,
    )


def _laid(volume: Volume) -> tuple[np.ndarray, int, np.ndarray]:
    """The array (1, A, B), the axis with one voxel, and the affine (4, 4) from the array's voxels to the world."""
    across = volume.shape.index(1)
    order = [across, *(k for k in range(3) if k != across)]
    world = volume.affine[:, [*order, 3]]
    return np.ascontiguousarray(np.moveaxis(volume.array, across, 0)), across, world


def _ordered(plane: Plane) -> np.ndarray:
    """The affine (4, 4), voxel -> world, for the original order of the axes."""
    order = [plane.across, *(k for k in range(3) if k != plane.across)]
    affine = plane.world.copy()
    affine[:, order] = plane.world[:, :3]
    return affine


def _frame(world: np.ndarray) -> np.ndarray:
    """Unit vectors (3, 3): along the first axis of the plane, normal to it in the plane, and normal to the plane."""
    first = world[:3, 1] / np.linalg.norm(world[:3, 1])
    second = world[:3, 2] - first * (first @ world[:3, 2])
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)
