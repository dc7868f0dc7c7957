"""Rejects through the command: listed, exported, and tried again when their cause may be gone."""

import csv
import json
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from vidflow.video.ffmpeg import write_h264

CONFIG = """\
root: {folder}/root
video: {{manifest: {folder}/manifest.csv, sampling: {{num_frames: 4}}, size: 32}}
shards: {{max_reject_fraction: 1.0, clips_per_shard: 2}}
encoder: {{img_size: 32, weights: 'random:0', name: test_vit, dtype: float32}}
features: {{base: {{depths: [0]}}}}
trials: {{trial: {{num_layers: 1, num_heads: 2, readout_dim: 32, readout_heads: 2, epochs: 1}}, axes: {{core: [mean]}}}}
"""
NO_TIME = "resources.decode_timeout_seconds=0.001"  # the least that is allowed
ROWS = [("a.mp4", "x", "train"), ("b.mp4", "y", "val"), ("c.mp4", "y", "train"), ("text\x1b[31m.mp4", "x", "train")]
MALFORMED = ("../outside.mp4", "x", "train")


def write_manifest(folder: Path, rows) -> None:
    with (folder / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])


@pytest.fixture
def slow_to_read(config, tmp_path):
    """The same config, of videos that nothing hashes or decodes within a millisecond: noise, and 64 MiB of zeros."""
    rng = np.random.default_rng(0)
    for name, _, _ in ROWS[:3]:
        write_h264(tmp_path / name, rng.integers(0, 256, (40, 256, 256, 3), np.uint8), fps=10)
        with (tmp_path / name).open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.write(struct.pack(">I4s", 1 << 26, b"free"))  # a box that says nothing, of this many bytes
            file.truncate(end + (1 << 26))
    return config


@pytest.fixture
def config(tmp_path):
    """Three good videos and one that is none."""
    for number, (name, _, _) in enumerate(ROWS[:3]):
        write_h264(tmp_path / name, np.full((40, 128, 128, 3), 40 * number, np.uint8), fps=10)
    (tmp_path / ROWS[3][0]).write_text("no video")
    write_manifest(tmp_path, ROWS)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


def rejects(config: Path, action: str, *arguments: str) -> int:
    """Do what `vidflow rejects` does, in this process, and return the exit code."""
    with pytest.raises(SystemExit) as left:
        main(["rejects", action, str(config), *arguments])
    return int(left.value.code or 0)


def reasons(done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_with_more_time_what_timed_out_is_tried_again_and_with_the_same_it_is_not(slow_to_read, vidflow):
    empty = vidflow("shard", slow_to_read, NO_TIME)
    assert (empty.returncode, "EMPTY, all 4 rows are rejected" in empty.stderr) == (0, True), empty.stderr
    assert "3 Timeout" in empty.stderr or "4 Timeout" in empty.stderr  # the text is refused sooner than any limit
    again = vidflow("run", slow_to_read, NO_TIME)
    assert (again.returncode, "shard: already done" in again.stderr) == (1, True)
    assert "no clip is left, all 4 rows are rejected" in again.stderr
    assert "Traceback" not in again.stderr
    done = vidflow("shard", slow_to_read)
    assert (done.returncode, "3 clips in 2 shards, 1 rejects" in done.stderr) == (0, True), done.stderr
    listed = vidflow("rejects", "list", slow_to_read)
    assert reasons(listed) == "1 rejects: 1 NotAVideo"
    assert r"text\x1b[31m.mp4" in listed.stdout
    assert "\x1b" not in listed.stdout


@pytest.mark.slow
def test_clips_that_timed_out_are_tried_again_with_more_time_and_on_retry(slow_to_read, vidflow):
    early = vidflow("rejects", "list", slow_to_read)
    assert (early.returncode, "run `vidflow shard " in early.stderr) == (1, True)
    assert vidflow("shard", slow_to_read).returncode == 0
    # The scans are there now, so that these clips time out as they are decoded.
    other = ("video.size=40", NO_TIME)
    assert "(3 Timeout, 1 NotAVideo)" in vidflow("shard", slow_to_read, *other).stderr
    assert "already done" in vidflow("shard", slow_to_read, *other).stderr
    retry = vidflow("rejects", "retry", slow_to_read, *other)
    start = "0 files to scan and 2 shards to make again; next: vidflow run "
    assert retry.stdout.startswith(start)
    assert "(3 Timeout, 1 NotAVideo)" in vidflow("shard", slow_to_read, *other).stderr
    done = vidflow("shard", slow_to_read, other[0])
    assert (done.returncode, "3 clips in 2 shards, 1 rejects" in done.stderr) == (0, True), done.stderr
    assert "nothing was left out" in vidflow("rejects", "retry", slow_to_read, other[0]).stdout
    assert "already done" in vidflow("shard", slow_to_read, other[0]).stderr


def test_what_was_left_out_is_exported_as_any_table(config, tmp_path, capsys):
    write_manifest(tmp_path, [MALFORMED])  # nothing is to be scanned
    readers = {
        "csv": lambda path: list(csv.DictReader(path.open(newline=""))),
        "jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        "parquet": lambda path: pq.read_table(path).to_pylist(),
    }
    for suffix, read in readers.items():
        path = tmp_path / f"rejects.{suffix}"
        assert rejects(config, "export", "--to", str(path)) == 0
        assert capsys.readouterr().out == f"1 rejects -> {path}\n"
        (row,) = read(path)
        assert (row["stage"], row["reason"], row["path"]) == ("manifest", "PathEscapes", MALFORMED[0])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("list", "--to", "a.csv"), "`export` wants --to FILE"),
        (("export",), "`export` wants --to FILE"),
        (("export", "--to", "rejects.txt"), "ends in .csv, .jsonl, .parquet"),
        (("export", "--to", "manifest.csv"), "is the manifest"),
        (("export", "--to", "s3://bucket/x.csv"), "--to: got a URL, wanted a path on a disk"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    config, tmp_path, arguments, complaint, capsys, monkeypatch
):
    write_manifest(tmp_path, [MALFORMED])
    monkeypatch.chdir(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
    given = [str(tmp_path / word) if "." in word and ":" not in word else word for word in arguments[1:]]
    assert rejects(config, arguments[0], *given) == 2
    assert complaint in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.iterdir()) == before


