"""Clips and files that kill the process that works on them: they are found and left out, and all else is made."""

import os
import signal
import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
import pytest

from pipelines.isolation import map_isolated
from pipelines.placement import Placement

DEADLY = """
import os, signal, sys
from pipelines import cli, extract, shard
from vidflow.stages.extract import Extractor
from vidflow.stages.scan import VideoScanner
from vidflow.stages.shard import ShardBuilder

VIDEO, SHARDED, EXTRACTED = sys.argv[1:4]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class DeadlyScanner(VideoScanner):
    def _scan(self, path, is_video):
        return die() if path == VIDEO else super()._scan(path, is_video)

class DeadlyBuilder(ShardBuilder):
    def _encode(self, clip):
        return die() if clip.key == SHARDED else super()._encode(clip)

class DeadlyExtractor(Extractor):
    def _encode(self, samples, rejects, count):
        return super()._encode((die() if each.key == EXTRACTED else each for each in samples), rejects, count)

def build(*args, original=extract.build_extractor):
    extractor = original(*args)
    extractor.__class__ = DeadlyExtractor
    return extractor

shard.VideoScanner, shard.ShardBuilder, extract.build_extractor, shard.VIDEOS_PER_SCAN = (
    DeadlyScanner, DeadlyBuilder, build, 4
)
codes = []
for command in ("shard", "extract"):
    try:
        cli.main([command, *sys.argv[4:]])
    except SystemExit as left:
        codes.append(left.code)
sys.exit(max(codes))
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
def test_a_file_and_clips_that_kill_their_worker_in_every_stage_become_rejects(finished_experiment, tiny, vidflow):
    assert vidflow("synth", tiny).returncode == 0
    rows = pq.read_table(next(finished_experiment.root.glob("shards/*/clips.parquet"))).to_pylist()
    sharded, extracted = rows[3]["key"], rows[30]["key"]
    root = tiny.parent / "root"
    videos = sorted(map(str, root.glob("videos/*/*.mp4")))
    few = ["shards.clips_per_shard=6", "shards.max_reject_fraction=1"]
    few += ["resources.shard.attempts=2", "resources.extract.attempts=2"]
    command = [sys.executable, "-c", textwrap.dedent(DEADLY), videos[5], sharded, extracted, str(tiny), *few]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert done.returncode == 0
    assert max(map(len, done.stderr.splitlines())) < 1024
    listed = vidflow("rejects", "list", tiny, *few).stdout.splitlines()
    left_out = [line.split()[:2] for line in listed if "WorkerDied" in line.split()[:2]]
    assert left_out == [["scan", "WorkerDied"], ["shard", "WorkerDied"], ["extract", "WorkerDied"]]
    kept = {row["key"] for row in pq.read_table(next(root.glob("features/*/clips.parquet"))).to_pylist()}
    everything = {row["key"] for row in rows}
    assert kept < everything
    assert len(everything - kept) == 3
    assert {sharded, extracted} < everything - kept
    assert not list(root.glob("*/*/.*"))  # what was tried is gone
