"""How this process gets memory from the system."""

import ctypes

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
