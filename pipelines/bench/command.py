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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pipelines import extract, shard, synth
from pipelines.bench import GROUPS, adapted, cached, cores, feeds, planning, read, reduction, stages, video
from pipelines.ray_session import ray_session
from vidflow.config.schema import Config
from vidflow.stages.experiment import Experiment

_OF_CONFIG: dict[str, Callable[[Config], Iterator[str]]] = {
    "cores": cores.measure_cores,
    "reduction": reduction.measure_reduction,
    "adapted": adapted.measure_adapted,
    "video": video.measure_video,
    "planning": planning.measure_planning,
}
_OF_FEATURES: dict[str, Callable[[Experiment], Iterator[str]]] = {
    "cached": cached.measure_cached,
    "read": read.measure_read,
    "stages": stages.measure_stages,
    "feeds": feeds.measure_feeds,
}
_PACKAGES = {"read": "lmdb", "video": "transformers"}
"""Groups that need a package which need not be installed."""


def main(experiment: Experiment, only: Sequence[str] | None) -> None:
    """Print the lines of the given groups; None is all groups whose libraries are installed."""
    wanted = set(GROUPS if only is None else only)
    for group, package in _PACKAGES.items():
        if only is None and importlib.util.find_spec(package) is None:
            wanted.remove(group)
            print(f"{group}: left out, because {package} is not installed; `pip install {package}`")
    if "read" in wanted:
        read.import_lmdb()  # before anything that takes a long time
    for group in _OF_CONFIG:
        if group in wanted:
            _print(_OF_CONFIG[group](experiment.config))
    if wanted & _OF_FEATURES.keys():
        with prepared(experiment) as scratch:
            for group in _OF_FEATURES:
                if group in wanted:
                    _print(_OF_FEATURES[group](scratch))


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
