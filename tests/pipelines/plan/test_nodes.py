"""A plan for several nodes: it says that it extrapolates, and a unit of work is not divided."""

from dataclasses import replace

import pytest

from pipelines.placement import Machine
from pipelines.plan.nodes import Nodes, extrapolate
from pipelines.plan.record import StageCost
from pipelines.plan.table import PlannedStage
from vidflow.config.schema import Config, Resources, Shards, StageResources, TrialResources
from vidflow.errors import ConfigError
from vidflow.report.formats import format_seconds

HERE = Machine(num_cpus=2, num_gpus=0)
CONFIG = Config(
    shards=Shards(clips_per_shard=10),
    resources=Resources(
        shard=StageResources(num_cpus=1), extract=StageResources(num_cpus=2), trials=TrialResources(num_cpus=1)
    ),
)


def stage(name: str, seconds: float, num_units: int) -> PlannedStage:
    cost = StageCost(seconds=seconds, num_bytes=0)
    return PlannedStage(stage=name, cost=cost, num_units=num_units, num_workers=2)


def test_more_nodes_share_the_work_up_to_one_unit_for_each_worker():
    stages = [stage("shard", 120.0, 120), stage("extract/base", 120.0, 120), stage("sweep", 120.0, 3)]
    for nodes, walls in ((1, (60, 120, 80)), (4, (20, 30, 40)), (100, (10, 10, 40))):
        text = "\n".join(extrapolate(stages, CONFIG, Nodes(number=nodes).machines(HERE)))
        assert f"EXTRAPOLATION to {nodes} node{'s' * (nodes > 1)} of 2 CPU and 0 GPU" in text
        assert "measured on this machine" in text
        for name, wall in zip(("shard", "extract/base", "sweep"), walls, strict=True):
            (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
            assert f" {format_seconds(wall)}  " in line


def test_the_processes_of_a_trial_share_its_work():
    together = replace(CONFIG, resources=Resources(trials=TrialResources(workers_per_trial=4)))
    for nodes, wall in ((2, 90), (4, 60)):  # one trial at a time, then two
        (line,) = [
            line
            for line in extrapolate([stage("sweep", 360.0, 3)], together, Nodes(number=nodes).machines(HERE))
            if line.startswith("  sweep ")
        ]
        assert f" {format_seconds(wall)}  {nodes // 2} worker" in line


def test_what_is_done_is_left_out_and_a_gpu_that_was_not_measured_is_refused():
    done = PlannedStage(stage="shard", cost=None, num_units=1, num_workers=1)
    assert extrapolate([done], CONFIG, [HERE]) == []
    with pytest.raises(ConfigError, match="--node-gpus: got 8, but this machine has no GPU"):
        Nodes(number=2, num_gpus=8).machines(HERE)
    with pytest.raises(ConfigError, match="no worker fits"):
        extrapolate([stage("extract/base", 1.0, 1)], CONFIG, Nodes(number=9, num_cpus=1).machines(HERE))
