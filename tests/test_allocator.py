"""Memory that is freed stays with the process."""

import platform
import resource
import subprocess
import sys

import pytest

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
