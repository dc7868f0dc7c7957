"""Rejects that do not outlive their cause: the index and the shards know when one is due again."""

from dataclasses import replace

import numpy as np
import pytest
from test_shard import ENCODING, plan_of

from vidflow.config.schema import Config, Trial
from vidflow.records import Reject
from vidflow.stages.locate import Address, edition_of, locate_features, locate_sweep, locate_trial
from vidflow.stages.scan import VideoIndex, VideoScanner
from vidflow.stages.shard import ShardBuilder
from vidflow.stages.transient import TRANSIENT, Limits, is_due
from vidflow.store.layout import committed_entry
from vidflow.video.ffmpeg import write_h264

LIMITS = {"timeout_seconds": 60.0, "memory_mib": 4096}
TOO_SHORT = {"timeout_seconds": 1e-6, "memory_mib": 4096}


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.mp4"
    write_h264(path, np.zeros((6, 32, 32, 3), np.uint8), fps=10)
    return path


def index_of(folder, rows, **limits) -> VideoIndex:
    VideoIndex(folder / "index", Limits(**LIMITS)).add(rows)
    return VideoIndex(folder / "index", Limits(**(LIMITS | limits)))


def test_a_video_that_timed_out_is_scanned_again_with_more_time_only(tmp_path, video):
    (row,) = VideoScanner(**LIMITS)([str(video)])
    VideoIndex(tmp_path / "index", Limits(**TOO_SHORT)).add([replace(row, reason="Timeout", **TOO_SHORT)])
    for seconds, wanted in ((1e-6, []), (1e-7, []), (1.0, [str(video)])):
        limits = Limits(timeout_seconds=seconds, memory_mib=4096)
        assert VideoIndex(tmp_path / "index", limits).missing([str(video)]) == wanted


@pytest.mark.parametrize("reason", [*TRANSIENT, "Truncated", ""])
def test_permissions_matter_to_what_could_not_be_read_and_to_nothing_else(tmp_path, video, reason):
    (row,) = VideoScanner(**LIMITS)([str(video)])
    index = index_of(tmp_path, [replace(row, reason=reason)])
    assert index.missing([str(video)]) == []
    video.chmod(0o600)
    assert index.missing([str(video)]) == ([str(video)] if reason in TRANSIENT else [])


def test_a_file_that_could_not_be_reached_is_scanned_when_it_can(tmp_path, video):
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    rows = VideoScanner(**LIMITS)([str(loop)])
    assert [row.reason for row in rows] == ["Unreadable"]
    index = index_of(tmp_path, rows)
    assert index.missing([str(loop)]) == []
    loop.unlink()
    loop.symlink_to(video)
    assert index.missing([str(loop)]) == [str(loop)]


def test_what_is_forgotten_is_scanned_again_and_the_rest_is_not(tmp_path, video):
    loop, text = tmp_path / "loop.mp4", tmp_path / "text.mp4"
    loop.symlink_to(loop)
    text.write_text("no video")
    paths = [str(video), str(loop), str(text)]
    index = index_of(tmp_path, VideoScanner(**LIMITS)(paths))
    assert index.missing(paths) == []
    assert index.forget_transient(paths) == [str(loop)]
    assert index.missing(paths) == [str(loop)]
    assert VideoIndex(tmp_path / "index", Limits(**LIMITS)).missing(paths) == [str(loop)]


def test_a_shard_knows_when_the_clip_it_left_out_is_due(tmp_path, video):
    plan = plan_of([video], "a.tar")
    entry = ShardBuilder(directory=tmp_path / "shards", **TOO_SHORT, **ENCODING)(plan)
    assert [row["reason"] for row in entry.rejects] == ["Timeout"]
    entry = committed_entry(tmp_path / "shards", "a.tar")
    assert not is_due(entry, Limits(**TOO_SHORT))
    assert is_due(entry, Limits(**LIMITS))
    video.chmod(0o600)
    assert is_due(entry, Limits(**TOO_SHORT))
    assert not is_due(ShardBuilder(directory=tmp_path / "shards", **LIMITS, **ENCODING)(plan), Limits(**LIMITS))


def test_bytes_that_changed_since_the_scan_never_carry_its_digest(tmp_path, video):
    plan = plan_of([video], "a.tar")
    write_h264(video, np.full((6, 32, 32, 3), 99, np.uint8), fps=10)
    builder = ShardBuilder(directory=tmp_path / "shards", **LIMITS, **ENCODING)
    entry = builder(plan)
    assert [row["reason"] for row in entry.rejects] == ["Changed"]
    video.unlink()
    assert [row["reason"] for row in builder(plan).rejects] == ["Changed"]
    assert is_due(entry, Limits(**LIMITS))


def test_an_edition_is_no_other_place_and_another_identity():
    config = Config(encoder=replace(Config().encoder, weights="random:0"))
    whole = Address(directory=None, settings={"a": 1})
    short = replace(whole, edition=edition_of([Reject(key="k", path="", stage="shard", reason="Timeout", message="")]))
    assert whole.identity == whole.fingerprint == short.fingerprint != short.identity
    features = [locate_features(config, "base", shards) for shards in (whole, short)]
    assert features[0].directory == features[1].directory
    assert (
        locate_trial(config, Trial(), features[0]).fingerprint != locate_trial(config, Trial(), features[1]).fingerprint
    )
    sweeps = [locate_sweep(config, {"base": each}).fingerprint for each in features]
    assert sweeps[0] != sweeps[1]


def test_final_rejects_name_no_edition():
    assert edition_of([Reject(key="k", path="", stage="shard", reason="Corrupt", message="")]) == ""
