"""The deployment files as tests read them: documents, versions, and the commands that readers are told to run."""

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
YAML_FILES = sorted(INFRA.rglob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def load_one(name: str, kind: str | None = None) -> Any:
    """Return the document of a file, or the one of a kind."""
    documents = [d for d in yaml.safe_load_all((INFRA / name).read_text()) if kind is None or d["kind"] == kind]
    assert len(documents) == 1
    return documents[0]


def pins(name: str) -> dict[str, Version]:
    """Return package -> version of a constraints file."""
    lines = [line for line in (INFRA / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def commands() -> Iterator[list[str]]:
    """Yield the words of every command that README, Dockerfile and templates tell a person or a machine to run."""
    readme = re.findall(r"^    (\S.*)$", (INFRA / "README.md").read_text(), re.MULTILINE)
    comments = [
        re.split(r"\s{3,}", line[4:])[0]
        for path in INFRA.rglob("*")
        if path.is_file() and path.suffix != ".md"
        for line in path.read_text().splitlines()
        if line.startswith("#   ")
    ]
    cluster = load_one("ray-cluster.yaml")
    started = [command for key, value in cluster.items() if key.endswith("_commands") for command in value]
    submitted = [load_one("kuberay/rayjob.yaml", "RayJob")["spec"]["entrypoint"]]
    for text in [*readme, *comments, *started, *submitted]:
        words = shlex.split(text)
        starts = [
            0,
            *(i + 1 for i, word in enumerate(words) if word in ("&&", "--", "|") or word.endswith(";")),
            len(words) + 1,
        ]
        for start, end in itertools.pairwise(starts):
            command = words[start : end - 1]
            yield command[next((i for i, word in enumerate(command) if not re.match(r"[A-Z_]+=", word)), 0) :]


def commands_of(program: str) -> list[list[str]]:
    found = [command[1:] for command in commands() if command and Path(command[0]).name == program]
    assert found, f"no command starts {program}"
    return found
