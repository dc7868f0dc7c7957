"""How fast a pool does units that sleep, on one, two and four nodes, and what Ray exports of it meanwhile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import running_cluster

WORKERS_PER_NODE = 2
SLEEPS = """
import json, sys, time
from urllib.request import urlopen
import ray
from pipelines.placement import Placement
from pipelines.ray_pool import WorkerPool
from pipelines.ray_session import ray_session
from vidflow.config.schema import Config, Resources

address, root, num_workers = sys.argv[1], sys.argv[2], int(sys.argv[3])

def build():
    def work(seconds, count):
        time.sleep(seconds)
        count(1)
    return work

placement = Placement(part="shard", num_cpus=1, num_gpus=0, device="cpu", workers=None, attempts=3, words="1 CPU")
with ray_session(Config(root=root, resources=Resources(ray_address=address))):
    pool = WorkerPool(build, placement, name="sleep", keeps_idle=True)
    while pool.num_workers < num_workers:
        list(pool.map([0.2] * 4 * num_workers))
    started = time.monotonic()
    list(pool.map([1.0] * 8 * num_workers))
    seconds = time.monotonic() - started
    port = next(n["MetricsExportPort"] for n in ray.nodes() if "node:__internal_head__" in n["Resources"])
    time.sleep(3)
    exported = urlopen(f"http://127.0.0.2:{port}/metrics").read().decode()
    print(json.dumps([seconds, [line for line in exported.splitlines() if line.startswith("ray_vidflow")]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_two_and_four_nodes_are_nine_tenths_as_fast_as_linear(tmp_path: Path):
    speeds = {}
    with running_cluster() as cluster:
        for num_nodes in (1, 2, 4):
            while len(cluster.nodes) < num_nodes:
                cluster.add(WORKERS_PER_NODE)
            num_workers = num_nodes * WORKERS_PER_NODE
            command = [sys.executable, "-c", SLEEPS, cluster.address, str(tmp_path), str(num_workers)]
            done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            seconds, exported = json.loads(done.stdout.splitlines()[-1])
            speeds[num_nodes] = 8 * num_workers / seconds
            print(num_nodes, seconds, exported)
    assert speeds[2] >= 0.9 * 2 * speeds[1]
    assert speeds[4] >= 0.9 * 4 * speeds[1]
    assert {line.partition("{")[0] for line in exported} >= {
        "ray_vidflow_clips_total",
        "ray_vidflow_units_waiting",
        "ray_vidflow_workers",
    }
