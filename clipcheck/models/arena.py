"""Memory for the weights of a model, made ready while something else is being done.

Getting fresh memory from the system, page by page, takes most of the time that a cast to float32
does. While the TorchScript interpreter reads an archive it keeps Python's lock and one core; in
that time a second core can have the pages ready.
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
    """Room for tensors, which lives as long as one of them does.

    Each tensor gets a storage of its own, so that it can be saved, moved and freed as any other.
    """

    def __init__(self, buffer: mmap.mmap) -> None:
        self._buffer = buffer
        self._used = 0

    @classmethod
    def of(cls, size: int) -> Arena:
        """One of that many bytes."""
        return cls(mmap.mmap(-1, max(size, 1)))

    @staticmethod
    def room_for(tensors: list[torch.Tensor], dtype: torch.dtype) -> int:
        """Bytes that copies of ``tensors`` in ``dtype`` take."""
        return sum(_aligned(tensor.numel() * dtype.itemsize) for tensor in tensors)

    def populate(self, size: int) -> None:
        """Have the first ``size`` bytes ready soon, in another thread. Does nothing elsewhere
        than on Linux."""
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
        """A copy of ``tensor`` in ``dtype``, of the same shape, in this arena.

        What the arena has no room for gets memory of its own: a file that was altered may turn out
        to have larger weights than it said.
        """
        size = tensor.numel() * dtype.itemsize
        if size == 0 or self._used + size > len(self._buffer):
            return tensor.to(dtype, memory_format=torch.contiguous_format, copy=True)
        flat = torch.frombuffer(self._buffer, dtype=dtype, count=tensor.numel(), offset=self._used)
        self._used += _aligned(size)
        return flat.view(tensor.shape).copy_(tensor)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
