"""Check what an experiment needs of machines: CPUs, GPUs, memory, disk, a Ray cluster and a tracking server."""

import math
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from pipelines.model_checks import ModelSizes
from pipelines.placement import PARTS, Machine, Part, check_fit, count_fitting, place_workers, ray_address, this_machine
from vidflow.config.load import Draft
from vidflow.config.paths import nearest_existing
from vidflow.config.roots import root_path
from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates
from vidflow.config.tracking_uri import store_uri, without_credentials
from vidflow.errors import ConfigError
from vidflow.objects import is_object_url
from vidflow.report.formats import format_bytes
from vidflow.stages.address import Address
from vidflow.stages.experiment import Experiment

_SECONDS = 5.0
_GIB = 2**30


def find_misfits(config: Config, steps: Sequence[str]) -> Iterator[str]:
    """Yield which workers do not fit on this machine; a cluster says so when it is joined."""
    if ray_address(config) != "local":
        return
    machines: list[Machine] | None = None
    for part in dict.fromkeys(part for step in steps for part in PARTS.get(step, ())):
        resources = config.resources
        asks = resources.device == "cuda" or getattr(resources, part).num_gpus not in ("auto", 0)
        if asks and machines is None:
            machines = this_machine()  # imports torch, so only where a GPU is asked for
        there = machines or [Machine(os.cpu_count() or 1, 0)]
        try:
            check_fit(place_workers(resources, part, there), there, resources)
        except ConfigError as error:
            yield str(error)


def find_silent_cluster(config: Config) -> Iterator[str]:
    """Yield that a Ray cluster with an address does not answer."""
    address = ray_address(config)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        yield f"resources.ray_address: no Ray answers at {address} ({error}); start it, or leave the address out"


def find_relative_root(draft: Draft) -> Iterator[str]:
    """Yield that `root` is relative on a cluster: in a job it would lie in a folder that Ray deletes."""
    if draft.is_root_relative and (address := ray_address(draft.config)) != "local":
        yield (
            f"root: got a relative path ({draft.config.root}), wanted an absolute one on a cluster ({address}): "
            "a job's own folder is temporary and on one node; name a folder that all nodes share"
        )


def find_silent_server(config: Config) -> Iterator[str]:
    """Yield that the tracking server does not answer within seconds; any answer counts."""
    uri = store_uri(config)
    if urlsplit(uri).scheme not in ("http", "https"):
        return
    try:
        urlopen(f"{uri.rstrip('/')}/health", timeout=_SECONDS).close()  # noqa: S310 - http or https
    except HTTPError:
        return
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield (
            f"tracking.uri: cannot use {without_credentials(uri)}: no answer within {_SECONDS:g} s ({reason}); start "
            "the server, name another store, or set tracking.when_away=journal: then runs wait under root for "
            "`vidflow sync`"
        )


def find_small_memory(config: Config, sizes: ModelSizes, steps: Sequence[str]) -> Iterator[str]:
    """Yield that one batch of a trial alone is larger than this machine's memory."""
    if "sweep" in steps and ray_address(config) == "local" and (need := _batch_bytes(config, sizes)) > _memory():
        yield (
            f"trials.trial.batch_size: one batch of tokens takes {need / _GIB:.1f} GiB, this machine has "
            f"{_memory() / _GIB:.1f} GiB of memory; use smaller batches, fewer depths or shorter clips"
        )


def find_small_disk(config: Config, sizes: ModelSizes, num_clips: dict[str, int]) -> Iterator[str]:
    """Yield that the features to make are larger than the free space.

    Args:
        config: The experiment.
        sizes: What the models take.
        num_clips: Name of a feature set that is to be made, without token reduction -> its number of clips.
    """
    need = sum(sizes.clip_bytes[name] * number for name, number in num_clips.items())
    place = None if is_object_url(config.root) else nearest_existing(root_path(config))
    if place is not None and need > (free := shutil.disk_usage(place).free):
        yield (
            f"root: the features of {max(num_clips.values())} clips take {format_bytes(need)}, {place} has "
            f"{format_bytes(free)} left; free some space, name another root, or store fewer depths"
        )


def find_small_cache(experiment: Experiment) -> Iterator[str]:
    """Yield that the copies of what a trial reads do not fit into a node's cache: it reads clips in random order.

    What is not finished is not known yet.
    """
    config = experiment.config
    if not is_object_url(config.root) or experiment.shards is None:
        return
    read: dict[Path, Address] = {}
    for trial in draw_candidates(config)[0]:
        address = experiment.shards.address if trial.feed == "shards" else experiment.features[trial.features]
        read[address.directory] = address
    manifests = {place: experiment.manifest(address) for place, address in read.items()}
    sizes = {place: manifest.num_bytes for place, manifest in manifests.items() if manifest is not None}
    largest = max(sizes, key=sizes.__getitem__, default=None)
    if largest is not None and sizes[largest] > config.resources.cache_gib * _GIB:
        yield (
            f"resources.cache_gib: got {config.resources.cache_gib:g}, wanted at least "
            f"{math.ceil(100 * sizes[largest] / _GIB) / 100:g}: "
            f"trials read {largest} in random order, and files that do not fit into a node's cache would be copied "
            "again and again; give the nodes that much disk, or make smaller clips or features"
        )


def find_tight_memory(config: Config, sizes: ModelSizes, steps: Sequence[str]) -> Iterator[str]:
    """Yield rough warnings that all workers together may need more memory than this machine has."""
    if ray_address(config) != "local":
        return
    needs: tuple[tuple[str, Part, int], ...] = (
        ("extract", "extract", sizes.encoder_bytes),
        ("sweep", "trials", _batch_bytes(config, sizes)),
    )
    for step, part, need in needs:
        own = getattr(config.resources, part)
        machine = Machine(os.cpu_count() or 1, 0)
        number = count_fitting(place_workers(config.resources, part, [machine]), [machine])
        number = min(own.workers or number, number)
        if step in steps and number * need > _memory():
            yield (
                f"{step}: {number} workers may need more than {number * need / _GIB:.0f} GiB together, this machine "
                f"has {_memory() / _GIB:.0f} GiB; resources.{part}.workers limits them"
            )


def _batch_bytes(config: Config, sizes: ModelSizes) -> int:
    """Return the bytes of the largest batch of tokens, in single precision, which is twice as large as stored."""
    trials = draw_candidates(config)[0]
    sets = [trial for trial in trials if config.features[trial.features].reducer.name == "none" or trial.unmerge]
    return max((2 * sizes.clip_bytes[trial.features] * trial.batch_size for trial in sets), default=0)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
