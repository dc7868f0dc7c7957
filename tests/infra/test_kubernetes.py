"""The manifests say what Kubernetes and KubeRay accept, hold no secret, and agree with each other and with vidflow."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kuberay_schema import KINDS
from templates import INFRA, load_one, pins

from vidflow import __version__
from vidflow.config.load import load_config
from vidflow.config.schema import Config
from vidflow.config.tracking_uri import check_uri

KUBERNETES = "1.33"
FILES = [*sorted((INFRA / "kuberay").glob("*.yaml")), INFRA / "mlflow/kubernetes.yaml"]


def documents() -> list[Any]:
    return [document for path in FILES for document in yaml.safe_load_all(path.read_text())]


def cluster_spec() -> Any:
    return load_one("kuberay/rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"]


def pod_specs() -> dict[str, Any]:
    cluster = cluster_spec()
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


@pytest.mark.parametrize("document", documents(), ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_a_manifest_follows_the_schema_of_its_kind(document: Any) -> None:
    if document["kind"] in KINDS:
        jsonschema.validate(document, KINDS[document["kind"]])
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("group", ["head", "cpu", "gpu"])
def test_pods_of_a_cluster_follow_the_schema_of_kubernetes(group: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}, "spec": pod_specs()[group]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_misspelt_field_is_found() -> None:
    job = load_one("kuberay/rayjob.yaml", "RayJob")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(job, KINDS["RayJob"])


def test_the_cluster_that_stays_is_the_cluster_of_a_job() -> None:
    assert load_one("kuberay/raycluster.yaml", "RayCluster")["spec"] == cluster_spec()


def test_groups_grow_and_shrink_with_the_work_and_only_gpu_pods_go_to_tainted_machines() -> None:
    spec = cluster_spec()
    assert spec["enableInTreeAutoscaling"]
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}, "the head does no work"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    assert groups["gpu"]["minReplicas"] == 0, "no GPU is paid for while none is needed"
    for name, pod in pod_specs().items():
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        limits = pod["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == ("nvidia.com/gpu" in tolerated) == (name == "gpu")


def test_a_job_ends_some_day_and_its_cluster_with_it() -> None:
    spec = load_one("kuberay/rayjob.yaml", "RayJob")["spec"]
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0


def test_a_job_finds_its_experiment_where_it_is_mounted_and_its_script_in_the_image() -> None:
    script, command, path = shlex.split(load_one("kuberay/rayjob.yaml", "RayJob")["spec"]["entrypoint"])
    config_map = load_one("kuberay/experiment.yaml", "ConfigMap")
    head = pod_specs()["head"]
    volume = next(v["name"] for v in head["volumes"] if v.get("configMap", {}).get("name") == "vidflow-experiment")
    mount = next(m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == volume)
    assert config_map["metadata"]["name"] == "vidflow-experiment"
    assert command == "run"
    assert path in {f"{mount}/{key}" for key in config_map["data"]}
    assert f"COPY infra/kuberay/{script} /usr/local/bin/" in (INFRA / "Dockerfile").read_text()
    assert os.access(INFRA / "kuberay" / script, os.X_OK)


def test_pods_share_one_volume_one_image_and_one_user_and_have_a_cache_of_their_own() -> None:
    claim = load_one("kuberay/storage.yaml", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for spec in pod_specs().values():
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["root"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {"name": "root", "mountPath": "/srv/vidflow"} in container["volumeMounts"]
        assert {"name": "cache", "mountPath": "/home/vidflow/.cache"} in container["volumeMounts"]
        size = re.fullmatch(r"(\d+)Gi", volumes["cache"]["emptyDir"]["sizeLimit"])
        disk = re.fullmatch(r"(\d+)Gi", container["resources"]["limits"]["ephemeral-storage"])
        assert size is not None
        assert disk is not None
        assert int(size[1]) < int(disk[1]), "a full cache must not cost the pod its place"
        assert container["image"] == f"registry.example.com/vidflow:{__version__}"
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == 1000


def test_every_node_asks_for_the_token_and_versions_are_the_pinned_ones() -> None:
    assert cluster_spec()["authOptions"] == {"mode": "token"}
    assert cluster_spec()["rayVersion"] == str(pins("constraints.txt")["ray"])


def variables(part: Any) -> list[dict[str, Any]]:
    """Every entry of every `env` below a part of a manifest."""
    if isinstance(part, list):
        return [found for inner in part for found in variables(inner)]
    if not isinstance(part, dict):
        return []
    return [*part.get("env", []), *(found for inner in part.values() for found in variables(inner))]


def test_secrets_are_named_and_never_written() -> None:
    assert "Secret" not in {document["kind"] for document in documents()}
    hidden = [v for v in variables(documents()) if re.search("PASSWORD|SECRET|TOKEN|KEY", v["name"])]
    assert {v["name"] for v in hidden} == {"POSTGRES_PASSWORD", "PGPASSWORD"}
    assert all("value" not in v and "secretKeyRef" in v["valueFrom"] for v in hidden)
    for name, pod in pod_specs().items():
        sources = {source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"]}
        assert sources == {"vidflow-object-store"} | ({"vidflow-tracking"} if name == "head" else set())


def test_experiment_is_valid_and_lies_on_the_shared_volume(experiment: Config, tmp_path: Path) -> None:
    assert Path(experiment.root).is_relative_to(tmp_path)
    assert Path(experiment.video.manifest or "").is_relative_to(tmp_path)
    assert experiment.tracking.uri == "http://mlflow:5000", "the Service of mlflow/kubernetes.yaml"
    check_uri(experiment.tracking.uri, num_hosts=3)


def test_each_stage_fits_a_pod_of_its_group(experiment: Config) -> None:
    limits = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pod_specs().items()}
    for group, stage in (("cpu", "shard"), ("gpu", "extract"), ("gpu", "trials")):
        wanted = getattr(experiment.resources, stage)
        assert wanted.num_cpus <= float(limits[group]["cpu"])
        assert wanted.num_gpus == "auto" or wanted.num_gpus <= float(limits[group].get("nvidia.com/gpu", 0))


def test_services_policies_and_claims_of_mlflow_name_pods_and_volumes_that_exist() -> None:
    parts = list(yaml.safe_load_all((INFRA / "mlflow/kubernetes.yaml").read_text()))
    pods = [p["spec"]["template"] for p in parts if p["kind"] in ("StatefulSet", "Deployment")]
    pods += [p["spec"]["jobTemplate"]["spec"]["template"] for p in parts if p["kind"] == "CronJob"]
    labels = {pod["metadata"]["labels"]["app"] for pod in pods}
    services = {p["metadata"]["name"]: p["spec"]["selector"]["app"] for p in parts if p["kind"] == "Service"}
    assert services == {"mlflow": "mlflow", "mlflow-database": "mlflow-database"}
    policies = [p["spec"] for p in parts if p["kind"] == "NetworkPolicy"]
    assert {policy["podSelector"]["matchLabels"]["app"] for policy in policies} == {"mlflow", "mlflow-database"}
    assert labels == {"mlflow", "mlflow-database", "mlflow-backup"}
    claims = {p["metadata"]["name"] for p in parts if p["kind"] == "PersistentVolumeClaim"}
    used = {v["persistentVolumeClaim"]["claimName"] for pod in pods for v in pod["spec"].get("volumes", [])}
    assert claims == used
    assert all(pod["spec"]["securityContext"]["runAsNonRoot"] for pod in pods)
