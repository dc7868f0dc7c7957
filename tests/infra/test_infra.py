"""The deployment files say what Ray, KubeRay, MLflow and our own command line understand, and agree with each other."""

import importlib.util
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import ray
import yaml
from mlflow.cli import cli as mlflow_cli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ray.scripts.scripts import cli as ray_cli

from pipelines.cli import parse
from vidflow import __version__
from vidflow.config.load import load_config
from vidflow.config.schema import Config
from vidflow.config.tracking_uri import check_uri
from vidflow.errors import ConfigError

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
            *(i + 1 for i, word in enumerate(words) if word in ("&&", "--") or word.endswith(";")),
            len(words) + 1,
        ]
        for start, end in itertools.pairwise(starts):
            command = words[start : end - 1]
            yield command[next((i for i, word in enumerate(command) if not re.match(r"[A-Z_]+=", word)), 0) :]


def commands_of(program: str) -> list[list[str]]:
    found = [command[1:] for command in commands() if command and Path(command[0]).name == program]
    assert found, f"no command starts {program}"
    return found


def pod_specs() -> dict[str, Any]:
    cluster = load_one("kuberay/rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"], **{g["groupName"]: g for g in cluster["workerGroupSpecs"]}}
    return {name: group["template"]["spec"] for name, group in groups.items()}


