"""Nodes that are lost, frozen, added or without the root, and commands that share a cluster: the same bytes."""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, Node, running_cluster
from mlflow_server import serve
from tiny_experiment import TINY

from vidflow.config.tracking_uri import default_uri

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL_SHARDS = ["shards.clips_per_shard=3"]
LONGER_TRIALS = ["trials.trial.epochs=20"]
SECONDS_TO_NOTICE = 90
CALM = """
import sys
from pipelines import cli
from pipelines.ray_session import ray_session
from vidflow.config.schema import Config

with ray_session(Config()):
    for command in ("synth", "shard", "extract"):
        try:
            cli.main([command, *sys.argv[1:]])
        except SystemExit as left:
            assert not left.code
"""
FILES = ("shards/*/*.tar", "shards/*/*.parquet", "features/*/*.arrow", "features/*/*.parquet")


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in FILES
        for path in sorted(root.glob(pattern))
    }


class Commands:
    """Commands on one cluster, or on this machine alone."""

    def __init__(self, folder: Path, cluster: Cluster | None = None) -> None:
        self.folder, self.config = folder, folder / "tiny.yaml"
        self.config.write_text(TINY.format(root=folder / "root"))
        self._environment = {**(cluster.environment if cluster else os.environ), "OMP_NUM_THREADS": "1"}
        if cluster is not None:
            self._environment["RAY_ADDRESS"] = cluster.address

    def start(self, command: str, *settings: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "pipelines.cli", command, str(self.config), *SMALL_SHARDS, *settings]
        return subprocess.Popen(words, env=self._environment, stderr=subprocess.PIPE, text=True)

    def run(self, command: str, *settings: str) -> tuple[int, str]:
        return ended(self.start(command, *settings))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=400)
    print(said)
    return process.returncode, said


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until something is so while a command is at work."""
    end = time.monotonic() + 300
    while not what():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < end
        time.sleep(0.02)


def is_at_work(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] == ["ray::_Actor.work"]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def hold(node: Node, command: subprocess.Popen[str]) -> None:
    """Stop a worker of a node in the middle of a unit, which would be over too soon."""

    def is_held() -> bool:
        for worker in filter(is_at_work, node.raylet.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.suspend()
                if is_at_work(worker):
                    return True
                worker.resume()
        return False

    wait_for(is_held, command)


def is_lost(node: Node, said: str) -> bool:
    """Whether a command said that a worker was lost with a node, or before Ray knew why."""
    return any(
        f"{words} {node.ip}" in line and line.endswith("another gets its unit")
        for words in ("a worker was lost with its node", "a worker on")
        for line in said.splitlines()
    )


def num_files(root: Path, pattern: str) -> int:
    return len(list(root.glob(pattern)))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run on this machine alone, up to the features."""
    folder = tmp_path_factory.mktemp("calm")
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(root=folder / "root"))
    subprocess.run([sys.executable, "-c", CALM, str(config), *SMALL_SHARDS], check=True)
    return folder / "root"


@pytest.fixture
def videos(calm: Path, tmp_path: Path) -> Path:
    """A root in which the videos are there already."""
    (tmp_path / "root").mkdir()
    subprocess.run(["cp", "-a", calm / "videos", tmp_path / "root"], check=True)
    return tmp_path / "root"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


def test_nodes_killed_in_shard_and_extract_and_one_that_joins_change_no_byte(cluster, calm, videos, tmp_path):
    first, second = cluster.add(1), cluster.add(1)
    commands = Commands(tmp_path, cluster)
    sharding = commands.start("shard")
    wait_for(lambda: num_files(videos, "index/*"), sharding)
    hold(first, sharding)
    first.kill()
    code, said = ended(sharding)
    assert code == 0
    assert is_lost(first, said)
    extracting = commands.start("extract")
    hold(second, extracting)
    cluster.add(1)  # it joins in the middle, and gets all the other units
    wait_for(lambda: num_files(videos, "features/*/*.arrow") > 10, extracting)
    second.kill()
    code, said = ended(extracting)
    assert code == 0
    assert is_lost(second, said)
    assert digests(videos) == digests(calm)


def test_a_frozen_node_gives_its_unit_back(cluster, calm, videos, tmp_path):
    first, _ = cluster.add(1), cluster.add(1)
    sharding = Commands(tmp_path, cluster).start("shard")
    wait_for(lambda: num_files(videos, "index/*"), sharding)
    hold(first, sharding)
    first.freeze()
    code, said = ended(sharding)
    assert code == 0
    assert is_lost(first, said)
    assert digests(videos) == {name: digest for name, digest in digests(calm).items() if name.startswith("shards")}


