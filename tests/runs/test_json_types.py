"""The content of JSON files is compared with the types that describe it."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from voxelwave.runs.json_types import check_record


@dataclass
class Card:
    kind: Literal["a", "b"]
    classes: tuple[str, str]
    names: tuple[str, ...]
    rate: float
    size: int = 1
    notes: dict[str, str] = field(default_factory=dict)
    on: bool | None = None


WHOLE = {"kind": "a", "classes": ["x", "y"], "names": [], "rate": 2}


def test_a_whole_record_passes_without_its_defaults():
    check_record(WHOLE, Card, "card.json")
    check_record({**WHOLE, "size": 3, "notes": {"a": "b"}, "on": None, "later": 1}, Card, "card.json")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kind": "c"}, "kind must be one of a, b"),
        ({"kind": []}, "kind must be one of a, b"),
        ({"classes": ["x"]}, "classes must be a list of 2 values"),
        ({"names": "abc"}, "names must be list, got str 'abc'"),
        ({"names": [1]}, "names.0 must be str, got int '1'"),
        ({"rate": float("nan")}, "rate must be float, got float 'nan'"),
        ({"size": True}, "size must be int, got bool 'True'"),
        ({"notes": {"a": 1}}, "notes.a must be str"),
        ({"on": 1}, "on must be bool or NoneType"),
    ],
)
def test_a_value_of_another_type_is_named(change, complaint):
    with pytest.raises(ValueError, match=f"^card.json: {complaint}"):
        check_record({**WHOLE, **change}, Card, "card.json")


@pytest.mark.parametrize("content", [None, 3, [], "a"])
def test_what_is_no_object_is_named(content):
    with pytest.raises(ValueError, match="the content must be an object"):
        check_record(content, Card, "card.json")


def test_a_missing_field_without_a_default_is_named():
    with pytest.raises(ValueError, match=r"card\.json: rate is missing"):
        check_record({k: v for k, v in WHOLE.items() if k != "rate"}, Card, "card.json")
