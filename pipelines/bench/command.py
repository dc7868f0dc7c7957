"""Measure vidflow on this machine: `vidflow bench CONFIG.yaml [--only GROUP]`.

A group compares vidflow with something that is measured in the same run, in turns: a bare loop, the same work without
the method in question, or the peak speed of the hardware. Only the ratio is meaningful, because a slow or busy machine
slows both. Everything is made in a temporary folder and removed at the end.
"""

import contextlib
import dataclasses
import importlib.util
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipelines import extract, shard, synth
from pipelines.bench import GROUPS, cached, cores, read, reduction, stages
from pipelines.ray_pool import ray_session
from vidflow.stages.experiment import Experiment


def main(experiment: Experiment, only: Sequence[str] | None) -> None:
    """Print the lines of the given groups; None is all groups whose libraries are installed."""
    wanted, config = set(GROUPS if only is None else only), experiment.config
    if only is None and importlib.util.find_spec("lmdb") is None:
        wanted.remove("read")
        print("read: left out, because lmdb is not installed; `pip install lmdb`")
    if "read" in wanted:
        read.import_lmdb()  # before anything that takes a long time
    if "cores" in wanted:
        _print(cores.measure_cores(config))
    if "reduction" in wanted:
        _print(reduction.measure_reduction(config))
    if wanted & {"cached", "read", "stages"}:
        with prepared(experiment) as scratch:
            if "cached" in wanted:
                _print(cached.measure_cached(scratch))
            if "read" in wanted:
                _print(read.measure_read(scratch))
            if "stages" in wanted:
                _print(stages.measure_stages(scratch))


@contextlib.contextmanager
def prepared(experiment: Experiment) -> Iterator[Experiment]:
    """Make shards and features in a temporary folder, and yield the experiment with that folder as its root."""
    folder = Path(tempfile.mkdtemp(prefix="vidflow-bench-"))
    scratch = Experiment(dataclasses.replace(experiment.config, root=str(folder)))
    try:
        with ray_session(scratch.config):
            if scratch.config.video.manifest is None:
                synth.main(scratch)
            shard.main(scratch)
            extract.main(scratch)
            yield scratch
    finally:
        shutil.rmtree(folder)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)