def test_what_trials_want_of_a_manifest_is_said_before_a_video_is_opened(config, here, tmp_path):
    write_manifest(tmp_path, [("a.mp4", "x", "train"), ("b.mp4", "", "train"), ("c.mp4", "x", "valid")])
    for arguments in (("run", config), ("run", config, "--print"), ("sweep", config, "--print")):
        done = here(*arguments)
        assert done.returncode == 2
        assert "no row of split 'val'; got 'train' (2 rows), 'valid' (1 rows)" in done.stderr
        assert "1 of 2 rows have no label, such as" in done.stderr
    done = here("run", config, "trials.axes.task=[classification,depth]")
    assert "2 of 2 rows have no annotations, such as" in done.stderr
    assert "the task depth learns from it" in done.stderr
    assert not (tmp_path / "root").exists()


def test_a_manifest_of_malformed_rows_alone_ends_with_3_or_as_an_empty_set(config, here, tmp_path):
    write_manifest(tmp_path, [("../a.mp4", "x", "train"), ("b.mp4", "x", "")])
    done = here("shard", config, "shards.max_reject_fraction=0.5")
    assert done.returncode == 3
    assert "2 of 2 rows are rejected (1 PathEscapes, 1 BadRow)" in done.stderr
    done = here("shard", config)
    assert (done.returncode, "EMPTY, all 2 rows are rejected" in done.stderr) == (0, True)
    assert reasons(here("rejects", "list", config)) == "2 rejects: 1 PathEscapes, 1 BadRow"


@pytest.mark.slow
def test_a_clip_that_was_left_out_comes_back_and_only_its_files_are_made_again(config, vidflow, tmp_path):
    write_h264(tmp_path / "c.mp4", np.zeros((4, 4096, 4096, 3), np.uint8), fps=10)
    write_manifest(tmp_path, ROWS[:3])
    assert vidflow("shard", config, "video.size=40").returncode == 0  # scans it while there is memory
    settings = ("video.decoder=pyav", "shards.clips_per_shard=1")
    little = ("resources.decode_memory_mib=256", *settings)
    done = vidflow("run", config, *little)
    assert done.returncode == 0, done.stderr
    assert reasons(vidflow("rejects", "list", config, *little)) == "1 rejects: 1 OutOfMemory"
    root = tmp_path / "root"
    times = {path: path.stat().st_mtime_ns for path in root.glob("[sf]*/*/*") if path.suffix in (".tar", ".arrow")}
    trials = set(os.listdir(root / "trials"))
    assert vidflow("run", config, *little).stderr.count("already done") == 4
    done = vidflow("run", config, *settings)
    assert done.returncode == 0, done.stderr
    assert "no rejects" in vidflow("rejects", "list", config, *settings).stdout
    changed = [path.suffix for path, before in times.items() if path.stat().st_mtime_ns != before]
    assert sorted(changed) == [".arrow", ".tar"]
    assert trials < set(os.listdir(root / "trials")), "a trial without the clip passed for one with it"
    assert vidflow("run", config, *settings).stderr.count("already done") == 4
