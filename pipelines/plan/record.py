"""The plan that `vidflow plan` wrote; the sweep compares it with the actual costs of the stages."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vidflow.config.fingerprints import fingerprint
from vidflow.config.roots import root_path
from vidflow.config.schema import Config
from vidflow.stages.address import Address
from vidflow.stages.experiment import Experiment, is_reduced_from_cache
from vidflow.store.layout import read_json

PLAN = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Predicted or actual cost of one stage.

    Attributes:
        seconds: Worker seconds.
        num_bytes: Bytes on disk.
    """

    seconds: float
    num_bytes: float


def locate_plan(config: Config) -> Path:
    """Return the path of an experiment's plan; the sweep's folder is not known before the videos are scanned."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("root", "resources", "report")}
    return root_path(config) / "plans" / fingerprint(settings) / PLAN


def compare_with_plan(experiment: Experiment, sweep: StageCost) -> dict[str, float]:
    """Return `plan/STAGE_seconds_predicted`, `plan/STAGE_seconds_actual` and the same for bytes; empty without a plan.

    Args:
        experiment: The experiment; every stage before the sweep is finished.
        sweep: Actual cost of the sweep.
    """
    plan = read_json(locate_plan(experiment.config))
    if plan is None:
        return {}
    planned: dict[str, dict[str, float]] = plan["stages"]
    metrics: dict[str, float] = {}
    actual = {**dict(_actual_costs(experiment)), "sweep": sweep}
    for stage in planned.keys() & actual.keys():
        for name, predicted, paid in (
            ("seconds", planned[stage]["seconds"], actual[stage].seconds),
            ("bytes", planned[stage]["num_bytes"], actual[stage].num_bytes),
        ):
            metrics |= {f"plan/{stage}_{name}_predicted": predicted, f"plan/{stage}_{name}_actual": float(paid)}
    return metrics


def _actual_costs(experiment: Experiment) -> Iterator[tuple[str, StageCost]]:
    """Yield the actual costs of the finished stages before the sweep."""
    addresses: list[tuple[str, Address]] = []
    if experiment.config.video.manifest is None:
        addresses.append(("synth", experiment.videos))
    if experiment.shards is not None:
        addresses.append(("shard", experiment.shards.address))
        for name, address in experiment.features.items():
            addresses.append((f"extract/{name}", address))
            if is_reduced_from_cache(experiment.config.features[name]):
                addresses.append((f"extract/{name}-dense", experiment.dense(name)))
    for stage, address in addresses:
        if (manifest := experiment.manifest(address)) is not None:
            yield stage, StageCost(seconds=manifest.worker_seconds, num_bytes=manifest.num_bytes)
