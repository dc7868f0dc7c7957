"""Measure vidflow on this machine: `vidflow bench CONFIG.yaml [--only GROUP]`.

A group compares what vidflow does with something measured in the same run, turn by turn: a bare loop, the same work
without the idea in question, or what the hardware can do. The ratio is what counts, as a slow or busy machine slows
both. Everything is made in a temporary folder and removed at the end.
"""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipelines import bench_cached, bench_cores, bench_read, bench_reduction, bench_stages, extract, shard, synth
from pipelines.cli import BENCH_GROUPS
from pipelines.job import ray_session
from vidflow.config.schema import Config


def main(config: Config, only: Sequence[str] = BENCH_GROUPS) -> None:
    """Print the lines of the wanted groups, all by default."""
    wanted = set(only)
    if "read" in wanted:
        bench_read.import_lmdb()  # before anything that takes long
    if "cores" in wanted:
        _print(bench_cores.measure_cores(config))
    if "reduction" in wanted:
        _print(bench_reduction.measure_reduction(config))
    if wanted & {"cached", "read", "stages"}:
        with prepared(config) as scratch:
            if "cached" in wanted:
                _print(bench_cached.measure_cached(scratch))
            if "read" in wanted:
                _print(bench_read.measure_read(scratch))
            if "stages" in wanted:
                _print(bench_stages.measure_stages(scratch))


@contextlib.contextmanager
def prepared(config: Config) -> Iterator[Config]:
    """Make shards and features in a temporary folder and give the config whose root it is."""
    folder = Path(tempfile.mkdtemp(prefix="vidflow-bench-"))
    scratch = dataclasses.replace(config, root=str(folder))
    try:
        with ray_session(scratch):
            if scratch.video.manifest is None:
                synth.main(scratch)
            shard.main(scratch)
            extract.main(scratch)
            yield scratch
    finally:
        shutil.rmtree(folder)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)
