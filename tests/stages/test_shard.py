"""Sharding in one worker, from videos to committed tars."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from vidflow.files import file_state
from vidflow.stages.clips import ChosenClip, ShardUnit
from vidflow.stages.shard import ShardBuilder
from vidflow.stages.transient import Limits, is_due
from vidflow.store.layout import committed_entry
from vidflow.store.shards import read_shard
from vidflow.video.encode import decompress
from vidflow.video.ffmpeg import write_h264

ENCODING = {"decoder": "decord", "size": 32, "resize_filter": "bilinear", "image_format": "jpg", "jpeg_quality": 90}


def unit_of(videos: list[Path], file: str) -> ShardUnit:
    clips = [
        ChosenClip(
            key=video.stem,
            path=str(video),
            sha256="",
            label="a",
            label_index=0,
            split="train",
            times=(0.0, 0.2),
            annotations="",
            annotations_sha256="",
            stamps={str(video): file_state(video).stamp},
        )
        for video in videos
    ]
    return ShardUnit(file=file, clips=tuple(clips))


def children() -> set[str]:
    return {
        pid for task in Path(f"/proc/{os.getpid()}/task").iterdir() for pid in (task / "children").read_text().split()
    }


def test_one_decoder_process_serves_all_shards_and_a_broken_video_is_a_reject(tmp_path):
    videos = [tmp_path / f"{number}.mp4" for number in range(4)]
    for number, video in enumerate(videos):
        write_h264(video, np.full((6, 32, 32, 3), 40 * number, np.uint8), fps=10)
    videos[1].write_bytes(b"no video")
    before = children()
    builder = ShardBuilder(directory=tmp_path / "shards", timeout_seconds=60, memory_mib=2048, **ENCODING)
    first = builder(unit_of(videos[:2], "a.tar"))
    started = children() - before
    second = builder(unit_of(videos[2:], "b.tar"))
    assert len(started) == 1
    assert children() - before == started, "the decoder was started again"
    assert (first.num_clips, second.num_clips) == (1, 2)
    assert [reject["path"] for reject in first.rejects] == [str(videos[1])]
    committed = committed_entry(tmp_path / "shards", "b.tar")
    assert committed is not None
    assert committed.without_members() == second
    assert list(committed.details["members"]) == ["2", "3"]
    assert [sample.key for sample in read_shard(tmp_path / "shards" / "b.tar")] == ["2", "3"]


def test_a_part_of_a_unit_commits_nothing_and_a_clip_that_kills_its_worker_is_a_reject(tmp_path):
    videos = [tmp_path / f"{number}.mp4" for number in range(3)]
    for number, video in enumerate(videos):
        write_h264(video, np.full((6, 32, 32, 3), 40 * number, np.uint8), fps=10)
    shards = tmp_path / "shards"
    builder = ShardBuilder(directory=shards, timeout_seconds=60, memory_mib=2048, **ENCODING)
    unit = unit_of(videos, "a.tar")
    assert builder(replace(unit, only=(1, 3))).num_clips == 2
    assert list(shards.iterdir()) == []
    entry = builder(replace(unit, left_out=(1,)))
    assert [sample.key for sample in read_shard(shards / "a.tar")] == ["0", "2"]
    assert [(reject["key"], reject["reason"]) for reject in entry.rejects] == [("1", "WorkerDied")]
    limits = Limits(timeout_seconds=60, memory_mib=2048)
    assert not is_due(entry, limits)
    assert is_due(entry, replace(limits, memory_mib=4096))


def test_each_clip_shows_its_own_square_and_says_which(tmp_path):
    frames = np.zeros((6, 32, 96, 3), np.uint8)
    for place in range(3):
        frames[:, :, 32 * place : 32 * (place + 1)] = 80 * place
    write_h264(tmp_path / "wide.mp4", frames, fps=10)
    (clip,) = unit_of([tmp_path / "wide.mp4"], "a.tar").clips
    crops = ("left", "center", "right")
    clips = tuple(replace(clip, key=f"{number}", crop=crop) for number, crop in enumerate(crops))
    encoding = {**ENCODING, "decoder": "pyav", "crop": "three"}
    builder = ShardBuilder(directory=tmp_path / "shards", timeout_seconds=60, memory_mib=2048, **encoding)
    assert builder(ShardUnit(file="a.tar", clips=clips)).num_clips == 3
    shown = {each.metadata["crop"]: decompress(each.images[0]).mean() for each in read_shard(tmp_path / "shards/a.tar")}
    assert [round(shown[crop] / 80) for crop in crops] == [0, 1, 2]
