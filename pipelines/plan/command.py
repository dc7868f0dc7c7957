"""Predict the cost of an experiment before anything starts: `vidflow plan CONFIG.yaml`."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipelines.placement import Part, count_fitting, place_workers, this_machine
from pipelines.plan.core_cost import CoreMacs, core_macs
from pipelines.plan.measure import (
    DiskSpeed,
    FeatureProbe,
    Rate,
    ShardProbe,
    StepTime,
    listed_videos,
    probe_disk,
    probe_features,
    probe_shard,
    probe_step,
    probe_videos,
)
from pipelines.plan.nodes import Nodes, extrapolate
from pipelines.plan.record import StageCost, locate_plan
from pipelines.plan.table import PlannedStage, TrialKind, table
from pipelines.ray_pool import log
from vidflow.config.roots import disk_folder
from vidflow.config.schema import Config, FeatureSet, Resources, Trial
from vidflow.config.search import draw_candidates
from vidflow.objects import is_mirror
from vidflow.records import StageManifest
from vidflow.stages.cost import TrialMacs, trial_macs
from vidflow.stages.experiment import Experiment, dense_features, is_reduced_from_cache
from vidflow.stages.scanned_rows import SQUARES
from vidflow.stages.trial_clips import unread_features
from vidflow.store.layout import publish_json


def main(experiment: Experiment, nodes: Nodes | None = None) -> None:
    """Measure, print the table and store the plan, so that the sweep can compare with it.

    Args:
        experiment: The experiment.
        nodes: Nodes to extrapolate to; None: only this machine.

    Raises:
        ConfigError: If nothing is known about the speed of these nodes, or a worker does not fit on them.
    """
    config = experiment.config
    machines = nodes.machines(this_machine()[0]) if nodes is not None else []
    place = disk_folder(experiment.root)
    with experiment.exclusive():
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".plan-", dir=place))
        try:
            stages, disk = make_plan(experiment, folder)
        finally:
            shutil.rmtree(folder)
        publish_json(
            locate_plan(config),
            {
                "stages": {line.stage: asdict(line.cost) for line in stages if line.cost is not None},
                "lines": [asdict(line) for line in stages],
                "disk_bytes_per_second": asdict(disk),
            },
        )
    lines = table(stages, disk, None if is_mirror(experiment.root) else shutil.disk_usage(place).free)
    print("\n".join([*lines, *(extrapolate(stages, config, machines) if machines else [])]))
    log.info("plan: %s; next: %s", locate_plan(config), experiment.command("run"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Number of clips of the experiment: counted if every video has been scanned, else estimated."""

    num_videos: int
    num_unscanned: int
    num_clips: int
    num_train: int
    num_val: int


def make_plan(experiment: Experiment, folder: Path) -> tuple[list[PlannedStage], DiskSpeed]:
    """Measure and return the plan's lines and the speed of the disk."""
    config = experiment.config
    for name in ("videos", "shards", "trials"):
        (folder / name).mkdir()
    log.info("plan: measuring the disk and a few videos")
    disk = probe_disk(folder)
    items, rendering = probe_videos(experiment, folder / "videos")
    shards = probe_shard(config, items, folder / "shards")
    splits = _count(experiment, shards)
    stages = _video_stages(experiment, splits, rendering, shards)
    probes: dict[str, FeatureProbe] = {}
    for name, done, dense in _feature_jobs(experiment):
        log.info("plan: measuring features %s", name)
        features = config.features.get(name) or dense_features(config.features[name.removesuffix("-dense")])
        probes[name] = probe_features(config, features, shards, probes.get(dense), _made(folder, name))
        stages.append(_feature_stage(config, name, features, probes, dense, splits, disk, done))
    stages.append(_sweep_stage(config, shards, probes, splits, folder / "trials"))
    return stages, disk


def _made(folder: Path, name: str) -> Path:
    directory = folder / "features" / name
    directory.mkdir(parents=True)
    return directory


