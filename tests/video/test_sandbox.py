"""The sandbox: a hang, a crash or a glutton costs one call and not the caller."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clip_factory import mux, numbered_frames

from vidflow.errors import VideoError
from vidflow.video.ffmpeg import probe
from vidflow.video.sandbox import Sandbox


@pytest.fixture
def sandbox():
    with Sandbox(timeout_seconds=0.5, memory_mib=1024) as sandbox:
        yield sandbox


def _wait_until_gone(process_id, seconds=10.0):
    """Return when the process has ended; an orphan may stay a zombie where nobody reaps it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {process_id} lives on")


def test_calls_go_to_one_other_process_that_lives_on(sandbox):
    first = sandbox.call(os.getpid)
    assert first != os.getpid()
    assert sandbox.call(os.getpid) == first


def test_a_result_comes_back_whole(sandbox, tmp_path):
    path = mux(tmp_path / "a.mp4", frames=numbered_frames(10))
    there, here = sandbox.call(probe, path), probe(path)
    np.testing.assert_array_equal(there.pts_seconds, here.pts_seconds)
    assert (there.codec, there.width, there.height) == (here.codec, here.width, here.height)


def test_large_arrays_and_keywords_pass(sandbox):
    assert sandbox.call(np.full, (2000, 2000), fill_value=7).sum() == 28_000_000


def test_a_hang_is_stopped_in_time_and_the_next_call_works(sandbox):
    sandbox.call(os.getpid)
    start = time.perf_counter()
    with pytest.raises(VideoError, match="60: took longer than") as caught:
        sandbox.call(time.sleep, 60)
    assert caught.value.reason == "Timeout"
    assert time.perf_counter() - start < 5
    assert sandbox.call(abs, -3) == 3


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE])
def test_a_crash_is_named_and_the_next_call_works(sandbox, number):
    with pytest.raises(VideoError, match=signal.Signals(number).name) as caught:
        sandbox.call(signal.raise_signal, number)
    assert caught.value.reason == "DecoderCrashed"
    assert sandbox.call(abs, -3) == 3


def test_leaving_without_a_word_is_a_crash_too(sandbox):
    with pytest.raises(VideoError, match="exit code 3") as caught:
        sandbox.call(os._exit, 3)
    assert caught.value.reason == "DecoderCrashed"


def test_too_much_memory_is_refused_and_the_next_call_works(sandbox):
    assert len(sandbox.call(bytes, 20 << 20)) == 20 << 20
    with pytest.raises(VideoError, match="1024 MiB") as caught:
        sandbox.call(bytearray, 2 << 30)
    assert caught.value.reason == "OutOfMemory"
    assert sandbox.call(abs, -3) == 3


def test_death_by_the_system_counts_as_out_of_memory(sandbox):
    with pytest.raises(VideoError) as caught:
        sandbox.call(signal.raise_signal, signal.SIGKILL)
    assert caught.value.reason == "OutOfMemory"


def test_death_between_two_calls_goes_unnoticed(sandbox):
    child = sandbox.call(os.getpid)
    os.kill(child, signal.SIGKILL)
    _wait_until_gone(child)
    assert sandbox.call(os.getpid) != child


def test_a_video_error_keeps_its_reason_and_message(sandbox, tmp_path):
    path = tmp_path / "nothing.mp4"
    with pytest.raises(VideoError, match=f"{path}: no such file") as caught:
        sandbox.call(probe, path)
    assert caught.value.reason == "Missing"


def test_any_other_exception_is_about_the_input_and_the_next_call_works(sandbox):
    with pytest.raises(
        VideoError, match=r"^x: int failed \(ValueError: invalid literal for int.*leave it out$"
    ) as caught:
        sandbox.call(int, "x")
    assert caught.value.reason == "DecoderFailed"
    assert sandbox.call(int, "7") == 7


def test_a_function_or_result_that_cannot_travel_is_a_bug(sandbox):
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*pickle"):
        sandbox.call(memoryview, b"x")


def test_an_interrupted_call_leaves_no_reply_for_the_next(sandbox):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        sandbox.call(os.getpid)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            sandbox.call(time.sleep, 0.3)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sandbox.call(abs, -3) == 3


def test_the_child_ends_with_its_owner_closed_or_forgotten():
    sandbox = Sandbox(timeout_seconds=5.0, memory_mib=1024)
    child = sandbox.call(os.getpid)
    sandbox.close()
    _wait_until_gone(child)
    child = sandbox.call(os.getpid)
    del sandbox
    gc.collect()
    _wait_until_gone(child)


def test_the_child_dies_in_the_middle_of_its_work_when_the_parent_is_killed():
    program = (
        "import os, time, vidflow.video.sandbox as module\n"
        "sandbox = module.Sandbox(timeout_seconds=60.0, memory_mib=1024)\n"
        "print(sandbox.call(os.getpid), flush=True)\n"
        "sandbox.call(time.sleep, 60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.1)  # so that it is at work
        parent.kill()
    _wait_until_gone(child)


def test_a_call_costs_far_less_than_a_frame(sandbox):
    sandbox.call(abs, 1)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        sandbox.call(abs, 1)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3  # the least, as other work on the machine only adds
