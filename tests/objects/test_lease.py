"""Leases in an object store: one holder at a time, whatever happens to it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vidflow.errors import VidflowError
from vidflow.objects import lease as leases
from vidflow.objects import list_objects
from vidflow.objects.lease import LEASES, lease
from vidflow.store.layout import fetch, publish

pytestmark = pytest.mark.slow
HOLD = (
    "import sys, time; from pathlib import Path; from vidflow.objects.lease import lease\n"
    "with lease(Path(sys.argv[1]), 'process 1 on other', wait_seconds=30): print('held', flush=True); time.sleep(600)"
)


def hold(root):
    return subprocess.Popen([sys.executable, "-c", HOLD, root], stdout=subprocess.PIPE, text=True)


def test_a_prefix_has_one_holder_and_is_free_afterwards(root):
    with (
        lease(root, "us", wait_seconds=0),
        pytest.raises(VidflowError, match=r"in use by us; wait for it"),
        lease(root, "you", wait_seconds=0),
    ):
        pass
    assert list_objects(root / LEASES) == {}
    with lease(root, "you", wait_seconds=0):
        pass


def test_ten_threads_never_hold_a_prefix_together(root):
    inside, most, done = [], [], []

    def work(number):
        with lease(root, str(number), wait_seconds=120):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(6))
    assert max(most) == 1


def test_a_holder_that_was_killed_on_this_machine_is_over_at_once(root):
    with hold(root) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(VidflowError, match="in use by process 1 on other"), lease(root, "us", wait_seconds=1):
            pass
        holder.kill()
        holder.wait()
        with lease(root, "us", wait_seconds=5):
            pass


def test_a_holder_that_died_elsewhere_is_over_after_a_while_and_a_frozen_one_stops_when_it_wakes(root, monkeypatch):
    monkeypatch.setattr(leases, "DEAD_SECONDS", 3.0)
    monkeypatch.setattr(leases, "_has_ended", lambda content: content is None)  # as on another machine
    code = HOLD.replace(
        "from vidflow.objects.lease import lease",
        "from vidflow.objects import lease as l; l.RENEW_SECONDS = 1; lease = l.lease",
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, root], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        time.sleep(6)
        with pytest.raises(VidflowError, match="in use"), lease(root, "us", wait_seconds=0):
            pass
        os.kill(holder.pid, signal.SIGSTOP)
        with lease(root, "us", wait_seconds=30):
            os.kill(holder.pid, signal.SIGCONT)
            _, said = holder.communicate(timeout=30)
        assert "another command took it over" in said


def test_a_holder_whose_store_is_away_stops(root, proxy, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.5)
    monkeypatch.setattr(leases, "_RENEWAL_PATIENCE_SECONDS", 2.0)

    def work():
        with lease(root, "us", wait_seconds=0):
            proxy.fault = lambda method, path: "refuse"
            for _ in range(200):
                time.sleep(0.1)

    with pytest.raises(VidflowError, match="could not be renewed for"):
        work()


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_node_with_a_wrong_clock_holds_and_copies_like_any_other(root, monkeypatch, hours):
    right = time.time
    with lease(root, "a node with the right time", wait_seconds=0):
        monkeypatch.setattr(time, "time", lambda: right() + 3600 * hours)
        with pytest.raises(VidflowError, match="in use by a node"), lease(root, "us", wait_seconds=0):
            pass
    with lease(root, "us", wait_seconds=0), publish(root / "x.bin") as aside:
        aside.write_bytes(b"x")
    (root / "x.bin").unlink()
    assert fetch(root / "x.bin").read_bytes() == b"x"
