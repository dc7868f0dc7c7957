"""What KubeRay 1.5 and newer accept in a RayJob and a RayCluster, as JSON schemas.

Source: the API reference of KubeRay (https://ray-project.github.io/kuberay/reference/api/), its fields, types, choices
and required fields in our words. Pods are left open here; the schema of Kubernetes itself checks them.
"""

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
POD: Schema = {"type": "object"}


def fields(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


HEAD_GROUP = fields(
    "rayStartParams",
    "template",
    template=POD,
    headService={"type": "object"},
    enableIngress=FLAG,
    rayStartParams=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
)
WORKER_GROUP = fields(
    "groupName",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    rayStartParams=TEXTS,
    scaleStrategy=fields(workersToDelete={"type": "array", "items": TEXT}),
    template=POD,
)
AUTOSCALER = fields(
    resources={"type": "object"},
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    securityContext={"type": "object"},
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
CLUSTER = fields(
    "headGroupSpec",
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    authOptions=fields("mode", mode=one_of("disabled", "token")),
    gcsFaultToleranceOptions={"type": "object"},
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    suspend=FLAG,
)
JOB = fields(
    "entrypoint",
    "rayClusterSpec",
    activeDeadlineSeconds={"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=POD,
    metadata=TEXTS,
    submitterConfig=fields(backoffLimit=COUNT),
    managedBy=TEXT,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    entrypointResources=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
KINDS = {
    kind: fields(
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(kind),
        metadata=fields("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
        spec=spec,
    )
    for kind, spec in (("RayJob", JOB), ("RayCluster", CLUSTER))
}
