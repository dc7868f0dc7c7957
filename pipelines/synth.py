"""Render videos with ground truth: `vidflow synth CONFIG.yaml`."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.entry import run_stage
from pipelines.ray_pool import log, map_units, ray_session
from vidflow.config.schema import Config
from vidflow.errors import ConfigError
from vidflow.files import file_sha256
from vidflow.records import VideoItem
from vidflow.stages.locate import VIDEOS_MANIFEST, locate_videos, root_of
from vidflow.store.layout import (
    STAGE_MANIFEST,
    exclusive,
    has_size,
    publish_json,
    read_json,
    remove_leftovers,
)
from vidflow.video.manifest import write_manifest
from vidflow.video.synthetic import PlannedVideo, plan_videos, video_path, write_video

VIDEOS_PER_UNIT = 25


def main(config: Config) -> None:
    """Render the videos that are not there yet, or no longer whole.

    Raises:
        ConfigError: If the config names a manifest of its own.
    """
    if config.video.manifest is not None:
        raise ConfigError(
            f"video.manifest is {config.video.manifest}: there is nothing to render; go on with `vidflow shard`"
        )
    address = locate_videos(config)
    with exclusive(root_of(config)):
        started = time.monotonic()
        address.directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(address.directory)
        items, made = _render(config, address.directory)
        table = address.directory / VIDEOS_MANIFEST
        write_manifest(table, items)
        seconds = time.monotonic() - started
        num_bytes = sum(item.path.stat().st_size for item in items)
        paths = [path for item in items for path in (item.path, item.annotations) if path is not None]
        manifest = {
            "stage": "synth",
            "fingerprint": address.fingerprint,
            "settings": address.settings,
            "num_files": len(items),
            "num_clips": len(items),
            "num_bytes": num_bytes,
            "seconds": seconds,
            "files": [{"file": path.name, "num_bytes": path.stat().st_size} for path in [*paths, table]],
            "table_sha256": file_sha256(table),
        }
        publish_json(address.directory / STAGE_MANIFEST, manifest)
        log.info(
            "synth: %d videos, %.1f MB -> %s (%.1f videos/s); next: vidflow shard",
            made,
            num_bytes / 1e6,
            address.directory,
            made / seconds,
        )


def _render(config: Config, directory: Path) -> tuple[list[VideoItem], int]:
    """Return all videos in order, and how many were rendered now."""
    synthetic = config.video.synthetic
    sizes = {row["file"]: row["num_bytes"] for row in (read_json(directory / STAGE_MANIFEST) or {}).get("files", ())}
    planned = plan_videos(num_train=synthetic.num_train, num_val=synthetic.num_val, seed=synthetic.seed)
    waiting = [video for video in planned if not _is_whole(video_path(directory, video), sizes, synthetic.annotations)]
    units = [waiting[start : start + VIDEOS_PER_UNIT] for start in range(0, len(waiting), VIDEOS_PER_UNIT)]
    settings = dataclasses.asdict(synthetic)
    for name in ("num_train", "num_val", "seed"):
        settings.pop(name)
    build = functools.partial(_build_renderer, directory, settings)
    if units:
        with ray_session(config):
            for _ in map_units(build, units, config.resources.shard, name="synth"):
                pass
    items = [
        VideoItem(
            path=path,
            label=video.label,
            split=video.split,
            annotations=path.with_suffix(".npz") if synthetic.annotations else None,
        )
        for video in planned
        for path in [video_path(directory, video)]
    ]
    return items, len(waiting)


def _is_whole(video: Path, sizes: Mapping[str, int], annotations: bool) -> bool:
    """Whether a video and its ground truth are there, and have the sizes that the stage's manifest states, if any."""
    paths = [video, video.with_suffix(".npz")] if annotations else [video]
    return all(path.exists() and has_size(path, sizes.get(path.name, path.stat().st_size)) for path in paths)


def _build_renderer(directory: Path, settings: dict[str, Any]) -> Callable[[Sequence[PlannedVideo]], int]:
    def render(videos: Sequence[PlannedVideo]) -> int:
        for video in videos:
            write_video(directory, video, **settings)
        return len(videos)

    return render


if __name__ == "__main__":
    run_stage("synth", main)
