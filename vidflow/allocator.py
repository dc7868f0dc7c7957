"""How this process gets memory from the system."""

import ctypes
import math
import weakref

import numpy as np
from numpy.typing import DTypeLike

# Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB that is freed for whoever asks next, rather than give it back to the system at once.

    A training step or a batch of frames takes and frees the same few megabytes again and again. What was given back
    comes again as pages that the system must map and clear one by one, which costs a light core a third of its step.
    Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(option, _KEPT_BYTES)


class ArrayPool:
    """Arrays whose memory is used again once nothing refers to them: no array, no view, no tensor made of them.

    Large memory that is fresh from the system costs more than copying into it, as each page is mapped and cleared
    first. The pool keeps as much as was in use at one time, and lets it go when it is dropped.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {}

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Return an array of any content, which nothing else shares."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free.setdefault(num_bytes, [])
        # NumPy asks for huge pages where it takes memory for large arrays.
        memory = free.pop() if free else memoryview(np.empty(num_bytes, np.uint8))
        flat = np.frombuffer(memory, dtype)
        # All views refer to `flat`, because the memory under it is no array.
        weakref.finalize(flat, free.append, memory)
        return flat.reshape(shape)