def _count(experiment: Experiment, shards: ShardProbe) -> Splits:
    """Count videos and clips by split."""
    names = experiment.config.trials.splits
    if experiment.has_rows:
        videos = experiment.rows[0].table["split"].to_pylist()
        num_unscanned = len(experiment.list_unscanned())
    else:
        videos = [str(video.split) for video in listed_videos(experiment.config)]
        num_unscanned = len(videos)
    work = experiment.shards
    if work is not None:
        clips, per_video = Counter(work.clips.splits), 1.0
    else:
        clips, per_video = Counter(videos), shards.clips_per_video
        plain = experiment.config.plain_split
        clips = Counter(
            {name: number * (1 if plain in (None, name) else len(SQUARES)) for name, number in clips.items()}
        )
    return Splits(
        num_videos=len(videos),
        num_unscanned=num_unscanned,
        num_clips=round(clips.total() * per_video),
        num_train=round(clips[names.train] * per_video),
        num_val=round(clips[names.val] * per_video),
    )


def _video_stages(
    experiment: Experiment, splits: Splits, rendering: Rate | None, shards: ShardProbe
) -> list[PlannedStage]:
    """Return the lines of rendering, scanning and sharding."""
    num_workers = count_workers(experiment.config.resources, "shard")
    lines = []
    if experiment.config.video.manifest is None:
        cost = None
        if rendering is not None:
            cost = StageCost(
                seconds=rendering.seconds * splits.num_videos, num_bytes=rendering.num_bytes * splits.num_videos
            )
        rendered = experiment.manifest(experiment.videos)
        lines.append(_line("synth", cost, splits.num_videos, num_workers, rendered))
    scan = StageCost(seconds=shards.scan_seconds * splits.num_unscanned, num_bytes=0) if splits.num_unscanned else None
    lines.append(_line("scan", scan, splits.num_videos, num_workers, None))
    done = experiment.manifest(experiment.shards.address) if experiment.shards is not None else None
    cost = StageCost(seconds=shards.rate.seconds * splits.num_clips, num_bytes=shards.rate.num_bytes * splits.num_clips)
    lines.append(_line("shard", None if done is not None else cost, splits.num_clips, num_workers, done))
    return lines


def _line(
    stage: str, cost: StageCost | None, num_units: int, num_workers: int, done: StageManifest | None
) -> PlannedStage:
    return PlannedStage(
        stage=stage,
        cost=cost,
        num_units=num_units,
        num_workers=num_workers,
        stored_bytes=done.num_bytes if done is not None else 0,
    )


def _feature_jobs(experiment: Experiment) -> Iterator[tuple[str, StageManifest | None, str]]:
    """Yield every feature set to measure, dense sets first: name, manifest if it exists, name of its dense set."""
    config, is_known = experiment.config, experiment.shards is not None
    done = {name: experiment.manifest(at) for name, at in experiment.features.items()} if is_known else {}
    unread = unread_features(config)
    stored = {name: each for name, each in config.features.items() if name not in unread}
    encoded = {name: each for name, each in stored.items() if not is_reduced_from_cache(each)}
    for name in encoded:
        yield name, done.get(name), ""
    dense_of = {json.dumps(asdict(features)): name for name, features in encoded.items()}
    for name, features in stored.items():
        if name in encoded:
            continue
        key = json.dumps(asdict(dense_features(features)))
        if key not in dense_of:
            dense_of[key] = f"{name}-dense"
            yield f"{name}-dense", experiment.manifest(experiment.dense(name)) if is_known else None, ""
        yield name, done.get(name), dense_of[key]