@pytest.fixture
def experiment(tmp_path: Path) -> Config:
    """The experiment of the ConfigMap, as `vidflow` reads it where the shared volume is a folder of the test."""
    (key, text), *others = load_one("kuberay/experiment.yaml", "ConfigMap")["data"].items()
    assert not others
    (tmp_path / key).write_text(text.replace("/srv/vidflow/", f"{tmp_path}/"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.csv").touch()
    return load_config([tmp_path / key])


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(INFRA)))
def test_a_yaml_file_parses_into_mappings(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    assert all(isinstance(document, dict) for document in documents)


def test_every_vidflow_command_exists() -> None:
    images = [
        command[command.index(f"vidflow:{__version__}") + 1 :]
        for command in commands_of("docker")
        if command[0] == "run"
    ]
    for arguments in [*commands_of("vidflow"), *images]:
        if arguments[1:] != ["..."]:
            parse(arguments)  # leaves with SystemExit where a command or an option is unknown


def test_every_submitted_module_is_a_stage_of_ours() -> None:
    modules = [words[1] for words in commands_of("python") if words[0] == "-m"]
    assert modules
    for module in modules:
        assert importlib.util.find_spec(module) is not None
        parse([module.removeprefix("pipelines."), "conf/x.yaml"])


@pytest.mark.parametrize(("program", "tree"), [("ray", ray_cli), ("mlflow", mlflow_cli)])
def test_commands_of_ray_and_mlflow_have_only_options_that_exist(program: str, tree: click.Group) -> None:
    server = load_one("mlflow/compose.yaml")["services"]["mlflow"]["command"]
    for words in commands_of("ray") if program == "ray" else [server[1:]]:
        command: click.Command = tree
        while isinstance(command, click.Group):
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


def test_files_named_in_commands_are_there() -> None:
    named = {word for command in commands() for word in command if re.match(r"(infra|conf)/", word)}
    missing = {name for name in named if not (ROOT / name).exists()}
    assert missing == {"conf/x.yaml"}, "conf/x.yaml stands for the reader's own"


def test_ray_cluster_follows_the_schema_of_ray_and_mounts_files_that_exist() -> None:
    cluster = load_one("ray-cluster.yaml")
    jsonschema.validate(cluster, json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text()))
    local = [ROOT / path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert [path.name for path in local if not path.exists() and path.name != PROJECT["readme"]] == []


def test_every_node_asks_for_the_token() -> None:
    cluster = load_one("ray-cluster.yaml")
    starts = [c for kind in ("head", "worker") for c in cluster[f"{kind}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert load_one("kuberay/rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_rayjob_finds_its_experiment_where_it_is_mounted() -> None:
    _, command, path = shlex.split(load_one("kuberay/rayjob.yaml", "RayJob")["spec"]["entrypoint"])
    config_map = load_one("kuberay/experiment.yaml", "ConfigMap")
    head = pod_specs()["head"]
    volume = next(v["name"] for v in head["volumes"] if v.get("configMap") == {"name": config_map["metadata"]["name"]})
    mount = next(m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == volume)
    assert command == "run"
    assert path in {f"{mount}/{key}" for key in config_map["data"]}


def test_pods_share_one_volume_one_image_and_one_user() -> None:
    claim = load_one("kuberay/rayjob.yaml", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for spec in pod_specs().values():
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["root"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {"name": "root", "mountPath": "/srv/vidflow"} in container["volumeMounts"]
        assert container["image"] == f"registry.example.com/vidflow:{__version__}"
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == 1000


def test_experiment_of_the_rayjob_is_valid_and_lies_on_the_shared_volume(experiment: Config, tmp_path: Path) -> None:
    assert Path(experiment.root).is_relative_to(tmp_path)
    assert Path(experiment.video.manifest or "").is_relative_to(tmp_path)
    assert experiment.tracking.uri is not None
    check_uri(experiment.tracking.uri, num_hosts=3)


def test_sqlite_is_refused_with_several_hosts_as_the_readme_says() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        check_uri("sqlite:////srv/vidflow/mlflow.db", num_hosts=2)


def test_a_worker_pod_holds_a_worker_of_every_stage(experiment: Config) -> None:
    limits = pod_specs()["gpu"]["containers"][0]["resources"]["limits"]
    for stage in (experiment.resources.shard, experiment.resources.extract, experiment.resources.trials):
        assert stage.num_cpus <= float(limits["cpu"])
        assert stage.num_gpus == "auto" or stage.num_gpus <= float(limits["nvidia.com/gpu"])


def test_versions_in_templates_are_the_pinned_ones() -> None:
    pinned = pins("constraints.txt")
    cluster = load_one("kuberay/rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == str(pinned["ray"])
    image = load_one("mlflow/compose.yaml")["services"]["mlflow"]["image"]
    assert image == f"ghcr.io/mlflow/mlflow:v{pinned['mlflow']}-full"


def test_compose_publishes_on_the_loopback_and_holds_no_password() -> None:
    compose = load_one("mlflow/compose.yaml")
    server, database = compose["services"]["mlflow"], compose["services"]["postgres"]
    assert server["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]
    assert "ports" not in database
    secrets = {k: v for s in (server, database) for k, v in s["environment"].items() if "PASSWORD" in k}
    assert len(secrets) == 2
    assert all(value.startswith("${POSTGRES_PASSWORD:?") for value in secrets.values())
    assert not re.search(r"://[^/\s]*:[^/\s]*@", (INFRA / "mlflow/compose.yaml").read_text())
    volumes = {mount.split(":")[0] for service in (server, database) for mount in service["volumes"]}
    assert volumes == set(compose["volumes"])


def test_nothing_binds_every_interface_without_saying_why_just_above() -> None:
    for path in (path for path in INFRA.rglob("*") if path.is_file() and path.suffix != ".md"):
        lines = path.read_text().splitlines()
        for above, line in zip(["", *lines], lines, strict=False):
            if "0.0.0.0" in line and not line.lstrip().startswith("#"):
                assert re.match(r"\s*#.*0\.0\.0\.0", above), f"{path}: {line}"


def test_constraints_pin_every_direct_dependency_at_a_version_it_allows() -> None:
    pinned = pins("constraints.txt")
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_cluster_constraints_pin_what_the_default_extra_of_ray_adds() -> None:
    pinned, added = pins("constraints.txt"), pins("constraints-cluster.txt")
    assert not pinned.keys() & added.keys()
    needed = [Requirement(text) for text in requires("ray") or [] if 'extra == "default"' in text]
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": "default"})]
    assert needed
    for requirement in needed:
        assert (pinned | added)[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_dockerfile_runs_our_script_as_another_user_than_root_and_copies_what_the_context_holds() -> None:
    steps = [line.split(maxsplit=1) for line in (INFRA / "Dockerfile").read_text().splitlines() if line[:1].isalpha()]
    script = next(text for word, text in steps if word == "ENTRYPOINT")
    assert script == '["vidflow"]'
    assert "vidflow" in PROJECT["scripts"]
    assert [text for word, text in steps if word == "USER"] == ["vidflow"]
    copied = {source for word, text in steps if word == "COPY" for source in text.split()[:-1]}
    sent = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    assert {name for name in copied if not (ROOT / name).exists()} <= {PROJECT["readme"]}
