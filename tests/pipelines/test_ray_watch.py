"""Ray's own processes die: one sentence in bounded time."""

import os
import signal
import socket
import time

import pytest
from test_kill import end_of, family, left_of, processes, stage_of, start
from tiny_experiment import TINY

from pipelines import ray_watch


def test_a_raylet_counts_as_lost_once_nothing_listens_at_its_socket(tmp_path):
    path = str(tmp_path / "raylet")
    assert ray_watch._open_link(path) is None
    raylet = socket.socket(socket.AF_UNIX)
    raylet.bind(path)
    raylet.listen()
    link = ray_watch._open_link(path)
    assert link is not None
    assert not link.poll(0)
    raylet.close()
    assert link.poll(0)


def test_a_head_that_does_not_answer_may_come_back_for_a_while(monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "0.5")
    server = socket.create_server(("127.0.0.1", 0))
    place = f"127.0.0.1:{server.getsockname()[1]}"
    head = ray_watch._Head(place, place, "ab")
    assert (head.look(), head.is_away) == ("", False)
    server.close()
    assert (head.look(), head.is_away) == ("", True)
    time.sleep(0.5)
    assert head.look().startswith(f"Ray's head at {place} has died: no answer for ")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
@pytest.mark.parametrize("stage", ["start", "shard", "extract", "sweep"])
def test_a_command_without_a_process_of_ray_ends_with_one_sentence(tmp_path, victim, stage):
    config, root, log = tmp_path / "tiny.yaml", tmp_path / "root", tmp_path / "stderr.txt"
    config.write_text(TINY.format(root=root))
    driver = start(
        config, root, ["trials.trial.epochs=200", "video.synthetic.num_train=400", "shards.clips_per_shard=10"]
    )
    while stage != "start" and stage_of(log) != stage and driver.poll() is None:
        time.sleep(0.05)
    while victim not in (found := processes(driver.pid)) and driver.poll() is None:
        time.sleep(0.05)
    members = family(driver.pid)
    os.kill(found[victim][0], signal.SIGKILL)
    assert end_of(driver, 90) == 1, log.read_text()
    said = log.read_text().splitlines()
    assert said[-1].startswith("vidflow: ")
    assert said[-1].endswith("; what is committed stays, and the same command resumes from here")
    assert not [line for line in said if line.startswith(("Traceback", "vidflow:"))][1:]
    assert left_of(members) == []
