"""Folds over subjects: the members of each part, and the refusal of leaky splits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from voxelwave.apps.nested_cv import splits
from voxelwave.apps.nested_cv.seeds import derive_seed
from voxelwave.apps.nested_cv.splits import Cohort, LeakError, check_splits, group_splits, make_splits


def cohort(labels, groups=(), sites=()) -> Cohort:
    names = tuple(f"s{i:02d}" for i in range(len(labels)))
    return Cohort(names, tuple(labels), ("control", "case"), tuple(groups), tuple(sites))


def people_on_both_sides(splits, persons) -> set[str]:
    """The persons on both sides of a split, found without the check of the module."""
    both = set()
    for split in splits:
        sides = [(split["train"], split["test"])]
        for part in split["inner"]:
            sides += [(part["train"], part["validation"]), (part["train"] + part["validation"], split["test"])]
        for a, b in sides:
            both |= {persons[i] for i in a} & {persons[j] for j in b}
    return both


def leaky_splits(labels, groups, outer=5, inner=2):
    """A common mistake: rows are split one by one, although a person has several rows."""
    rows = np.arange(len(labels))

    def folds(among, count):
        return [(np.setdiff1d(among, among[k::count]).tolist(), among[k::count].tolist()) for k in range(count)]

    splits = []
    for fold, (train, test) in enumerate(folds(rows, outer)):
        inside = [{"train": a, "validation": b} for a, b in folds(np.array(train), inner)]
        splits.append({"repeat": 0, "fold": fold, "train": train, "test": test, "inner": inside})
    return splits


# 30 people with three recordings each; person k has label k % 2
LABELS = [k % 2 for k in range(30) for _ in range(3)]
PERSONS = [f"p{k}" for k in range(30) for _ in range(3)]


def test_no_person_is_on_two_sides_and_a_leaky_splitter_is_caught():
    given = cohort(LABELS, PERSONS)
    ours = make_splits(given, outer=5, inner=2, repeats=2, seed=3)
    assert people_on_both_sides(ours, given.persons) == set()
    leaky = leaky_splits(LABELS, PERSONS)
    assert people_on_both_sides(leaky, given.persons)  # the line above can fail
    with pytest.raises(LeakError, match="of the same people are in its train part and in its test part"):
        check_splits(given, leaky)


def test_splits_from_a_leaky_library_are_refused(monkeypatch):
    class ByRow(StratifiedKFold):
        def split(self, rows, strata, groups):
            return super().split(rows, strata)

    monkeypatch.setattr(splits, "StratifiedGroupKFold", ByRow)
    with pytest.raises(LeakError):
        make_splits(cohort(LABELS, PERSONS), outer=5, inner=2)


def _into_training(split):
    split["train"].append(split["test"][0])


def _into_the_inner_folds(split):
    split["inner"][0]["train"].append(split["test"][0])


def _into_inner_training(split):
    split["inner"][0]["train"].append(split["inner"][0]["validation"][0])


@pytest.mark.parametrize("leak", [_into_training, _into_the_inner_folds, _into_inner_training])
def test_one_subject_in_the_wrong_place_is_a_leak(leak):
    given = cohort([i % 2 for i in range(24)])
    splits = make_splits(given, outer=3, inner=2)
    leak(splits[1])
    with pytest.raises(LeakError, match="repeat 0, outer fold 1"):
        check_splits(given, splits)


def test_a_twin_of_a_tested_subject_is_a_leak():
    labels = [i % 2 for i in range(24)]
    splits = make_splits(cohort(labels), outer=3, inner=2)
    groups = [f"p{i}" for i in range(24)]
    groups[splits[0]["test"][0]] = groups[splits[0]["train"][0]]
    with pytest.raises(LeakError):
        check_splits(cohort(labels, groups), splits)


def _drop_a_tested_subject(split):
    split["test"].pop()


def _validate_nobody_twice(split):
    split["inner"][0]["validation"].pop()


def _one_class_only(split):
    split["test"] = [i for i in split["test"] if i % 2]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_drop_a_tested_subject, "tested exactly once"),
        (_validate_nobody_twice, "validate each training subject exactly once"),
        (_one_class_only, "no subject of class 'control'"),
    ],
)
def test_incomplete_splits_are_refused(spoil, complaint):
    given = cohort([i % 2 for i in range(24)])
    splits = make_splits(given, outer=3, inner=2)
    spoil(splits[0])
    with pytest.raises(ValueError, match=complaint):
        check_splits(given, splits)


@settings(max_examples=40, deadline=None)
@given(
    people=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3)), min_size=4, max_size=30),
    outer=st.integers(2, 5),
    inner=st.integers(2, 3),
    seed=st.integers(0, 2**31),
)
def test_any_cohort_is_split_with_both_classes_in_each_part_or_refused_with_the_reason(people, outer, inner, seed):
    labels = [label for label, rows in people for _ in range(rows)]
    persons = [f"p{k}" for k, (_, rows) in enumerate(people) for _ in range(rows)]
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="labels must hold both"):
            cohort(labels, persons)
        return
    given = cohort(labels, persons)
    try:
        splits = make_splits(given, outer=outer, inner=inner, seed=seed)
    except LeakError:
        raise
    except ValueError:  # too few people of a class; tests below compare the text
        return
    assert people_on_both_sides(splits, given.persons) == set()
    assert sorted(i for split in splits for i in split["test"]) == list(range(len(labels)))
    for split in splits:
        parts = [split["train"], split["test"], *(p for part in split["inner"] for p in part.values())]
        assert all({labels[i] for i in part} == {0, 1} for part in parts)


def test_folds_hold_equal_shares_of_classes_and_sites():
    labels = [int(i < 30) for i in range(90)]
    sites = ["north" if i % 3 else "south" for i in range(90)]
    for split in make_splits(cohort(labels, sites=sites), outer=5, inner=2):
        counts = [sum(labels[i] == 1 and sites[i] == site for i in split["test"]) for site in ("north", "south")]
        assert counts == [4, 2]  # 20 and 10 people
        assert len(split["test"]) == 18


def test_partitions_follow_the_seed_and_repeats_differ():
    given = cohort([i % 2 for i in range(30)])
    first = make_splits(given, outer=3, inner=2, repeats=2, seed=1)
    assert first == make_splits(given, outer=3, inner=2, repeats=2, seed=1)
    assert first[:3] == make_splits(given, outer=3, inner=2, seed=1)  # one more repeat leaves the others unchanged
    assert [s["test"] for s in first[:3]] != [s["test"] for s in first[3:]]
    assert first != make_splits(given, outer=3, inner=2, repeats=2, seed=2)
    assert derive_seed(1, "a", 2) != derive_seed(1, "a", 3)


def test_enough_people_are_never_refused():
    for n in range(20, 40):
        make_splits(cohort([i % 2 for i in range(n)]), outer=5, inner=3, seed=n)


def test_too_few_people_of_a_class_are_named():
    with pytest.raises(ValueError, match=r"5 outer folds need at least 5 people of each class, got 3 of class 'case'"):
        make_splits(cohort([0] * 20 + [1] * 3), outer=5, inner=2)
    with pytest.raises(ValueError, match="'s00' occurs 2 times"):
        Cohort(("s00", "s00"), (0, 1), ("control", "case"))


def test_folds_of_groups_have_no_inner_folds_and_keep_groups_together():
    cohort = Cohort(tuple(f"u{k}" for k in range(12)), (), (), groups=tuple(f"g{k // 2}" for k in range(12)))
    splits = group_splits(cohort, outer=3, seed=1)
    assert sorted(unit for split in splits for unit in split["test"]) == list(range(12))
    for split in splits:
        assert not {cohort.groups[i] for i in split["train"]} & {cohort.groups[i] for i in split["test"]}
        assert split["inner"] == []
    assert splits != group_splits(cohort, outer=3, seed=2)
    with pytest.raises(ValueError, match="outer must be from 2 to 6"):
        group_splits(cohort, outer=7)


def test_a_classification_without_inner_folds_is_refused():
    cohort = Cohort(tuple("abcdefgh"), (0, 1) * 4, ("control", "case"))
    splits = make_splits(cohort, outer=2, inner=2)
    splits[0]["inner"] = []
    with pytest.raises(ValueError, match="the inner folds must validate each training subject exactly once"):
        check_splits(cohort, splits)