def test_a_head_that_ends_is_one_sentence_and_the_same_command_on_the_next_head_does_the_rest(calm, videos, tmp_path):
    """With all on the head, as a run on several hosts needs a server for its runs."""
    for pattern in ("shards/*/*.tar", "trials/*/*.safetensors"):
        with running_cluster(head_cpus=2) as cluster:
            running = Commands(tmp_path, cluster).start("run", *LONGER_TRIALS)
            wait_for(lambda pattern=pattern: num_files(videos, pattern) > 1, running)
            cluster.stop_head()
            stopped = time.monotonic()
            code, said = ended(running)
            assert code == 1
            assert time.monotonic() - stopped < SECONDS_TO_NOTICE
            assert "Traceback" not in said
            last = said.splitlines()[-1]
            assert re.fullmatch("vidflow: .*; what is committed stays, and the same command resumes from here", last)
            assert said.count("vidflow: ") == 1
    with running_cluster(head_cpus=2) as cluster:
        assert Commands(tmp_path, cluster).run("run", *LONGER_TRIALS)[0] == 0
    assert digests(videos) == digests(calm)


def test_two_commands_where_one_fits_both_end(cluster, calm, tmp_path):
    cluster.add(1)
    both = []
    for name in ("one", "two"):
        (tmp_path / name / "root").mkdir(parents=True)
        subprocess.run(["cp", "-a", calm / "videos", tmp_path / name / "root"], check=True)
        both.append(Commands(tmp_path / name, cluster).start("shard"))
    assert [ended(process)[0] for process in both] == [0, 0]
    assert digests(tmp_path / "one" / "root") == digests(tmp_path / "two" / "root")


def waits_for_a_node(cluster, waiting, **resources):
    """Check that a command waits, and ends well when a node joins, as an autoscaler would add it."""
    time.sleep(15)
    assert waiting.poll() is None
    cluster.add(1, **resources)
    code, said = ended(waiting)
    assert code == 0
    assert "waits up to 600 s for another" in said


def test_workers_that_leave_cpus_unused_and_workers_that_wait_for_a_machine(cluster, videos, tmp_path):
    cluster.add(3), cluster.add(3)
    commands = Commands(tmp_path, cluster)
    assert commands.run("shard", "resources.shard.num_cpus=2")[0] == 0
    gpus = ["resources.device=cpu", "resources.extract.num_gpus=1"]
    code, said = commands.run("extract", *gpus, "resources.wait_for_nodes_seconds=4")
    assert code == 1
    assert "resources.extract.num_gpus: no worker fits, each takes 1 CPU and 1 GPU; the machines have" in said
    assert "waited 4 s for another (resources.wait_for_nodes_seconds)" in said
    assert "Traceback" not in said
    waits_for_a_node(cluster, commands.start("extract", *gpus), num_gpus=1)


def test_a_trial_of_two_processes_whose_node_is_lost_waits_for_another_and_not_for_ever(cluster, videos, tmp_path):
    _, lost = cluster.add(1), cluster.add(1)
    commands = Commands(tmp_path, cluster)
    with serve(default_uri(tmp_path)) as server:
        words = [f"tracking.uri=http://127.0.0.1:{server.port}", "resources.trials.workers_per_trial=2"]
        words += ["trials.axes.core=[gru]", "trials.trial.epochs=60"]
        for stage in ("shard", "extract"):
            assert commands.run(stage, *words)[0] == 0
        training = commands.start("sweep", *words, "resources.wait_for_nodes_seconds=4")
        wait_for(lambda: num_files(videos, "trials/*/last.safetensors"), training)
        lost.kill()
        code, said = ended(training)
        assert code == 1
        assert "resources.trials.workers_per_trial: no worker fits, each takes 2 times 1 CPU" in said
        assert "waited 4 s for another (resources.wait_for_nodes_seconds)" in said
        assert "Traceback" not in said
        waits_for_a_node(cluster, commands.start("sweep", *words))


def test_a_node_that_does_not_share_the_root_is_named_also_if_it_joins_later(cluster, videos, tmp_path):
    first = cluster.add(1)
    commands = Commands(tmp_path, cluster)
    sharding = commands.start("shard")
    wait_for(lambda: num_files(videos, "index/*"), sharding)
    hold(first, sharding)
    apart = cluster.add(1, root=tmp_path / "root")
    code, said = ended(sharding)
    named = f"root: {videos} is not shared by node {apart.ip} (it does not see the file that this command wrote there)"
    assert code == 1
    assert named in said
    code, said = commands.run("shard")
    assert code == 1
    assert named in said
    assert "Traceback" not in said
    assert not list(videos.glob(".nodes"))
