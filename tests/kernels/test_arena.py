"""Memory of large maps is reused when nobody holds them any more, and only then."""

import threading
from pathlib import Path

import pytest
import torch

from voxelwave.kernels import arena

LARGE = 1 << 20


def test_memory_is_reused_after_its_tensor_and_all_views_are_gone():
    with arena.reused():
        first = arena.empty(LARGE)
        place = first.data_ptr()
        part = first.view(4, -1)[1]
        del first
        other = arena.empty(LARGE)
        assert other.data_ptr() != place  # `part` still reads it
        del part
        again = arena.empty(2, LARGE // 2)
        assert again.data_ptr() == place
        assert again.shape == (2, LARGE // 2)
        assert again.dtype == torch.float32


def test_tensors_keep_their_values_after_the_context():
    with arena.reused():
        kept = arena.empty(LARGE).fill_(3.0)
        arena.empty(LARGE).fill_(4.0)
    with arena.reused():
        arena.empty(LARGE).fill_(5.0)
    assert (kept == 3).all()


def test_memory_starts_at_a_cache_line_and_may_be_half_used():
    with arena.reused():
        whole = arena.empty(LARGE)
        place = whole.data_ptr()
        assert place % 64 == 0
        del whole
        smaller = arena.empty(LARGE * 3 // 4)
        assert smaller.data_ptr() == place
        assert smaller.numel() == LARGE * 3 // 4
        del smaller
        assert arena.empty(LARGE // 3).data_ptr() != place  # too small for so much memory


def test_nested_contexts_share_memory_and_threads_do_not():
    places = []
    with arena.reused():
        place = arena.empty(LARGE).data_ptr()
        with arena.reused():
            assert arena.empty(LARGE).data_ptr() == place
        assert arena.empty(LARGE).data_ptr() == place
        mine = arena.empty(LARGE)

        def work() -> None:
            with arena.reused():
                places.append(arena.empty(LARGE).data_ptr())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert places[0] != mine.data_ptr()


def test_nothing_is_reused_where_gradients_keep_all_maps():
    with arena.reused_for_inference():
        assert getattr(arena._active, "arena", None) is None
        with torch.no_grad(), arena.reused_for_inference():
            first = arena.empty(LARGE)
            place = first.data_ptr()
            del first
            assert arena.empty(LARGE).data_ptr() == place


def _flags(address: int) -> list[str]:
    """The kernel's flags of the memory at an address, which /proc lists after its range and other properties."""
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            start, stop = (int(each, 16) for each in words[0].split("-"))
            within = start <= address < stop
        elif within and words[0] == "VmFlags:":
            return words[1:]
    raise AssertionError(f"no memory at {address:#x}")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="needs Linux with large pages")
def test_linux_is_asked_for_large_pages_for_large_tensors():
    large = torch.arange(1 << 22, dtype=torch.float32)
    assert arena.with_large_pages(large) is large
    assert "hg" in _flags(large.data_ptr() + large.nbytes // 2)
    assert torch.equal(large, torch.arange(1 << 22, dtype=torch.float32))


def test_small_tensors_and_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(arena, "_library", lambda: pytest.fail("asked for large pages"))
    small, large = torch.zeros(1 << 19), torch.zeros(1 << 22)
    assert arena.with_large_pages(small) is small
    monkeypatch.setattr(arena, "_ADVICE", None)
    assert arena.with_large_pages(large) is large
