"""C7: grounding on search displays and lesion phantoms, where the place of the evidence is known.

A display has four items of different colours; the words ask for the shape of the item of one colour. A phantom has one
lesion in an organ; the words ask for its kind. A small transformer answers, and `ground` says where it looks.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .grounding import Box, best_region, ground, hidden_of, hit, overlap
from .importance import Interval, bootstrap
from .small_models import SmallTransformer, fit, seeded
from .trace import record

Kind = Literal["display", "lesion"]
GRID, PATCH = 8, 4  # patches along a side, pixels along the side of a patch
ITEM = 8  # pixels along the side of an item
COLOURS, SHAPES, LESIONS = 4, 4, 2
_WORDS = COLOURS + 4  # the colours, "shape", "lesion", "of", and the place of the answer
_ANSWERS = SHAPES + LESIONS
_COLOUR = torch.tensor([[1.0, 0.2, 0.2], [0.2, 1.0, 0.2], [0.3, 0.3, 1.0], [1.0, 1.0, 0.2]])


class Displays(NamedTuple):
    """Images with a question each."""

    images: Tensor  # (B, 3, 32, 32)
    words: Tensor  # (B, 4) int, three words and the place of the answer
    target: Tensor  # (B,), class of the answer
    boxes: list[Box]  # of the target, in patches

    def tokens(self) -> Tensor:
        """(B, 64 + 4, features): the patches in row-major order, then the words."""
        patches = F.unfold(self.images, PATCH, stride=PATCH).mT  # (B, 64, 48)
        words = F.one_hot(self.words, _WORDS).to(patches)
        return torch.cat([F.pad(patches, (0, _WORDS)), F.pad(words, (patches.shape[2], 0))], 1)


FEATURES, LENGTH = 3 * PATCH**2 + _WORDS, GRID**2 + 4


def shapes() -> Tensor:
    """(4, 8, 8) bool: a disc, a ring, a cross and a bar."""
    axis = torch.arange(ITEM) - (ITEM - 1) / 2
    radius = (axis[:, None].square() + axis.square()).sqrt()
    cross = (axis[:, None].abs() < 1.1) | (axis.abs() < 1.1)
    bar = (axis[:, None].abs() < 2.1) & (axis.abs() < 4)
    return torch.stack([radius < 3.6, (radius < 4.2) & (radius > 2.2), cross & (radius < 4.2), bar])


def draw(kind: Kind, batch: int, generator: torch.Generator) -> Displays:
    """Draw images of one kind."""
    return _displays(batch, generator) if kind == "display" else _phantoms(batch, generator)


def _displays(batch: int, generator: torch.Generator) -> Displays:
    images = 0.1 * torch.randn(batch, 3, GRID * PATCH, GRID * PATCH, generator=generator)
    cells = torch.rand(batch, 16, generator=generator).argsort(1)[:, :COLOURS]
    shape = torch.randint(SHAPES, (batch, COLOURS), generator=generator)
    asked = torch.randint(COLOURS, (batch,), generator=generator)
    masks = shapes().float()
    for b in range(batch):
        for colour in range(COLOURS):
            row, column = ITEM * (int(cells[b, colour]) // 4), ITEM * (int(cells[b, colour]) % 4)
            images[b, :, row : row + ITEM, column : column + ITEM] += (
                _COLOUR[colour].view(3, 1, 1) * masks[shape[b, colour]]
            )
    rows = torch.arange(batch)
    place = cells[rows, asked]
    words = torch.stack([torch.full_like(asked, COLOURS), torch.full_like(asked, COLOURS + 2), asked], 1)
    top, left = 2 * (place // 4), 2 * (place % 4)
    boxes = [(t, c, t + 2, c + 2) for t, c in zip(top.tolist(), left.tolist(), strict=True)]
    return Displays(images, _with_answer(words), shape[rows, asked], boxes)


def _phantoms(batch: int, generator: torch.Generator) -> Displays:
    side = GRID * PATCH
    coarse = torch.randn(batch, 1, 5, 5, generator=generator)
    images = 0.3 * F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    axis = torch.linspace(-1, 1, side)
    organ = ((axis[:, None] / 0.95).square() + (axis / 0.85).square() < 1).float()
    images = images + 0.5 * organ + 0.1 * torch.randn(batch, 1, side, side, generator=generator)
    lesion = torch.randint(LESIONS, (batch,), generator=generator)
    place = torch.randint(2, 2 * (GRID // 2), (batch, 2), generator=generator).clamp(1, GRID - 3)
    masks = shapes().float()[:LESIONS]  # solid or ring
    for b in range(batch):
        row, column = (PATCH * int(p) for p in place[b])
        images[b, 0, row : row + ITEM, column : column + ITEM] += masks[lesion[b]]
    words = torch.tensor([COLOURS + 1, COLOURS + 2, COLOURS + 1]).expand(batch, -1)
    boxes = [(t, c, t + 2, c + 2) for t, c in place.tolist()]
    return Displays(images.expand(-1, 3, -1, -1), _with_answer(words), SHAPES + lesion, boxes)


def _with_answer(words: Tensor) -> Tensor:
    return F.pad(words, (0, 1), value=_WORDS - 1)


class GroundingResult(NamedTuple):
    """How well the map of a trained network finds the target, with intervals; a random map for comparison."""

    kind: Kind
    accuracy: float  # of the answers
    hits: Interval  # share of predicted points in the box
    distance: Interval  # from the predicted point to the middle of the box, in patches
    iou: Interval  # of the predicted region's box and the true box
    random_hits: float  # share of hits of a random patch


def train_displays(*, steps: int = 1500, batch: int = 64, seed: int = 0) -> SmallTransformer:
    """Train a small transformer on both kinds of images."""
    with seeded(seed):
        network = SmallTransformer(FEATURES, _ANSWERS, LENGTH, dim=48, depth=2)
    generator = torch.Generator().manual_seed(1000 + seed)

    def loss() -> Tensor:
        parts = [draw(kind, batch // 2, generator) for kind in ("display", "lesion")]
        logits = network(torch.cat([one.tokens() for one in parts]))
        return F.cross_entropy(logits, torch.cat([one.target for one in parts]))

    fit(network, loss, steps, rate=3e-3)
    return network.eval()


def grounding_result(network: SmallTransformer, kind: Kind, *, count: int = 200, seed: int = 5) -> GroundingResult:
    """Ground the answers to new images from all heads of all layers."""
    given = draw(kind, count, torch.Generator().manual_seed(seed))
    trace = record(network, given.tokens())
    patches, words = torch.arange(GRID**2), torch.arange(GRID**2, LENGTH - 1)
    streams = [found[0] for name, found in trace.residuals.items() if name.endswith("after")]
    maps = trace.maps.transpose(0, 1).flatten(1, 2)  # (B, heads of all layers, L, L)
    hits, distances, overlaps = [], [], []
    for b in range(count):
        found = ground(maps[b], hidden_of(streams, b), query=words, patches=patches, anchor=-1)
        region = best_region(found.patches.view(GRID, GRID))
        box = given.boxes[b]
        hits.append(float(hit((region.row, region.column), box)))
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        distances.append(((region.row - middle[0]) ** 2 + (region.column - middle[1]) ** 2) ** 0.5)
        overlaps.append(overlap(region.box, box))
    accuracy = (trace.output.argmax(1) == given.target).double().mean()
    found_in, far, shared = (bootstrap(torch.tensor(values)) for values in (hits, distances, overlaps))
    return GroundingResult(kind, float(accuracy), found_in, far, shared, 4 / GRID**2)
