"""C8: pre-training under a growing mask, compared with training from scratch when the test images are occluded.

An idea after Mask & Match (arXiv 2508.06107). First, two views of an object are matched as a whole and patch by patch;
then an image of which a growing share of the patches is hidden is matched with the whole image. Objects are small
shapes that move over changing backgrounds.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runs.pretraining import contrastive_loss, mask_ratio
from .display_task import PATCH, SHAPES, shapes
from .importance import Interval, bootstrap
from .small_models import SmallTransformer, fit, seeded
from .trace import record

GRID = 6  # patches along a side


class Views(NamedTuple):
    """Pictures of objects."""

    tokens: Tensor  # (B, 36 + 1, pixels of a patch + 1); the last token is the class token
    shape: Tensor  # (B,), class of the object
    foreground: Tensor  # bool (B, 36), patches of the object


def draw_views(shape: Tensor, place: Tensor, generator: torch.Generator) -> Views:
    """Pictures of shapes (B,) at places (B, 2) in patches, with new backgrounds and brightness."""
    batch, side = len(shape), GRID * PATCH
    coarse = torch.randn(batch, 1, 6, 6, generator=generator)
    images = 0.4 * F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    images = images + 0.15 * torch.randn(batch, 1, side, side, generator=generator)
    bright = 0.7 + 0.6 * torch.rand(batch, generator=generator)
    masks = shapes().float()
    foreground = torch.zeros(batch, GRID, GRID, dtype=torch.bool)
    for b in range(batch):
        top, left = place[b].tolist()
        rows, columns = slice(PATCH * top, PATCH * (top + 2)), slice(PATCH * left, PATCH * (left + 2))
        images[b, 0, rows, columns] += bright[b] * masks[shape[b]]
        foreground[b, top : top + 2, left : left + 2] = True
    patches = F.unfold(images, PATCH, stride=PATCH).mT
    tokens = F.pad(patches, (0, 1, 0, 1))
    tokens[:, -1, -1] = 1
    return Views(tokens, shape, foreground.flatten(1))


def random_objects(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shapes (B,) and places (B, 2)."""
    shape = torch.randint(SHAPES, (batch,), generator=generator)
    return shape, random_places(batch, generator)


def random_places(batch: int, generator: torch.Generator) -> Tensor:
    """Places (B, 2)."""
    return torch.randint(GRID - 1, (batch, 2), generator=generator)


def random_mask(batch: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Bool (B, 37), True = visible: the share `ratio` of the patches is hidden, never the class token."""
    hidden = round(ratio * GRID**2)
    order = torch.rand(batch, GRID**2, generator=generator).argsort(1)
    visible = torch.ones(batch, GRID**2 + 1, dtype=torch.bool)
    visible.scatter_(1, order[:, :hidden], False)
    return visible


class Curriculum(NamedTuple):
    """What the pre-training brings, with intervals over test images."""

    foreground_before: float  # the class token's weight on the object, over the object's share of patches
    foreground_after: float
    scratch: Interval  # accuracy under occlusion
    pretrained: Interval
    gain: Interval  # paired difference of the two


def run_curriculum(
    *, steps: int = 600, labels: int = 64, occluded: float = 0.5, test: int = 1000, seed: int = 0
) -> Curriculum:
    """Pre-train, then compare a linear probe on it with a network trained from scratch on the same labelled pictures.

    Args:
        steps: of each of the two stages of the pre-training; the network from scratch gets as many in all.
        labels: labelled pictures.
        occluded: share of hidden patches in the test.
        test: test pictures.
        seed: of weights and pictures.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    network, scratch = _network(seed), _network(seed)
    labelled = draw_views(*random_objects(labels, generator), generator)
    probed = draw_views(*random_objects(test, generator), generator)
    visible = random_mask(test, occluded, generator)
    before = foreground_ratio(network, probed)
    pretrain(network, steps, generator)
    after = foreground_ratio(network, probed)
    probe = nn.Linear(network.head.in_features, SHAPES)
    features = network.hidden(labelled.tokens)[:, -1].detach()
    fit(probe, lambda: F.cross_entropy(probe(features), labelled.shape), 300, rate=1e-2)

    def from_scratch() -> Tensor:
        return F.cross_entropy(scratch(labelled.tokens)[:, :SHAPES], labelled.shape)

    fit(scratch, from_scratch, 2 * steps, rate=1e-3)
    with torch.no_grad():
        own = probe(network.hidden(probed.tokens, visible)[:, -1]).argmax(1) == probed.shape
        other = scratch.eval()(probed.tokens, visible)[:, :SHAPES].argmax(1) == probed.shape
    gain = bootstrap(own.double() - other.double())
    return Curriculum(before, after, bootstrap(other.double()), bootstrap(own.double()), gain)


def pretrain(network: SmallTransformer, steps: int, generator: torch.Generator, *, batch: int = 48) -> None:
    """Match views as a whole and patch by patch, and then masked views with whole ones."""

    def matched() -> Tensor:
        shape, place = random_objects(batch, generator)
        views = [draw_views(shape, at, generator) for at in (place, place, random_places(batch, generator))]
        first, same, moved = (network.hidden(view.tokens) for view in views)
        local = contrastive_loss(first[:, :-1], same[:, :-1])
        return contrastive_loss(network.head(first[:, -1]), network.head(moved[:, -1])) + 0.5 * local

    fit(network, matched, steps, rate=2e-3)
    done = 0

    def masked() -> Tensor:
        nonlocal done
        shape, place = random_objects(batch, generator)
        whole = draw_views(shape, random_places(batch, generator), generator)
        part = draw_views(shape, place, generator)
        visible = random_mask(batch, mask_ratio(done, steps), generator)
        done += 1
        found, wanted = network.hidden(part.tokens, visible)[:, -1], network.hidden(whole.tokens)[:, -1]
        return contrastive_loss(network.head(found), network.head(wanted))

    fit(network, masked, steps, rate=1e-3)
    network.eval()


def foreground_ratio(network: SmallTransformer, views: Views) -> float:
    """The class token's weight on the object in the last layer, over that of uniform attention; 1 is no preference."""
    weights = record(network, views.tokens).calls[-1].map()[:, :, -1, :-1].mean(1)
    share = (weights * views.foreground).sum(1) / weights.sum(1)
    return float(share.mean() / views.foreground.double().mean())


def _network(seed: int) -> SmallTransformer:
    with seeded(seed):
        return SmallTransformer(PATCH**2 + 1, 16, GRID**2 + 1, dim=32, depth=2)
