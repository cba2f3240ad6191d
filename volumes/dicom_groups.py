"""The functional groups of enhanced DICOM images, and the tags and values of a header."""

from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import VR


def functional_groups(dataset: Dataset) -> list[Dataset]:
    """All functional groups of an enhanced image, per-frame and shared."""
    return [*(dataset.get("PerFrameFunctionalGroupsSequence") or []), *shared_groups(dataset)]


def shared_groups(dataset: Dataset) -> list[Dataset]:
    return list(dataset.get("SharedFunctionalGroupsSequence") or [])


def tags_of(dataset: Dataset) -> list[BaseTag]:
    """The tags of a header, without decoding the values."""
    return [Tag(tag) for tag in dataset.keys()]  # noqa: SIM118 (iterating gives the elements)


def value_of(dataset: Dataset, keyword: str) -> Any:
    """The value of an element, None if it is missing; a decimal text is a float, or a list of them.

    `Dataset.get` takes several times as long, for a missing element and for a text, which it keeps beside its number.
    """
    tag, is_decimal = _tag(keyword)
    if tag not in dataset.keys():  # noqa: SIM118 (`in dataset` takes longer)
        return None
    if is_decimal and isinstance(raw := dataset.get_item(tag), RawDataElement) and raw.VR in (None, VR.DS):
        try:
            numbers = [float(text) for text in (raw.value or b"").split(b"\\")]
        except ValueError:  # no number, or one with padding
            return dataset[tag].value
        return numbers if len(numbers) > 1 else numbers[0]
    return dataset[tag].value


def private_value(dataset: Dataset, group: int, creator: str, element: int) -> Any:
    """The value of a private element, None if it or its creator is missing."""
    # `private_block` sorts the whole header first
    if all(tag >> 16 != group for tag in dataset.keys()):  # noqa: SIM118
        return None
    try:
        return dataset.private_block(group, creator)[element].value
    except KeyError:
        return None


@cache
def _tag(keyword: str) -> tuple[BaseTag, bool]:
    """The tag of a keyword, and whether its values are decimal texts."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return BaseTag(tag), dictionary_VR(tag) == VR.DS
