"""Scan, decode and pack videos: `vidflow shard CONFIG.yaml`."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.commit import commit_units
from pipelines.entry import run_stage
from pipelines.isolation import map_isolated
from pipelines.ray_pool import log
from pipelines.ray_session import place, ray_session
from vidflow.config.roots import build_bounded
from vidflow.config.schema import Config
from vidflow.errors import TooManyRejectsError
from vidflow.records import Reject, StageManifest
from vidflow.stages.clips import ShardUnit
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import REJECTS_TABLE, finish_stage, publish_manifest, write_rejects
from vidflow.stages.reject_limit import built_rejects, count_reasons, first_of_each_reason, limit_problem
from vidflow.stages.scan import VideoScanner, refuse_scan
from vidflow.stages.shard import ShardBuilder
from vidflow.stages.shard_work import ShardWork, edition_of
from vidflow.stages.transient import is_due
from vidflow.stages.wanted_rows import split_problems
from vidflow.store.features import ClipRow
from vidflow.store.layout import FileEntry

VIDEOS_PER_SCAN = 64


def main(experiment: Experiment) -> None:
    """Make the missing shards.

    Raises:
        ConfigError: If the manifest cannot be read.
        TooManyRejectsError: If more than `shards.max_reject_fraction` of its rows are rejected.
    """
    with experiment.exclusive():
        for problem in split_problems(experiment.config, experiment.rows[0]) if not experiment.runs_on else ():
            log.warning("shard: trials will be refused: %s", problem)
        work = experiment.shards
        experiment.index.compact()  # a run that was killed left many parts
        if work is not None and _is_done(experiment, work):
            return
        with ray_session(experiment.config):
            work = work or _scan(experiment)
            if not _is_done(experiment, work):
                _build(experiment, work)


def _is_done(experiment: Experiment, work: ShardWork) -> bool:
    """Whether the shards are finished; also update the table of rejects, and refuse if there are too many rejects."""
    manifest = experiment.manifest(work.address)
    built = built_rejects(manifest) if manifest is not None else []
    _check_rejects(experiment.config, work, built)
    if manifest is None:
        return False
    _update_rejects(work, manifest, [*work.rejects, *built])
    experiment.published("shard")
    log.info("shard: already done, %d clips in %s", manifest.num_clips, work.address.directory)
    return True


def _update_rejects(work: ShardWork, manifest: StageManifest, rejects: Sequence[Reject]) -> None:
    """Publish the rejects again; if rows with broken videos came or went, the table changes but the shards do not."""
    write_rejects(work.address, rejects)
    details = {**manifest.details, "plan_rejects": work.rejects_digest}
    publish_manifest(work.address, replace(manifest, num_rejects=len(rejects), details=details))


def _scan(experiment: Experiment) -> ShardWork:
    """Hash and probe the files that are not scanned yet, then choose clips."""
    config, index, inputs = experiment.config, experiment.index, experiment.list_unscanned()
    units = [inputs[start : start + VIDEOS_PER_SCAN] for start in range(0, len(inputs), VIDEOS_PER_SCAN)]
    build = functools.partial(build_bounded, config, VideoScanner, **asdict(experiment.limits))
    started = time.monotonic()
    give_up = functools.partial(refuse_scan, experiment.limits)
    for rows in map_isolated(build, units, place(config, "shard"), name="scan", counted="files", give_up=give_up):
        index.add(rows)
    index.compact()
    experiment.published("scan")
    seconds = time.monotonic() - started
    log.info("scan: %d files -> %s (%.1f files/s)", len(inputs), index.directory, len(inputs) / seconds)
    return experiment.choose_shards()


def _build(experiment: Experiment, work: ShardWork) -> None:
    started = time.monotonic()
    config, limits = experiment.config, experiment.limits
    build = build_shard_builder(config, work.address.directory)
    entries, made = commit_units(
        work.address.directory,
        build,
        work.units,
        place(config, "shard"),
        name="shard",
        num_clips=lambda unit: len(unit.clips),
        is_current=lambda _, entry: not is_due(entry, limits),
        isolates=True,
    )
    rejects = [Reject(**row) for entry in entries for row in entry.rejects]
    _check_rejects(config, work, rejects)
    finish_stage(
        replace(work.address, edition=edition_of(rejects)),
        stage="shard",
        entries=entries,
        clips=_clip_rows(work.units, entries),
        rejects=[*work.rejects, *rejects],
        wall_seconds=time.monotonic() - started,
        class_names=work.class_names,
        plan_rejects=work.rejects_digest,
        build_rejects=[asdict(reject) for reject in rejects],
    )
    experiment.published("shard")
    num_clips = sum(entry.num_clips for entry in made)
    for line in first_of_each_reason([*work.rejects, *rejects]):
        log.warning("shard: left out: %s", line.strip())
    if not any(entry.num_clips for entry in entries):
        log.warning(
            "shard: EMPTY, all %d rows are rejected (%s); `%s` says why",
            work.num_rows,
            count_reasons([*work.rejects, *rejects]),
            experiment.command("rejects list"),
        )
        return
    log.info(
        "shard: %d clips in %d shards, %d rejects -> %s (%.1f clips/s)%s",
        num_clips,
        len(made),
        len(work.rejects) + len(rejects),
        work.address.directory,
        num_clips / (time.monotonic() - started),
        experiment.then("extract"),
    )


def build_shard_builder(config: Config, directory: Path) -> Callable[[], ShardBuilder]:
    """Return a function that builds a worker of this stage."""
    return functools.partial(
        build_bounded,
        config,
        ShardBuilder,
        directory=directory,
        timeout_seconds=config.resources.decode_timeout_seconds,
        memory_mib=config.resources.decode_memory_mib,
        decoder=config.video.decoder,
        size=config.video.size,
        resize_filter=config.video.resize_filter,
        short_side=config.video.short_side,
        crop=config.video.crop,
        image_format=config.shards.image_format,
        jpeg_quality=config.shards.jpeg_quality,
    )


def _clip_rows(units: Sequence[ShardUnit], entries: Sequence[FileEntry]) -> Iterator[ClipRow]:
    """Yield the file and row of each clip that was not left out, of all shards."""
    for unit, entry in zip(units, entries, strict=True):
        left_out = {row["key"] for row in entry.rejects}
        kept = (row for row in unit.rows if row.key not in left_out)
        yield from (replace(row, row=number) for number, row in enumerate(kept))


def _check_rejects(config: Config, work: ShardWork, built: Sequence[Reject]) -> None:
    """Refuse to continue if too many rows are rejected."""
    if problem := limit_problem(config, work, built):
        write_rejects(work.address, [*work.rejects, *built])
        raise TooManyRejectsError(
            f"{problem}; see {work.address.directory / REJECTS_TABLE}. Repair the videos, or add "
            "shards.max_reject_fraction=1 to continue without them; what is done is kept"
        )


if __name__ == "__main__":
    run_stage("shard", main)
