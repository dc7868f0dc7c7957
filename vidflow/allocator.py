"""How this process gets memory from the system."""

import ctypes
import math
import weakref

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

# Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
# More sizes than training and validation use, including their smaller last batches.
_NUM_SIZES = 16


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory for the next allocation, instead of returning it to the system.

    A training step or a batch of frames allocates and frees the same few megabytes again and again. Returned memory
    comes back as pages that the system must map and clear one by one. This costs a light core a third of its step.
    Other C libraries are not changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(option, _KEPT_BYTES)


def return_freed_columns() -> None:
    """Give the memory of Arrow columns that are freed back to the system, which Arrow would keep for a later table.

    Worth it after a large table was made of its parts: they took as much memory as the table.
    """
    pa.default_memory_pool().release_unused()


class ArrayPool:
    """Arrays whose memory is reused when nothing refers to it any more: no array, no view, no tensor made from one.

    New memory from the system costs about as much as a copy into it, because the system clears each page.
    The pool keeps unused memory, of a few sizes, until nothing refers to the pool.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {}

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Return an uninitialised array whose memory nothing else uses."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        # No lock: memory can be returned in the middle of any line. Each step is one operation of list or dict.
        try:
            memory = self._free[num_bytes].pop()
        except (KeyError, IndexError):
            # NumPy asks the system for huge pages if an array is large.
            memory = np.empty(num_bytes, np.uint8).data
        flat = np.frombuffer(memory, dtype)
        # `flat` lives as long as any view of it: a view refers to its innermost array. `memory` is not an array.
        weakref.finalize(flat, self._give_back, memory)
        return flat.reshape(shape)

    def _give_back(self, memory: memoryview) -> None:
        if len(self._free) > _NUM_SIZES:
            self._free = {}
        self._free.setdefault(memory.nbytes, []).append(memory)