def _feature_stage(
    config: Config,
    name: str,
    features: FeatureSet,
    probes: Mapping[str, FeatureProbe],
    dense: str,
    splits: Splits,
    disk: DiskSpeed,
    done: StageManifest | None,
) -> PlannedStage:
    """Return the line of one feature set."""
    probe = probes[name]
    num_files = -(-splits.num_clips // config.shards.clips_per_shard)
    num_bytes = probe.rate.num_bytes * splits.num_clips + probe.rate.file_bytes * num_files
    seconds = probe.rate.seconds * splits.num_clips + probe.rate.file_seconds * num_files
    passes = num_passes(config, name)
    # Features made from dense ones would be made from them again, so the dense ones are read and reduced.
    source = probes[dense].rate.num_bytes * splits.num_clips / disk.read if dense else 0.0
    return PlannedStage(
        stage=f"extract/{name}",
        cost=None if done is not None else StageCost(seconds=seconds, num_bytes=num_bytes),
        num_units=splits.num_clips,
        num_workers=count_workers(config.resources, "extract"),
        stored_bytes=done.num_bytes if done is not None else 0,
        num_frames=config.video.sampling.num_frames,
        tokens_per_frame=probe.tokens_per_frame,
        gflops_per_frame=0.0 if is_reduced_from_cache(features) else probe.gflops_per_frame,
        num_passes=passes,
        recompute_seconds=passes * (seconds + source),
        read_seconds=seconds + num_bytes / disk.write + passes * num_bytes / disk.read,
    )


def _sweep_stage(
    config: Config, shards: ShardProbe, probes: Mapping[str, FeatureProbe], splits: Splits, directory: Path
) -> PlannedStage:
    """Measure a step of every core and return the line of all trials, assuming that none is stopped early."""
    trials, number = draw_candidates(config)[0], num_trials(config)
    steps: dict[str, StepTime] = {}
    macs: dict[str, TrialMacs | None] = {}
    of_cores: dict[str, CoreMacs | None] = {}
    drawn: Counter[tuple[str, str, int, float]] = Counter()
    for trial in trials:
        kind = _kind(config, trial)
        if kind not in steps:
            log.info("plan: measuring a training step of %s", trial.core)
            features = None if trial.feed == "shards" else probes[trial.features]
            steps[kind] = probe_step(config, trial, shards, features, directory / str(len(steps)))
            macs[kind] = trial_macs(config, trial)
            stored = None if features is None or trial.unmerge else features.tokens_per_frame
            of_cores[kind] = core_macs(config, trial, stored_tokens=stored)
        drawn[kind, _name_kind(trial), trial.epochs, trial.train_fraction] += 1
    kinds = tuple(
        TrialKind(
            name=name,
            num_trials=count * number / len(trials),
            epochs=epochs,
            epoch_seconds=share * splits.num_train * steps[kind].train + splits.num_val * steps[kind].validate,
            macs=macs[kind],
            core_macs=of_cores[kind],
        )
        for (kind, name, epochs, share), count in drawn.items()
    )
    cost = StageCost(
        seconds=sum(each.num_trials * each.epochs * each.epoch_seconds for each in kinds),
        num_bytes=sum(file.stat().st_size for file in directory.glob("*/*")) / max(1, len(steps)) * number,
    )
    processes = config.resources.trials.workers_per_trial
    workers = processes * count_workers(config.resources, "trials")
    return PlannedStage(
        stage="sweep", cost=cost, num_units=number, num_workers=workers, processes=processes, kinds=kinds
    )


def _name_kind(trial: Trial) -> str:
    """Return what is printed of trials that cost the same."""
    name = trial.core + (f", factor {trial.vtm_factor}" if trial.core == "vtm" else "")
    name += ", adapter" if trial.token_adapter else ""
    name += f", {trial.train_fraction:.2g} of the videos" if trial.train_fraction < 1 else ""
    if trial.feed != "features":
        return f"{name} on {trial.feed}" + (f", {trial.adaptation}" if trial.adaptation is not None else "")
    return name if trial.unmerge else f"{name} on {trial.features}"


def _kind(config: Config, trial: Trial) -> str:
    """Return a key of what a step's time depends on; the reducer does not matter if tokens are unmerged on reading."""
    alike = replace(
        trial,
        seed=0,
        learning_rate=1.0,
        weight_decay=0.0,
        warmup_fraction=0.0,
        grad_clip=1.0,
        epochs=1,
        train_fraction=1.0,
        init_from=None,
        features="" if trial.unmerge and trial.feed == "features" else trial.features,
    )
    return json.dumps([asdict(alike), config.features[trial.features].depths])


def num_trials(config: Config) -> int:
    """Return how many trials the sweep runs."""
    trials = config.trials
    return trials.num_samples if trials.algorithm == "optuna" else len(draw_candidates(config)[0])


def num_passes(config: Config, features: str) -> int:
    """Return how often the trials read a whole feature set."""
    trials = draw_candidates(config)[0]
    total = sum(trial.epochs for trial in trials if trial.features == features and trial.feed != "shards")
    return round(total * num_trials(config) / max(1, len(trials)))


def count_workers(resources: Resources, part: Part) -> int:
    """Return how many workers this machine can run at the same time; a cluster may run more."""
    machines = this_machine()
    placement = place_workers(resources, part, machines)
    fitting = count_fitting(placement, machines)
    return max(1, min(placement.workers or fitting, fitting))
