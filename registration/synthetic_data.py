"""Data sets of synthetic pairs, for training and for validation on label maps that are held out."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Dataset, Sampler

from .synthetic import LabelMap, SyntheticPair, synthetic_pair

HELD_OUT = 3  # the last label maps by name are for validation
_PAIRS_OF_A_MAP = 4  # for validation
_VALIDATION = 1 << 40  # far above the number of any training item


class SyntheticPairs(Dataset[SyntheticPair]):
    """Training pairs: item number i shows label map i modulo their number, and depends only on the seed and on i.

    Args:
        maps: the label maps.
        size: the training grid in voxels.
        spacing_mm: its voxel spacing.
        seed: seed of all items.
        alike: number of first items whose two images have one contrast.
    """

    def __init__(self, maps: Sequence[LabelMap], *, size: Sequence[int], spacing_mm: float, seed: int, alike: int = 0):
        self.maps, self.size, self.spacing_mm, self.seed, self.alike = list(maps), size, spacing_mm, seed, alike

    def __getitem__(self, number: int) -> SyntheticPair:
        labels = self.maps[number % len(self.maps)]
        return synthetic_pair(
            labels,
            size=self.size,
            spacing_mm=self.spacing_mm,
            seed=self.seed,
            number=number,
            one_contrast=number < self.alike,
        )


class ValidationPairs(Dataset[SyntheticPair]):
    """The same four pairs of each label map in every training on this grid.

    Args:
        maps: label maps that are not used for training.
        size: the training grid in voxels.
        spacing_mm: its voxel spacing.
    """

    def __init__(self, maps: Sequence[LabelMap], *, size: Sequence[int], spacing_mm: float):
        self.pairs = SyntheticPairs(maps, size=size, spacing_mm=spacing_mm, seed=0)

    def __len__(self) -> int:
        return _PAIRS_OF_A_MAP * len(self.pairs.maps)

    def __getitem__(self, index: int) -> SyntheticPair:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        # multiples of the number of maps, so that the order of the maps does not change
        start = _VALIDATION // len(self.pairs.maps) * len(self.pairs.maps)
        return self.pairs[start + index]


class EpochNumbers(Sampler[int]):
    """The numbers of the items of an epoch, which continue those of the epoch before.

    Args:
        length: number of items of an epoch.
    """

    def __init__(self, length: int):
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))


def held_out(maps: Sequence[LabelMap]) -> tuple[list[LabelMap], list[LabelMap]]:
    """The label maps for training, and the last `HELD_OUT` for validation.

    Raises:
        ValueError: no map is left for training.
    """
    if len(maps) <= HELD_OUT:
        raise ValueError(
            f"synthetic must hold more than {HELD_OUT} label maps, since {HELD_OUT} are for validation, got {len(maps)}"
        )
    return list(maps[:-HELD_OUT]), list(maps[-HELD_OUT:])
