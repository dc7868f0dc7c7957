"""An experiment as a job of a cluster with a head and two nodes: what it makes equals what one machine makes.

Nodes are killed and join while it runs; a killed node is replaced, as an autoscaler does.
"""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from cluster import Cluster, Node, running_cluster
from jobs import Job, submitted, wait_for_job_server
from mlflow_server import serve
from tiny_experiment import TINY

from vidflow.config.tracking_uri import default_uri

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONG_ENOUGH_TO_MEET_A_FAULT = [
    "video.synthetic.num_train=80",
    "video.synthetic.num_val=40",
    "shards.clips_per_shard=8",
    "trials.trial.epochs=8",
]
NUM_NODES = 2
PUBLISHED = {"shard": "shards/*/*.tar", "extract": "features/*/*.arrow", "sweep": "trials/*/*.safetensors"}
FAULTS = {
    "no fault": [],
    "a node dies in shard": [("kill", "shard")],
    "a node dies in extract": [("kill", "extract")],
    "a node dies in sweep": [("kill", "sweep")],
    "a node joins in shard": [("join", "shard")],
    "a node dies in each stage": [("kill", "shard"), ("kill", "extract"), ("kill", "sweep")],
}


@dataclass(frozen=True)
class Finished:
    """What one machine has made of the experiment."""

    config: Path
    files: dict[str, Any]
    runs: list[tuple[Any, ...]]


def files_of(root: Path) -> dict[str, Any]:
    """The content of every file of shards and features; of manifests, without what the time of the work decides.

    Not of what a killed writer has left beside them under a hidden name, which the next command removes.
    """
    return {
        str(path.relative_to(root)): without_times(json.loads(content)) if path.suffix == ".json" else content
        for folder in ("shards", "features")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".") and (content := path.read_bytes()) is not None
    }


def without_times(value: Any) -> Any:
    """Leave out seconds, the seals over them, and the lengths of the entries that hold them."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if not key.endswith("seconds")}
        return {key: without_times(inner) for key, inner in kept.items() if key not in ("seal", "entries")}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def runs_of(uri: str, experiment: str) -> list[tuple[Any, ...]]:
    """Trial, status and every metric of training of each run of an experiment, in the order of the trials."""
    client = mlflow.MlflowClient(uri)
    found, experiment_of = [], {each.name: each.experiment_id for each in client.search_experiments()}
    for run in client.search_runs([experiment_of[experiment]]):
        names = sorted(name for name in run.data.metrics if name.startswith(("train/", "val/")))
        names = [name for name in names if "second" not in name]
        history = {n: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, n)] for n in names}
        found.append((run.data.tags.get("vidflow.trial_key", "sweep"), run.info.status, json.dumps(history)))
    return sorted(found)


def marks(root: Path, stage: str) -> set[tuple[str, int]]:
    """What a stage has published so far."""
    return {(str(path), path.stat().st_mtime_ns) for path in root.glob(PUBLISHED[stage]) if path.exists()}


def wait_for_work(job: Job, root: Path, stage: str) -> None:
    """Wait until the stage has published something, and so is in the middle of its work."""
    seen = marks(root, stage)
    while job.process.poll() is None and len(marks(root, stage) - seen) < 2:
        time.sleep(0.05)
    assert job.process.poll() is None, f"over before {stage}:\n{job.said[-3000:]}"


def busiest(cluster: Cluster) -> Node:
    """The living node that has most processes, which are its workers."""
    return max(cluster.living(), key=lambda node: len(node.raylet.children(recursive=True)))


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("calm")
    config, root = folder / "tiny.yaml", folder / "root"
    config.write_text(TINY.format(root=root))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(config), *LONG_ENOUGH_TO_MEET_A_FAULT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Finished(config, files_of(root), runs_of(default_uri(root), "vidflow"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    uri = default_uri(tmp_path_factory.mktemp("store"))
    mlflow.MlflowClient(uri).search_experiments()  # makes the tables, which takes the server longer
    with serve(uri) as running:
        yield f"http://127.0.0.1:{running.port}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that takes jobs; each test adds nodes until there are two."""
    with running_cluster(dashboard=True) as cluster:
        wait_for_job_server(cluster)
        yield cluster


@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_on_a_cluster_makes_what_one_machine_makes(
    one_machine: Finished, server: str, cluster: Cluster, tmp_path: Path, fault: str
) -> None:
    root = tmp_path / "root"
    while len(cluster.living()) < NUM_NODES:
        cluster.add(2)
    for node in cluster.living()[NUM_NODES:]:
        node.kill()
    settings = [*LONG_ENOUGH_TO_MEET_A_FAULT, f"root={root}", f"tracking.uri={server}", f"tracking.experiment={fault}"]
    with submitted(cluster, sys.executable, "-m", "pipelines.run", str(one_machine.config), *settings) as job:
        for what, stage in FAULTS[fault]:
            wait_for_work(job, root, stage)
            if what == "kill":
                busiest(cluster).kill()
            cluster.add(2)
        assert job.process.wait(900) == 0, job.said[-5000:]
    made = files_of(root)
    assert sorted(made) == sorted(one_machine.files)
    assert [name for name in made if made[name] != one_machine.files[name]] == []
    assert runs_of(server, fault) == one_machine.runs
    assert all(status == "FINISHED" for _, status, _ in one_machine.runs)
    keys = [key for key, _, _ in one_machine.runs]
    assert all(a != b for a, b in itertools.pairwise(keys)), "one run for each trial, and one of the sweep"
