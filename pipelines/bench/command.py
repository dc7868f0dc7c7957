"""Measure vidflow on this machine: `vidflow bench CONFIG.yaml [--only GROUP]`.

A group compares what vidflow does with something measured in the same run, turn by turn: a bare loop, the same work
without the idea in question, or what the hardware can do. The ratio is what counts, as a slow or busy machine slows
both. Everything is made in a temporary folder and removed at the end.
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
    """Print the lines of the wanted groups; for None those of all groups whose libraries are installed."""
    wanted, config = set(GROUPS if only is None else only), experiment.config
    if only is None and importlib.util.find_spec("lmdb") is None:
        wanted.remove("read")
        print("read: left out, because lmdb is not installed; `pip install lmdb`")
    if "read" in wanted:
        read.import_lmdb()  # before anything that takes long
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
    """Make shards and features in a temporary folder and give the experiment whose root it is."""
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
