"""Subjects that are one person by any of several signs."""

from voxelwave.runs.persons import join_persons


def test_signs_join_in_chains():
    """a and b share a recording, and b and c share a person, so all three are one person."""
    assert join_persons(["a", "b", "c", "d"], ["r1", "r1", "r2", "r3"], ["p", "q", "q", "s"]) == ("a", "a", "a", "d")
    assert join_persons(["p", "q", "q", "s"], ["r1", "r1", "r2", "r3"]) == ("p", "p", "p", "s")


def test_without_common_signs_each_is_a_person():
    assert join_persons(["a", "b"], ["1", "2"]) == ("a", "b")
