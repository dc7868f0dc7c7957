"""Render videos with ground truth: `vidflow synth CONFIG.yaml`."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.entry import run_stage
from pipelines.ray_pool import log, map_units
from pipelines.ray_session import place, ray_session
from vidflow.config.schema import Config
from vidflow.counts import Count
from vidflow.errors import ConfigError
from vidflow.files import file_sha256
from vidflow.records import StageManifest, VideoItem
from vidflow.stages.experiment import VIDEOS_MANIFEST, Experiment
from vidflow.stages.finish import publish_manifest
from vidflow.store.layout import STAGE_MANIFEST, list_file, list_sizes, make_folder, read_json, remove_leftovers, store
from vidflow.video.manifest import write_manifest
from vidflow.video.synthetic import VideoSpec, list_videos, video_path, write_video

VIDEOS_PER_UNIT = 25


def main(experiment: Experiment) -> None:
    """Render the videos that are missing or incomplete.

    Raises:
        ConfigError: If the config names the user's own manifest.
    """
    config, address = experiment.config, experiment.videos
    if config.video.manifest is not None:
        raise ConfigError(
            f"video.manifest is {config.video.manifest}: there is nothing to render; continue with `vidflow shard`"
        )
    with experiment.exclusive():
        started = time.monotonic()
        remove_leftovers(address.directory)
        before = read_json(address.directory / STAGE_MANIFEST) or {}
        sizes = {row["file"]: row["num_bytes"] for row in before.get("files", ())}
        found, listed = list_sizes(address.directory), _list_videos(config)
        annotated = config.video.synthetic.annotations
        waiting = [
            video for video in listed if not _is_whole(video_path(address.directory, video), found, sizes, annotated)
        ]
        worker_seconds = _render(config, address.directory, waiting)
        items = _list_items(address.directory, listed, annotated)
        table = address.directory / VIDEOS_MANIFEST
        make_folder(table.parent)
        write_manifest(table, items)
        store(table)
        wall_seconds = time.monotonic() - started
        found = list_sizes(address.directory)
        num_bytes = sum(found[item.path.name] for item in items)
        paths = [path for item in items for path in (item.path, item.annotations) if path is not None]
        manifest = StageManifest(
            stage="synth",
            fingerprint=address.fingerprint,
            settings=address.settings,
            num_files=len(items),
            num_clips=len(items),
            num_bytes=num_bytes,
            # The seconds of a killed run are not known, because single videos have no manifest.
            worker_seconds=before.get("worker_seconds", 0.0) + worker_seconds,
            wall_seconds=wall_seconds,
            files=[list_file(path) for path in [*paths, table]],
            details={"table_sha256": file_sha256(table)},
        )
        publish_manifest(address, manifest)
        experiment.published("synth")
        log.info(
            "synth: %d videos, %.1f MB -> %s (%.1f videos/s)%s",
            len(waiting),
            num_bytes / 1e6,
            address.directory,
            len(waiting) / wall_seconds,
            experiment.then("shard"),
        )


def _list_videos(config: Config) -> list[VideoSpec]:
    synthetic = config.video.synthetic
    return list_videos(num_train=synthetic.num_train, num_val=synthetic.num_val, seed=synthetic.seed)


def _render(config: Config, directory: Path, waiting: Sequence[VideoSpec]) -> float:
    """Render videos and return the seconds that workers spent."""
    if not waiting:
        return 0.0
    units = [waiting[start : start + VIDEOS_PER_UNIT] for start in range(0, len(waiting), VIDEOS_PER_UNIT)]
    settings = dataclasses.asdict(config.video.synthetic)
    for name in ("num_train", "num_val", "seed"):
        settings.pop(name)
    build = functools.partial(_build_renderer, directory, settings)
    with ray_session(config):
        sizes = [len(unit) for unit in units]
        return sum(map_units(build, units, place(config, "shard"), name="synth", sizes=sizes, counted="videos"))


def _list_items(directory: Path, listed: Sequence[VideoSpec], annotated: bool) -> list[VideoItem]:
    """Return the rows of the videos' manifest."""
    return [
        VideoItem(
            path=path,
            label=video.label,
            split=video.split,
            annotations=path.with_suffix(".npz") if annotated else None,
        )
        for video in listed
        for path in [video_path(directory, video)]
    ]


def _is_whole(video: Path, found: Mapping[str, int], sizes: Mapping[str, int], annotations: bool) -> bool:
    """Whether a video and its ground truth exist and have the sizes in the stage's manifest, if there is a manifest."""
    names = [video.name, video.with_suffix(".npz").name] if annotations else [video.name]
    return all(name in found and found[name] == sizes.get(name, found[name]) for name in names)


def _build_renderer(directory: Path, settings: dict[str, Any]) -> Callable[[Sequence[VideoSpec], Count], float]:
    def render(videos: Sequence[VideoSpec], count: Count) -> float:
        started = time.perf_counter()
        make_folder(directory)
        for video in videos:
            item = write_video(directory, video, **settings)
            for path in (item.annotations, item.path):  # the video last
                if path is not None:
                    store(path)
            count(1)
        return time.perf_counter() - started

    return render


if __name__ == "__main__":
    run_stage("synth", main)
