"""The deployment files say what Ray, MLflow and our own command line understand, and agree with each other."""

import importlib.util
import json
import re
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
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli
from templates import INFRA, PROJECT, ROOT, YAML_FILES, commands, commands_of, load_one, pins

from pipelines.cli import parse
from vidflow import __version__
from vidflow.config.tracking_uri import check_uri
from vidflow.errors import ConfigError


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
    for arguments in [*commands_of("vidflow"), *commands_of("vidflow-job"), *images]:
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
    servers = [
        load_one("mlflow/compose.yaml")["services"]["mlflow"]["command"],
        load_one("mlflow/kubernetes.yaml", "Deployment")["spec"]["template"]["spec"]["containers"][0]["command"],
    ]
    for words in commands_of("ray") if program == "ray" else [server[1:] for server in servers]:
        command: click.Command = tree
        while isinstance(command, click.Group):
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words if re.match("--?[a-z]", word)} <= known


def test_files_named_in_commands_are_there() -> None:
    named = {word for command in commands() for word in command if re.match(r"(infra|conf)/", word)}
    missing = {name for name in named if not (ROOT / name).exists()}
    assert missing == {"conf/x.yaml"}, "conf/x.yaml stands for the reader's own"


def test_ray_cluster_follows_the_schema_of_ray_and_mounts_files_that_exist() -> None:
    cluster = load_one("ray-cluster.yaml")
    jsonschema.validate(cluster, json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text()))
    local = [ROOT / path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert [path.name for path in local if not path.exists() and path.name != PROJECT["readme"]] == []


def test_ray_up_fills_in_the_cluster_and_wants_every_machine_at_once() -> None:
    prepared = prepare_config(load_one("ray-cluster.yaml"))
    validate_config(prepared)
    (machines,) = prepared["available_node_types"].values()
    assert machines["min_workers"] == machines["max_workers"] == len(prepared["provider"]["worker_ips"])


def test_every_node_asks_for_the_token() -> None:
    cluster = load_one("ray-cluster.yaml")
    starts = [c for kind in ("head", "worker") for c in cluster[f"{kind}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_sqlite_is_refused_with_several_hosts_as_the_readme_says() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        check_uri("sqlite:////srv/vidflow/mlflow.db", num_hosts=2)


def test_a_server_gets_no_advice_to_run_vidflow_ui() -> None:
    assert [c for c in commands_of("vidflow") if c[0] == "ui"] == [["ui", "conf/demo.yaml"]], "the laptop's own store"
    for path in (path for path in INFRA.rglob("*") if path.is_file() and path.suffix != ".md"):
        assert "vidflow ui" not in path.read_text(), path


def test_compose_publishes_on_the_loopback_and_holds_no_secret() -> None:
    compose = load_one("mlflow/compose.yaml")
    server, database = compose["services"]["mlflow"], compose["services"]["postgres"]
    assert server["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]
    assert "ports" not in database
    secrets = {k: v for s in (server, database) for k, v in s["environment"].items() if "PASSWORD" in k}
    assert len(secrets) == 2
    assert all(value.startswith("${POSTGRES_PASSWORD:?") for value in secrets.values())
    passed_on = {k: v for k, v in server["environment"].items() if k.startswith("AWS_")}
    assert set(passed_on) >= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert set(passed_on.values()) == {None}, "compose passes the variable on, if there is one"
    assert not re.search(r"://[^/\s]*:[^/\s]*@", (INFRA / "mlflow/compose.yaml").read_text())
    volumes = {mount.split(":")[0] for service in (server, database) for mount in service["volumes"]}
    assert volumes == set(compose["volumes"])


def test_compose_and_kubernetes_run_the_same_images_which_are_those_of_the_pinned_mlflow() -> None:
    def default(image: str) -> str:
        return re.sub(r"\$\{\w+:-(.*)\}", r"\1", image)

    services = load_one("mlflow/compose.yaml")["services"]
    composed = {default(service["image"]) for service in services.values()}
    assert composed == {"postgres:17", f"ghcr.io/mlflow/mlflow:v{pins('constraints.txt')['mlflow']}-full"}
    pods: list[Any] = [load_one("mlflow/kubernetes.yaml", kind)["spec"] for kind in ("StatefulSet", "Deployment")]
    pods.append(load_one("mlflow/kubernetes.yaml", "CronJob")["spec"]["jobTemplate"]["spec"])
    assert {pod["template"]["spec"]["containers"][0]["image"] for pod in pods} == composed


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


def test_constraints_pin_what_the_default_extra_of_ray_adds() -> None:
    pinned = pins("constraints.txt")
    needed = [Requirement(text) for text in requires("ray") or [] if 'extra == "default"' in text]
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": "default"})]
    assert needed
    for requirement in needed:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


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
