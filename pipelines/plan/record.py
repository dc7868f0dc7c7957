"""The plan that `vidflow plan` left, for the sweep to compare with what its stages have taken."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vidflow.config.fingerprints import fingerprint
from vidflow.config.schema import Config
from vidflow.stages.finish import summarize_stage
from vidflow.stages.locate import (
    Address,
    is_reduced_from_cache,
    locate_dense,
    locate_shards,
    locate_videos,
    root_of,
)
from vidflow.store.layout import read_json

PLAN = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage takes, or has taken.

    Attributes:
        seconds: Worker seconds; of rendering, which is not counted by worker, wall seconds.
        num_bytes: Bytes on disk.
    """

    seconds: float
    num_bytes: float


def locate_plan(config: Config) -> Path:
    """Return where the plan of an experiment lies; before the videos are scanned the sweep has no address yet."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("root", "resources", "report")}
    return root_of(config) / "plans" / fingerprint(settings) / PLAN


def compare_with_plan(config: Config, features: Mapping[str, Address], sweep: StageCost) -> dict[str, float]:
    """Return `plan/STAGE_seconds_predicted`, `plan/STAGE_seconds_actual` and the same of bytes; empty without a plan.

    Args:
        config: The experiment, of which every stage up to the sweep is finished.
        features: Where each feature set lies.
        sweep: What the sweep has taken.
    """
    plan = read_json(locate_plan(config))
    if plan is None:
        return {}
    planned: dict[str, dict[str, float]] = plan["stages"]
    metrics: dict[str, float] = {}
    actual = {**dict(_actual_costs(config, features)), "sweep": sweep}
    for stage in planned.keys() & actual.keys():
        for name, predicted, paid in (
            ("seconds", planned[stage]["seconds"], actual[stage].seconds),
            ("bytes", planned[stage]["num_bytes"], actual[stage].num_bytes),
        ):
            metrics |= {f"plan/{stage}_{name}_predicted": predicted, f"plan/{stage}_{name}_actual": float(paid)}
    return metrics


def _actual_costs(config: Config, features: Mapping[str, Address]) -> Iterator[tuple[str, StageCost]]:
    """Yield what the finished stages before the sweep have taken."""
    addresses: list[tuple[str, Address]] = []
    if config.video.manifest is None:
        addresses.append(("synth", locate_videos(config)))
    work = locate_shards(config)
    if work is not None:
        addresses.append(("shard", work.address))
        for name, address in features.items():
            addresses.append((f"extract/{name}", address))
            if is_reduced_from_cache(config.features[name]):
                addresses.append((f"extract/{name}-dense", locate_dense(config, name, work.address)))
    for stage, address in addresses:
        summary = summarize_stage(address)
        if summary is not None:
            yield stage, StageCost(seconds=summary.seconds, num_bytes=summary.num_bytes)
