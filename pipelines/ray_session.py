"""Join Ray and leave it: a session on this machine or on a cluster, what its machines have, and where workers fit."""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from pipelines.display import Waiting, shown
from pipelines.interrupts import RESUMES, watch_signals
from pipelines.losses import shorten
from pipelines.placement import (
    PARTS,
    Machine,
    Part,
    Placement,
    check_device,
    check_fit,
    count_fitting,
    place_workers,
    ray_address,
)
from pipelines.ray_watch import say_if_ended, watch_ray
from pipelines.shared_root import checked_root
from pipelines.unit_counts import session_counts
from vidflow.config.load import join_problems
from vidflow.config.schema import Config
from vidflow.config.tracking_uri import check_uri, store_uri
from vidflow.errors import ConfigError, VidflowError

log = logging.getLogger("vidflow")
# Lines of a worker, by its address, that may turn out to be no news.
_held: dict[tuple[str, int], list[str]] = {}
# Ray's name of a resource that says of which kind a machine's GPUs are.
_KIND = "accelerator_type:"


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Join the cluster that the config or `RAY_ADDRESS` names, or start a local one; leave it at the end."""
    if ray.is_initialized():
        yield
        return
    # "local", because a cluster that runs on this machine is joined only if the user names it.
    address = ray_address(config)
    # A worker without a GPU in its resources must see no GPU. This will be Ray's default; setting it avoids a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "local":
        _stay_private()
    ray_worker.print_worker_logs = _log_lines  # else Ray prints to stdout, in colours, and through a moving view
    started = time.monotonic()
    dashboard = False if address == "local" else None  # with an existing cluster, Ray refuses the argument
    with contextlib.ExitStack() as session:
        session.callback(_log_held)
        session.callback(ray.shutdown)
        with shown(Waiting("ray: starting on this machine" if address == "local" else f"ray: joining {address}")):
            _join(address, include_dashboard=dashboard)
        session.enter_context(watch_ray(address))
        session_counts.cache_clear()  # that of an earlier session
        watch_signals()  # again, because Ray has set its own handler for SIGTERM
        log.info("ray: %s, ready in %.1f s", address, time.monotonic() - started)
        if _is_spread(config):
            session.enter_context(checked_root(Path(config.root)))
        yield


def _join(address: str, *, include_dashboard: bool | None) -> None:
    """Call `ray.init`.

    Raises:
        VidflowError: If Ray's processes do not come up, or the cluster does not answer.
    """
    what = "Ray did not start on this machine" if address == "local" else f"the Ray cluster {address} was not joined"
    try:
        with say_if_ended(what):
            ray.init(address=address, logging_level=logging.ERROR, include_dashboard=include_dashboard)
    except Exception as error:  # Ray raises this very class when a process of its own dies or is late
        raise VidflowError(
            f"{what}: {shorten(str(error)).rstrip('.')}; what is committed stays, and {RESUMES}"
        ) from error


def _is_spread(config: Config) -> bool:
    """Whether the root is a folder, and nodes may or may not share it; all nodes share an object store."""
    return ray_address(config) != "local" and "://" not in config.root


def _log_lines(data: dict[str, Any], print_file: Any, ignore_prefix: bool = False) -> None:  # noqa: ARG001 - as Ray calls it
    """Log what workers print, and the first sentence of what Ray itself has to say."""
    match data["pid"]:
        case "raylet":
            # What is indented is the end of the log of a raylet that was lost.
            lines = [f"ray: {line.partition('. ')[0]}" for line in data["lines"] if line.strip() == line != ""]
        case "autoscaler":  # its log, of which Ray knows the few lines for users
            lines = [f"ray: {line}" for line in ray_worker.filter_autoscaler_events(data["lines"])]
        case pid:
            lines = [f"worker {pid}: {line}" for line in _without_endings((data["ip"], pid), data["lines"])]
    for line in lines:
        log.warning("%s", line)


def _without_endings(worker: tuple[str, int], lines: Sequence[str]) -> list[str]:
    """Return lines without what Python prints if Ray stops a worker in the moment in which it deletes an object.

    Ray stops a worker by SIGTERM, at which its handler raises `SystemExit`. Python cannot raise it there: it prints a
    traceback and goes on, until SIGKILL. A traceback whose end has not come yet is held back.
    """
    shown: list[str] = []
    held = _held.pop(worker, [])
    for line in lines:
        if line.startswith("Exception ignored in"):
            shown += held
            held = [line]
        elif held and line.startswith("SystemExit"):
            held = []
        elif held and (line[:1].strip() == "" or line.startswith("Traceback")):
            held.append(line)
        else:
            shown += [*held, line]
            held = []
    if held:
        _held[worker] = held
    return shown


def _log_held() -> None:
    while _held:
        (_, pid), lines = _held.popitem()
        for line in lines:
            log.warning("worker %s: %s", pid, line)


def _stay_private() -> None:
    """Bind a local cluster to 127.0.0.1, and hide its access token from other users of the machine."""
    # Ray binds to all interfaces unless its node is at 127.0.0.1. It replaces that address with the machine's own, even
    # if `_node_ip_address` names it. It does not with this switch, which Ray itself sets on systems other than Linux.
    ray_constants.ENABLE_RAY_CLUSTER = False
    # As in Ray, an empty variable counts as not set.
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return  # the user's own setting, which needs no file
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        _check_token(Path(named))
        return
    try:
        _make_token(Path.home() / ".ray" / "auth_token")
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder is not known
        raise VidflowError(
            f"the home folder cannot hold Ray's token ({error}); set HOME to a folder that can be written, "
            "RAY_AUTH_TOKEN_PATH to a file that holds a token, or RAY_AUTH_MODE=disabled"
        ) from error


def _check_token(path: Path) -> None:
    """Check that the user's file holds a token, because Ray shows a traceback if it does not.

    Raises:
        VidflowError: If the file is empty or cannot be read.
    """
    try:
        problem = "" if path.read_bytes().strip() else "it is empty"
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise VidflowError(
            f"RAY_AUTH_TOKEN_PATH: got {path} ({problem}); wanted a file that holds Ray's token, or no such variable"
        )


def _make_token(path: Path) -> None:
    """Make a file with a token unless it exists, and let only its owner read it.

    Raises:
        OSError: If the file cannot be made.
    """
    if not path.exists():
        # Ray would let everybody read it. It is complete before it gets its name, as another command may start now.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with open(os.open(aside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(aside)
        aside.unlink()
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def list_machines() -> list[Machine]:
    """Return the machines of the cluster."""
    machines = []
    for node in ray.nodes():
        if node["Alive"]:
            has: dict[str, float] = node["Resources"]
            kinds = [name.removeprefix(_KIND) for name in has if name.startswith(_KIND)]
            machines.append(Machine(has.get("CPU", 0), has.get("GPU", 0), kinds[0] if kinds else ""))
    return machines


def place(config: Config, part: Part) -> Placement:
    """Return what each worker of a part of the experiment takes.

    On a cluster, machines may still join, so workers that fit none are not refused here: whoever starts them waits.

    Raises:
        ConfigError: If the settings contradict each other, or no worker fits this machine.
    """
    machines = list_machines()
    placement = place_workers(config.resources, part, machines)
    if ray_address(config) == "local":
        check_fit(placement, machines, config.resources)
    else:
        check_device(placement, config.resources)
    return placement


def count_workers(placement: Placement) -> int:
    """Return how many workers fit on the machines that are there now, if all of them are free."""
    fitting = count_fitting(placement, list_machines())
    return min(placement.workers or fitting, fitting)


def check_cluster(config: Config, stages: Sequence[str]) -> None:
    """Check what workers of all stages take, and that the tracking store is safe on the cluster's number of hosts.

    Raises:
        ConfigError: With every problem.
    """
    problems = []
    for part in dict.fromkeys(part for stage in stages for part in PARTS.get(stage, ())):
        try:
            place(config, part)
        except ConfigError as error:
            problems.append(str(error))
    if "sweep" in stages:
        try:
            check_uri(store_uri(config), num_hosts=len(list_machines()))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(join_problems(problems))


__all__ = ["check_cluster", "count_workers", "list_machines", "place", "ray_session"]
