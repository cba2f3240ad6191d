"""Free memory is the smallest of the amounts that the machine, the container and the process limit leave."""

from pathlib import Path

import pytest

from voxelwave.runs import memory

GIB = 2**30


def _limits(monkeypatch, *, machine: list[int], group: list[int], limit: list[int]) -> None:
    for name, found in (("_free_of_machine", machine), ("_free_of_group", group), ("_free_of_limit", limit)):
        monkeypatch.setattr(memory, name, lambda found=found: found)


@pytest.mark.parametrize(
    ("machine", "group", "limit", "free"),
    [([8], [], [], 8), ([8], [3], [], 3), ([8], [3], [2], 2), ([8], [-1], [], 0), ([], [], [], None)],
)
def test_the_least_limit_counts(monkeypatch, machine, group, limit, free):
    _limits(monkeypatch, machine=machine, group=group, limit=limit)
    assert memory.free_memory() == free


def test_a_container_leaves_its_limit_less_what_it_uses(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path)
    assert memory._free_of_group() == [3 * GIB]
    (tmp_path / "memory.max").write_text("max\n")  # no limit
    assert memory._free_of_group() == []
    (tmp_path / "memory.max").unlink()  # no container
    assert memory._free_of_group() == []


def test_the_process_limit_leaves_what_is_not_taken(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 50, 1 << 50))
    (free,) = memory._free_of_limit()
    assert 0 < free < 1 << 50
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert memory._free_of_limit() == []


def test_a_file_that_does_not_fit_is_refused_in_one_line(monkeypatch):
    _limits(monkeypatch, machine=[GIB], group=[], limit=[])
    memory.check_memory(Path("small.nii"), GIB)
    with pytest.raises(ValueError, match=r"large\.nii does not fit in memory: .* 2\.0 GiB, 1\.0 GiB are free"):
        memory.check_memory(Path("large.nii"), 2 * GIB)
