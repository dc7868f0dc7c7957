import subprocess
import sys
import threading
import time

import pytest

from vidflow.errors import VidflowError
from vidflow.store.layout import exclusive

HOLD = (
    "import sys, time; from pathlib import Path; from vidflow.store.layout import exclusive\n"
    "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_root_is_held_by_one_process_and_freed_when_it_dies(tmp_path, holder):
    said = f"in use by process {holder.pid} on .*; wait for it"
    with pytest.raises(VidflowError, match=said), exclusive(tmp_path, wait_seconds=0):
        pass
    holder.kill()
    with exclusive(tmp_path) as is_new:
        assert is_new


def test_a_command_waits_for_another_that_ends_soon_and_says_so(tmp_path, holder, caplog):
    caplog.set_level("INFO")
    threading.Timer(0.5, holder.kill).start()
    started = time.monotonic()
    with exclusive(tmp_path):
        assert time.monotonic() - started < 5
    assert f"in use by process {holder.pid}" in caplog.text
    assert "waiting for up to 10 s" in caplog.text


def test_the_steps_of_one_command_hold_its_root_together(tmp_path):
    with exclusive(tmp_path) as first, exclusive(tmp_path) as second:
        assert (first, second) == (True, False)
    with exclusive(tmp_path) as again:
        assert again
