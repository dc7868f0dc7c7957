"""Which GPUs workers get, and where they compute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.placement import Machine, check_device, check_fit, count_fitting, find_misfit, place_workers
from vidflow.config.schema import Resources, StageResources, TrialResources
from vidflow.errors import ConfigError

BARE = [Machine(2, 0)]
WITH_GPUS = [Machine(8, 1, "H100"), Machine(8, 1, "H100"), Machine(4, 0)]
DECLARED = """\
import os, sys
import ray

context = ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, logging_level="ERROR")
os.environ["RAY_ADDRESS"] = context.address_info["address"]
from pipelines.cli import main

for command in sys.argv[1].split(","):
    try:
        main([command, *sys.argv[2:]])
    except SystemExit as left:
        print(command, left.code)
"""


@pytest.mark.parametrize(
    ("part", "resources", "machines", "taken", "words"),
    [
        ("extract", Resources(), WITH_GPUS, (1, "cuda", 2), "1 CPU and 1 GPU (of 2 GPUs, H100)"),
        ("trials", Resources(), WITH_GPUS, (0.5, "cuda", 4), "1 CPU and 0.5 GPU (of 2 GPUs, H100)"),
        ("shard", Resources(), WITH_GPUS, (0, "cpu", 20), "1 CPU"),
        ("extract", Resources(), BARE, (0, "cpu", 2), "1 CPU, on CPU: no GPU here"),
        ("trials", Resources(device="cpu"), WITH_GPUS, (0, "cpu", 20), "1 CPU, on CPU: resources.device is cpu"),
        (
            "extract",
            Resources(extract=StageResources(num_gpus=0)),
            WITH_GPUS,
            (0, "cpu", 20),
            "1 CPU, on CPU: resources.extract.num_gpus is 0",
        ),
        (
            "extract",
            Resources(device="cpu", extract=StageResources(num_gpus=1)),
            WITH_GPUS,
            (1, "cpu", 2),
            "1 CPU and 1 GPU (of 2 GPUs, H100), computing on CPU: resources.device is cpu",
        ),
        (
            "trials",
            Resources(trials=TrialResources(num_gpus=0.4, num_cpus=3)),
            WITH_GPUS,
            (0.4, "cuda", 4),
            "3 CPU and 0.4 GPU (of 2 GPUs, H100)",
        ),
        # Processes that train one trial have a GPU each, and may run on different machines.
        (
            "trials",
            Resources(trials=TrialResources(workers_per_trial=2)),
            WITH_GPUS,
            (1, "cuda", 1),
            "2 processes of 1 CPU and 1 GPU (of 2 GPUs, H100)",
        ),
        (
            "trials",
            Resources(trials=TrialResources(workers_per_trial=3, num_gpus=0)),
            WITH_GPUS,
            (0, "cpu", 6),
            "3 processes of 1 CPU, on CPU: resources.trials.num_gpus is 0",
        ),
    ],
)
def test_workers_take_gpus_where_there_are_any_and_say_why_where_not(part, resources, machines, taken, words):
    placement = place_workers(resources, part, machines)
    assert (placement.num_gpus, placement.device, count_fitting(placement, machines)) == taken
    assert placement.words == words


@pytest.mark.parametrize(
    ("resources", "machines", "problem"),
    [
        (Resources(extract=StageResources(num_gpus=2)), WITH_GPUS, r"resources\.extract\.num_gpus: no worker fits"),
        # Three machines have 20 CPUs together, but a worker runs on one of them.
        (Resources(extract=StageResources(num_cpus=12)), WITH_GPUS, r"resources\.extract\.num_cpus: no worker fits"),
        (Resources(device="cuda"), BARE, "got cuda, but there is no GPU"),
        (Resources(device="cuda", extract=StageResources(num_gpus=0)), WITH_GPUS, "extract.num_gpus is 0"),
    ],
)
def test_workers_that_fit_no_machine_are_refused(resources, machines, problem):
    with pytest.raises(ConfigError, match=problem):
        check_fit(place_workers(resources, "extract", machines), machines, resources)


def test_a_gpu_that_is_asked_for_is_waited_for_on_a_cluster_that_has_none_yet():
    placement = place_workers(Resources(device="cuda"), "extract", BARE)
    check_device(placement, Resources(device="cuda"))
    assert (placement.num_gpus, placement.wait_seconds) == (1, 600)
    assert placement.words == "1 CPU and 1 GPU (of none yet)"
    assert "no worker fits, each takes 1 CPU and 1 GPU; the machines have 2 CPU and 0 GPU" in find_misfit(
        placement, BARE
    )
    assert not find_misfit(placement, WITH_GPUS)


@pytest.mark.slow
def test_declared_gpus_are_shared_out_while_workers_compute_on_the_cpu(tiny: Path):
    few = ["video.synthetic.num_train=8", "video.synthetic.num_val=4", "shards.clips_per_shard=6"]
    few += ["trials.trial.batch_size=4", "trials.trial.epochs=1"]
    gpus = ["resources.extract.num_gpus=1", "resources.trials.num_gpus=1"]

    def run(commands: str, *settings: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-c", DECLARED, commands, str(tiny), *few, *settings]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    refused = run("synth,shard,extract")
    assert refused.stdout.split() == ["synth", "0", "shard", "0", "extract", "1"]
    assert "Ray gave this worker 1 GPU, but torch" in refused.stderr
    assert "resources.device=cpu" in refused.stderr
    done = run("extract,sweep", "resources.device=cpu", *gpus)
    assert "extract 0\nsweep 0" in done.stdout, done.stderr
    assert "extract base: 2 workers, each 1 CPU and 1 GPU (of 2 GPUs), computing on CPU" in done.stderr
    assert "sweep: up to 2 trials at a time, each 1 CPU and 1 GPU (of 2 GPUs), computing on CPU" in done.stderr
