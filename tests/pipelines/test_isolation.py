"""Clips and files that kill the process that works on them: they are found and left out, and all else is made."""

import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from pipelines.isolation import map_isolated
from pipelines.placement import Placement

DEADLY = """
import os, signal, sys
from pipelines import cli, extract, shard
from pipelines.ray_session import ray_session
from vidflow.config.schema import Config
from vidflow.stages.extract import Extractor
from vidflow.stages.scan import VideoScanner
from vidflow.stages.shard import ShardBuilder

SCANNED, SHARDED, EXTRACTED = sys.argv[1:4]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class DeadlyScanner(VideoScanner):
    def _scan(self, path, is_video):
        return die() if SCANNED in path else super()._scan(path, is_video)

class DeadlyBuilder(ShardBuilder):
    def _encode(self, clip):
        return die() if SHARDED in clip.path else super()._encode(clip)

class DeadlyExtractor(Extractor):
    def _encode(self, samples, *rest):
        deadly = (die() if EXTRACTED in each.metadata["source"] else each for each in samples)
        return super()._encode(deadly, *rest)

def build(*args, original=extract.build_extractor):
    extractor = original(*args)
    extractor.__class__ = DeadlyExtractor
    return extractor

shard.VideoScanner, shard.ShardBuilder, extract.build_extractor, shard.VIDEOS_PER_SCAN = (
    DeadlyScanner, DeadlyBuilder, build, 4
)
with ray_session(Config()):
    for command in ("synth", "shard", "extract"):
        try:
            cli.main([command, *sys.argv[4:]])
        except SystemExit as left:
            assert not left.code
"""


def test_an_item_that_kills_its_worker_is_given_up_and_the_others_are_done(in_one_ray, caplog):
    def build():
        def work(batch, count):
            if 2 in batch:
                os.kill(os.getpid(), signal.SIGKILL)
            return list(batch)

        return work

    placement = Placement(part="shard", num_cpus=1, num_gpus=0, device="cpu", workers=1, attempts=1, words="1 CPU")
    results = map_isolated(build, [[1, 2]], placement, name="scan", counted="files", give_up=lambda item: [-item])
    assert sorted(map(tuple, results)) == [(-2,), (1,)]
    assert "scan: 1 of the files kills its worker; left out" in caplog.messages


@pytest.mark.slow
def test_a_file_and_clips_that_kill_their_worker_in_every_stage_become_rejects(tiny, here):
    few = ["video.synthetic.num_train=12", "video.synthetic.num_val=6", "shards.clips_per_shard=6"]
    few += ["shards.max_reject_fraction=1", "resources.shard.attempts=1", "resources.extract.attempts=1"]
    deadly = ["train_00003_", "train_00007_", "train_00011_"]
    command = [sys.executable, "-c", DEADLY, *deadly, str(tiny), *few]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert done.returncode == 0
    assert max(map(len, done.stderr.splitlines())) < 1024
    listed = [line.split() for line in here("rejects", "list", tiny, *few).stdout.splitlines() if ".mp4" in line]
    assert [words[:2] for words in listed] == [[stage, "WorkerDied"] for stage in ("scan", "shard", "extract")]
    assert [name in words[2] for words, name in zip(listed, deadly, strict=True)] == [True] * 3
    root = tiny.parent / "root"
    assert pq.read_table(next(root.glob("features/*/clips.parquet"))).num_rows == 18 - 3
    assert not list(root.glob("*/*/.*"))  # what was tried is gone
