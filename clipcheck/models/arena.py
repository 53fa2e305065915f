"""Memory for a model's weights, prepared in the background.

Most of the time of a cast to float32 is spent on getting memory from the system, page by page.
While the TorchScript interpreter reads an archive, holding Python's lock and one core, a second
core can prepare the pages.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading

import torch

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (linux/mman-common.h, since Linux 5.14); an older kernel refuses it."""

_ALIGNMENT = 64


class Arena:
    """Memory for tensors; freed with the last of them.

    Each tensor has its own storage, so it can be saved, moved and freed like any other.
    """

    def __init__(self, buffer: mmap.mmap) -> None:
        self._buffer = buffer
        self._used = 0

    @classmethod
    def of(cls, size: int) -> Arena:
        """Return an arena of ``size`` bytes."""
        return cls(mmap.mmap(-1, max(size, 1)))

    @staticmethod
    def room_for(tensors: list[torch.Tensor], dtype: torch.dtype) -> int:
        """Return the number of bytes for copies of ``tensors`` in ``dtype``."""
        return sum(_aligned(tensor.numel() * dtype.itemsize) for tensor in tensors)

    def populate(self, size: int) -> None:
        """Prepare the first ``size`` bytes in another thread, on Linux only."""
        if sys.platform != "linux" or size <= 0:
            return
        # By reference: the thread then keeps the buffer alive, were the arena to go before.
        start = ctypes.byref(ctypes.c_char.from_buffer(self._buffer))
        pages = min(size, len(self._buffer)) // mmap.PAGESIZE * mmap.PAGESIZE
        arguments = (start, ctypes.c_size_t(pages), _POPULATE_WRITE)
        # Called through ctypes, which lets go of Python's lock, as mmap.madvise does not.
        madvise = ctypes.CDLL(None).madvise
        threading.Thread(target=madvise, args=arguments, daemon=True).start()

    def cast(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a copy of ``tensor`` in ``dtype``, in this arena.

        Without enough room it gets separate memory: a manipulated file may have larger weights than
        it declared.
        """
        size = tensor.numel() * dtype.itemsize
        if size == 0 or self._used + size > len(self._buffer):
            return tensor.to(dtype, memory_format=torch.contiguous_format, copy=True)
        flat = torch.frombuffer(self._buffer, dtype=dtype, count=tensor.numel(), offset=self._used)
        self._used += _aligned(size)
        return flat.view(tensor.shape).copy_(tensor)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
