"""Whether every node sees the experiment's root: a node reads a file that the command wrote, and answers beside it.

Paths alone say nothing, because a node without the mount has an ordinary folder of that name.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.display import Waiting, shown
from vidflow.errors import VidflowError
from vidflow.store.layout import list_files, publish_json, read_json, remove

_FOLDER = ".nodes"
_SECONDS_TO_ANSWER = 60.0
# A network file system may show a new file late.
_SECONDS_TO_APPEAR = 5.0
log = logging.getLogger("vidflow")


class Proof(NamedTuple):
    """What a node must find under the root.

    Attributes:
        folder: Where it lies.
        word: A random word, which is the content of the file and part of its name.
    """

    folder: Path
    word: str

    def of(self, who: str) -> Path:
        """Return the file that the command (`asks`) or a node writes."""
        return self.folder / f"{self.word[:8]}-{who}.json"


class Home(NamedTuple):
    """The node that a worker runs on, in its own words.

    Attributes:
        node: Ray's id of it.
        ip: Its address.
        problem: Why it cannot use the root; empty if it can.
    """

    node: str
    ip: str
    problem: str = ""


_session: list[tuple[Proof, set[str]]] = []
"""The proof of this session, and the nodes that have shown it; empty on a single machine."""


@contextlib.contextmanager
def checked_root(root: Path) -> Iterator[None]:
    """Check all nodes that are there now, and let `check_home` check later ones within the block.

    Args:
        root: The experiment's root.

    Raises:
        VidflowError: If a node does not see the root, or cannot write there.
    """
    proof = Proof(root / _FOLDER, secrets.token_hex(16))
    publish_json(proof.of("asks"), {"word": proof.word})
    _session.append((proof, set()))
    try:
        with shown(Waiting("ray: checking that all nodes share the root")):
            _check_nodes(proof)
        yield
    finally:
        _session.clear()
        for path in list_files(proof.folder, f"{proof.word[:8]}-*"):
            remove(path)
        with contextlib.suppress(OSError):  # that of another command, which uses the same root
            proof.folder.rmdir()


def session_proof() -> Proof | None:
    """Return what workers must find before their first unit; None on a single machine."""
    return _session[0][0] if _session else None


def answer(proof: Proof | None) -> Home:
    """Return where this worker runs, and show that this node has the root; runs on the node."""
    context = ray.get_runtime_context()
    home = Home(context.get_node_id(), ray.util.get_node_ip_address())
    if proof is None:
        return home
    try:
        if _read(proof.of("asks")) != proof.word:
            return home._replace(problem="it does not see the file that this command wrote there")
        publish_json(proof.of(home.node), {"word": proof.word})
    except OSError as error:
        return home._replace(problem=error.strerror or str(error))
    return home


def check_here(proof: Proof | None) -> None:
    """Check this node; runs on the node, where a worker cannot answer before it starts.

    Raises:
        VidflowError: If the node does not share the root.
    """
    home = answer(proof)
    if proof is not None and home.problem:
        raise VidflowError(_message(proof, [f"{home.ip} ({home.problem})"]))


def check_home(home: Home) -> None:
    """Check what a node answered; runs in the command.

    Raises:
        VidflowError: If the node does not share the root.
    """
    if problem := _find_problem(home):
        raise VidflowError(_message(_session[0][0], [problem]))


def _find_problem(home: Home) -> str:
    if not _session or home.node in _session[0][1]:
        return ""
    proof, shared = _session[0]
    problem = home.problem
    if not problem and _read(proof.of(home.node)) != proof.word:
        problem = "this command does not see the file that it wrote there"
    if not problem:
        shared.add(home.node)
    return f"{home.ip} ({problem})" if problem else ""


def _check_nodes(proof: Proof) -> None:
    ask = ray.remote(answer)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[ask.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(proof)] = node
    ended, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_SECONDS_TO_ANSWER)
    problems = []
    for ref in ended:
        try:
            problems.append(_find_problem(ray.get(ref)))
        except ray.exceptions.RayError:
            silent.append(ref)
    if found := sorted(filter(None, problems)):
        raise VidflowError(_message(proof, found))
    if silent:
        ips = ", ".join(sorted(asked[ref]["NodeManagerAddress"] for ref in silent))
        log.warning("ray: no answer from %s; it gets work when it answers", ips)


def _message(proof: Proof, problems: list[str]) -> str:
    nodes = ", ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
    return (
        f"root: {proof.folder.parent} is not shared by node {nodes}; mount the same storage at this path on every "
        "node, or take the node out of the cluster"
    )


def _read(path: Path) -> str:
    """Return the word in a file; empty if it does not appear within seconds."""
    end = time.monotonic() + _SECONDS_TO_APPEAR
    while (value := read_json(path)) is None and time.monotonic() < end:
        time.sleep(0.2)
    return "" if value is None else str(value["word"])


__all__ = ["Home", "Proof", "answer", "check_here", "check_home", "checked_root", "session_proof"]
