"""Memory that is freed stays with the process, and that of a pool's arrays is used again."""

import gc
import platform
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from vidflow.allocator import ArrayPool

ROUNDS, SIZE = 10, 64 << 20
# Large enough that glibc maps it from the system by default, whatever was freed before.
PROGRAM = f"""
import resource, sys
from vidflow.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
b"x" * {SIZE}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    b"x" * {SIZE}
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_what_is_freed_is_not_mapped_anew():
    def faults(mode):
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    pages = ROUNDS * SIZE // resource.getpagesize()
    assert faults("leave") > pages / 2, "the system maps it anew each time; the comparison means nothing"
    assert faults("keep") < pages / 100


def test_memory_of_an_array_is_used_again_once_nothing_refers_to_it():
    pool = ArrayPool()
    first = pool.empty((4, 5), np.float32)
    address = first.ctypes.data
    view, tensor = first[1:, 2], torch.from_numpy(first)[3]
    del first
    assert pool.empty((4, 5), np.float32).ctypes.data != address, "a view and a tensor refer to it"
    del view
    numbers = tensor.numpy()[1:]
    del tensor
    assert pool.empty((4, 5), np.float32).ctypes.data != address, "an array of a tensor refers to it"
    del numbers
    assert pool.empty((10, 2), np.int32).ctypes.data == address


def test_a_pool_that_is_gone_leaves_its_arrays_alone():
    pool = ArrayPool()
    array = pool.empty((3, 3), np.float64)
    array[:] = 7
    del pool
    gc.collect()
    assert (array == 7).all()


def test_a_pool_keeps_memory_of_a_few_sizes_only():
    pool = ArrayPool()
    for size in range(1, 1000):
        pool.empty((size,), np.uint8)
    assert len(pool._free) < 20


def test_arrays_may_be_empty():
    assert ArrayPool().empty((4, 0, 8), np.float16).shape == (4, 0, 8)
