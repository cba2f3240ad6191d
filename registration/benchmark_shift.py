"""A phantom with large shifts: how well NestedMorph learns to find them, for each mechanism of its coarse stages.

The images are random textures, and the moving image is the fixed one shifted along the last axis by up to `reach`
voxels; what is shifted in is new texture. The network is trained on the known displacement, new pairs in each step,
and measured on pairs that it has not seen. A network whose coarse stages attend from the fixed into the moving image
first trains this search alone, by a loss on the displacement that the attention shows, and then everything together
with both losses; with the loss of the result alone, neither the search nor the result learns.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..runs.json_files import finite_or_none
from .nestedmorph import NestedMorph
from .searched import SearchedRegions, searched_regions


@dataclass(frozen=True, kw_only=True)
class ShiftSettings:
    """The phantom and the training on it.

    Args:
        size: voxels of the images along each axis.
        reach: the largest shift in voxels.
        sigma: standard deviation of the Gaussian that smooths the texture, in voxels.
        search_steps: steps in which only the search is trained, if the network has one.
        search_batch: pairs per step there.
        steps: steps in which the whole network is trained.
        batch: pairs per step there.
        learning_rate: the largest learning rate; it rises and falls to 0 over the steps of each part.
        tests: number of pairs that measure the result.
        seed: seed of the parameters and the textures.
    """

    size: tuple[int, int, int] = (32, 32, 128)
    reach: int = 48
    sigma: float = 4.0
    search_steps: int = 300
    search_batch: int = 8
    steps: int = 400
    batch: int = 2
    learning_rate: float = 1e-3
    tests: int = 40
    seed: int = 0


@dataclass(frozen=True)
class ShiftResult:
    """Errors in voxels, in the part of the image that stays inside for every shift.

    Args:
        near: mean error for shifts of at most 16 voxels, the distance between tokens of the finer coarse stage.
        far: mean error for larger shifts.
        searched_near, searched_far: the same errors for the median shift from regions to their best ones; None if the
            mixer chooses no regions.
        zero_near, zero_far: the errors of no displacement at all.
        parameters: number of parameters.
        seconds: computing time of the training, on one thread per core that it used.
    """

    near: float
    far: float
    searched_near: float | None
    searched_far: float | None
    zero_near: float
    zero_far: float
    parameters: int
    seconds: float


def shifted_pair(rng: np.random.Generator, settings: ShiftSettings, shift: int) -> tuple[Tensor, Tensor]:
    """Two windows of one texture, (1, D, H, W) in [0, 1] each, with moving[x + shift] = fixed[x] on the last axis."""
    reach, (depth, height, width) = settings.reach, settings.size
    noise = rng.standard_normal((depth, height, width + 2 * reach)).astype(np.float32)
    texture = gaussian_filter(noise, settings.sigma, mode="wrap")
    texture = np.clip(0.5 + texture / (5 * texture.std()), 0, 1)
    fixed, moving = (texture[..., reach - s : reach - s + width] for s in (0, shift))
    return torch.from_numpy(moving[None].copy()), torch.from_numpy(fixed[None].copy())


def measure_shift(mixer: str | None, settings: ShiftSettings = ShiftSettings()) -> ShiftResult:
    """Train a NestedMorph with the head at a quarter of the resolution on the phantom, and measure it on new pairs."""
    torch.manual_seed(settings.seed)
    model = NestedMorph(flow_head="quarter", mixer=mixer)
    rng = np.random.default_rng(settings.seed)
    started = time.process_time()
    if mixer is not None:

        def search_loss(moving: Tensor, fixed: Tensor, shifts: list[int]) -> Tensor:
            return _search_error(model, moving, fixed, shifts, settings.reach)

        _train(model, search_loss, _batches(rng, settings, settings.search_batch), settings.search_steps, settings)

    def loss(moving: Tensor, fixed: Tensor, shifts: list[int]) -> Tensor:
        error = _errors(model.network_output(moving, fixed), shifts, settings.reach).mean()
        return error if mixer is None else error + _search_error(model, moving, fixed, shifts, settings.reach)

    _train(model, loss, _batches(rng, settings, settings.batch), settings.steps, settings)
    return _tested(model.eval(), settings, time.process_time() - started)


Batch = tuple[Tensor, Tensor, list[int]]  # moving and fixed (B, 1, D, H, W), and the shift of each pair


def _train(
    model: NestedMorph,
    loss_of: Callable[[Tensor, Tensor, list[int]], Tensor],
    batches: Iterator[Batch],
    steps: int,
    settings: ShiftSettings,
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, amsgrad=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    for batch in islice(batches, steps):
        optimizer.zero_grad()
        loss_of(*batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _batches(rng: np.random.Generator, settings: ShiftSettings, batch: int) -> Iterator[Batch]:
    while True:
        shifts = rng.integers(-settings.reach, settings.reach + 1, batch).tolist()
        pairs = [shifted_pair(rng, settings, shift) for shift in shifts]
        moving, fixed = (torch.stack(images) for images in zip(*pairs, strict=True))
        yield moving, fixed, shifts


def _search_error(model: NestedMorph, moving: Tensor, fixed: Tensor, shifts: list[int], reach: int) -> Tensor:
    """The mean error of the displacement that the attention shows, summed over the stages."""
    fields = [found.movedim(-1, 1) for found in model.attended_displacements(moving, fixed)]
    width = moving.shape[4]
    return torch.stack([_errors(field, shifts, reach * field.shape[4] // width).mean() for field in fields]).sum()


def _errors(displacement: Tensor, shifts: list[int], margin: int) -> Tensor:
    """The mean length of the error of each displacement (B, 3, D, H, W) without a margin on the last axis, (B,).

    Within the margin some shifts would leave the image. A part that depended on the shift of a pair would give it away.
    """
    target = torch.zeros(len(shifts), 3, 1, 1, 1).to(displacement)
    target[:, 2, 0, 0, 0] = torch.tensor(shifts)
    inside = displacement[..., margin : displacement.shape[4] - margin]
    return (inside - target).square().sum(1).add(1e-6).sqrt().mean((1, 2, 3))


def _tested(model: NestedMorph, settings: ShiftSettings, seconds: float) -> ShiftResult:
    rng = np.random.default_rng([settings.seed, 1])
    shifts = np.linspace(-settings.reach, settings.reach, settings.tests).round().astype(int).tolist()
    errors = np.full((2, settings.tests), np.nan)  # of the displacement, and of the search
    for number, shift in enumerate(shifts):
        moving, fixed = (image[None] for image in shifted_pair(rng, settings, shift))
        with torch.inference_mode():
            errors[0, number] = float(_errors(model.network_output(moving, fixed), [shift], settings.reach)[0])
        searched = searched_regions(model, moving, fixed)
        if searched is not None:
            errors[1, number] = np.abs(_median_shift(searched, settings.reach) - shift)
    lengths = np.abs(shifts)
    near = lengths <= 16
    found = finite_or_none
    return ShiftResult(
        near=float(errors[0, near].mean()),
        far=float(errors[0, ~near].mean()),
        searched_near=found(errors[1, near].mean()),
        searched_far=found(errors[1, ~near].mean()),
        zero_near=float(lengths[near].mean()),
        zero_far=float(lengths[~near].mean()),
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=seconds,
    )


def _median_shift(searched: SearchedRegions, reach: int) -> float:
    """The median shift along the last axis to the best region, over the regions whose middle is in the scored part."""
    width = searched.fixed.shape[2]
    middles = [sum(searched.box(number)[2]) / 2 for number in range(len(searched.chosen))]
    inside = [reach <= middle <= width - reach for middle in middles]
    return float(np.median(searched.best_shift()[inside, 2]))
