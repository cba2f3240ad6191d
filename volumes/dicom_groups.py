"""The functional groups of enhanced DICOM images, and the tags of a header."""

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag


def functional_groups(dataset: Dataset) -> list[Dataset]:
    """All functional groups of an enhanced image, per-frame and shared."""
    return [*(dataset.get("PerFrameFunctionalGroupsSequence") or []), *shared_groups(dataset)]


def shared_groups(dataset: Dataset) -> list[Dataset]:
    return list(dataset.get("SharedFunctionalGroupsSequence") or [])


def tags_of(dataset: Dataset) -> list[BaseTag]:
    """The tags of a header, without decoding the values."""
    return [Tag(tag) for tag in dataset.keys()]  # noqa: SIM118 (iterating gives the elements)
