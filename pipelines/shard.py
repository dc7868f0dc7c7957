"""Scan, decode and pack videos: `vidflow shard CONFIG.yaml`."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.entry import run_stage
from pipelines.ray_pool import commit_units, log, map_units, ray_session
from vidflow.config.schema import Config
from vidflow.errors import TooManyRejectsError
from vidflow.records import Reject
from vidflow.stages.clips import ShardUnit
from vidflow.stages.finish import REJECTS_TABLE, finish_stage, write_rejects
from vidflow.stages.locate import (
    ShardWork,
    count_reasons,
    decode_limits,
    edition_of,
    list_shard_work,
    locate_shards,
    open_index,
    read_items,
    root_of,
    scanned_paths,
)
from vidflow.stages.reject_limit import built_rejects, limit_problem
from vidflow.stages.scan import VideoScanner
from vidflow.stages.shard import ShardBuilder
from vidflow.stages.transient import is_due
from vidflow.store.features import ClipRow
from vidflow.store.layout import STAGE_MANIFEST, FileEntry, exclusive, publish_json

VIDEOS_PER_SCAN = 64


def main(config: Config) -> None:
    """Make the shards that are not there yet.

    Raises:
        ConfigError: If the manifest cannot be read.
        TooManyRejectsError: If more than `shards.max_reject_fraction` of its rows are rejected.
    """
    with exclusive(root_of(config)):
        work = locate_shards(config)
        if work is not None and _is_done(config, work):
            return
        with ray_session(config):
            work = work or _scan(config)
            if not _is_done(config, work):
                _build(config, work)


def _is_done(config: Config, work: ShardWork) -> bool:
    """Whether the shards are there; brings the table of rejects up to date and refuses if it is too long."""
    manifest = work.address.manifest
    built = built_rejects(manifest) if manifest is not None else []
    _check_rejects(config, work, built)
    if manifest is None:
        return False
    # Broken videos may have come or gone since: they change the table, not the shards.
    write_rejects(work.address, [*work.rejects, *built])
    publish_json(work.address.directory / STAGE_MANIFEST, {**manifest, "plan_rejects": work.rejects_digest})
    log.info("shard: already done, %d clips in %s", manifest["num_clips"], work.address.directory)
    return True


def _scan(config: Config) -> ShardWork:
    """Hash and probe what has not been, then choose clips."""
    items, rejects = read_items(config)
    index = open_index(config)
    paths = index.missing(scanned_paths(items))
    units = [paths[start : start + VIDEOS_PER_SCAN] for start in range(0, len(paths), VIDEOS_PER_SCAN)]
    build = functools.partial(
        VideoScanner,
        timeout_seconds=config.resources.decode_timeout_seconds,
        memory_mib=config.resources.decode_memory_mib,
    )
    started = time.monotonic()
    for rows in map_units(build, units, config.resources.shard, name="scan"):
        index.add(rows)
    log.info("scan: %d files in %.1f s", len(paths), time.monotonic() - started)
    return list_shard_work(config, items, rejects, index)


def _build(config: Config, work: ShardWork) -> None:
    started = time.monotonic()
    build = build_shard_builder(config, work.address.directory)
    limits = decode_limits(config)
    entries, made = commit_units(
        config,
        work.address.directory,
        build,
        work.units,
        config.resources.shard,
        name="shard",
        is_current=lambda _, entry: not is_due(entry, limits),
    )
    rejects = [Reject(**row) for entry in entries for row in entry.rejects]
    _check_rejects(config, work, rejects)
    finish_stage(
        replace(work.address, edition=edition_of(rejects)),
        stage="shard",
        entries=entries,
        clips=[row for unit, entry in zip(work.units, entries, strict=True) for row in _clip_rows(unit, entry)],
        rejects=[*work.rejects, *rejects],
        class_names=work.class_names,
        plan_rejects=work.rejects_digest,
        build_rejects=[asdict(reject) for reject in rejects],
    )
    num_clips = sum(entry.num_clips for entry in made)
    if not any(entry.num_clips for entry in entries):
        log.warning(
            "shard: EMPTY, all %d rows are rejected (%s); `vidflow rejects list` says why",
            work.num_rows,
            count_reasons([*work.rejects, *rejects]),
        )
        return
    log.info(
        "shard: %d clips in %d shards, %d rejects -> %s (%.1f clips/s); next: vidflow extract",
        num_clips,
        len(made),
        len(work.rejects) + len(rejects),
        work.address.directory,
        num_clips / (time.monotonic() - started),
    )


def build_shard_builder(config: Config, directory: Path) -> Callable[[], ShardBuilder]:
    """Return what makes a worker of this stage."""
    return functools.partial(
        ShardBuilder,
        directory=directory,
        timeout_seconds=config.resources.decode_timeout_seconds,
        memory_mib=config.resources.decode_memory_mib,
        decoder=config.video.decoder,
        size=config.video.size,
        resize_filter=config.video.resize_filter,
        image_format=config.shards.image_format,
        jpeg_quality=config.shards.jpeg_quality,
    )


def _clip_rows(unit: ShardUnit, entry: FileEntry) -> list[ClipRow]:
    left_out = {row["key"] for row in entry.rejects}
    kept = [clip for clip in unit.clips if clip.key not in left_out]
    return [
        ClipRow(key=clip.key, label=clip.label_index, split=clip.split, file=unit.file, row=row)
        for row, clip in enumerate(kept)
    ]


def _check_rejects(config: Config, work: ShardWork, built: Sequence[Reject]) -> None:
    """Refuse to go on when too much is broken."""
    if problem := limit_problem(config, work, built):
        write_rejects(work.address, [*work.rejects, *built])
        raise TooManyRejectsError(
            f"{problem}; see {work.address.directory / REJECTS_TABLE}, repair the videos or raise the limit; "
            "what is done is kept"
        )


if __name__ == "__main__":
    run_stage("shard", main)
