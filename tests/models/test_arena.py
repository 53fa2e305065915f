from __future__ import annotations

import ctypes
import gc
import io
import mmap
import sys
import threading
import weakref
from typing import Any

import pytest
import torch

from clipcheck.models.arena import Arena

SHAPES = [(3,), (), (64, 2), (1,), (5, 7), (0, 4), (1000, 33)]


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).half() for shape in SHAPES]


def filled(tensors: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    arena = Arena.of(Arena.room_for(tensors, dtype))
    return [arena.cast(tensor, dtype) for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_cast_has_the_values_and_the_shape(
    tensors: list[torch.Tensor], dtype: torch.dtype
) -> None:
    for found, tensor in zip(filled(tensors, dtype), tensors, strict=True):
        assert torch.equal(found, tensor.to(dtype))
        assert found.dtype == dtype
        assert found.is_contiguous()


def test_a_view_is_cast_as_well(tensors: list[torch.Tensor]) -> None:
    view = tensors[-1].t()[3:, ::2]
    (found,) = filled([view])
    assert torch.equal(found, view.float())
    assert found.is_contiguous()


def test_each_tensor_is_aligned_for_vector_instructions(tensors: list[torch.Tensor]) -> None:
    for found in filled(tensors):
        assert found.data_ptr() % 64 == 0


def test_each_tensor_has_its_own_storage(tensors: list[torch.Tensor]) -> None:
    cast = filled(tensors)
    for found in cast:
        assert found.untyped_storage().nbytes() == found.nbytes
    starts = [found.untyped_storage().data_ptr() for found in cast if found.numel()]
    assert len(set(starts)) == len(starts)
    buffer = io.BytesIO()
    torch.save(cast[0], buffer)
    assert len(buffer.getvalue()) < 3000  # Not the whole arena.


def test_no_tensor_overlaps_another(tensors: list[torch.Tensor]) -> None:
    cast = filled(tensors)
    for number, found in enumerate(cast):
        found.fill_(number)
    for number, found in enumerate(cast):
        assert (found == number).all()


def test_the_arena_is_exactly_large_enough(tensors: list[torch.Tensor]) -> None:
    room = Arena.room_for(tensors, torch.float32)
    exact = sum(tensor.numel() * 4 for tensor in tensors)
    assert exact <= room < exact + 64 * len(tensors)
    arena = Arena.of(room)
    for tensor in tensors:
        arena.cast(tensor, torch.float32)
    start = torch.frombuffer(arena._buffer, dtype=torch.uint8).data_ptr()
    more = arena.cast(torch.arange(17).reshape(1, 17).t(), torch.float32)
    assert not start <= more.data_ptr() < start + room
    assert more.flatten().tolist() == list(range(17))
    assert more.is_contiguous()


def test_the_memory_lives_as_long_as_a_tensor_and_no_longer(tensors: list[torch.Tensor]) -> None:
    arena = Arena.of(Arena.room_for(tensors, torch.float32))
    arena.populate(100 * mmap.PAGESIZE)
    memory = weakref.ref(arena._buffer)
    cast = [arena.cast(tensor, torch.float32) for tensor in tensors]
    del arena
    gc.collect()
    last = cast[-1]
    assert torch.equal(last, tensors[-1].float())
    assert memory() is not None
    _wait_for_threads()
    del cast, last
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize("size", [-1, 0, 1, mmap.PAGESIZE, 10 * mmap.PAGESIZE, 1 << 40])
def test_populating_changes_no_value(tensors: list[torch.Tensor], size: int) -> None:
    arena = Arena.of(Arena.room_for(tensors, torch.float32))
    before = [arena.cast(tensor, torch.float32) for tensor in tensors[:-1]]
    arena.populate(size)
    arena.populate(size)
    _wait_for_threads()
    after = arena.cast(tensors[-1], torch.float32)
    for found, tensor in zip([*before, after], tensors, strict=True):
        assert torch.equal(found, tensor.float())


@pytest.mark.skipif(sys.platform != "linux", reason="the pages are made ready on Linux alone")
@pytest.mark.parametrize("size", [100, 3 * mmap.PAGESIZE + 1, 1 << 40])
def test_only_whole_pages_of_the_arena_are_populated(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    calls: list[tuple[int, int]] = []

    class System:
        def __init__(self, _: None) -> None: ...

        def madvise(self, start: Any, length: ctypes.c_size_t, advice: int) -> None:
            calls.append((length.value, advice))

    monkeypatch.setattr(ctypes, "CDLL", System)
    Arena.of(10 * mmap.PAGESIZE).populate(size)
    _wait_for_threads()
    whole = min(size, 10 * mmap.PAGESIZE) // mmap.PAGESIZE * mmap.PAGESIZE
    assert calls == [(whole, 23)]


@pytest.mark.skipif(sys.platform != "linux", reason="the pages are made ready on Linux alone")
def test_an_arena_may_be_freed_while_it_is_populated() -> None:
    arena = Arena.of(64 << 20)
    memory = weakref.ref(arena._buffer)
    arena.populate(64 << 20)
    held = memory() is not None
    del arena
    _wait_for_threads()
    gc.collect()
    assert held
    assert memory() is None


def test_an_empty_arena_is_no_error() -> None:
    Arena.of(0).populate(0)
    assert filled([]) == []


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.daemon and "madvise" in thread.name:
            thread.join(timeout=10)
